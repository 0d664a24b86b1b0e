// SPDX-License-Identifier: Apache-2.0
#include "kernels/error.h"

#include <cmath>

#include "support/parallel.h"
#include "support/rounding.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kLanes = ErrorPlan::kLanes;
// Channels a task handles where they are innermost: their sums stay in the first-level cache.
constexpr int64_t kChannelRun = 512;
// Elements worth a thread.
constexpr int64_t kMinElementsPerThread = 65536;

enum class Power { kOne, kTwo, kAny };

// What varies between elements is passed, what does not is compiled in.
template <Power kPower, bool kInverse, bool kWeighted>
struct Term {
  static double of(float x, float weight, float scale, float inverse, float lower, float upper, double p) {
    const float quotient = kInverse ? x * inverse : x / scale;
    const double error = static_cast<double>(round_clamped(quotient, lower, upper) * scale) - static_cast<double>(x);
    double term;
    if constexpr (kPower == Power::kOne) {
      term = std::fabs(error);
    } else if constexpr (kPower == Power::kTwo) {
      term = error * error;
    } else {
      term = std::pow(std::fabs(error), p);
    }
    return kWeighted ? static_cast<double>(weight) * term : term;
  }
};

template <class Element>
inline void add_run(const float* x, const float* weights, int64_t n, const ErrorArgs& args, int64_t c, double* lanes) {
  const float scale = args.scale[c], inverse = args.inverse[c], lower = args.lower[c], upper = args.upper[c];
  const double p = args.p;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lanes[l] += Element::of(x[i + l], weights[i + l], scale, inverse, lower, upper, p);
    }
  }
  for (int64_t l = 0; i < n; ++i, ++l) lanes[l] += Element::of(x[i], weights[i], scale, inverse, lower, upper, p);
}

inline double halve(double* lanes) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

struct Slice {
  int64_t first_row, end_row, first, end;  // rows of outer; elements of inner
};

inline Slice slice_at(const ErrorArgs& args, const ErrorPlan& plan, int64_t s) {
  const int64_t k = s / plan.inner_slices, j = s % plan.inner_slices;
  Slice slice{k * plan.outer_rows, (k + 1) * plan.outer_rows, j * plan.inner_run, (j + 1) * plan.inner_run};
  if (slice.end_row > args.outer) slice.end_row = args.outer;
  if (slice.end > args.inner) slice.end = args.inner;
  return slice;
}

// One channel's sum over a slice.
template <class Element>
inline double row_sum(const ErrorArgs& args, const Slice& slice, int64_t c) {
  alignas(64) double lanes[kLanes] = {};
  for (int64_t o = slice.first_row; o < slice.end_row; ++o) {
    const int64_t at = (o * args.channels + c) * args.inner + slice.first;
    const float* x = args.x + at;
    add_run<Element>(x, args.weights ? args.weights + at : x, slice.end - slice.first, args, c, lanes);
  }
  return halve(lanes);
}

// Sums over a slice of n channels starting at c, where channels are innermost.
template <class Element>
inline void channel_sums(const ErrorArgs& args, const Slice& slice, int64_t c, int64_t n, double* sums) {
  const float *scale = args.scale + c, *inverse = args.inverse + c, *lower = args.lower + c, *upper = args.upper + c;
  const double p = args.p;
  for (int64_t i = 0; i < n; ++i) sums[i] = 0.0;
  for (int64_t o = slice.first_row; o < slice.end_row; ++o) {
    const float* x = args.x + o * args.channels + c;
    const float* weights = args.weights ? args.weights + o * args.channels + c : x;
    for (int64_t i = 0; i < n; ++i) {
      sums[i] += Element::of(x[i], weights[i], scale[i], inverse[i], lower[i], upper[i], p);
    }
  }
}

template <class Element>
void sum_slices(const ErrorArgs& args, const ErrorPlan& plan, double* partial) {
  const int64_t run = args.inner == 1 ? kChannelRun : 1;
  const int64_t runs = (args.channels + run - 1) / run;
  const int64_t tasks = plan.slices() * runs;
  const int64_t elements_per_task = args.outer * args.channels * args.inner / (tasks > 0 ? tasks : 1) + 1;
  parallel_for(tasks, kMinElementsPerThread / elements_per_task + 1, [&](int64_t task) {
    const int64_t s = task / runs, c = task % runs * run;
    const Slice slice = slice_at(args, plan, s);
    double* out = partial + s * args.channels + c;
    if (args.inner == 1) {
      channel_sums<Element>(args, slice, c, run < args.channels - c ? run : args.channels - c, out);
    } else {
      *out = row_sum<Element>(args, slice, c);
    }
  });
}

template <Power kPower>
void sum_power(const ErrorArgs& args, const ErrorPlan& plan, double* partial) {
  if (args.weights) {
    args.exact_inverse ? sum_slices<Term<kPower, true, true>>(args, plan, partial)
                       : sum_slices<Term<kPower, false, true>>(args, plan, partial);
  } else {
    args.exact_inverse ? sum_slices<Term<kPower, true, false>>(args, plan, partial)
                       : sum_slices<Term<kPower, false, false>>(args, plan, partial);
  }
}

void tensor_error(const ErrorArgs& args, const ErrorPlan& plan, double* partial, double* sums) {
  if (args.p == 1.0) {
    sum_power<Power::kOne>(args, plan, partial);
  } else if (args.p == 2.0) {
    sum_power<Power::kTwo>(args, plan, partial);
  } else {
    sum_power<Power::kAny>(args, plan, partial);
  }
  for (int64_t c = 0; c < args.channels; ++c) {
    double sum = 0.0;
    for (int64_t s = 0; s < plan.slices(); ++s) sum += partial[s * args.channels + c];
    sums[c] = sum;
  }
}

}  // namespace

extern const ErrorTable error_table = {.tensor_error = tensor_error};

}  // namespace detent::DETENT_ISA
