// SPDX-License-Identifier: Apache-2.0
#include "kernels/rounding.h"

#include "kernels/column_lanes.h"
#include "kernels/row_tiles.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kMinProductsPerThread = 1 << 18;

// The grids of the rows of a tile, lane by lane; lanes beyond the rows repeat the last one.
class TileGrids {
 public:
  explicit TileGrids(const ColumnView& grids)
      : grids_(grids),
        scale_(grids.groups * kTileRows),
        lower_(grids.table ? 0 : grids.groups * kTileRows),
        upper_(grids.table ? 0 : grids.groups * kTileRows),
        zero_point_(grids.table ? 0 : grids.groups * kTileRows),
        table_(grids.levels * kTileRows),
        bounds_(grids.levels * kTileRows) {}

  void load(int64_t row, int64_t count) {
    for (int64_t l = 0; l < kTileRows; ++l) {
      const int64_t r = row + least(l, count - 1);
      for (int64_t g = 0; g < grids_.groups; ++g) {
        const int64_t entry = r * grids_.scale_stride + g, at = g * kTileRows + l;
        scale_[at] = grids_.scale[entry];
        if (grids_.table) continue;
        lower_[at] = grids_.lower[entry];
        upper_[at] = grids_.upper[entry];
        zero_point_[at] = grids_.zero_point[entry];
      }
      for (int64_t k = 0; k < grids_.levels; ++k) {
        table_[k * kTileRows + l] = grids_.table[r * grids_.table_stride + k];
        if (k + 1 < grids_.levels) bounds_[k * kTileRows + l] = grids_.bounds[r * grids_.bounds_stride + k];
      }
    }
  }

  Code<kTileRows> find(const double* x, int64_t column) const {
    const int64_t at = grids_.group ? grids_.group[column] * kTileRows : 0;
    if (grids_.table) {
      const CodebookLanes<1> lanes{scale_.at(0), table_.at(0), bounds_.at(0), grids_.levels, kTileRows};
      return lanes.find<kTileRows>(x, at);
    }
    const AffineLanes lanes{scale_.at(0), lower_.at(0), upper_.at(0), zero_point_.at(0)};
    return lanes.find<kTileRows>(x, at);
  }

 private:
  const ColumnView& grids_;
  Scratch<float> scale_, lower_, upper_;
  Scratch<int32_t> zero_point_;
  Scratch<float> table_, bounds_;
};

// Some rows, from the first column to the last.
class Strip {
 public:
  Strip(const RoundingArgs& args, int64_t row)
      : args_(args),
        row_(row),
        rows_(least(kStripRows, args.rows - row)),
        tiles_((rows_ + kTileRows - 1) / kTileRows),
        state_(tiles_ * padded(args.columns) * kTileRows),
        errors_(tiles_ * kBlock * kTileRows),
        grids_(args.grids) {}

  void round() {
    read();
    for (int64_t first = 0; first < args_.columns; first += kBlock) {
      const int64_t width = least(kBlock, args_.columns - first);
      for (int64_t t = 0; t < tiles_; ++t) round_block(t, first, width);
      subtract_block(args_.factor, args_.columns, first, width, first + width, tiles_, errors_.at(0),
                     kBlock * kTileRows, state_.at(0));
    }
  }

 private:
  double* column(int64_t tile, int64_t c) const { return state_.at((tile * padded(args_.columns) + c) * kTileRows); }
  int64_t lanes(int64_t tile) const { return least(kTileRows, rows_ - tile * kTileRows); }

  void read() {
    for (int64_t r = 0; r < rows_; ++r) {
      const float* from = args_.weights + (row_ + r) * args_.columns;
      double* to = column(r / kTileRows, 0) + r % kTileRows;
      for (int64_t c = 0; c < args_.columns; ++c) to[c * kTileRows] = static_cast<double>(from[c]);
    }
  }

  // Columns of a block lose their products at once, those behind it when the block is done.
  void round_block(int64_t tile, int64_t first, int64_t width) {
    const int64_t row = row_ + tile * kTileRows;
    grids_.load(row, lanes(tile));
    for (int64_t k = 0; k < width; ++k) {
      const int64_t c = first + k;
      const double* factor = args_.factor + c * args_.columns;
      double* error = errors_.at((tile * kBlock + k) * kTileRows);
      const double* weight = column(tile, c);
      const Code<kTileRows> found = grids_.find(weight, c);
      for (int64_t l = 0; l < kTileRows; ++l) {
        error[l] = (weight[l] - static_cast<double>(found.value[l])) / factor[c];
      }
      for (int64_t l = 0; l < lanes(tile); ++l) args_.codes[(row + l) * args_.columns + c] = found.code[l];
      subtract_from(column(tile, c + 1), error, factor + c + 1, width - k - 1);
    }
  }

  static void subtract_from(double* state, const double* error, const double* factor, int64_t count) {
    const simd::Doubles first = load(error), second = load(error + simd::kDoubles);
    for (int64_t j = 0; j < count; ++j, state += kTileRows) {
      const double element = factor[j];
      store(state, load(state) - first * element);
      store(state + simd::kDoubles, load(state + simd::kDoubles) - second * element);
    }
  }

  const RoundingArgs& args_;
  int64_t row_, rows_, tiles_;
  Scratch<double> state_, errors_;
  TileGrids grids_;
};

void round_columns(const RoundingArgs& args) {
  const int64_t products = args.columns * args.columns / 2 * kStripRows;
  parallel_for((args.rows + kStripRows - 1) / kStripRows, kMinProductsPerThread / (products + 1) + 1,
               [&](int64_t strip) { Strip(args, strip * kStripRows).round(); });
}

}  // namespace

extern const RoundingTable rounding_table = {.round_columns = round_columns};

}  // namespace detent::DETENT_ISA
