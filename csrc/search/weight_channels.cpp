// SPDX-License-Identifier: Apache-2.0
// Walks the channels of an array: gathers each into scratch, searches it, reports the first bad one.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "search/weight_search.h"
#include "support/check.h"
#include "support/parallel.h"

namespace detent {
namespace {

struct AlignedFree {
  void operator()(void* memory) const { std::free(memory); }
};

std::unique_ptr<void, AlignedFree> allocate(int64_t bytes) {
  void* memory = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
  if (!memory) throw std::bad_alloc();
  return std::unique_ptr<void, AlignedFree>(memory);
}

std::string row_name(int64_t row, int64_t groups) {
  if (groups == 1) return "channel " + std::to_string(row);
  return "channel " + std::to_string(row / groups) + ", group " + std::to_string(row % groups);
}

struct Walk {
  const WeightView& values;
  const WeightView* importance;
  const WeightSearchSpec& spec;
  const WeightSearchResult& result;
  std::vector<ChannelStatus>& status;

  void operator()(int64_t begin, int64_t end) const {
    const WeightSearchTable& table = weight_search_table();
    const auto scratch = allocate(table.scratch_bytes(values.size));
    std::vector<float> x(static_cast<size_t>(values.size));
    std::vector<float> h(importance ? static_cast<size_t>(values.size) : 0);
    for (int64_t row = begin; row < end; ++row) {
      gather_row(values, row, x.data());
      if (importance) gather_row(*importance, row, h.data());
      status[static_cast<size_t>(row)] =
          table.search(spec, {x.data(), importance ? h.data() : nullptr, values.size, scratch.get(), result.first + row,
                              result.second ? result.second + row : nullptr, result.error + row, values.channels});
    }
  }
};

}  // namespace

void gather_row(const WeightView& view, int64_t row, float* to) {
  const float* from = view.data;
  for (int axis = view.channel_axes - 1; axis >= 0; --axis) {
    from += row % view.extent[axis] * view.stride[axis];
    row /= view.extent[axis];
  }
  const int last = view.axes - 1;
  if (last < view.channel_axes) {
    *to = *from;
    return;
  }
  std::vector<int64_t> index(static_cast<size_t>(view.axes), 0);
  for (int64_t done = 0; done < view.size; done += view.extent[last]) {
    for (int64_t i = 0; i < view.extent[last]; ++i) *to++ = from[i * view.stride[last]];
    for (int axis = last - 1; axis >= view.channel_axes; --axis) {
      const auto a = static_cast<size_t>(axis);
      from += view.stride[axis];
      if (++index[a] < view.extent[axis]) break;
      from -= view.stride[axis] * view.extent[axis];
      index[a] = 0;
    }
  }
}

void search_weights(const WeightView& values, const WeightView* importance, const WeightSearchSpec& spec,
                    int64_t groups, const WeightSearchResult& result) {
  std::vector<ChannelStatus> status(static_cast<size_t>(values.channels), ChannelStatus::kFine);
  const Walk walk{values, importance, spec, result, status};
  // An element and width takes about 10 ns, a thread is worth starting for some 200 us.
  const int64_t work = std::max<int64_t>(1, values.size * spec.widths);
  parallel_slices(
      values.channels, std::max<int64_t>(1, 20000 / work),
      [](const void* context, int64_t begin, int64_t end) { (*static_cast<const Walk*>(context))(begin, end); }, &walk);
  for (int64_t row = 0; row < values.channels; ++row) {
    const ChannelStatus found = status[static_cast<size_t>(row)];
    if (found == ChannelStatus::kFine) continue;
    const std::string name = values.channel_axes == 0 ? "the tensor" : row_name(row, groups);
    require(found != ChannelStatus::kNotFinite, "the weights of ", name, " hold NaN or infinity");
    fail("the importance weights of ", name, " hold NaN, infinity or a negative value");
  }
}

}  // namespace detent
