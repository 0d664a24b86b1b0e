// SPDX-License-Identifier: Apache-2.0
// Quantization error of many candidate grids, read from a histogram instead of the data.
//
// Computes: for steps r and code ranges, the summed error of quantizing the data that a histogram stands for, to the
//   levels k r, -negative_levels <= k <= positive_levels. Everything is in units of the bin width, so results scale
//   exactly when data and bins scale by a power of two. Errors are sums; the caller divides by the total count.
//
// Model: inside a bin the density is uniform, from the edge nearer to zero to the other edge (the outermost bin ends at
//   the extreme value). Putting a bin's mass at its centre instead makes the error meaningless when the step is one or
//   two bins: centres then coincide with levels or with cell boundaries. Exact zeros are on every grid, cost nothing,
//   and are not in the counts. The two sides of zero are independent and are both held as magnitudes x >= 0.
//
// Squares: with b_k = (k + 1/2) r the boundary between levels k and k + 1, crossing it lowers the squared error by
//   (x - k r)^2 - (x - (k+1) r)^2 = 2 r (x - b_k), hence for m levels above zero
//       E[(x - Q(x))^2] = E[x^2] - 2 r sum_{k<m} U(b_k),      U(b) = E[max(x - b, 0)].
//   Clipping is included: beyond the last boundary nothing is subtracted any more. U is a suffix sum of suffix sums of
//   the counts, quadratic inside a bin, so a level costs one look-up.
// Magnitudes: |x - Q(x)| = x - 2 sum_{k<m} (x - b_k)+ + 2 sum_{1<=k<=m} (x - k r)+.
// Any power p: the cell around zero, where most data lie, is exact: sum x^p. On half of any other cell t^p is projected
//   (L2) on 1, t, t^2, t^3, whose sums follow from U and its second repeated suffix sum in the same way; p = 1, 2, 3
//   are reproduced exactly, and the constant makes the mean right for every p. The fit's L2 error, averaging to zero
//   over a cell, is below 0.3 % for p in 1..3, 1.5 % up to p = 4 and 7 % up to p = 6. The clipped part E[(x - m r)+^p]
//   is summed exactly at every fourth bin edge and interpolated by cubic Hermite polynomials.
// Kullback-Leibler: D(P || R), R being what is known after quantization: the mass of each cell, spread evenly over the
//   occupied part of the cell. Clipped mass o is in P at its outermost cell, as if observed there, but not in R (as in
//   TensorRT's calibration). R is not scaled up to make good for it: otherwise a tiny threshold, where both are nothing
//   but the two outermost cells, looks perfect. So D is the divergence for unequal masses, P log(P / R) - P + R, which
//   is never negative. By the chain rule, with cell masses M, occupied widths K and N the total including zeros,
//       N D = sum_cells [ sum c log c - M log(M / K) ] (1 + o/M at a clipped cell)
//             + sum_clipped [ (M + o + d) log((M + o + d) / (M + d)) - o ],
//   d half the smallest positive count, which keeps a clip into an empty cell finite. Zeros are a symbol of their own:
//   a spike of them neither rewards nor punishes a step. Empty bins carry no width: a sparse tail is not a loss.
// Steps of at most one bin: levels are finer than what the histogram knows; inside the range the error is that of a
//   uniform density, r^p / (2^p (p + 1)) per element (p = 2: r^2 / 12), and zero for Kullback-Leibler.
//
// Requires: counts finite and >= 0, at most 2^30 bins; bins - 1 < end <= bins, or bins = 0; steps positive, finite and
//   ascending, at least one level.
// NaN and infinity: the caller refuses them.
// Summation order: per candidate, levels outwards from zero, one after the other; candidates are the vector lanes, some
//   vectors taken together. So the bits do not depend on the instruction set, the number of threads, or the other
//   candidates.
// Threads and memory: groups of candidates run in parallel; a workspace of `workspace_size` doubles from the caller.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

enum class SearchMetric { kMse, kMae, kLp, kKl };

struct HistogramSide {
  const double* counts = nullptr;  // mass of magnitudes in [i, i + 1)
  int64_t bins = 0;
  double end = 0;  // the largest magnitude
};

struct HistogramProblem {
  HistogramSide positive;
  HistogramSide negative;
  double zeros = 0;       // mass of exact zeros
  double half_count = 0;  // half the smallest positive count (Kullback-Leibler)
  SearchMetric metric = SearchMetric::kMse;
  double power = 2;  // of kLp
};

struct HistogramSearchTable {
  int64_t (*workspace_size)(const HistogramProblem&);
  void (*prepare)(const HistogramProblem&, double* workspace);

  // errors[i] of the grid with steps[i] and fixed numbers of levels.
  void (*fixed_levels)(const HistogramProblem&, const double* workspace, const double* steps, int64_t count,
                       int64_t positive_levels, int64_t negative_levels, double* errors);

  // For each step the best split of `levels` into negative_levels[i] and levels - negative_levels[i], among the
  // multiples of `stride` from `first` to `last`; the smallest of equally good ones.
  void (*best_split)(const HistogramProblem&, const double* workspace, const double* steps, int64_t count,
                     int64_t levels, int64_t first, int64_t last, int64_t stride, double* errors,
                     int64_t* negative_levels);
};

DETENT_KERNEL_TABLE(HistogramSearchTable, histogram_search_table);

}  // namespace detent
