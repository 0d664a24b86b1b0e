// SPDX-License-Identifier: Apache-2.0
#include "statistics/collect.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <optional>
#include <utility>

#include "support/check.h"
#include "support/float_mode.h"
#include "support/parallel.h"

namespace detent {
namespace {

constexpr int64_t kWorthAThread = 65536;  // values
constexpr int64_t kStrips = 8;

// slice(begin, end) for each thread's share of the stretches: a thread keeps tables of its own for all of them.
template <class Slice>
void for_each_slice(const SampleLayout& layout, const Slice& slice) {
  const int64_t size = layout.sample_size();
  if (size == 0) return;
  const int64_t stretches = (size + kStretch - 1) / kStretch;
  const int64_t least = std::max<int64_t>(1, kWorthAThread / std::min(size, kStretch));
  parallel_slices(
      layout.samples * stretches, least,
      [](const void* context, int64_t begin, int64_t end) {
        KeepSubnormals keep;
        (*static_cast<const Slice*>(context))(begin, end);
      },
      &slice);
}

// run(values, offset in the sample, how many) for each run of a task.
template <class Run>
void for_each_run(const float* x, const SampleLayout& layout, int64_t task, const Run& run) {
  const int64_t size = layout.sample_size();
  const int64_t stretches = (size + kStretch - 1) / kStretch;
  const float* sample = x + task / stretches * size;
  const int64_t begin = task % stretches * kStretch;
  const int64_t end = std::min(begin + kStretch, size);
  for (int64_t offset = begin; offset < end; offset += kRun) run(sample + offset, offset, std::min(kRun, end - offset));
}

}  // namespace

std::vector<Tally> collect(const float* x, const SampleLayout& layout, bool per_channel, int exponent) {
  std::vector<Tally> shares;
  std::mutex adding;
  for_each_slice(layout, [&](int64_t begin, int64_t end) {
    Tally tally(exponent);
    RunReader reader(tally);
    std::optional<ChannelReader> channels;
    if (per_channel) channels.emplace(tally.channels, layout);
    for (int64_t task = begin; task < end; ++task) {
      for_each_run(x, layout, task, [&](const float* run, int64_t offset, int64_t n) {
        const bool all_finite = reader.read(run, n);
        if (channels) channels->read(run, offset, n, all_finite);
      });
      if (channels) channels->finish();
    }
    reader.finish();
    const std::lock_guard<std::mutex> lock(adding);
    shares.push_back(std::move(tally));
  });
  return shares;
}

std::vector<ChannelTally> collect_channels(const float* x, const SampleLayout& layout) {
  std::vector<ChannelTally> total(static_cast<size_t>(layout.channels));
  std::mutex merging;
  for_each_slice(layout, [&](int64_t begin, int64_t end) {
    std::vector<ChannelTally> tally;
    ChannelReader channels(tally, layout);
    for (int64_t task = begin; task < end; ++task) {
      for_each_run(x, layout, task, [&](const float* run, int64_t offset, int64_t n) {
        channels.read(run, offset, n, std::isfinite(statistics_table().sum_run(run, n).sum));
      });
      channels.finish();
    }
    const std::lock_guard<std::mutex> lock(merging);
    for (size_t c = 0; c < total.size(); ++c) total[c].merge(tally[c]);
  });
  return total;
}

void collect_weighted(const float* x, const float* weights, int64_t n, int exponent, int64_t first_bin, int64_t n_bins,
                      double* bins) {
  const int64_t strip = (n + kStrips - 1) / kStrips;
  std::vector<double> strips(static_cast<size_t>(kStrips * n_bins));
  std::array<int64_t, kStrips> refused{};
  parallel_for(kStrips, std::max<int64_t>(1, strip > 0 ? kWorthAThread / strip : kStrips), [&](int64_t s) {
    KeepSubnormals keep;
    const int64_t begin = std::min(s * strip, n);
    const int64_t end = std::min(begin + strip, n);
    refused[static_cast<size_t>(s)] = statistics_table().weigh(x + begin, weights + begin, end - begin, exponent,
                                                               first_bin, n_bins, strips.data() + s * n_bins);
  });
  int64_t all_refused = 0;
  for (const int64_t count : refused) all_refused += count;
  require(all_refused == 0, all_refused, " of ", n, " values are NaN, outside the bins, or have a weight that is ",
          "negative or not finite");
  std::fill_n(bins, n_bins, 0.0);
  for (int64_t s = 0; s < kStrips; ++s) {
    for (int64_t i = 0; i < n_bins; ++i) bins[i] += strips[static_cast<size_t>(s * n_bins + i)];
  }
}

}  // namespace detent
