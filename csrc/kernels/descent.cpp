// SPDX-License-Identifier: Apache-2.0
#include "kernels/descent.h"

#include "kernels/column_lanes.h"
#include "kernels/row_tiles.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kScan = 16;  // columns tried together, until one of them changes
constexpr int64_t kLate = 32;  // columns whose changes reach the others together: their rows of H stay in a cache
static_assert(kLate % kScan == 0);
constexpr double kLeastGain = 0x1p-20;  // of d^2 H_cc
constexpr int64_t kMinProductsPerThread = 1 << 18;

// What is known of the columns of a row while it descends.
struct Row {
  double *slope, *value;
  float *scale, *lower, *upper;
  int32_t* zero_point;
  const float *table, *bounds;
  int32_t* codes;
};

// The changes of a row, in the order in which they were made.
struct Changes {
  int64_t count = 0;
  int64_t column[kLate];
  double step[kLate];
};

// Some rows, which descend block of columns by block of columns.
class Strip {
 public:
  Strip(const DescentArgs& args, int64_t first)
      : args_(args),
        first_(first),
        rows_(least(kStripRows, args.rows - first)),
        // Columns beyond the last have grids of one value, where they are: they do not change.
        stride_((args.columns / kScan + 1) * kScan),
        slope_(rows_ * stride_),
        value_(rows_ * stride_),
        diagonal_(stride_),
        scale_(rows_ * stride_),
        lower_(rows_ * stride_),
        upper_(rows_ * stride_),
        zero_point_(rows_ * stride_) {}

  void descend() {
    for (int64_t c = 0; c < stride_; ++c) {
      diagonal_[c] = c < args_.columns ? args_.hessian[c * args_.columns + c] : 1.0;
    }
    for (int64_t r = 0; r < rows_; ++r) read(r);
    find_slopes();
    bool active[kStripRows];
    for (int64_t r = 0; r < rows_; ++r) active[r] = true;
    bool any = true;
    for (int64_t sweep = 0; any && sweep < args_.sweeps; ++sweep) {
      any = false;
      int64_t changes[kStripRows] = {};
      for (int64_t first = 0; first < args_.columns; first += kLate) {
        for (int64_t r = 0; r < rows_; ++r) {
          if (active[r]) changes[r] += settle(row(r), first, least(kLate, args_.columns - first));
        }
      }
      for (int64_t r = 0; r < rows_; ++r) {
        args_.changes[first_ + r] += changes[r];
        active[r] = changes[r] > 0;
        any |= active[r];
      }
    }
  }

 private:
  Row row(int64_t r) const {
    const ColumnView& grids = args_.grids;
    const int64_t at = r * stride_;
    return {slope_.at(at),
            value_.at(at),
            scale_.at(at),
            lower_.at(at),
            upper_.at(at),
            zero_point_.at(at),
            grids.table ? grids.table + (first_ + r) * grids.table_stride : nullptr,
            grids.table ? grids.bounds + (first_ + r) * grids.bounds_stride : nullptr,
            args_.codes + (first_ + r) * args_.columns};
  }

  void read(int64_t r) {
    const ColumnView& grids = args_.grids;
    const Row to = row(r);
    args_.changes[first_ + r] = 0;
    for (int64_t c = 0; c < stride_; ++c) {
      to.scale[c] = 1.0f;
      if (c >= args_.columns) continue;
      const int64_t entry = (first_ + r) * grids.scale_stride + (grids.group ? grids.group[c] : 0);
      to.scale[c] = grids.scale[entry];
      if (grids.table) {
        to.value[c] = static_cast<double>(to.table[to.codes[c]] * to.scale[c] + 0.0f);
      } else {
        to.lower[c] = grids.lower[entry];
        to.upper[c] = grids.upper[entry];
        to.zero_point[c] = grids.zero_point[entry];
        to.value[c] = static_cast<double>(static_cast<float>(to.codes[c] - to.zero_point[c]) * to.scale[c]);
      }
    }
  }

