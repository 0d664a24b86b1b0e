// SPDX-License-Identifier: Apache-2.0
#include "statistics/reader.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace detent {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kLeastPeriod = 64;

double add_pairwise(double* lanes) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// Of the finite values.
float greatest_magnitude(const float* x, int64_t n) {
  float greatest = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (magnitude > greatest && magnitude < kInfinity) greatest = magnitude;
  }
  return greatest;
}

// Kept between readers: the calling thread would otherwise get fresh pages from the system for every small tensor.
std::vector<uint16_t>& thread_tables() {
  static thread_local std::vector<uint16_t> tables;
  tables.assign(size_t{kTables} * kTableStride, 0);
  return tables;
}

}  // namespace

RunReader::RunReader(Tally& tally) : tally_(tally), tables_(thread_tables()) {
  scale_ = tally_.histogram.scale();
  std::fill_n(lanes_.minimum, kSumLanes, kInfinity);
  std::fill_n(lanes_.maximum, kSumLanes, -kInfinity);
}

bool RunReader::read(const float* x, int64_t n) {
  const int64_t before = tally_.nonfinite;
  std::fill_n(lanes_.sum, kSumLanes, 0.0);
  std::fill_n(lanes_.sum_of_squares, kSumLanes, 0.0);
  for (int64_t i = accumulate(x, n); i < n; i += accumulate(x + i, n - i)) {
    // One of the next 16 values has no bin yet, or never will.
    widen_for(x + i, n - i);
    const int64_t some = std::min<int64_t>(n - i, kSumLanes);
    accumulate_some(x + i, some);
    i += some;
  }
  tally_.sum.add(add_pairwise(lanes_.sum));
  tally_.sum_of_squares.add(add_pairwise(lanes_.sum_of_squares));
  tally_.count += n;
  return tally_.nonfinite == before;
}

int64_t RunReader::accumulate(const float* x, int64_t n) {
  const int64_t growth = (n + kTables - 1) / kTables;
  if (filled_ + growth > kTableCapacity) flush();
  filled_ += growth;
  return statistics_table().accumulate(x, n, scale_, lanes_, tables_.data());
}

void RunReader::widen_for(const float* x, int64_t n) {
  // Once it must be widened, it is widened for all of the run. A run of NaN only costs a look at each sixteen values.
  if (Histogram::exponent_for(greatest_magnitude(x, std::min<int64_t>(n, kSumLanes))) <= tally_.histogram.exponent())
    return;
  flush();
  tally_.histogram.widen(Histogram::exponent_for(greatest_magnitude(x, n)));
  scale_ = tally_.histogram.scale();
}

// Up to 16 values, some of which may be NaN or infinite: zeros take their places in the lanes.
void RunReader::accumulate_some(const float* x, int64_t n) {
  std::array<float, kSumLanes> finite{};
  Lanes before = lanes_;
  int64_t nonfinite = 0;
  for (int64_t l = 0; l < n; ++l) {
    if (std::isfinite(x[l])) {
      finite[static_cast<size_t>(l)] = x[l];
      before.minimum[l] = std::min(before.minimum[l], x[l]);
      before.maximum[l] = std::max(before.maximum[l], x[l]);
    } else {
      ++nonfinite;
    }
  }
  accumulate(finite.data(), n);
  std::copy_n(before.minimum, kSumLanes, lanes_.minimum);  // without the zeros put in
  std::copy_n(before.maximum, kSumLanes, lanes_.maximum);
  tally_.nonfinite += nonfinite;
  tally_.count -= nonfinite;
  tally_.zeros -= nonfinite;
  tally_.histogram.counts()[kHistogramHalf] -= nonfinite;
}

void RunReader::flush() {
  int64_t* counts = tally_.histogram.counts();
  const int64_t zeros = statistics_table().flush(tables_.data(), counts);
  counts[kHistogramHalf] += zeros;
  tally_.zeros += zeros;
  filled_ = 0;
}

