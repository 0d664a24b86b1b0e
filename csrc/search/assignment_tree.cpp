// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>

#include "search/assignment_search.h"

namespace detent {
namespace {

constexpr int kPasses = 30;        // of Frank and Wolfe at a node, at most
constexpr double kSlack = 1e-11;   // of bounds, for rounding
constexpr double kTooSlow = 1e-3;  // share of what is missing that a pass must gain

using Vector = std::vector<double>;

// What is known where the first `depth` slots are decided.
struct Node {
  Vector sum;         // [probes], of the factors chosen
  double linear = 0;  // costs and multiplied amounts of what is chosen
  double costs = 0;
  Vector use;      // [rows], of what is chosen
  Vector mixture;  // [candidates], of the slots left
};

class Tree {
 public:
  Tree(const AssignmentView& view, const int64_t* order, const double* multipliers, double upper, double gap,
       int64_t most_nodes, AssignmentPool& pool)
      : view_(view),
        count_(view.candidates()),
        order_(order, order + view.slots),
        multipliers_(multipliers, multipliers + view.rows),
        upper_(upper),
        gap_(gap),
        most_nodes_(most_nodes),
        pool_(pool),
        factors_(at(count_ * view.probes)),
        linear_(view.costs, view.costs + count_),
        assignment_(at(view.slots)),
        completions_(at(view.slots)),
        least_use_(at((view.slots + 1) * view.rows)) {
    for (int64_t k = 0; k < view.probes; ++k) {
      for (int64_t c = 0; c < count_; ++c) factors_[at(c * view.probes + k)] = view.factors[k * count_ + c];
    }
    for (int64_t r = 0; r < view.rows; ++r) {
      if (multipliers_[at(r)] == 0.0) continue;
      constant_ -= multipliers_[at(r)] * view.limits[r];
      for (int64_t c = 0; c < count_; ++c) linear_[at(c)] += multipliers_[at(r)] * view.amounts[r * count_ + c];
    }
    find_least_use();
  }

  AssignmentEffort run() {
    Node root;
    root.sum.resize(at(view_.probes));
    root.use.resize(at(view_.rows));
    root.mixture.resize(at(count_));
    for (int64_t s = 0; s < view_.slots; ++s) {
      const int64_t width = view_.first[s + 1] - view_.first[s];
      for (int64_t c = view_.first[s]; c < view_.first[s + 1]; ++c) {
        root.mixture[at(c)] = 1.0 / static_cast<double>(width);
      }
    }
    effort_.complete = true;
    visit(0, root);
    return effort_;
  }

 private:
  // A product is completed by the later of its two slots.
  struct Completion {
    int64_t row, other;
    const double* amounts;
    int64_t stride, other_stride;
    double least;
  };

  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  void find_least_use() {
    std::vector<int64_t> place(order_.size());
    for (size_t d = 0; d < order_.size(); ++d) place[at(order_[d])] = static_cast<int64_t>(d);
    const double* amounts = view_.product_amounts;
    for (int64_t p = 0; p < view_.products; ++p) {
      const int64_t *product = view_.product + 3 * p, a = product[1], b = product[2];
      const int64_t wa = view_.first[a + 1] - view_.first[a], wb = view_.first[b + 1] - view_.first[b];
      const double least = *std::min_element(amounts, amounts + wa * wb);
      if (place[at(a)] > place[at(b)]) {
        completions_[at(a)].push_back({product[0], b, amounts, wb, 1, least});
      } else {
        completions_[at(b)].push_back({product[0], a, amounts, 1, wb, least});
      }
      amounts += wa * wb;
    }
    least_later_.assign(order_.size() + 1, 0.0);
    for (size_t d = order_.size(); d-- > 0;) {
      const int64_t s = order_[d];
      for (int64_t r = 0; r < view_.rows; ++r) {
        const double* row = view_.amounts + r * count_;
        const double least = *std::min_element(row + view_.first[s], row + view_.first[s + 1]);
        least_use_[d * at(view_.rows) + at(r)] = least_use_[(d + 1) * at(view_.rows) + at(r)] + least;
      }
      least_later_[d] = least_later_[d + 1];
      for (const Completion& done : completions_[at(s)]) {
        least_use_[d * at(view_.rows) + at(done.row)] += done.least;
        least_later_[d] += multipliers_[at(done.row)] * done.least;
      }
    }
  }

  void visit(size_t depth, const Node& node) {
    if (++effort_.nodes > most_nodes_) effort_.complete = false;
    if (!effort_.complete) return;
    for (size_t r = 0; r < node.use.size(); ++r) {
      if (node.use[r] + least_use_[depth * node.use.size() + r] > view_.limits[r]) return;
    }
    if (depth == order_.size()) {
      double error = node.costs;
      for (const double v : node.sum) error += v * v;
      pool_.offer(assignment_, error);
      return;
    }
    Node next = node;
    Vector slopes(linear_.size());
    if (!promising(depth, next, slopes)) return;
    const int64_t slot = order_[depth];
    std::vector<int64_t> candidates(at(view_.first[slot + 1] - view_.first[slot]));
    std::iota(candidates.begin(), candidates.end(), view_.first[slot]);
    std::stable_sort(candidates.begin(), candidates.end(),
                     [&](int64_t a, int64_t b) { return slopes[at(a)] < slopes[at(b)]; });
    for (const int64_t c : candidates) {
      next.sum = node.sum;
      next.use = node.use;
      next.linear = node.linear;
      next.costs = node.costs;
      choose(slot, c, next);
      visit(depth + 1, next);
    }
  }

