// SPDX-License-Identifier: Apache-2.0
#include "kernels/integer_moves.h"

#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kRun = 4096, kWorthAThread = 65536;

template <class Code>
void gather_of(const GatherArgs& args) {
  const int64_t least = kWorthAThread / (args.outputs + 1) + 1;
  parallel_for(args.samples, least, [&](int64_t s) {
    const Code* from = static_cast<const Code*>(args.x) + s * args.inputs;
    Code* to = static_cast<Code*>(args.out) + s * args.outputs;
    const auto fill = static_cast<Code>(args.fill);
    for (int64_t i = 0; i < args.outputs; ++i) {
      const int64_t place = args.places[i];
      to[i] = place < 0 ? fill : from[place];
    }
  });
}

void gather(const GatherArgs& args) { args.bytes == 1 ? gather_of<uint8_t>(args) : gather_of<uint16_t>(args); }

template <class Index, class Entry>
void look_up_of(const LookUpArgs& args, int64_t lowest) {
  parallel_for((args.n + kRun - 1) / kRun, kWorthAThread / kRun, [&](int64_t which) {
    const int64_t begin = which * kRun, left = args.n - begin, n = kRun < left ? kRun : left;
    const Index* from = static_cast<const Index*>(args.x) + begin;
    Entry* to = static_cast<Entry*>(args.out) + begin;
    const auto* table = static_cast<const Entry*>(args.table);
    for (int64_t i = 0; i < n; ++i) to[i] = table[from[i] - lowest];
  });
}

template <class Index>
void look_up_from(const LookUpArgs& args, int64_t lowest) {
  args.bytes == 1 ? look_up_of<Index, uint8_t>(args, lowest) : look_up_of<Index, uint16_t>(args, lowest);
}

void look_up(const LookUpArgs& args) {
  switch (args.x_type) {
    case CodeType::kUint8:
      return look_up_from<uint8_t>(args, 0);
    case CodeType::kInt8:
      return look_up_from<int8_t>(args, INT8_MIN);
    case CodeType::kUint16:
      return look_up_from<uint16_t>(args, 0);
    default:
      return look_up_from<int16_t>(args, INT16_MIN);
  }
}

}  // namespace

extern const MoveTable move_table = {.gather = gather, .look_up = look_up};

}  // namespace detent::DETENT_ISA
