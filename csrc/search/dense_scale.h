// SPDX-License-Identifier: Apache-2.0
// Coarse-to-fine search over the scale of one channel, codes fixed to a range. Included once per instruction set.
//
//   1. scales in half octaves from "nothing is clipped" down to where the error cannot be least any more;
//   2. kFine scales over the octave around the best one;
//   3. the best four are improved: for squares twice by the closed form sum(h k x) / sum(h k^2) for their codes
//      (Lloyd's iteration), for other costs by two rounds of subdivision.
#pragma once

#include "search/scale_sums.h"

namespace detent::DETENT_ISA {

constexpr int kCoarse = 96;
constexpr int kFine = 40;
constexpr int kKept = 4;
constexpr double kCoarseRatio = 0.7071067811865476;  // 2^(-1/2)
constexpr double kFineRatio = 0.9828205985452511;  // 2^(-1/40): kFine steps span an octave

struct CodeRange {
  double low;
  double high;
};

// The cost at one scale, and for squares the best cost and scale for the codes found there.
struct Node {
  double scale;
  float inverse;
  double cost;
  double refined_scale;
  double refined_cost;
  double curvature;  // upper bound of sum h k^2, squares only
};

inline double larger(double a, double b) { return a > b ? a : b; }
inline double smaller(double a, double b) { return a < b ? a : b; }

inline double raise(Cost cost, double scale, double p) {
  return cost == Cost::kSquare ? scale * scale : cost == Cost::kAbsolute ? scale : __builtin_pow(scale, p);
}

inline Node make_node(Cost cost, const Channel& channel, float inverse, const Sums& sums) {
  Node node;
  node.inverse = inverse;
  node.scale = 1.0 / static_cast<double>(inverse);
  const double unit = raise(cost, node.scale, channel.power);
  node.cost = unit * sums.cost;
  node.refined_scale = node.scale;
  node.refined_cost = node.cost;
  node.curvature = 0.0;
  if (cost != Cost::kSquare) return node;
  const double energy = channel.energy / unit;  // sum h y^2
  // k = y - q, hence sum h k^2 and sum h q k from the two sums taken.
  const double squares = energy - 2.0 * sums.slope + sums.cost;
  const double cross = sums.slope - sums.cost;
  node.curvature = squares + 0x1p-14 * energy;
  if (squares > 0x1p-14 * energy) {
    node.refined_scale = node.scale * (1.0 + cross / squares);
    node.refined_cost = unit * larger(0.0, sums.cost - cross * cross / squares);
  }
  return node;
}

inline void evaluate(Cost cost, const Channel& channel, CodeRange codes, const double* scales, int count, Node* nodes) {
  Probe probes[kCoarse] = {};
  Sums sums[kCoarse];
  for (int i = 0; i < count; ++i) {
    probes[i] = {static_cast<float>(1.0 / scales[i]), static_cast<float>(codes.low), static_cast<float>(codes.high)};
  }
  measure(cost, channel, probes, count, sums);
  for (int i = 0; i < count; ++i) nodes[i] = make_node(cost, channel, probes[i].inverse, sums[i]);
}

struct ScaleRange {
  double least;   // no smaller scale can be best, or is allowed
  double unclipped;  // the least scale that clips nothing (at least `least`)
};

inline int best_refined(const Node* nodes, int count) {
  int best = 0;
  for (int i = 1; i < count; ++i) {
    if (nodes[i].refined_cost < nodes[best].refined_cost) best = i;
  }
  return best;
}

// Fills `nodes` (room for kCoarse + kFine) with stages 1 and 2 and returns how many.
inline int scan_scales(Cost cost, const Channel& channel, CodeRange codes, ScaleRange range, Node* nodes) {
  double scales[kCoarse];
  int count = 0;
  for (double scale = range.unclipped; count < kCoarse && scale >= range.least; scale *= kCoarseRatio) scales[count++] = scale;
  evaluate(cost, channel, codes, scales, count, nodes);
  double scale = nodes[best_refined(nodes, count)].scale / kCoarseRatio;
  int fine = 0;
  for (int i = 0; i < kFine; ++i) {
    scale *= kFineRatio;
    if (scale >= range.least) scales[fine++] = scale;
  }
  evaluate(cost, channel, codes, scales, fine, nodes + count);
  return count + fine;
}

inline void select_best(Node* nodes, int count, int kept) {
  for (int i = 0; i < kept; ++i) {
    const int best = i + best_refined(nodes + i, count - i);
    const Node moved = nodes[i];
    nodes[i] = nodes[best];
    nodes[best] = moved;
  }
}

// Stage 3: the least cost found, a measured one. `nodes` is reordered.
inline Node improve(Cost cost, const Channel& channel, CodeRange codes, ScaleRange range, Node* nodes, int count) {
  const int kept = count < kKept ? count : kKept;
  select_best(nodes, count, kept);
  Node best = nodes[0];
  double scales[2 * kKept];
  Node found[2 * kKept];
  for (int round = 0; round < 2; ++round) {
    int n = 0;
    for (int i = 0; i < kept; ++i) {
      if (cost == Cost::kSquare) {
        scales[n++] = larger(range.least, (round ? found : nodes)[i].refined_scale);
      } else {
        // A third of a step around each kept scale, then ninths around the best.
        const double offset = round ? (i + 1) * (1.0 - kFineRatio) / 9.0 : (1.0 - kFineRatio) / 3.0;
        const double center = round ? best.scale : nodes[i].scale;
        scales[n++] = larger(range.least, center * (1.0 + offset));
        scales[n++] = larger(range.least, center * (1.0 - offset));
      }
    }
    evaluate(cost, channel, codes, scales, n, found);
    for (int i = 0; i < n; ++i) {
      if (found[i].cost < best.cost) best = found[i];
    }
    for (int i = 0; cost == Cost::kSquare && round == 0 && i < kept; ++i) {
      if (nodes[i].cost < best.cost) best = nodes[i];
    }
  }
  return best;
}

}  // namespace detent::DETENT_ISA
