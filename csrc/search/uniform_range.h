// SPDX-License-Identifier: Apache-2.0
// Search for the limits of a uniform grid on one channel. Included once per instruction set.
//
// A uniform grid of n bits holds zero, so it is a scale s and an integer zero point z in [0, 2^n - 1]: codes -z .. 2^n
// - 1 - z counted from zero, limits -z s and (2^n - 1 - z) s. With the zero point fixed the search is over the scale
// alone (dense_scale.h): that is done for every zero point at 2 and 3 bits, and for the only sensible one if the
// channel has one sign. Otherwise both limits move:
//   1. all pairs of kSide half octaves below the largest value and above the smallest;
//   2. 7 x 7 pairs an eighth of an octave apart around the best two, then 1/32 of an octave around the best one;
//   3. zero points up to three away, the scale improved for each (squares: twice by its closed form).
#pragma once

#include "search/dense_scale.h"

namespace detent::DETENT_ISA {

constexpr int kSide = 16;
constexpr int kReach = 3;
constexpr int kSpan = 2 * kReach + 1;
constexpr double kEighthOctave = 1.0905077326652577;  // 2^(1/8)
constexpr double kThirtySecond = 1.0218971486541166;  // 2^(1/32)

// Magnitudes of the two limits.
struct Limits {
  double lower;
  double upper;
};

struct UniformGrid {
  float scale;
  float low;  // lowest code minus zero point
  float high;
};

struct UniformNode {
  Limits limits;
  double zero;
  Node node;
};

// The step and zero point that records/grid.py derives from two limits around zero.
inline UniformGrid uniform_grid(float lower, float upper, int bits) {
  const double steps = static_cast<double>((int64_t{1} << bits) - 1);
  const float scale = static_cast<float>((static_cast<double>(upper) - static_cast<double>(lower)) / steps);
  const double zero = __builtin_rint(-static_cast<double>(lower) / static_cast<double>(scale));
  const double point = smaller(steps, larger(0.0, zero));
  return {scale, static_cast<float>(-point), static_cast<float>(steps - point)};
}

class UniformSearch {
 public:
  UniformSearch(Cost cost, const Channel& channel, int bits, double least_range)
      : cost_(cost),
        channel_(channel),
        bits_(bits),
        steps_(static_cast<double>((int64_t{1} << bits) - 1)),
        least_(least_range / steps_) {}

  Limits run(Node* nodes) {
    if (bits_ <= 3 || channel_.bottom == 0.0 || channel_.top == 0.0) return search_each_zero(nodes);
    return search_limits();
  }

 private:
  Limits search_each_zero(Node* nodes);
  Limits search_limits();
  void evaluate_pairs(const Limits* pairs, int count, UniformNode* found) const;
  void evaluate_zeros(const double* zeros, const double* scales, int count, UniformNode* found) const;
  UniformNode refine(const UniformNode& start, double ratio) const;
  UniformNode polish(UniformNode best) const;
  Limits limits_of(double zero, double scale) const { return {zero * scale, (steps_ - zero) * scale}; }

