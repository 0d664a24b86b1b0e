// SPDX-License-Identifier: Apache-2.0
#include "search/codebook_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/codebook.h"
#include "search/codebook_levels.h"
#include "support/check.h"
#include "support/parallel.h"

namespace detent {
namespace {

constexpr double kSteps = 128.0;  // step = threshold / kSteps
constexpr double kLargest = 0x1p127;
constexpr int kMostRounds = 50;
constexpr int kMostFits = 10;
constexpr double kLeastGain = 1e-4;
// Thresholds tried: these fractions of the one that clips nothing. Between them the closed form finds the best.
constexpr int kFirstRatio = 3, kLastRatio = 40, kRatios = 32;
constexpr int kOctavesUp = 1, kOctavesDown = 10;

// One channel: its values in ascending order, and sums of h, h x, h x^2 over those before each.
struct Row {
  const float* x;
  const double* sums[3];
  int64_t size;
};

class Rows {
 public:
  Rows(const WeightView& values, const WeightView* importance)
      : size_(values.size),
        x_(static_cast<size_t>(values.channels * size_)),
        sums_(static_cast<size_t>(3 * values.channels * (size_ + 1))) {
    parallel_for(values.channels, std::max<int64_t>(1, 10000 / size_), [&](int64_t c) { fill(values, importance, c); });
  }

  Row operator[](int64_t c) const {
    const double* sums = sums_.data() + 3 * c * (size_ + 1);
    return {x_.data() + c * size_, {sums, sums + size_ + 1, sums + 2 * (size_ + 1)}, size_};
  }

 private:
  void fill(const WeightView& values, const WeightView* importance, int64_t c) {
    const auto n = static_cast<size_t>(size_);
    std::vector<float> x(n), h(n, 1.0f);
    gather_row(values, c, x.data());
    if (importance) gather_row(*importance, c, h.data());
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] != x[b] ? x[a] < x[b] : h[a] < h[b]; });
    float* to = x_.data() + c * size_;
    double* sums = sums_.data() + 3 * c * (size_ + 1);
    const size_t stride = n + 1;
    for (size_t i = 0; i < n; ++i) {
      const double value = x[order[i]], weight = h[order[i]];
      to[i] = x[order[i]];
      sums[i + 1] = sums[i] + weight;
      sums[stride + i + 1] = sums[stride + i] + weight * value;
      sums[2 * stride + i + 1] = sums[2 * stride + i] + weight * value * value;
    }
  }

  int64_t size_;
  std::vector<float> x_;
  std::vector<double> sums_;
};

// What a step costs with given levels, and the best step while every value keeps its level.
struct Fit {
  double cost, fitted_cost, fitted_step;
};

Fit fit(const Row& row, const std::vector<int>& levels, double step) {
  double products = 0.0, squares = 0.0;  // sum h t x, sum h t^2
  int64_t low = 0;
  for (size_t k = 0; k < levels.size(); ++k) {
    int64_t high = row.size;
    if (k + 1 < levels.size()) {
      const double bound = step * (0.5 * (levels[k] + levels[k + 1]));
      high = std::upper_bound(row.x + low, row.x + row.size, bound) - row.x;
    }
    const double t = levels[k];
    products += t * (row.sums[1][high] - row.sums[1][low]);
    squares += t * t * (row.sums[0][high] - row.sums[0][low]);
    low = high;
  }
  const double energy = row.sums[2][row.size];
  const double cost = energy - step * (2.0 * products - step * squares);
  if (!(products > 0.0 && squares > 0.0)) return {cost, cost, step};
  const double fitted = products / squares;
  return {cost, energy - products * fitted, fitted};
}

struct Choice {
  std::vector<float> thresholds;
  std::vector<int> levels;
  double cost = std::numeric_limits<double>::infinity();
};

// Channels [begin, end) that share a codebook.
class Search {
 public:
  Search(const Rows& rows, const CodebookSpec& spec, int64_t channels, int64_t begin, int64_t end)
      : rows_(rows), spec_(spec), channels_(channels), begin_(begin), end_(end) {}

  Choice best() const {
    Choice best;
    for (int start = 0; start < spec_.n_starts; ++start) {
      const float* from = spec_.starts + start * channels_;
      Choice found = improve({from + begin_, from + end_});
      if (start == 0 || found.cost < best.cost) best = std::move(found);
    }
    return best;
  }

 private:
  Choice improve(std::vector<float> thresholds) const {
    Choice kept;
    for (int round = 0; round < kMostRounds; ++round) {
      Choice next{thresholds, choose_levels(cells_of(thresholds), 1 << spec_.bits), 0.0};
      if (spec_.keep_thresholds) return next;
      if (next.levels == kept.levels) break;
      next.cost = move_thresholds(next, round == 0);
      if (!(next.cost < kept.cost)) break;
      const bool settled = round > 0 && kept.cost - next.cost <= kLeastGain * kept.cost;
      kept = std::move(next);
      if (settled) break;
      thresholds = kept.thresholds;
    }
    return kept;
  }

  CellSums cells_of(const std::vector<float>& thresholds) const {
    CellSums cells;
    for (int64_t c = begin_; c < end_; ++c) {
      const Row row = rows_[c];
      const double step = step_of(thresholds[static_cast<size_t>(c - begin_)]);
      for (int64_t i = 0; i < row.size; ++i) {
        const double half = std::floor(2.0 * row.x[i] / step) + kCells / 2;
        const auto cell = static_cast<size_t>(std::clamp(half, 0.0, kCells - 1.0));
        cells.weight[cell] += step * step * (row.sums[0][i + 1] - row.sums[0][i]);
        cells.first[cell] += step * (row.sums[1][i + 1] - row.sums[1][i]);
        cells.second[cell] += row.sums[2][i + 1] - row.sums[2][i];
      }
    }
    return cells;
  }

