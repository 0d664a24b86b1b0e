// SPDX-License-Identifier: Apache-2.0
// The globally best scale of one channel for squared error, over all real scales. Included once per instruction set.
//
// The error f(s) = sum_i h_i min_k (x_i - s k)^2 is continuous and piecewise quadratic; its pieces meet where some
// x_i / s is half-way between two codes, at s = |x_i| / (k - 1/2). Sorting all n 2^(b-1) of those is too slow at 8
// bits, so most of the axis is excluded first, by branch and bound:
//
//   On [a, b] every code satisfies |k(s)| <= |k(a)|, so with K = sum h k(a)^2 the function f(s) - K s^2 is a minimum of
//   concave parabolas, hence concave, hence above its chord:
//       f(s) >= chord of f from a to b - K (s - a)(b - s).
//   This bound is exact where no code changes, and loses only the second order in b - a where some do.
//
// Intervals whose bound exceeds the best error known are dropped, the others halved until few codes change inside;
// those are swept exactly: codes at `a` in float64, then one update of sum h q^2, sum h q k, sum h k^2 per breakpoint
// in order, and on each piece the closed form s = sum(h k x) / sum(h k^2). The minimum of the closed forms over all
// pieces is the global one, whether or not each lies inside its own piece, since f is below every one of the parabolas.
//
// The bounds come from float32 passes and are lowered by their proven error (scale_sums.h); only the sweeps decide.
// Intervals that could improve by less than 2^-36 relative, or 2^-48 of sum h x^2 (about what rounding the scale to
// float32 costs), are dropped as well.
#pragma once

#include "search/dense_scale.h"

namespace detent::DETENT_ISA {

struct Interval {
  double a, b;            // scales
  double cost_a, cost_b;  // lower bounds of the error there
  double curvature_a;     // upper bounds of sum h k^2 there
  double curvature_b;
  double bound;  // lower bound of the error inside
};

struct Breakpoint {
  double at;    // scale at which the code of this element drops
  double y;     // |x| / a
  double code;  // magnitude of the code before the drop
  double h;
};

constexpr int kStack = 1024;
constexpr int kDeferred = 1024;
constexpr double kSweepBreakpoints = 12.0;
constexpr int kFirstFine = 12;  // scales over the octave around the best one: a first best cost; bounds do the rest

struct ExactScratch {
  Node nodes[kNodes];
  Interval stack[kStack];
  Interval deferred[kDeferred];
  Breakpoint* breakpoints;  // room for 16 rows
  uint8_t* changed;         // likewise
};

// Shell sort: no recursion, no allocation, and short inputs are the rule.
template <class T, class Less>
inline void sort(T* items, int64_t count, Less less) {
  for (int64_t gap = count / 2; gap > 0; gap = gap == 2 ? 1 : gap * 5 / 11) {
    for (int64_t i = gap; i < count; ++i) {
      const T item = items[i];
      int64_t j = i;
      for (; j >= gap && less(item, items[j - gap]); j -= gap) items[j] = items[j - gap];
      items[j] = item;
    }
  }
}

class ExactSearch {
 public:
  ExactSearch(const Channel& channel, CodeRange codes, ScaleRange range, ExactScratch& scratch)
      : channel_(channel),
        codes_(codes),
        range_(range),
        scratch_(scratch),
        norm_error_(kNormError * __builtin_sqrt(channel.energy)) {}

  double run();

 private:
  double lower(double cost) const {
    const double norm = __builtin_sqrt(cost * (1.0 - kSumError)) - norm_error_;
    return norm > 0.0 ? norm * norm : 0.0;
  }
  double upper(double cost) const {
    const double norm = __builtin_sqrt(cost * (1.0 + kSumError)) + norm_error_;
    return norm * norm;
  }
  double limit() const { return best_cost_ * (1.0 - 0x1p-36) - channel_.energy * 0x1p-48; }

  void consider(const Node& node) {
    const double cost = upper(node.cost);
    if (node.scale >= range_.least && cost < best_cost_) {
      best_cost_ = cost;
      best_scale_ = node.scale;
    }
  }
  void start();
  void add(const Interval& interval);
  void split(const Interval* intervals, int count);
  void sweep(const Interval& interval);
  int64_t collect(double a, double b) const;
  Interval make_interval(double a, double b, double cost_a, double cost_b, double curvature_a,
                         double curvature_b) const;

