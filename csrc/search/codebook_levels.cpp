// SPDX-License-Identifier: Apache-2.0
#include "search/codebook_levels.h"

#include <algorithm>
#include <cstddef>
#include <limits>

namespace detent {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

constexpr int edge_of(int half) { return half + kCells / 2; }  // the cell that begins at half / 2

// Sums over the cells before an edge.
class Prefix {
 public:
  explicit Prefix(const CellSums& cells) : weight_(kCells + 1), first_(kCells + 1), second_(kCells + 1) {
    for (size_t b = 0; b < kCells; ++b) {
      weight_[b + 1] = weight_[b] + cells.weight[b];
      first_[b + 1] = first_[b] + cells.first[b];
      second_[b + 1] = second_[b] + cells.second[b];
    }
  }

  // Squared distances to `level` of the values in cells [from, to).
  double around(int level, int from, int to) const {
    const auto a = static_cast<size_t>(from), b = static_cast<size_t>(to);
    const double t = level;
    return (second_[b] - second_[a]) - t * (2.0 * (first_[b] - first_[a]) - t * (weight_[b] - weight_[a]));
  }

  // Values between two neighbouring levels.
  double between(int low, int high) const {
    return around(low, edge_of(2 * low), edge_of(low + high)) + around(high, edge_of(low + high), edge_of(2 * high));
  }

 private:
  std::vector<double> weight_, first_, second_;
};

// Chains of levels on one side of zero: point 0 is the outermost, the last point is zero itself.
class Side {
 public:
  Side(const Prefix& prefix, int outermost, int most) : sign_(outermost < 0 ? 1 : -1), outermost_(outermost) {
    points_ = (outermost < 0 ? -outermost : outermost) + 1;
    most_ = std::min(most, points_);
    std::vector<double> pair(cell(points_, 0), kNever);
    for (int inner = 1; inner < points_; ++inner) {
      for (int outer = 0; outer < inner; ++outer) {
        const int i = level(outer), j = level(inner);
        pair[cell(inner, outer)] = i < j ? prefix.between(i, j) : prefix.between(j, i);
      }
    }
    best_.assign(cell(most_ + 1, 0), kNever);
    from_.assign(cell(most_ + 1, 0), 0);
    for (int p = 0; p < points_; ++p) {
      const int own = edge_of(2 * level(p));
      best_[cell(1, p)] = sign_ > 0 ? prefix.around(level(p), 0, own) : prefix.around(level(p), own, kCells);
    }
    for (int count = 2; count <= most_; ++count) {
      extend(count, count - 1, points_ - 1, count - 2, points_ - 2, pair);
    }
  }

  int most() const { return most_; }

  // Least cost of everything on this side with `count` levels, zero among them.
  double cost(int count) const { return best_[cell(count, points_ - 1)]; }

  // Those levels, from the outermost to zero.
  std::vector<int> chain(int count) const {
    std::vector<int> levels(static_cast<size_t>(count));
    int p = points_ - 1;
    for (int left = count; left > 0; --left) {
      levels[static_cast<size_t>(left - 1)] = level(p);
      p = from_[cell(left, p)];
    }
    return levels;
  }

 private:
  size_t cell(int row, int column) const { return static_cast<size_t>(row * points_ + column); }
  int level(int point) const { return outermost_ + sign_ * point; }

  // Best chains of `count` levels that end at points first..last, where the level before is known to be one of
  // from..to. The further in a chain ends, the further in is its level before: the cost of pairs is Monge (replacing
  // i, k and j, l by i, l and j, k for i < j < k < l never costs less). So the middle one halves both ranges.
  void extend(int count, int first, int last, int from, int to, const std::vector<double>& pair) {
    if (first > last) return;
    const int p = (first + last) / 2;
    const double* before = &best_[cell(count - 1, 0)];
    const double* step = &pair[cell(p, 0)];
    double least = kNever;
    int found = from;
    for (int q = from; q <= std::min(to, p - 1); ++q) {
      const double total = before[q] + step[q];
      if (total < least) {
        least = total;
        found = q;
      }
    }
    best_[cell(count, p)] = least;
    from_[cell(count, p)] = found;
    extend(count, first, p - 1, from, found, pair);
    extend(count, p + 1, last, found, to, pair);
  }

  int sign_, outermost_, points_, most_;
  std::vector<double> best_;
  std::vector<int> from_;
};

}  // namespace

std::vector<int> choose_levels(const CellSums& cells, int count) {
  const Prefix prefix(cells);
  const Side below(prefix, kLatticeLow, count), above(prefix, kLatticeHigh, count);
  int split = 0;  // levels up to zero, zero included
  double least = kNever;
  for (int k = 1; k <= below.most(); ++k) {
    if (count + 1 - k < 1 || count + 1 - k > above.most()) continue;
    const double total = below.cost(k) + above.cost(count + 1 - k);
    if (split == 0 || total < least) {
      least = total;
      split = k;
    }
  }
  std::vector<int> levels = below.chain(split);
  const std::vector<int> others = above.chain(count + 1 - split);
  levels.insert(levels.end(), others.rbegin() + 1, others.rend());
  return levels;
}

}  // namespace detent
