// SPDX-License-Identifier: Apache-2.0
#include "search/assignment_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace detent {
namespace {

constexpr int64_t kNone = -1;
constexpr int64_t kLanes = 8;
constexpr int64_t kTenure = 12;  // steps for which a candidate that was left stays forbidden, and up to 6 more

// One slot takes another candidate, or two do.
struct Move {
  double change = std::numeric_limits<double>::infinity();
  int64_t a = kNone, b = kNone;  // candidates
};

class Nearby {
 public:
  Nearby(const AssignmentView& view, const int64_t* start, AssignmentPool& pool)
      : view_(view),
        count_(view.candidates()),
        padded_((view.probes + kLanes - 1) / kLanes * kLanes),
        pool_(pool),
        assignment_(start, start + view.slots),
        slot_of_(static_cast<size_t>(count_)),
        steps_(static_cast<size_t>(count_ * padded_)),
        toward_(static_cast<size_t>(count_)),
        change_(static_cast<size_t>(count_)),
        distance_(static_cast<size_t>(count_)),
        forbidden_(static_cast<size_t>(count_)),
        use_(static_cast<size_t>(view.rows)),
        amounts_(static_cast<size_t>(view.rows * count_)),
        partners_(static_cast<size_t>(view.slots)) {
    for (int64_t s = 0; s < view.slots; ++s) {
      for (int64_t c = view.first[s]; c < view.first[s + 1]; ++c) slot_of_[at(c)] = s;
    }
    int64_t offset = 0;
    for (int64_t p = 0; p < view.products; ++p) {
      const int64_t a = view.product[3 * p + 1], b = view.product[3 * p + 2];
      offsets_.push_back(offset);
      partners_[at(a)].push_back(p);
      offset += width(a) * width(b);
    }
  }

  AssignmentEffort run(int64_t steps) {
    AssignmentEffort effort;
    update();
    pool_.offer(assignment_, error_);
    double best = error_;
    while (effort.nodes < steps) {
      const Move move = best_move(effort.nodes, best);
      if (move.a == kNone) break;
      take(move.a, effort.nodes);
      if (move.b != kNone) take(move.b, effort.nodes);
      update();
      ++effort.nodes;
      pool_.offer(assignment_, error_);
      best = std::min(best, error_);
    }
    return effort;
  }

 private:
  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  int64_t width(int64_t slot) const { return view_.first[slot + 1] - view_.first[slot]; }
  int64_t current(int64_t candidate) const { return assignment_[at(slot_of_[at(candidate)])]; }

  double product_amount(int64_t product, int64_t a, int64_t b) const {
    const int64_t i = a - view_.first[view_.product[3 * product + 1]];
    const int64_t sb = view_.product[3 * product + 2];
    return view_.product_amounts[offsets_[at(product)] + i * width(sb) + (b - view_.first[sb])];
  }

  // All that follows from the assignment, from scratch: nothing drifts.
  void update() {
    update_errors();
    update_amounts();
  }

  void update_errors() {
    std::fill(toward_.begin(), toward_.end(), 0.0);
    std::fill(distance_.begin(), distance_.end(), 0.0);
    error_ = 0.0;
    for (int64_t k = 0; k < view_.probes; ++k) {
      const double* factors = view_.factors + k * count_;
      double sum = 0.0;
      for (const int64_t c : assignment_) sum += factors[c];
      error_ += sum * sum;
      for (int64_t s = 0; s < view_.slots; ++s) {
        const double now = factors[assignment_[at(s)]];
        for (int64_t c = view_.first[s]; c < view_.first[s + 1]; ++c) {
          const double step = factors[c] - now;
          steps_[at(c * padded_ + k)] = step;
          toward_[at(c)] += sum * step;
          distance_[at(c)] += step * step;
        }
      }
    }
    for (const int64_t c : assignment_) error_ += view_.costs[c];
    for (int64_t c = 0; c < count_; ++c) {
      change_[at(c)] = (2.0 * toward_[at(c)] + distance_[at(c)]) + (view_.costs[c] - view_.costs[current(c)]);
    }
  }

  // amounts_[r, c]: how much more of a row is used if one slot takes candidate c.
  void update_amounts() {
    for (int64_t r = 0; r < view_.rows; ++r) {
      const double* amounts = view_.amounts + r * count_;
      double sum = 0.0;
      for (const int64_t c : assignment_) sum += amounts[c];
      use_[at(r)] = sum;
      for (int64_t c = 0; c < count_; ++c) amounts_[at(r * count_ + c)] = amounts[c] - amounts[current(c)];
    }
    for (int64_t p = 0; p < view_.products; ++p) {
      const int64_t r = view_.product[3 * p], sa = view_.product[3 * p + 1], sb = view_.product[3 * p + 2];
      const int64_t a = assignment_[at(sa)], b = assignment_[at(sb)];
      const double now = product_amount(p, a, b);
      use_[at(r)] += now;
      for (int64_t c = view_.first[sa]; c < view_.first[sa + 1]; ++c) {
        amounts_[at(r * count_ + c)] += product_amount(p, c, b) - now;
      }
      for (int64_t c = view_.first[sb]; c < view_.first[sb + 1]; ++c) {
        amounts_[at(r * count_ + c)] += product_amount(p, a, c) - now;
      }
    }
  }