  const Cost cost_;
  const Channel& channel_;
  const int bits_;
  const double steps_;
  const double least_;  // least scale
};

inline Limits UniformSearch::search_each_zero(Node* nodes) {
  const double first = channel_.top == 0.0 ? steps_ : 0.0;
  const double last = channel_.bottom == 0.0 ? 0.0 : steps_;
  double best_cost = -1.0;
  Limits best{};
  for (double zero = first; zero <= last; zero += 1.0) {
    const CodeRange codes{-zero, steps_ - zero};
    // A side without codes is clipped to zero whatever the scale.
    const double up = codes.high > 0.0 ? channel_.top / codes.high : 0.0;
    const double down = zero > 0.0 ? channel_.bottom / zero : 0.0;
    const ScaleRange range{least_, larger(least_, larger(up, down))};
    const Node found = search_scale(cost_, channel_, codes, range, nodes);
    if (best_cost < 0.0 || found.cost < best_cost) {
      best_cost = found.cost;
      best = limits_of(zero, found.scale);
    }
  }
  return best;
}

inline void UniformSearch::evaluate_zeros(const double* zeros, const double* scales, int count,
                                          UniformNode* found) const {
  Probe probes[kSpan * kSpan] = {};
  Sums sums[kSpan * kSpan];
  for (int i = 0; i < count; ++i) {
    probes[i] = {static_cast<float>(1.0 / larger(least_, scales[i])), static_cast<float>(-zeros[i]),
                 static_cast<float>(steps_ - zeros[i])};
  }
  measure(cost_, channel_, probes, count, sums);
  for (int i = 0; i < count; ++i) {
    found[i].zero = zeros[i];
    found[i].node = make_node(cost_, channel_, probes[i].inverse, sums[i]);
    found[i].limits = limits_of(zeros[i], found[i].node.scale);
  }
}

// The zero point is the nearest integer to where the pair puts zero; the scale is the pair's.
inline void UniformSearch::evaluate_pairs(const Limits* pairs, int count, UniformNode* found) const {
  double zeros[kSpan * kSpan];
  double scales[kSpan * kSpan];
  for (int i = 0; i < count; ++i) {
    scales[i] = larger(least_, (pairs[i].lower + pairs[i].upper) / steps_);
    zeros[i] = smaller(steps_, __builtin_rint(pairs[i].lower / scales[i]));
  }
  evaluate_zeros(zeros, scales, count, found);
  for (int i = 0; i < count; ++i) found[i].limits = pairs[i];
}

inline UniformNode UniformSearch::refine(const UniformNode& start, double ratio) const {
  Limits pairs[kSpan * kSpan];
  UniformNode found[kSpan * kSpan];
  double factor[kSpan];
  factor[kReach] = 1.0;
  for (int i = 0; i < kReach; ++i) {
    factor[kReach + i + 1] = factor[kReach + i] * ratio;
    factor[kReach - i - 1] = factor[kReach - i] / ratio;
  }
  for (int i = 0; i < kSpan * kSpan; ++i) {
    pairs[i] = {start.limits.lower * factor[i / kSpan], start.limits.upper * factor[i % kSpan]};
  }
  evaluate_pairs(pairs, kSpan * kSpan, found);
  UniformNode best = start;
  for (const UniformNode& candidate : found) {
    if (candidate.node.refined_cost < best.node.refined_cost) best = candidate;
  }
  return best;
}

// Scale and zero point, near a pair that is nearly best.
inline UniformNode UniformSearch::polish(UniformNode best) const {
  double zeros[2 * kSpan + kSpan];
  double scales[2 * kSpan + kSpan];
  UniformNode found[2 * kSpan + kSpan];
  for (int round = 0; round < 2; ++round) {
    const UniformNode center = best;
    const double offset = round ? 0.002 : 0.006;
    int count = 0;
    for (int i = -kReach; i <= kReach; ++i) {
      const double zero = center.zero + i;
      if (zero < 0.0 || zero > steps_) continue;
      for (int side = -1; side <= 1; ++side) {
        if (cost_ == Cost::kSquare && side != 0) continue;
        zeros[count] = zero;
        scales[count++] =
            cost_ == Cost::kSquare ? center.node.refined_scale : center.node.scale * (1.0 + side * offset);
      }
    }
    for (int pass = 0; pass < 2; ++pass) {
      evaluate_zeros(zeros, scales, count, found);
      for (int i = 0; i < count; ++i) {
        if (found[i].node.cost < best.node.cost) best = found[i];
        scales[i] = found[i].node.refined_scale;
      }
      if (cost_ != Cost::kSquare) break;
    }
  }
  return best;
}

inline Limits UniformSearch::search_limits() {
  UniformNode top[2];
  UniformNode found[kSide];
  Limits pairs[kSide];
  bool filled = false;
  double lower = channel_.bottom;
  for (int i = 0; i < kSide; ++i, lower *= kCoarseRatio) {
    double upper = channel_.top;
    for (int j = 0; j < kSide; ++j, upper *= kCoarseRatio) pairs[j] = {lower, upper};
    evaluate_pairs(pairs, kSide, found);
    for (const UniformNode& candidate : found) {
      if (!filled) top[0] = top[1] = candidate;
      filled = true;
      if (candidate.node.refined_cost < top[0].node.refined_cost) {
        top[1] = top[0];
        top[0] = candidate;
      } else if (candidate.node.refined_cost < top[1].node.refined_cost) {
        top[1] = candidate;
      }
    }
  }
  const UniformNode first = refine(top[0], kEighthOctave);
  const UniformNode second = refine(top[1], kEighthOctave);
  const UniformNode& start = second.node.refined_cost < first.node.refined_cost ? second : first;
  return polish(refine(start, kThirtySecond)).limits;
}

inline Limits search_uniform(Cost cost, const Channel& channel, int bits, bool no_clipping, double least_range,
                             Node* nodes) {
  if (no_clipping || channel.energy == 0.0 || channel.top + channel.bottom <= least_range) {
    return {channel.bottom, larger(channel.top, least_range - channel.bottom)};
  }
  return UniformSearch(cost, channel, bits, least_range).run(nodes);
}

}  // namespace detent::DETENT_ISA