  const Channel& channel_;
  const CodeRange codes_;
  const ScaleRange range_;
  ExactScratch& scratch_;
  const double norm_error_;
  double best_cost_ = 0.0;
  double best_scale_ = 0.0;
  int depth_ = 0;
  int deferred_ = 0;
};

inline Interval ExactSearch::make_interval(double a, double b, double cost_a, double cost_b, double curvature_a,
                                           double curvature_b) const {
  const double bend = curvature_a * (b - a) * (b - a);
  const double rise = cost_b - cost_a;
  double bound = smaller(cost_a, cost_b);
  const double inside = rise < 0.0 ? -rise : rise;
  if (inside < bend) bound = 0.5 * (cost_a + cost_b) - 0.25 * bend - 0.25 * rise * rise / bend;
  return {a, b, cost_a, cost_b, curvature_a, curvature_b, larger(0.0, bound)};
}

// Drops the interval, keeps it for a sweep, or for halving.
inline void ExactSearch::add(const Interval& interval) {
  if (interval.bound >= limit()) return;
  const double width = interval.b - interval.a;
  const double most = larger(codes_.high, -codes_.low);
  // Sorting some breakpoints costs no more than the passes over the channel that halving takes. A code changes at most
  // once on a relative width of 1 / (2 most), so that the breakpoints fit in memory. Float32 reciprocals stay apart
  // above 2^-20.
  const double few = larger(kSweepBreakpoints, static_cast<double>(channel_.rows) * 0.25);
  const bool narrow = 2.0 * most * width <= interval.a &&
                      (channel_.magnitudes * width <= few * interval.a * interval.a || width <= 0x1p-20 * interval.a);
  if (narrow) {
    if (deferred_ == kDeferred) return sweep(interval);
    scratch_.deferred[deferred_++] = interval;
  } else {
    if (depth_ == kStack) return split(&interval, 1);
    scratch_.stack[depth_++] = interval;
  }
}

inline void ExactSearch::split(const Interval* intervals, int count) {
  double scales[4] = {};
  Node nodes[4];
  for (int i = 0; i < count; ++i) scales[i] = 0.5 * (intervals[i].a + intervals[i].b);
  evaluate(Cost::kSquare, channel_, codes_, scales, count, nodes);
  const int best = best_refined(nodes, count);
  if (nodes[best].refined_cost < best_cost_) {
    Node refined;
    evaluate(Cost::kSquare, channel_, codes_, &nodes[best].refined_scale, 1, &refined);
    consider(refined);
  }
  for (int i = 0; i < count; ++i) {
    consider(nodes[i]);
    const Interval& parent = intervals[i];
    const double cost = lower(nodes[i].cost);
    add(make_interval(parent.a, nodes[i].scale, parent.cost_a, cost, parent.curvature_a, nodes[i].curvature));
    add(make_interval(nodes[i].scale, parent.b, cost, parent.cost_b, nodes[i].curvature, parent.curvature_b));
  }
}

inline double round_code(double y, double cap) { return ((y < cap ? y : cap) + kRoundMagic64) - kRoundMagic64; }

// sum h q^2, sum h q k, sum h k^2 for the codes at scale 1 / inverse.
struct Totals {
  double cost, cross, squares;
};

template <bool Weighted>
inline Totals add_up(const Channel& channel, CodeRange codes, double inverse) {
  double lanes[3][kLanes];
  const DoubleVec low = codes.low - DoubleVec{}, high = codes.high - DoubleVec{};
  for (int lane = 0; lane < kLanes; lane += kHalf) {
    DoubleVec cost{}, cross{}, squares{};
    for (int64_t r = 0; r < channel.rows; ++r) {
      const DoubleVec y = load_double(channel.x + r * kLanes + lane) * inverse;
      const DoubleVec above = low > y ? low : y;
      const DoubleVec inside = high < above ? high : above;
      const DoubleVec k = (inside + kRoundMagic64) - kRoundMagic64;
      const DoubleVec q = y - k;
      DoubleVec hq = q, hk = k;
      if constexpr (Weighted) {
        const DoubleVec h = load_double(channel.h + r * kLanes + lane);
        hq *= h;
        hk *= h;
      }
      cost += hq * q;
      cross += hq * k;
      squares += hk * k;
    }
    memcpy(&lanes[0][lane], &cost, sizeof(cost));
    memcpy(&lanes[1][lane], &cross, sizeof(cross));
    memcpy(&lanes[2][lane], &squares, sizeof(squares));
  }
  return {add_lanes(lanes[0]), add_lanes(lanes[1]), add_lanes(lanes[2])};
}

// Marks the elements whose code may differ between the two ends of an interval (a superset: float32, widened).
inline void mark_changes(const Channel& channel, CodeRange codes, double a, double b, uint8_t* changed) {
  const float inverse_a = static_cast<float>(1.0 / a * (1.0 + 0x1p-21));
  const float inverse_b = static_cast<float>(1.0 / b * (1.0 - 0x1p-21));
  const float low = static_cast<float>(codes.low), high = static_cast<float>(codes.high);
  const int64_t size = channel.rows * kLanes;
  for (int64_t i = 0; i < size; ++i) {
    const float at_a = detent::round_clamped(channel.x[i] * inverse_a, low, high);
    const float at_b = detent::round_clamped(channel.x[i] * inverse_b, low, high);
    changed[i] = at_a != at_b;
  }
}

inline int64_t ExactSearch::collect(double a, double b) const {
  mark_changes(channel_, codes_, a, b, scratch_.changed);
  const double inverse_a = 1.0 / a, inverse_b = 1.0 / b;
  int64_t count = 0;
  for (int64_t base = 0; base < channel_.rows * kLanes; base += 8) {
    uint64_t word;
    memcpy(&word, scratch_.changed + base, sizeof(word));
    for (int64_t i = base; word != 0; ++i, word >>= 8) {
      if ((word & 0xff) == 0) continue;
      const double x = static_cast<double>(channel_.x[i]);
      const double size = x < 0.0 ? -x : x;
      const double cap = x < 0.0 ? -codes_.low : codes_.high;
      const double y = size * inverse_a;
      const double end = round_code(size * inverse_b, cap);
      for (double code = round_code(y, cap); code > end; code -= 1.0) {
        scratch_.breakpoints[count++] = {size / (code - 0.5), y, code,
                                         channel_.h ? static_cast<double>(channel_.h[i]) : 1.0};
      }
    }
  }
  return count;
}

// Every piece between a and b: the closed-form scale for its codes, the least kept.
inline void ExactSearch::sweep(const Interval& interval) {
  const double a = interval.a;
  Totals sums = channel_.h ? add_up<true>(channel_, codes_, 1.0 / a) : add_up<false>(channel_, codes_, 1.0 / a);
  const int64_t count = collect(a, interval.b);
  sort(scratch_.breakpoints, count, [](const Breakpoint& l, const Breakpoint& r) { return l.at < r.at; });
  const double unit = a * a;
  double best = best_cost_ / unit;
  for (int64_t i = 0;; ++i) {
    // cost - cross^2 / squares < best, without the division
    if ((sums.cost - best) * sums.squares < sums.cross * sums.cross) {
      const double scale = a * (1.0 + sums.cross / sums.squares);
      if (scale >= range_.least) {
        best = larger(0.0, sums.cost - sums.cross * sums.cross / sums.squares);
        best_cost_ = best * unit;
        best_scale_ = scale;
      }
    }
    if (i == count) return;
    const Breakpoint& drop = scratch_.breakpoints[i];
    const double q = drop.y - drop.code;
    sums.cost += drop.h * (2.0 * q + 1.0);
    sums.cross += drop.h * (drop.code - q - 1.0);
    sums.squares += drop.h * (1.0 - 2.0 * drop.code);
  }
}

// Cuts the axis into intervals, from the least scale that matters to the largest.
inline void ExactSearch::start() {
  Node* nodes = scratch_.nodes;
  int count = scan_scales(Cost::kSquare, channel_, codes_, range_, kFirstFine, nodes);
  for (int i = 0; i < count; ++i) consider(nodes[i]);
  Node refined = nodes[best_refined(nodes, count)];
  for (int round = 0; round < 3; ++round) {
    const double scale = refined.refined_scale;
    evaluate(Cost::kSquare, channel_, codes_, &scale, 1, &refined);
    consider(refined);
  }
  // Beyond twice the least unclipped scale, halving the scale keeps every grid point and clips nothing.
  const double ends[2] = {range_.least, 2.0 * range_.unclipped};
  evaluate(Cost::kSquare, channel_, codes_, ends, 2, nodes + count);
  count += 2;
  sort(nodes, count, [](const Node& l, const Node& r) { return l.scale < r.scale; });
  int first = 0;
  for (int i = 0; i < count; ++i) {
    if (clipping_cost(Cost::kSquare, channel_, lower(nodes[i].cost), nodes[i].scale) >= best_cost_) first = i;
  }
  for (int i = first; i + 1 < count; ++i) {
    if (nodes[i].scale == nodes[i + 1].scale) continue;
    add(make_interval(nodes[i].scale, nodes[i + 1].scale, lower(nodes[i].cost), lower(nodes[i + 1].cost),
                      nodes[i].curvature, nodes[i + 1].curvature));
  }
  sort(scratch_.stack, depth_, [](const Interval& l, const Interval& r) { return l.bound > r.bound; });
}

inline double ExactSearch::run() {
  // The least scale allowed may be the best one and is no stationary point.
  const double least = range_.least;
  best_scale_ = least;
  best_cost_ =
      least * least *
      (channel_.h ? add_up<true>(channel_, codes_, 1.0 / least) : add_up<false>(channel_, codes_, 1.0 / least)).cost;
  start();
  while (depth_ > 0) {
    Interval batch[4];
    int taken = 0;
    while (depth_ > 0 && taken < 4) {
      const Interval& top = scratch_.stack[--depth_];
      if (top.bound < limit()) batch[taken++] = top;
    }
    if (taken > 0) split(batch, taken);
  }
  sort(scratch_.deferred, deferred_, [](const Interval& l, const Interval& r) { return l.bound < r.bound; });
  for (int i = 0; i < deferred_ && scratch_.deferred[i].bound < limit(); ++i) sweep(scratch_.deferred[i]);
  return best_scale_;
}

}  // namespace detent::DETENT_ISA