  // Gives each channel the best threshold for the levels; returns the total cost.
  double move_thresholds(Choice& choice, bool anywhere) const {
    std::vector<double> costs(choice.thresholds.size());
    const int64_t work = static_cast<int64_t>(choice.levels.size()) * (kLastRatio - kFirstRatio) * 8;
    parallel_for(end_ - begin_, std::max<int64_t>(1, 200000 / work), [&](int64_t i) {
      float& threshold = choice.thresholds[static_cast<size_t>(i)];
      const Row row = rows_[begin_ + i];
      const auto cost_at = [&](float t) { return fit(row, choice.levels, step_of(t)).cost; };
      double least = cost_at(threshold);
      const auto offer = [&](float candidate) {
        const double cost = cost_at(candidate);
        if (!(cost < least)) return;
        least = cost;
        threshold = candidate;
      };
      const float unclipped = spec_.starts[begin_ + i];
      if (row.x[0] != 0.0f || row.x[row.size - 1] != 0.0f) {
        if (spec_.power_of_two) {
          for (int k = kOctavesUp; k >= -kOctavesDown; --k) {
            const double power = std::ldexp(static_cast<double>(unclipped), k);
            if (power >= spec_.min_threshold && power <= kLargest) offer(static_cast<float>(power));
          }
        } else {
          offer(real_threshold(row, choice.levels, threshold, anywhere ? unclipped : 0.0f));
        }
      }
      costs[static_cast<size_t>(i)] = least;
    });
    return std::accumulate(costs.begin(), costs.end(), 0.0);
  }

  // The best of a dense grid below `unclipped` (if positive) and of `threshold`, each with the closed form; from there
  // on the closed form until values stay with their levels.
  float real_threshold(const Row& row, const std::vector<int>& levels, float threshold, float unclipped) const {
    const Fit present = fit(row, levels, step_of(threshold));
    double step = present.fitted_step, least = present.fitted_cost;
    for (int ratio = kFirstRatio; unclipped > 0.0f && ratio <= kLastRatio; ++ratio) {
      const Fit found = fit(row, levels, step_of(unclipped) * ratio / kRatios);
      if (!(found.fitted_cost < least)) continue;
      least = found.fitted_cost;
      step = found.fitted_step;
    }
    double kept = step;
    least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kMostFits; ++i) {
      const Fit found = fit(row, levels, step);
      if (!(found.cost < least)) break;
      least = found.cost;
      kept = step;
      step = found.fitted_step;
    }
    return static_cast<float>(std::clamp(kSteps * kept, spec_.min_threshold, kLargest));
  }

  static double step_of(float threshold) { return static_cast<double>(threshold / static_cast<float>(kSteps)); }

  const Rows& rows_;
  const CodebookSpec& spec_;
  int64_t channels_, begin_, end_;
};

// Mean of h (Q(x) - x)^2 over a channel, by the definition in kernels/lut.h.
double error_of(const float* x, const float* h, int64_t size, const LutView& lut, float step) {
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    const float quotient = x[i] / step;
    const auto code = std::lower_bound(lut.bounds, lut.bounds + lut.size - 1, quotient) - lut.bounds;
    const double d = static_cast<double>(lut.table[code] * step) - static_cast<double>(x[i]);
    sum += (h ? static_cast<double>(h[i]) : 1.0) * d * d;
  }
  return sum / static_cast<double>(size);
}

void require_finite(const WeightView& values, const WeightView* importance) {
  std::vector<float> row(static_cast<size_t>(values.size));
  for (int64_t c = 0; c < values.channels; ++c) {
    const std::string name = values.channel_axes == 0 ? "the tensor" : "channel " + std::to_string(c);
    gather_row(values, c, row.data());
    require(std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); }), "the weights of ", name,
            " hold NaN or infinity");
    if (!importance) continue;
    gather_row(*importance, c, row.data());
    require(std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v) && v >= 0.0f; }),
            "the importance weights of ", name, " hold NaN, infinity or a negative value");
  }
}

}  // namespace

void search_codebook(const WeightView& values, const WeightView* importance, const CodebookSpec& spec,
                     const CodebookResult& result) {
  require_finite(values, importance);
  const Rows rows(values, importance);
  const auto search = [&](int64_t begin, int64_t end, float* levels) {
    const Choice choice = Search(rows, spec, values.channels, begin, end).best();
    std::copy(choice.thresholds.begin(), choice.thresholds.end(), result.threshold + begin);
    std::copy(choice.levels.begin(), choice.levels.end(), levels);
    const Codebook codebook(levels, int64_t{1} << spec.bits);
    const LutView lut = codebook.view({});
    std::vector<float> x(static_cast<size_t>(values.size)), h(importance ? x.size() : 0);
    for (int64_t c = begin; c < end; ++c) {
      gather_row(values, c, x.data());
      if (importance) gather_row(*importance, c, h.data());
      const float step = result.threshold[c] / static_cast<float>(kSteps);
      result.error[c] = error_of(x.data(), importance ? h.data() : nullptr, values.size, lut, step);
    }
  };
  if (spec.shared) {
    search(0, values.channels, result.levels);
  } else {
    parallel_for(values.channels, 1, [&](int64_t c) { search(c, c + 1, result.levels + (c << spec.bits)); });
  }
}

}  // namespace detent