  // Tile by tile, with rows as lanes.
  void find_slopes() {
    const int64_t tiles = (rows_ + kTileRows - 1) / kTileRows, apart = padded(args_.columns) * kTileRows;
    Scratch<double> slopes(tiles * apart), changes(tiles * apart);
    const auto place = [&](int64_t r, int64_t c) { return r / kTileRows * apart + c * kTileRows + r % kTileRows; };
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t at = (first_ + r) * args_.columns;
      for (int64_t c = 0; c < args_.columns; ++c) {
        changes[place(r, c)] = value_[r * stride_ + c] - static_cast<double>(args_.weights[at + c]);
        if (args_.linear) slopes[place(r, c)] = -args_.linear[at + c];
      }
    }
    for (int64_t first = 0; first < args_.columns; first += kBlock) {
      subtract_block(args_.hessian, args_.columns, first, least(kBlock, args_.columns - first), 0, tiles,
                     changes.at(first * kTileRows), apart, slopes.at(0));
    }
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < args_.columns; ++c) slope_[r * stride_ + c] = slopes[place(r, c)];
    }
  }

  // Visits some columns of a row, and returns how many changed. Among them changes count at once, elsewhere when all
  // are settled.
  int64_t settle(const Row& row, int64_t first, int64_t width) const {
    Changes changes;
    for (int64_t c = first; c < first + width; c += kScan) {
      const int64_t end = least(kScan, args_.columns - c);
      for (int64_t from = 0; change_next(row, c, from, end, &changes);) {
        from = changes.column[changes.count - 1] - c + 1;
        subtract(row.slope, changes, changes.count - 1, first, first + width);
      }
    }
    if (changes.count > 0) {
      subtract(row.slope, changes, 0, 0, first);
      subtract(row.slope, changes, 0, first + width, args_.columns);
    }
    return changes.count;
  }

  // Makes the first change of columns [c + from, c + end), if any.
  bool change_next(const Row& row, int64_t c, int64_t from, int64_t end, Changes* changes) const {
    alignas(64) double optimum[kScan], step[kScan];
    alignas(64) int64_t gains[kScan];
    const double *slope = row.slope + c, *value = row.value + c, *diagonal = diagonal_.at(c);
    for (int64_t l = 0; l < kScan; ++l) optimum[l] = value[l] + slope[l] / diagonal[l];
    const Code<kScan> found = nearest(row, optimum, c);
    for (int64_t l = 0; l < kScan; ++l) {
      const double d = static_cast<double>(found.value[l]) - value[l];
      const double most = d * diagonal[l];
      step[l] = d;
      gains[l] = d * (2.0 * slope[l] - most) > kLeastGain * (d * most) ? 1 : 0;
    }
    int64_t l = from;
    while (l < end && gains[l] == 0) ++l;
    if (l >= end) return false;
    row.value[c + l] = static_cast<double>(found.value[l]);
    row.codes[c + l] = found.code[l];
    changes->column[changes->count] = c + l;
    changes->step[changes->count++] = step[l];
    return true;
  }

  Code<kScan> nearest(const Row& row, const double* x, int64_t c) const {
    if (row.table) {
      const CodebookLanes<0> lanes{row.scale, row.table, row.bounds, args_.grids.levels, 1};
      return lanes.find<kScan>(x, c);
    }
    const AffineLanes lanes{row.scale, row.lower, row.upper, row.zero_point};
    return lanes.find<kScan>(x, c);
  }

  // Columns [begin, end) of the slope lose what changes from `which` on cost them, one after the other.
  void subtract(double* slope, const Changes& changes, int64_t which, int64_t begin, int64_t end) const {
    constexpr int64_t kVectors = 4;
    int64_t c = begin;
    for (; c + kVectors * simd::kDoubles <= end; c += kVectors * simd::kDoubles) {
      simd::Doubles sums[kVectors];
      for (int64_t v = 0; v < kVectors; ++v) sums[v] = load(slope + c + v * simd::kDoubles);
      for (int64_t i = which; i < changes.count; ++i) {
        const double* from = args_.hessian + changes.column[i] * args_.columns + c;
        for (int64_t v = 0; v < kVectors; ++v) sums[v] -= changes.step[i] * load(from + v * simd::kDoubles);
      }
      for (int64_t v = 0; v < kVectors; ++v) store(slope + c + v * simd::kDoubles, sums[v]);
    }
    for (; c < end; ++c) {
      double sum = slope[c];
      for (int64_t i = which; i < changes.count; ++i) {
        sum -= changes.step[i] * args_.hessian[changes.column[i] * args_.columns + c];
      }
      slope[c] = sum;
    }
  }

  const DescentArgs& args_;
  int64_t first_, rows_, stride_;
  Scratch<double> slope_, value_, diagonal_;
  Scratch<float> scale_, lower_, upper_;
  Scratch<int32_t> zero_point_;
};

void descend(const DescentArgs& args) {
  const int64_t products = args.columns * args.columns * kStripRows;
  parallel_for((args.rows + kStripRows - 1) / kStripRows, kMinProductsPerThread / (products + 1) + 1,
               [&](int64_t strip) { Strip(args, strip * kStripRows).descend(); });
}

}  // namespace

extern const DescentTable descent_table = {.descend = descend};

}  // namespace detent::DETENT_ISA