void RunReader::finish() {
  flush();
  for (int l = 0; l < kSumLanes; ++l) {
    // Adding zero turns -0 into 0: which of the two is least must not depend on which came first.
    tally_.minimum = std::min(tally_.minimum, lanes_.minimum[l] + 0.0f);
    tally_.maximum = std::max(tally_.maximum, lanes_.maximum[l] + 0.0f);
  }
}

ChannelReader::ChannelReader(std::vector<ChannelTally>& channels, const SampleLayout& layout)
    : channels_(channels), inner_(layout.inner) {
  channels_.resize(static_cast<size_t>(layout.channels));
  if (layout.inner > 1 || layout.channels <= 1) {
    inner_ = layout.channels <= 1 ? std::max<int64_t>(1, layout.sample_size()) : layout.inner;
    return;
  }
  period_ = (kLeastPeriod + layout.channels - 1) / layout.channels * layout.channels;
  sum_.resize(static_cast<size_t>(period_));
  minimum_.assign(static_cast<size_t>(period_), kInfinity);
  maximum_.assign(static_cast<size_t>(period_), -kInfinity);
}

template <class Use>
void ChannelReader::for_each_piece(int64_t offset, int64_t n, const Use& use) {
  const auto channels = static_cast<int64_t>(channels_.size());
  for (int64_t i = 0; i < n;) {
    const int64_t row = (offset + i) / inner_;
    const int64_t length = std::min(n - i, (row + 1) * inner_ - (offset + i));
    use(i, length, channels_[static_cast<size_t>(row % channels)]);
    i += length;
  }
}

void ChannelReader::read(const float* x, int64_t offset, int64_t n, bool all_finite) {
  if (!all_finite) return read_some(x, offset, n);
  const StatisticsTable& kernel = statistics_table();
  if (period_ > 0) {
    return kernel.sum_rows(x, n, offset % period_, period_, sum_.data(), minimum_.data(), maximum_.data());
  }
  for_each_piece(offset, n, [&](int64_t i, int64_t length, ChannelTally& channel) {
    const RunSummary piece = kernel.sum_run(x + i, length);
    channel.include(piece.minimum, piece.maximum, piece.sum);
  });
}

// A run with NaN or infinities. Sums read zeros in their places, extremes read NaN, which the kernels skip.
void ChannelReader::read_some(const float* x, int64_t offset, int64_t n) {
  std::array<float, kRun> zeroed;
  std::array<float, kRun> hidden;
  const auto channels = static_cast<int64_t>(channels_.size());
  for (int64_t i = 0; i < n; ++i) {
    const bool finite = std::isfinite(x[i]);
    zeroed[static_cast<size_t>(i)] = finite ? x[i] : 0.0f;
    hidden[static_cast<size_t>(i)] = finite ? x[i] : kNan;
    if (!finite) ++channels_[static_cast<size_t>((offset + i) / inner_ % channels)].nonfinite;
  }
  const StatisticsTable& kernel = statistics_table();
  if (period_ > 0) {
    const int64_t phase = offset % period_;
    std::vector<float> unused_least(minimum_.size()), unused_greatest(maximum_.size());
    std::vector<double> unused_sums(sum_.size());
    kernel.sum_rows(zeroed.data(), n, phase, period_, sum_.data(), unused_least.data(), unused_greatest.data());
    kernel.sum_rows(hidden.data(), n, phase, period_, unused_sums.data(), minimum_.data(), maximum_.data());
    return;
  }
  for_each_piece(offset, n, [&](int64_t i, int64_t length, ChannelTally& channel) {
    const RunSummary extremes = kernel.sum_run(hidden.data() + i, length);
    channel.include(extremes.minimum, extremes.maximum, kernel.sum_run(zeroed.data() + i, length).sum);
  });
}

void ChannelReader::finish() {
  for (size_t lane = 0; lane < sum_.size(); ++lane) {
    channels_[lane % channels_.size()].include(minimum_[lane], maximum_[lane], sum_[lane]);
    sum_[lane] = 0.0;
    minimum_[lane] = kInfinity;
    maximum_[lane] = -kInfinity;
  }
}

}  // namespace detent
