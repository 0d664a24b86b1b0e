// SPDX-License-Identifier: Apache-2.0
#include "kernels/error.h"

#include <cmath>

#include "kernels/sliced_sums.h"
#include "support/rounding.h"

namespace detent::DETENT_ISA {
namespace {

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

// The terms of one sum, as kernels/sliced_sums.h reads them.
template <class Element>
struct Terms {
  const ErrorArgs& args;

  struct Channel {
    const float *x, *weights;
    float scale, inverse, lower, upper;
    double p;

    void add(int64_t at, double* sum, int64_t) const {
      *sum += Element::of(x[at], weights[at], scale, inverse, lower, upper, p);
    }
  };

  Channel channel(int64_t c) const {
    const float* weights = args.weights ? args.weights : args.x;
    return {args.x, weights, args.scale[c], args.inverse[c], args.lower[c], args.upper[c], args.p};
  }
};

template <class Element>
void sum_terms(const ErrorArgs& args, const SlicePlan& plan, double* partial) {
  sum_slices<1>({args.outer, args.channels, args.inner}, plan, Terms<Element>{args}, partial);
}

template <Power kPower>
void sum_power(const ErrorArgs& args, const SlicePlan& plan, double* partial) {
  if (args.weights) {
    args.exact_inverse ? sum_terms<Term<kPower, true, true>>(args, plan, partial)
                       : sum_terms<Term<kPower, false, true>>(args, plan, partial);
  } else {
    args.exact_inverse ? sum_terms<Term<kPower, true, false>>(args, plan, partial)
                       : sum_terms<Term<kPower, false, false>>(args, plan, partial);
  }
}

void tensor_error(const ErrorArgs& args, const SlicePlan& plan, double* partial, double* sums) {
  if (args.p == 1.0) {
    sum_power<Power::kOne>(args, plan, partial);
  } else if (args.p == 2.0) {
    sum_power<Power::kTwo>(args, plan, partial);
  } else {
    sum_power<Power::kAny>(args, plan, partial);
  }
  add_partials(plan.slices(), args.channels, partial, sums);
}

}  // namespace

extern const ErrorTable error_table = {.tensor_error = tensor_error};

}  // namespace detent::DETENT_ISA
