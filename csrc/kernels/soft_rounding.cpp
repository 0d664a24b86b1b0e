// SPDX-License-Identifier: Apache-2.0
#include "kernels/soft_rounding.h"

#include "kernels/float_functions.h"
#include "kernels/grid_walk.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kSlice = SoftRoundingTable::kSlice;
constexpr int64_t kRun = 256;  // terms of the regularizer that wait to be added
constexpr int64_t kLanes = 16;
constexpr int64_t kMinElementsPerThread = 16384;
static_assert(kSlice % kRun == 0 && kRun % kLanes == 0);

// Forms that keep NaN: the comparisons are false.
inline float clamped(float x, float lower, float upper) {
  const float above = lower > x ? lower : x;
  return upper < above ? upper : above;
}

struct Sigmoid {
  float value, slope;
};

inline Sigmoid sigmoid(float v) {
  const float small = exp_of(v < 0.0f ? v : -v);
  const float inverse = 1.0f / (1.0f + small);
  const float rest = small * inverse;
  return {v < 0.0f ? rest : inverse, rest * inverse};
}

inline float stretched(float s) { return s * 1.2f - 0.1f; }

struct Grid {
  float scale, lower, upper;
};

// One element's gradient, and its term of the regularizer, if there is one.
template <bool kRegular>
inline float gradient_of(float v, float base, float gradient, const Grid& grid, const SoftLoss& loss, float* term) {
  const Sigmoid s = sigmoid(v);
  const float raw = stretched(s.value);
  const float h = clamped(raw, 0.0f, 1.0f);
  const float place = base + h;
  float slope = (place < grid.lower) | (place > grid.upper) ? 0.0f : gradient * grid.scale;
  if constexpr (kRegular) {
    const float u = 2.0f * h - 1.0f;
    const float size = u < 0.0f ? -u : u;
    const float power = power_of(size, loss.beta - 1.0f);
    *term = 1.0f - power * size;
    const float push = loss.weight * (2.0f * loss.beta * power);
    slope += u < 0.0f ? push : -push;
  }
  return (raw < 0.0f) | (raw > 1.0f) ? 0.0f : slope * (1.2f * s.slope);
}

inline double halve(double* lanes) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

inline Grid grid_of(const SoftView& view, int64_t row) {
  const int64_t at = row * view.grid_stride;
  return {view.scale[at], view.lower[at], view.upper[at]};
}

// body(row, first element, number of elements, slice) for all slices.
template <class Body>
void walk_slices(const SoftView& view, const Body& body) {
  const int64_t slices = SoftRoundingTable::slices(view.columns);
  const int64_t elements = view.columns < kSlice ? view.columns : kSlice;
  parallel_for(view.rows * slices, kMinElementsPerThread / (elements + 1) + 1, [&](int64_t slice) {
    const int64_t row = slice / slices, first = slice % slices * kSlice;
    const int64_t count = kSlice < view.columns - first ? kSlice : view.columns - first;
    body(row, row * view.columns + first, count, slice);
  });
}

void values(const SoftView& view, const float* v, float* out) {
  walk_slices(view, [&](int64_t row, int64_t first, int64_t count, int64_t) {
    const Grid grid = grid_of(view, row);
    const float *base = view.base + first, *from = v + first;
    float* to = out + first;
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < count; ++i) {
      const float h = clamped(stretched(sigmoid(from[i]).value), 0.0f, 1.0f);
      to[i] = clamped(base[i] + h, grid.lower, grid.upper) * grid.scale;
    }
  });
}

// Where gradients go: to an array, or into a step.
struct Stored {
  float* out;

  void take(int64_t i, float gradient, float) const { out[i] = gradient; }
};

struct Stepped {
  AdamStep adam;
  float* v;

  void take(int64_t i, float gradient, float before) const {
    const float first = adam.first[i] + (gradient - adam.first[i]) * adam.first_rate;
    const float second = adam.second[i] * adam.second_decay + gradient * gradient * adam.second_rate;
    adam.first[i] = first;
    adam.second[i] = second;
    v[i] = before - adam.step * (first / (__builtin_sqrtf(second) * adam.inverse_root + adam.epsilon));
  }
};

// Gradients of a slice; returns the sum of the terms.
template <bool kRegular, class Taker>
inline double take_slice(const SoftView& view, const SoftLoss& loss, const float* v, const Grid& grid, int64_t first,
                         int64_t count, const Taker& taker) {
  alignas(64) double lanes[kLanes] = {};
  for (int64_t begin = first; begin < first + count; begin += kRun) {
    const int64_t run = kRun < first + count - begin ? kRun : first + count - begin;
    alignas(64) float terms[kRun];
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < run; ++i) {
      const int64_t at = begin + i;
      const float before = v[at];
      const float gradient = gradient_of<kRegular>(before, view.base[at], loss.gradients[at], grid, loss, terms + i);
      taker.take(at, gradient, before);
    }
    if constexpr (kRegular) {
      for (int64_t i = run; i % kLanes != 0; ++i) terms[i] = 0.0f;
      for (int64_t i = 0; i < run; i += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(terms[i + l]);
      }
    }
  }
  return halve(lanes);
}

template <class Taker>
double take(const SoftView& view, const SoftLoss& loss, const float* v, double* partial, const Taker& taker) {
  walk_slices(view, [&](int64_t row, int64_t first, int64_t count, int64_t slice) {
    const Grid grid = grid_of(view, row);
    partial[slice] = loss.weight == 0.0f ? take_slice<false>(view, loss, v, grid, first, count, taker)
                                         : take_slice<true>(view, loss, v, grid, first, count, taker);
  });
  double sum = 0.0;
  for (int64_t s = 0; s < view.rows * SoftRoundingTable::slices(view.columns); ++s) sum += partial[s];
  return static_cast<double>(loss.weight) * sum;
}

double gradients(const SoftView& view, const SoftLoss& loss, const float* v, double* partial, float* out) {
  return take(view, loss, v, partial, Stored{out});
}

double step(const SoftView& view, const SoftLoss& loss, const AdamStep& adam, double* partial, float* v) {
  return take(view, loss, v, partial, Stepped{adam, v});
}

}  // namespace

extern const SoftRoundingTable soft_rounding_table = {.values = values, .gradients = gradients, .step = step};

}  // namespace detent::DETENT_ISA
