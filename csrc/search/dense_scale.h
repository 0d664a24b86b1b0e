// SPDX-License-Identifier: Apache-2.0
// Coarse-to-fine search over the scale of one channel, codes fixed to a range. Included once per instruction set.
//
//   1. scales in half octaves from "nothing is clipped" down to where clipping alone costs more than the best found;
//   2. evenly spaced scales (on a logarithmic axis) over the octave around the best one: 40, more for small channels,
//      whose error is more ragged;
//   3. the best four are improved: for squares twice by the closed form sum(h k x) / sum(h k^2) for their codes
//      (Lloyd's iteration), for other costs by two rounds of subdivision.
#pragma once

#include "search/scale_sums.h"

namespace detent::DETENT_ISA {

constexpr int kBatch = 8;
constexpr int kCoarse = 128;
constexpr int kLeastFine = 40;
constexpr int kMostFine = 640;
constexpr int64_t kFineWork = 184320;  // fine scales times elements, between the two limits
constexpr int kNodes = kCoarse + kMostFine;
constexpr int kKept = 4;
constexpr double kCoarseRatio = 0.7071067811865476;  // 2^(-1/2)

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
  for (int begin = 0; begin < count; begin += kBatch) {
    const int size = count - begin < kBatch ? count - begin : kBatch;
    Probe probes[kBatch] = {};
    Sums sums[kBatch];
    for (int i = 0; i < size; ++i) {
      probes[i] = {static_cast<float>(1.0 / scales[begin + i]), static_cast<float>(codes.low),
                   static_cast<float>(codes.high)};
    }
    measure(cost, channel, probes, size, sums);
    for (int i = 0; i < size; ++i) nodes[begin + i] = make_node(cost, channel, probes[i].inverse, sums[i]);
  }
}

struct ScaleRange {
  double least;      // no smaller scale can be best, or is allowed
  double unclipped;  // the least scale that clips nothing, or `least`
};

inline int best_refined(const Node* nodes, int count) {
  int best = 0;
  for (int i = 1; i < count; ++i) {
    if (nodes[i].refined_cost < nodes[best].refined_cost) best = i;
  }
  return best;
}

// A lower bound of what clipping costs at the node's scale, hence at every smaller one: what is not clipped costs at
// most half a step per element.
inline double clipping_cost(Cost cost, const Channel& channel, double node_cost, double scale) {
  return node_cost - channel.importance * raise(cost, 0.5 * scale, channel.power);
}

inline int scan_octaves(Cost cost, const Channel& channel, CodeRange codes, ScaleRange range, Node* nodes) {
  int count = 0;
  double best = -1.0;
  double scale = range.unclipped;
  while (count + kBatch <= kCoarse && scale >= range.least) {
    double scales[kBatch];
    int size = 0;
    for (; size < kBatch && scale >= range.least; scale *= kCoarseRatio) scales[size++] = scale;
    evaluate(cost, channel, codes, scales, size, nodes + count);
    count += size;
    for (int i = count - size; i < count; ++i) best = best < 0.0 ? nodes[i].cost : smaller(best, nodes[i].cost);
    if (clipping_cost(cost, channel, nodes[count - 1].cost, nodes[count - 1].scale) > best) break;
  }
  return count;
}

inline int fine_count(const Channel& channel) {
  const int64_t count = kFineWork / (channel.rows * kLanes);
  return count < kLeastFine ? kLeastFine : count > kMostFine ? kMostFine : static_cast<int>(count);
}

// Fills `nodes` (room for kNodes) with stages 1 and 2 and returns how many.
inline int scan_scales(Cost cost, const Channel& channel, CodeRange codes, ScaleRange range, int fine, Node* nodes) {
  const int coarse = scan_octaves(cost, channel, codes, range, nodes);
  const double ratio = __builtin_pow(2.0, -1.0 / fine);
  double scale = nodes[best_refined(nodes, coarse)].scale / kCoarseRatio;
  int count = coarse;
  double scales[kBatch];
  for (int done = 0; done < fine;) {
    int size = 0;
    for (; done < fine && size < kBatch; ++done) {
      scale *= ratio;
      if (scale >= range.least) scales[size++] = scale;
    }
    evaluate(cost, channel, codes, scales, size, nodes + count);
    count += size;
  }
  return count;
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
inline Node improve(Cost cost, const Channel& channel, CodeRange codes, ScaleRange range, double step, Node* nodes,
                    int count) {
  const int kept = count < kKept ? count : kKept;
  select_best(nodes, count, kept);
  Node best = nodes[0];
  double scales[2 * kKept] = {};
  Node found[2 * kKept];
  for (int round = 0; round < 2; ++round) {
    int n = 0;
    for (int i = 0; i < kept; ++i) {
      if (cost == Cost::kSquare) {
        scales[n++] = larger(range.least, (round ? found : nodes)[i].refined_scale);
      } else {
        // A third of a step around each kept scale, then ninths around the best.
        const double offset = round ? (i + 1) * step / 9.0 : step / 3.0;
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

// All three stages: the least measured cost.
inline Node search_scale(Cost cost, const Channel& channel, CodeRange codes, ScaleRange range, Node* nodes) {
  const int fine = fine_count(channel);
  const int count = scan_scales(cost, channel, codes, range, fine, nodes);
  return improve(cost, channel, codes, range, 0.6931471805599453 / fine, nodes, count);
}

}  // namespace detent::DETENT_ISA
