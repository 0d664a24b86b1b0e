// SPDX-License-Identifier: Apache-2.0
// One thread's share of reading a tensor: runs of values go in, a tally comes out. See collect.h for the rules.
#pragma once

#include <cstdint>
#include <vector>

#include "statistics/tally.h"

namespace detent {

constexpr int64_t kRun = 4096;           // most values in one float64 sum
constexpr int64_t kStretch = 32 * kRun;  // values of one task

struct SampleLayout {
  int64_t samples = 1;
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;
  int64_t sample_size() const { return outer * channels * inner; }
};

// Everything but the channels.
class RunReader {
 public:
  explicit RunReader(Tally& tally);

  // Reads at most kRun values, one float64 sum. Returns whether all are finite.
  bool read(const float* x, int64_t n);

  // Moves what is left in registers and tables to the tally.
  void finish();

 private:
  int64_t accumulate(const float* x, int64_t n);
  void widen_for(const float* x, int64_t n);
  void accumulate_some(const float* x, int64_t n);
  void flush();

  Tally& tally_;
  BinScale scale_;
  Lanes lanes_;
  std::vector<uint16_t>& tables_;
  int64_t filled_ = 0;  // no counter of the tables is above this
};

// The channels. A run may begin and end anywhere in a sample.
class ChannelReader {
 public:
  ChannelReader(std::vector<ChannelTally>& channels, const SampleLayout& layout);

  // n <= kRun values of a sample from `offset` on. Pass all_finite = true only if none is NaN or infinite.
  void read(const float* x, int64_t offset, int64_t n, bool all_finite);

  // Ends a stretch of a sample.
  void finish();

 private:
  template <class Use>
  void for_each_piece(int64_t offset, int64_t n, const Use& use);
  void read_some(const float* x, int64_t offset, int64_t n);

  std::vector<ChannelTally>& channels_;
  int64_t inner_;
  int64_t period_ = 0;  // lanes below, where inner = 1; else none
  std::vector<double> sum_;
  std::vector<float> minimum_;
  std::vector<float> maximum_;
};

}  // namespace detent
