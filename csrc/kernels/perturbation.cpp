// SPDX-License-Identifier: Apache-2.0
#include "kernels/perturbation.h"

#include "kernels/sliced_sums.h"
#include "support/rounding.h"

namespace detent::DETENT_ISA {
namespace {

template <int kSums>
struct Changes {
  const float *x, *g;
  const PerturbationGrid* grids;

  struct Channel {
    const float *x, *g;
    PerturbationGrid grids[kSums];

    void add(int64_t at, double* sums, int64_t stride) const {
      const double slope = static_cast<double>(g[at]);
      for (int k = 0; k < kSums; ++k) {
        const float changed = fake_quantize_value(x[at], grids[k].scale, grids[k].lower, grids[k].upper) - x[at];
        sums[k * stride] += slope * static_cast<double>(changed);
      }
    }
  };

  Channel channel(int64_t) const {
    Channel one{x, g, {}};
    for (int k = 0; k < kSums; ++k) one.grids[k] = grids[k];
    return one;
  }
};

struct Products {
  const float *x, *g;

  struct Channel {
    const float *x, *g;

    void add(int64_t at, double* sum, int64_t) const {
      *sum += static_cast<double>(g[at]) * static_cast<double>(x[at]);
    }
  };

  Channel channel(int64_t) const { return {x, g}; }
};

template <int kSums, class Terms>
void sum(const PerturbationArgs& args, const SlicePlan& plan, const Terms& terms, double* partial, double* sums) {
  sum_slices<kSums>({1, args.samples, args.size}, plan, terms, partial);
  add_partials(plan.slices(), kSums * args.samples, partial, sums);
}

void perturbations(const PerturbationArgs& args, const SlicePlan& plan, double* partial, double* sums) {
  for (int64_t k = 0; k < args.count;) {
    const PerturbationGrid* grids = args.grids + k;
    double* out = sums + k * args.samples;
    switch (args.count - k) {
      case 1:
        sum<1>(args, plan, Changes<1>{args.x, args.g, grids}, partial, out);
        k += 1;
        break;
      case 2:
        sum<2>(args, plan, Changes<2>{args.x, args.g, grids}, partial, out);
        k += 2;
        break;
      case 3:
        sum<3>(args, plan, Changes<3>{args.x, args.g, grids}, partial, out);
        k += 3;
        break;
      default:
        sum<4>(args, plan, Changes<4>{args.x, args.g, grids}, partial, out);
        k += 4;
        break;
    }
  }
}

void dots(const PerturbationArgs& args, const SlicePlan& plan, double* partial, double* sums) {
  sum<1>(args, plan, Products{args.x, args.g}, partial, sums);
}

}  // namespace

extern const PerturbationTable perturbation_table = {.perturbations = perturbations, .dots = dots};

}  // namespace detent::DETENT_ISA
