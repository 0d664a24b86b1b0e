// SPDX-License-Identifier: Apache-2.0
// Assignments: one candidate for each slot, so that an error is small and no row exceeds its limit.
//
// Computes: the error of an assignment a is |sum_s factors[s, a_s]|^2 + sum_s costs[s, a_s]; a row uses the sum of its
//   amounts and of its products, which depend on the candidates of two slots.
//   search_band: all assignments with small reduced costs, deviation by deviation from the one without any; errors are
//     costs alone and rows have no products. Complete, it proves that nothing better exists (reduced cost fixing,
//     Dantzig, Fulkerson and Johnson 1954, carried on to the end).
//   search_nearby: from a start, the best change of one or two slots, time after time; what was left stays forbidden
//   for
//     some steps (tabu search, Glover 1989, doi:10.1287/ijoc.1.3.190), so that it climbs out of valleys.
//   search_tree: branch and bound; the bound of a node is the least of the convex quadratic over mixtures of the
//     candidates left, from below by Frank and Wolfe (1956, doi:10.1002/nav.3800030109). Limits prune by what the
//     slots left use at least, and enter the bound through multipliers.
//
// Requires: finite numbers; one candidate or more per slot; a start within the limits; multipliers not negative.
// Rounding and ties: float64. Of equal moves the first slot and candidate is taken; of equal errors what was found
//   first. The use of rows is rounded: callers check what comes back if amounts are not whole numbers.
// NaN and infinity: refused by the bindings; limits may be infinite.
// Summation order: probes, slots and products in order. Compiled once for all instruction sets: the same bits on each.
// Threads and memory: one thread; 8 bytes per pair of candidates of a slot beside the arrays given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace detent {

struct AssignmentView {
  int64_t slots;
  const int64_t* first;  // [slots + 1], the first candidate of each slot
  int64_t probes;
  const double* factors;  // [probes, candidates]
  const double* costs;    // [candidates]
  int64_t rows;
  const double* amounts;  // [rows, candidates]
  const double* limits;   // [rows]
  int64_t products;
  const int64_t* product;         // [products, 3]: row, and two different slots
  const double* product_amounts;  // [candidates of the first, candidates of the second], one product after another

  int64_t candidates() const { return first[slots]; }
};

// The best assignments seen, distinct, best first; candidates are counted over all slots.
class AssignmentPool {
 public:
  explicit AssignmentPool(int64_t wanted) : wanted_(static_cast<size_t>(wanted)) {}

  void offer(const std::vector<int64_t>& assignment, double error);

  // The error that a newcomer must be below; infinity until there are as many as wanted.
  double worst() const;

  struct Entry {
    double error;
    std::vector<int64_t> assignment;
  };
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  size_t wanted_;
  std::vector<Entry> entries_;
};

// How far a search went.
struct AssignmentEffort {
  int64_t nodes = 0;
  bool complete = false;
};

// All assignments whose reduced costs add up to at most upper - bound and, once the pool is full, to less than
// worst (1 - gap) - bound. Reduced costs are not negative, and zero for one candidate of each slot at least.
AssignmentEffort search_band(const AssignmentView& view, const double* reduced, double bound, double upper, double gap,
                             int64_t most_nodes, AssignmentPool& pool);

// `steps` moves from the start, each to the best neighbour that is not forbidden.
AssignmentEffort search_nearby(const AssignmentView& view, const int64_t* start, int64_t steps, AssignmentPool& pool);

// Every assignment below `upper` and, once the pool is full, below worst (1 - gap). `order` says which slot is decided
// first, second and so on.
AssignmentEffort search_tree(const AssignmentView& view, const int64_t* order, const double* multipliers, double upper,
                             double gap, int64_t most_nodes, AssignmentPool& pool);

}  // namespace detent
