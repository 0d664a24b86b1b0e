// SPDX-License-Identifier: Apache-2.0
#include "search/code_search.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "support/check.h"
#include "support/parallel.h"

namespace detent {
namespace {

constexpr double kLeastPivot = 1e-12;  // of the diagonal: what is below is rounding
constexpr int64_t kMinRowsPerThread = 4;

// H = M^T D M of the columns in another order, and what all rows share.
class System {
 public:
  System(const double* hessian, int64_t columns)
      : columns_(columns), matrix_(hessian, hessian + columns * columns), order_(static_cast<size_t>(columns)) {
    for (int64_t c = 0; c < columns; ++c) order_[static_cast<size_t>(c)] = c;
    for (int64_t k = 0; k < columns; ++k) {
      int64_t least = k;
      for (int64_t c = k + 1; c < columns; ++c) {
        if (at(c, c) < at(least, least)) least = c;
      }
      exchange(k, least);
      const int64_t column = order(k);
      require(at(k, k) > kLeastPivot * hessian[column * columns + column],
              "hessian must be positive definite, but column ", column, " depends on others; add to its diagonal");
      eliminate(k);
    }
  }

  int64_t columns() const { return columns_; }
  // Which column is in place k.
  int64_t order(int64_t k) const { return order_[static_cast<size_t>(k)]; }
  double pivot(int64_t k) const { return matrix_[static_cast<size_t>(k * columns_ + k)]; }
  const double* row(int64_t k) const { return matrix_.data() + k * columns_; }

  // x becomes H^-1 x, in the order of the places.
  void solve(double* x) const {
    for (int64_t k = 0; k < columns_; ++k) {
      for (int64_t j = k + 1; j < columns_; ++j) x[j] -= row(k)[j] * x[k];
    }
    for (int64_t k = columns_ - 1; k >= 0; --k) {
      x[k] /= pivot(k);
      for (int64_t j = k + 1; j < columns_; ++j) x[k] -= row(k)[j] * x[j];
    }
  }

 private:
  double& at(int64_t r, int64_t c) { return matrix_[static_cast<size_t>(r * columns_ + c)]; }

  void exchange(int64_t a, int64_t b) {
    std::swap(order_[static_cast<size_t>(a)], order_[static_cast<size_t>(b)]);
    for (int64_t c = a; c < columns_; ++c) std::swap(at(a, c), at(b, c));
    for (int64_t r = 0; r < columns_; ++r) std::swap(at(r, a), at(r, b));
  }

  void eliminate(int64_t k) {
    for (int64_t r = k + 1; r < columns_; ++r) {
      const double share = at(k, r) / at(k, k);
      for (int64_t c = k + 1; c < columns_; ++c) at(r, c) -= share * at(k, c);
    }
    for (int64_t c = k + 1; c < columns_; ++c) at(k, c) /= at(k, k);
  }

  int64_t columns_;
  std::vector<double> matrix_;
  std::vector<int64_t> order_;
};

// One row. Columns are known by their places.
class RowSearch {
 public:
  RowSearch(const CodeSearchArgs& args, const System& system, int64_t row)
      : args_(args), system_(system), row_(row), codes_(args.codes + row * args.columns) {
    const ColumnView& grids = args.grids;
    double shift[kMostSearchedColumns] = {};
    for (int64_t k = 0; k < system.columns(); ++k) {
      const int64_t c = system.order(k), entry = row * grids.scale_stride + (grids.group ? grids.group[c] : 0);
      scale_[k] = grids.scale[entry];
      zero_point_[k] = grids.table ? 0 : grids.zero_point[entry];
      if (args.linear) shift[k] = args.linear[row * args.columns + c];
    }
    if (args.linear) system.solve(shift);
    for (int64_t k = 0; k < system.columns(); ++k) {
      target_[k] = static_cast<double>(args.weights[row * args.columns + system.order(k)]) - shift[k];
    }
  }

  // Returns whether all codes were considered.
  bool run() {
    const int64_t last = system_.columns() - 1;
    double best = loss_of_codes();
    double passed[kMostSearchedColumns + 1];
    int64_t k = last;
    passed[k] = 0.0;
    enter(k);
    for (int64_t tried = 0; k <= last; ++tried) {
      if (tried == args_.most_values) return false;
      const bool some = take_next(k);
      const double distance = center_[k] - value_[k];
      const double loss = some ? passed[k] + system_.pivot(k) * (distance * distance) : best;
      if (!(loss < best)) {
        ++k;
      } else if (k == 0) {
        best = loss;
        for (int64_t j = 0; j <= last; ++j) codes_[system_.order(j)] = code_[j];
        ++k;
      } else {
        error_[k] = target_[k] - value_[k];
        passed[--k] = loss;
        enter(k);
      }
    }
    return true;
  }

 private:
  double value(int64_t k, int32_t code) const {
    const ColumnView& grids = args_.grids;
    if (!grids.table) return static_cast<double>(static_cast<float>(code - zero_point_[k]) * scale_[k]);
    return static_cast<double>(grids.table[row_ * grids.table_stride + code] * scale_[k] + 0.0f);
  }

  double center(int64_t k) const {
    const double* row = system_.row(k);
    double sum = target_[k];
    for (int64_t j = k + 1; j < system_.columns(); ++j) sum += row[j] * error_[j];
    return sum;
  }

  double loss_of_codes() {
    double loss = 0.0;
    for (int64_t k = system_.columns() - 1; k >= 0; --k) {
      const double now = value(k, codes_[system_.order(k)]);
      const double distance = center(k) - now;
      loss += system_.pivot(k) * (distance * distance);
      error_[k] = target_[k] - now;
    }
    return loss;
  }

  // Finds where the values of a column lie on both sides of the best for those behind it.
  void enter(int64_t k) {
    center_[k] = center(k);
    int32_t low = args_.qmin, high = args_.qmax + 1;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      if (value(k, middle) <= center_[k]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    below_[k] = low - 1;
    above_[k] = low;
  }

  // The nearest value that was not tried yet, if there is one.
  bool take_next(int64_t k) {
    const bool has_below = below_[k] >= args_.qmin, has_above = above_[k] <= args_.qmax;
    if (!has_below && !has_above) return false;
    const double under = has_below ? value(k, below_[k]) : 0.0, over = has_above ? value(k, above_[k]) : 0.0;
    const bool down = has_below && (!has_above || center_[k] - under <= over - center_[k]);
    code_[k] = down ? below_[k]-- : above_[k]++;
    value_[k] = down ? under : over;
    return true;
  }

  const CodeSearchArgs& args_;
  const System& system_;
  int64_t row_;
  int32_t* codes_;
  float scale_[kMostSearchedColumns];
  int32_t zero_point_[kMostSearchedColumns];
  double target_[kMostSearchedColumns], center_[kMostSearchedColumns];
  double value_[kMostSearchedColumns] = {}, error_[kMostSearchedColumns] = {};
  int32_t code_[kMostSearchedColumns], below_[kMostSearchedColumns], above_[kMostSearchedColumns];
};

}  // namespace

void search_codes(const CodeSearchArgs& args) {
  require(args.columns <= kMostSearchedColumns, "at most ", kMostSearchedColumns, " columns can be searched, got ",
          args.columns);
  std::fill_n(args.proved, args.rows, true);
  if (args.columns == 0) return;
  const System system(args.hessian, args.columns);
  parallel_for(args.rows, kMinRowsPerThread,
               [&](int64_t row) { args.proved[row] = RowSearch(args, system, row).run(); });
}

}  // namespace detent
