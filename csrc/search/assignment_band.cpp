// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <numeric>

#include "search/assignment_search.h"

namespace detent {

void AssignmentPool::offer(const std::vector<int64_t>& assignment, double error) {
  if (!(error < worst())) return;
  for (const Entry& entry : entries_) {
    if (entry.assignment == assignment) return;
  }
  const auto after = std::upper_bound(entries_.begin(), entries_.end(), error,
                                      [](double value, const Entry& entry) { return value < entry.error; });
  entries_.insert(after, Entry{error, assignment});
  if (entries_.size() > wanted_) entries_.pop_back();
}

double AssignmentPool::worst() const {
  return entries_.size() < wanted_ ? std::numeric_limits<double>::infinity() : entries_.back().error;
}

namespace {

// Another candidate for a slot than the one without reduced cost.
struct Deviation {
  double reduced;
  int64_t candidate;
};

class Band {
 public:
  Band(const AssignmentView& view, const double* reduced, double bound, double upper, double gap, int64_t most_nodes,
       AssignmentPool& pool)
      : view_(view),
        bound_(bound),
        upper_(upper),
        gap_(gap),
        most_nodes_(most_nodes),
        pool_(pool),
        assignment_(static_cast<size_t>(view.slots)) {
    std::vector<std::vector<Deviation>> all(assignment_.size());
    for (size_t s = 0; s < all.size(); ++s) {
      const int64_t begin = view.first[s], end = view.first[s + 1];
      assignment_[s] = std::min_element(reduced + begin, reduced + end) - reduced;
      for (int64_t c = begin; c < end; ++c) {
        if (c != assignment_[s] && bound + reduced[c] <= upper) all[s].push_back({reduced[c], c});
      }
      std::stable_sort(all[s].begin(), all[s].end(), cheaper);
      if (!all[s].empty()) slots_.push_back(static_cast<int64_t>(s));
    }
    // Slots by their cheapest deviation: the first one that is too dear ends the list.
    std::stable_sort(slots_.begin(), slots_.end(), [&](int64_t s, int64_t t) {
      return cheaper(all[static_cast<size_t>(s)][0], all[static_cast<size_t>(t)][0]);
    });
    for (const int64_t s : slots_) deviations_.push_back(all[static_cast<size_t>(s)]);
    find_savings();
  }

  AssignmentEffort run() {
    std::vector<double> use(static_cast<size_t>(view_.rows));
    double error = 0.0;
    for (const int64_t c : assignment_) {
      error += view_.costs[c];
      for (int64_t r = 0; r < view_.rows; ++r) use[static_cast<size_t>(r)] += amount(r, c);
    }
    effort_.complete = true;
    visit(0, 0.0, error, use);
    return effort_;
  }

 private:
  static bool cheaper(const Deviation& a, const Deviation& b) { return a.reduced < b.reduced; }

  double amount(int64_t row, int64_t candidate) const { return view_.amounts[row * view_.candidates() + candidate]; }

  // What the slots from each place on can save of each row at most.
  void find_savings() {
    const auto rows = static_cast<size_t>(view_.rows);
    savings_.assign((slots_.size() + 1) * rows, 0.0);
    for (size_t place = slots_.size(); place-- > 0;) {
      const int64_t now = assignment_[static_cast<size_t>(slots_[place])];
      for (size_t r = 0; r < rows; ++r) {
        double most = 0.0;
        for (const Deviation& deviation : deviations_[place]) {
          const auto row = static_cast<int64_t>(r);
          most = std::max(most, amount(row, now) - amount(row, deviation.candidate));
        }
        savings_[place * rows + r] = savings_[(place + 1) * rows + r] + most;
      }
    }
  }

  // The assignment reached, and all that deviate from it in slots from `place` on.
  void visit(size_t place, double reduced, double error, const std::vector<double>& use) {
    if (++effort_.nodes > most_nodes_) effort_.complete = false;
    if (!effort_.complete) return;
    bool fits = true;
    for (size_t r = 0; r < use.size(); ++r) {
      if (use[r] - savings_[place * use.size() + r] > view_.limits[r]) return;
      fits = fits && use[r] <= view_.limits[r];
    }
    if (fits) pool_.offer(assignment_, error);
    std::vector<double> then(use.size());
    for (size_t next = place; next < slots_.size(); ++next) {
      if (!promising(reduced + deviations_[next][0].reduced)) return;
      int64_t& candidate = assignment_[static_cast<size_t>(slots_[next])];
      const int64_t now = candidate;
      for (const Deviation& deviation : deviations_[next]) {
        if (!promising(reduced + deviation.reduced)) break;
        candidate = deviation.candidate;
        for (size_t r = 0; r < use.size(); ++r) {
          const auto row = static_cast<int64_t>(r);
          then[r] = use[r] + (amount(row, candidate) - amount(row, now));
        }
        visit(next + 1, reduced + deviation.reduced, error + (view_.costs[candidate] - view_.costs[now]), then);
      }
      candidate = now;
      if (!effort_.complete) return;
    }
  }

  bool promising(double reduced) const {
    return bound_ + reduced <= upper_ && bound_ + reduced < pool_.worst() * (1.0 - gap_);
  }

  const AssignmentView& view_;
  double bound_, upper_, gap_;
  int64_t most_nodes_;
  AssignmentPool& pool_;
  std::vector<int64_t> assignment_;
  std::vector<int64_t> slots_;  // those with deviations
  std::vector<std::vector<Deviation>> deviations_;
  std::vector<double> savings_;  // [places + 1, rows]
  AssignmentEffort effort_;
};

}  // namespace

AssignmentEffort search_band(const AssignmentView& view, const double* reduced, double bound, double upper, double gap,
                             int64_t most_nodes, AssignmentPool& pool) {
  return Band(view, reduced, bound, upper, gap, most_nodes, pool).run();
}

}  // namespace detent