  Move best_move(int64_t step, double best) {
    Move move;
    for (int64_t c = 0; c < count_; ++c) {
      if (c == current(c) || !(change_[at(c)] < move.change) || !allowed(step, c, kNone, change_[at(c)], best))
        continue;
      if (fits(c, kNone)) move = {change_[at(c)], c, kNone};
    }
    order_.clear();
    for (int64_t c = 0; c < count_; ++c) {
      if (c == current(c)) continue;
      order_.push_back(c);
      distance_[at(c)] = std::sqrt(distance_[at(c)]);
    }
    for (size_t i = 0; i < order_.size(); ++i) {
      const int64_t a = order_[i], next_slot = view_.first[slot_of_[at(a)] + 1];
      const double change = change_[at(a)], twice = 2.0 * distance_[at(a)];
      for (size_t j = i + 1; j < order_.size(); ++j) {
        const int64_t b = order_[j];
        // By Cauchy and Schwarz, two steps gain no more from each other than twice their lengths multiplied.
        if (!((change + change_[at(b)]) - twice * distance_[at(b)] < move.change) || b < next_slot) continue;
        if (!fits(a, b)) continue;
        const double both = (change + change_[at(b)]) + 2.0 * interaction(a, b);
        if (both < move.change && allowed(step, a, b, both, best)) move = {both, a, b};
      }
    }
    return move;
  }

  // Step a times step b, in lanes so that it is quick.
  double interaction(int64_t a, int64_t b) const {
    const double *x = steps_.data() + a * padded_, *y = steps_.data() + b * padded_;
    double sums[kLanes] = {};
    for (int64_t k = 0; k < padded_; k += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += x[k + lane] * y[k + lane];
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  // A forbidden move is allowed if it leads to the best error so far.
  bool allowed(int64_t step, int64_t a, int64_t b, double change, double best) const {
    if (forbidden_[at(a)] <= step && (b == kNone || forbidden_[at(b)] <= step)) return true;
    return error_ + change < best - 1e-12 * std::abs(best);
  }

  bool fits(int64_t a, int64_t b) const {
    for (int64_t r = 0; r < view_.rows; ++r) {
      double more = amounts_[at(r * count_ + a)];
      if (b != kNone) more += amounts_[at(r * count_ + b)] + mixed_amount(r, a, b);
      if (use_[at(r)] + more > view_.limits[r] && more > 0.0) return false;
    }
    return true;
  }

  // What a row uses beyond the sum of both changes, because of products of the two slots.
  double mixed_amount(int64_t row, int64_t a, int64_t b) const {
    double more = 0.0;
    const int64_t sa = slot_of_[at(a)], sb = slot_of_[at(b)];
    for (const int64_t first : {sa, sb}) {
      const int64_t second = first == sa ? sb : sa;
      for (const int64_t p : partners_[at(first)]) {
        if (view_.product[3 * p] != row || view_.product[3 * p + 2] != second) continue;
        const int64_t x = first == sa ? a : b, y = first == sa ? b : a;
        more += (product_amount(p, x, y) - product_amount(p, x, current(y))) -
                (product_amount(p, current(x), y) - product_amount(p, current(x), current(y)));
      }
    }
    return more;
  }

  void take(int64_t candidate, int64_t step) {
    int64_t& now = assignment_[at(slot_of_[at(candidate)])];
    forbidden_[at(now)] = step + 1 + kTenure + slot_of_[at(candidate)] % 7;
    now = candidate;
  }

  const AssignmentView& view_;
  int64_t count_, padded_;
  AssignmentPool& pool_;
  std::vector<int64_t> assignment_, slot_of_;
  std::vector<double> steps_;                       // [candidates, padded], factors less those of the slot's candidate
  std::vector<double> toward_, change_, distance_;  // distance_ is squared until moves are compared
  std::vector<int64_t> forbidden_;                  // the first step at which a candidate may come back
  std::vector<double> use_, amounts_;
  std::vector<std::vector<int64_t>> partners_;  // the products whose first slot it is
  std::vector<int64_t> offsets_, order_;
  double error_ = 0.0;
};

}  // namespace

AssignmentEffort search_nearby(const AssignmentView& view, const int64_t* start, int64_t steps, AssignmentPool& pool) {
  return Nearby(view, start, pool).run(steps);
}

}  // namespace detent
