// SPDX-License-Identifier: Apache-2.0
#include "kernels/comparison.h"

#include "kernels/sliced_sums.h"

namespace detent::DETENT_ISA {
namespace {

struct Differences {
  const ComparisonArgs& args;

  struct Channel {
    const float *a, *b;
    float lower, upper;

    void add(int64_t at, double* sums, int64_t stride) const {
      const float x = a[at], y = b[at];
      const float top = x > y ? x : y, bottom = x > y ? y : x;
      const float seen = (top > lower) & (bottom < upper) ? 1.0f : 0.0f;
      // Multiplied, not chosen: NaN and infinity shall show.
      sums[0] += static_cast<double>((x - y) * seen);
      sums[stride] += static_cast<double>(seen);
    }
  };

  Channel channel(int64_t c) const { return {args.a, args.b, args.lower[c], args.upper[c]}; }
};

struct Distances {
  const ComparisonArgs& args;

  struct Channel {
    const float *a, *b;
    float lower, upper, shift;

    float clamped(float x) const {
      const float above = x < lower ? lower : x;
      return above > upper ? upper : above;
    }

    void add(int64_t at, double* sums, int64_t stride) const {
      const float wanted = clamped(a[at]);
      const double before = static_cast<double>(wanted - clamped(b[at]));
      const double after = static_cast<double>(wanted - clamped(b[at] + shift));
      sums[0] += before * before;
      sums[stride] += after * after;
    }
  };

  Channel channel(int64_t c) const { return {args.a, args.b, args.lower[c], args.upper[c], args.shift[c]}; }
};

template <class Terms>
void sum_both(const ComparisonArgs& args, const SlicePlan& plan, double* partial, double* sums) {
  sum_slices<2>({args.outer, args.channels, args.inner}, plan, Terms{args}, partial);
  add_partials(plan.slices(), 2 * args.channels, partial, sums);
}

}  // namespace

extern const ComparisonTable comparison_table = {.differences = sum_both<Differences>,
                                                 .distances = sum_both<Distances>};

}  // namespace detent::DETENT_ISA