  void choose(int64_t slot, int64_t c, Node& node) {
    assignment_[at(slot)] = c;
    for (int64_t k = 0; k < view_.probes; ++k) node.sum[at(k)] += factor(c)[k];
    node.linear += linear_[at(c)];
    node.costs += view_.costs[c];
    for (int64_t r = 0; r < view_.rows; ++r) node.use[at(r)] += view_.amounts[r * count_ + c];
    for (const Completion& done : completions_[at(slot)]) {
      const int64_t i = c - view_.first[slot], j = assignment_[at(done.other)] - view_.first[done.other];
      const double amount = done.amounts[i * done.stride + j * done.other_stride];
      node.use[at(done.row)] += amount;
      node.linear += multipliers_[at(done.row)] * amount;
    }
  }

  const double* factor(int64_t candidate) const { return factors_.data() + candidate * view_.probes; }

  // Whether a better assignment may follow: moves the mixture of the slots left until it is sure, one way or the other.
  // Leaves the slopes of the candidates left.
  bool promising(size_t depth, Node& node, Vector& slopes) const {
    Vector sum = node.sum;
    for (size_t d = depth; d < order_.size(); ++d) {
      for (int64_t c = view_.first[order_[d]]; c < view_.first[order_[d] + 1]; ++c) {
        if (node.mixture[at(c)] == 0.0) continue;
        for (int64_t k = 0; k < view_.probes; ++k) sum[at(k)] += node.mixture[at(c)] * factor(c)[k];
      }
    }
    const double wanted = std::min(upper_, pool_.worst() * (1.0 - gap_));
    double before = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
      double square = 0.0, mixed = node.linear + constant_ + least_later_[depth], missing = 0.0;
      for (const double v : sum) square += v * v;
      for (size_t d = depth; d < order_.size(); ++d) missing += slot_gap(order_[d], node, sum, slopes, mixed);
      const double lower = (square + mixed) - missing;
      if (lower - kSlack * (square + std::abs(mixed)) >= wanted) return false;
      // The least over mixtures is no larger than their value here: below what is wanted, nothing can be ruled out.
      if (square + mixed < wanted || (pass > 0 && lower - before < kTooSlow * (wanted - lower))) return true;
      before = lower;
      for (size_t d = depth; d < order_.size(); ++d) improve(order_[d], node, sum);
    }
    return true;
  }

  // How far the mixture of a slot is from its best along the slope; fills the slopes, adds the linear share to `mixed`.
  double slot_gap(int64_t slot, const Node& node, const Vector& sum, Vector& slopes, double& mixed) const {
    double here = 0.0, least = 0.0;
    for (int64_t c = view_.first[slot]; c < view_.first[slot + 1]; ++c) {
      slopes[at(c)] = slope(c, sum);
      least = c == view_.first[slot] ? slopes[at(c)] : std::min(least, slopes[at(c)]);
      here += node.mixture[at(c)] * slopes[at(c)];
      mixed += node.mixture[at(c)] * linear_[at(c)];
    }
    return here - least;
  }

  double slope(int64_t c, const Vector& sum) const {
    double product = 0.0;
    for (int64_t k = 0; k < view_.probes; ++k) product += factor(c)[k] * sum[at(k)];
    return 2.0 * product + linear_[at(c)];
  }

  // Moves the mixture of one slot from its worst candidate to its best, as far as that helps.
  void improve(int64_t slot, Node& node, Vector& sum) const {
    int64_t best = -1, worst = -1;
    double low = 0.0, high = 0.0;
    for (int64_t c = view_.first[slot]; c < view_.first[slot + 1]; ++c) {
      const double value = slope(c, sum);
      if (best < 0 || value < low) best = c, low = value;
      if (node.mixture[at(c)] > 0.0 && (worst < 0 || value > high)) worst = c, high = value;
    }
    if (best == worst || worst < 0) return;
    double length = 0.0;
    for (int64_t k = 0; k < view_.probes; ++k) {
      const double step = factor(best)[k] - factor(worst)[k];
      length += step * step;
    }
    double share = node.mixture[at(worst)];
    if (length > 0.0) share = std::min(share, (high - low) / (2.0 * length));
    node.mixture[at(best)] += share;
    node.mixture[at(worst)] -= share;
    for (int64_t k = 0; k < view_.probes; ++k) sum[at(k)] += share * (factor(best)[k] - factor(worst)[k]);
  }

  const AssignmentView& view_;
  int64_t count_;
  std::vector<int64_t> order_;
  Vector multipliers_;
  double upper_, gap_;
  int64_t most_nodes_;
  AssignmentPool& pool_;
  Vector factors_;  // [candidates, probes]
  Vector linear_;   // costs and multiplied amounts
  std::vector<int64_t> assignment_;
  std::vector<std::vector<Completion>> completions_;
  Vector least_use_;    // [slots + 1, rows], of the slots left and the products they complete
  Vector least_later_;  // [slots + 1], multiplied amounts of products still to be completed, at least
  double constant_ = 0.0;
  AssignmentEffort effort_;
};

}  // namespace

AssignmentEffort search_tree(const AssignmentView& view, const int64_t* order, const double* multipliers, double upper,
                             double gap, int64_t most_nodes, AssignmentPool& pool) {
  return Tree(view, order, multipliers, upper, gap, most_nodes, pool).run();
}

}  // namespace detent
