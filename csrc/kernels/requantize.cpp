// SPDX-License-Identifier: Apache-2.0
#include "kernels/requantize.h"

#include "kernels/requantize_rules.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kElements = 1024, kMinTasksPerThread = 16;

// Blocks of at most kElements: of one channel where channels have factors of their own.
template <class Acc>
void requantize_all(const RequantizeArgs& args, const Acc* acc) {
  const bool channels = args.how.per_channel && args.channels > 1;
  const bool each = channels && args.inner == 1;
  const int64_t run = each ? args.channels : channels ? args.inner : args.outer * args.channels * args.inner;
  const int64_t runs = each ? args.outer : channels ? args.outer * args.channels : 1;
  const int64_t blocks = (run + kElements - 1) / kElements;
  parallel_for(runs * blocks, kMinTasksPerThread, [&](int64_t task) {
    const int64_t which = task / blocks, begin = task % blocks * kElements;
    const int64_t n = kElements < run - begin ? kElements : run - begin, at = which * run + begin;
    int32_t codes[kElements];
    if (each) {
      requantize_run<true>(acc + at, n, args.how.from(begin), codes);
    } else {
      requantize_run<false>(acc + at, n, args.how.from(channels ? which % args.channels : 0), codes);
    }
    narrow_to(codes, n, args.out, args.type, at);
  });
}

void run(const RequantizeArgs& args) {
  if (args.narrow != nullptr) {
    requantize_all(args, args.narrow);
  } else {
    requantize_all(args, args.wide);
  }
}

}  // namespace

extern const RequantizeTable requantize_table = {.run = run};

}  // namespace detent::DETENT_ISA
