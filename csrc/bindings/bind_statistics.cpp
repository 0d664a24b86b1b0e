// SPDX-License-Identifier: Apache-2.0
// Statistics: the accumulator, ranges of channels, weighted histograms.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <mutex>

#include "bindings/array_args.h"
#include "statistics/collect.h"

namespace detent::bindings {
namespace {

constexpr int64_t kMostBins = 1 << 16;

// Samples along axis 0, outermost in memory; a channel axis of 0 makes the whole array one sample.
SampleLayout sample_layout(const py::array& x, std::optional<int64_t> samples, std::optional<int64_t> channel_axis) {
  require(x.ndim() > 0, "x must have an axis of samples, got a single number");
  const bool one_sample = channel_axis && (*channel_axis == 0 || *channel_axis + x.ndim() == 0);
  require(!(one_sample && samples), "with channel axis 0 the whole array is one sample, and `samples` means nothing");
  const DenseShape dense = require_dense<float>(x, channel_axis, "x");
  const int64_t rows = one_sample ? 1 : x.shape(0);
  const int64_t counted = samples.value_or(rows);
  require(counted >= 0 && counted <= rows, "samples must be in 0..", rows, ", the extent of axis 0, got ", counted);
  SampleLayout layout;
  layout.samples = counted;
  layout.channels = dense.channels;
  if (x.size() == 0) {
    layout.inner = 0;
    return layout;
  }
  if (rows > 1) {
    require(x.strides(0) / x.itemsize() == x.size() / rows, "axis 0 of x, the samples, must be outermost in memory; ",
            "pass numpy.ascontiguousarray(x) or x.contiguous()");
  }
  layout.outer = dense.outer / rows;
  layout.inner = dense.inner;
  if (!channel_axis || dense.channels == 1) {  // then the split was not around an axis
    layout.outer = 1;
    layout.inner = x.size() / rows / dense.channels;
  }
  return layout;
}

py::array_t<int64_t> digits_array(const ExactSum& sum) {
  py::array_t<int64_t> digits(ExactSum::kDigits);
  sum.store(digits.mutable_data());
  return digits;
}

class Accumulator {
 public:
  explicit Accumulator(std::optional<int64_t> channel_axis) : channel_axis_(channel_axis) {}

  Accumulator(const Accumulator& other) : channel_axis_(other.channel_axis_), tally_(other.snapshot()) {}

  void update(const py::array& x, std::optional<int64_t> samples) {
    const SampleLayout layout = sample_layout(x, samples, channel_axis_);
    const auto* values = static_cast<const float*>(x.data());
    py::gil_scoped_release unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    require(tally_.channels.empty() || static_cast<int64_t>(tally_.channels.size()) == layout.channels, "x has ",
            layout.channels, " channels on axis ", channel_axis_.value_or(0), ", earlier updates had ",
            tally_.channels.size());
    // Merged only once all is read: an update that fails changes nothing.
    for (const Tally& share : collect(values, layout, channel_axis_.has_value(), tally_.histogram.exponent())) {
      tally_.merge(share);
    }
    tally_.samples += layout.samples;
  }

  void merge(const Accumulator& other) {
    require(channel_axis_ == other.channel_axis_, "cannot merge statistics with different channel axes");
    const Tally theirs = other.snapshot();
    py::gil_scoped_release unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    tally_.merge(theirs);
  }

  // Cheap enough to ask after every batch; the rest comes with the state.
  int64_t samples() const {
    py::gil_scoped_release unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    return tally_.samples;
  }

  int64_t nonfinite() const {
    py::gil_scoped_release unlocked;
    const std::lock_guard<std::mutex> lock(mutex_);
    return tally_.nonfinite;
  }

  py::dict state() const {
    const Tally tally = snapshot();
    py::dict state;
    state["samples"] = tally.samples;
    state["count"] = tally.count;
    state["zeros"] = tally.zeros;
    state["nonfinite"] = tally.nonfinite;
    state["minimum"] = py::array_t<float>(std::vector<py::ssize_t>{}, &tally.minimum);
    state["maximum"] = py::array_t<float>(std::vector<py::ssize_t>{}, &tally.maximum);
    state["sum_digits"] = digits_array(tally.sum);
    state["sum_of_squares_digits"] = digits_array(tally.sum_of_squares);
    state["exponent"] = tally.histogram.exponent();
    const int64_t* counts = tally.histogram.counts();
    int first = 0;
    int end = kHistogramBins;
    while (end > 0 && counts[end - 1] == 0) --end;
    while (first < end && counts[first] == 0) ++first;
    state["first_bin"] = first < end ? first - kHistogramHalf : 0;
    state["counts"] = py::array_t<int64_t>(end - first, counts + first);
    if (channel_axis_) add_channels(tally, state);
    return state;
  }

  static std::unique_ptr<Accumulator> from_state(std::optional<int64_t> channel_axis, const py::dict& state) {
    auto accumulator = std::make_unique<Accumulator>(channel_axis);
    Tally& tally = accumulator->tally_;
    tally.samples = state["samples"].cast<int64_t>();
    tally.count = state["count"].cast<int64_t>();
    tally.zeros = state["zeros"].cast<int64_t>();
    tally.nonfinite = state["nonfinite"].cast<int64_t>();
    tally.minimum = number_of(state, "minimum");
    tally.maximum = number_of(state, "maximum");
    tally.sum = ExactSum::load(vector_of<int64_t>(state, "sum_digits", ExactSum::kDigits));
    tally.sum_of_squares = ExactSum::load(vector_of<int64_t>(state, "sum_of_squares_digits", ExactSum::kDigits));
    const int exponent = state["exponent"].cast<int>();
    require(exponent >= Histogram::kLowestExponent && exponent <= Histogram::kHighestExponent,
            "the histogram's exponent is out of range: ", exponent);
    tally.histogram.widen(exponent);
    const auto counts = state["counts"].cast<py::array>();
    const int64_t first = state["first_bin"].cast<int64_t>() + kHistogramHalf;
    require(first >= 0 && first + counts.size() <= kHistogramBins, "the histogram's bins are out of range");
    std::copy_n(require_vector<int64_t>(counts, -1, "counts"), counts.size(), tally.histogram.counts() + first);
    if (channel_axis) load_channels(state, tally);
    return accumulator;
  }

 private:
  Tally snapshot() const {
    py::gil_scoped_release unlocked;  // an update on another thread may hold the lock and need the interpreter to end
    const std::lock_guard<std::mutex> lock(mutex_);
    return tally_;
  }

  static void add_channels(const Tally& tally, py::dict& state) {
    const auto n = static_cast<py::ssize_t>(tally.channels.size());
    py::array_t<float> minimum(n), maximum(n);
    py::array_t<double> sum(n);
    py::array_t<int64_t> nonfinite(n), digits({n, py::ssize_t{ExactSum::kDigits}});
    for (py::ssize_t c = 0; c < n; ++c) {
      const ChannelTally& channel = tally.channels[static_cast<size_t>(c)];
      minimum.mutable_at(c) = channel.minimum;
      maximum.mutable_at(c) = channel.maximum;
      nonfinite.mutable_at(c) = channel.nonfinite;
      channel.sum.store(digits.mutable_data(c, 0));
    }
    state["channel_minimum"] = minimum;
    state["channel_maximum"] = maximum;
    state["channel_nonfinite"] = nonfinite;
    state["channel_sum_digits"] = digits;
  }

  template <class T>
  static const T* vector_of(const py::dict& state, const char* name, int64_t size) {
    // The dict keeps the array alive.
    return require_vector<T>(py::reinterpret_borrow<py::array>(state[name]), size, name);
  }

  static float number_of(const py::dict& state, const char* name) {
    const auto number = py::reinterpret_borrow<py::array>(state[name]);
    require_dtype<float>(number, name);
    require(number.ndim() == 0, name, " must be one number");
    return *static_cast<const float*>(number.data());
  }

  static void load_channels(const py::dict& state, Tally& tally) {
    const auto digits = py::reinterpret_borrow<py::array>(state["channel_sum_digits"]);
    require_dtype<int64_t>(digits, "channel_sum_digits");
    require(digits.ndim() == 2 && digits.shape(1) == ExactSum::kDigits && (digits.flags() & py::array::c_style),
            "channel_sum_digits must be a contiguous array of shape [channels, ", ExactSum::kDigits, "]");
    const int64_t n = digits.shape(0);
    const auto* minimum = vector_of<float>(state, "channel_minimum", n);
    const auto* maximum = vector_of<float>(state, "channel_maximum", n);
    const auto* nonfinite = vector_of<int64_t>(state, "channel_nonfinite", n);
    const auto* rows = static_cast<const int64_t*>(digits.data());
    for (int64_t c = 0; c < n; ++c) {
      ChannelTally channel;
      channel.minimum = minimum[c];
      channel.maximum = maximum[c];
      channel.nonfinite = nonfinite[c];
      channel.sum = ExactSum::load(rows + c * ExactSum::kDigits);
      tally.channels.push_back(channel);
    }
  }

  std::optional<int64_t> channel_axis_;
  Tally tally_;
  mutable std::mutex mutex_;
};

py::array_t<double> exact_values(const py::array& digits) {
  require_dtype<int64_t>(digits, "digits");
  require(digits.ndim() == 2 && digits.shape(1) == ExactSum::kDigits && (digits.flags() & py::array::c_style),
          "digits must be a contiguous array of shape [n, ", ExactSum::kDigits, "]");
  py::array_t<double> values(digits.shape(0));
  const auto* rows = static_cast<const int64_t*>(digits.data());
  for (py::ssize_t i = 0; i < digits.shape(0); ++i) {
    values.mutable_at(i) = ExactSum::load(rows + i * ExactSum::kDigits).value();
  }
  return values;
}

py::tuple channel_range(const py::array& x, int64_t axis) {
  const DenseShape dense = require_dense<float>(x, axis, "x");
  if (x.size() == 0) fail("x of shape ", shape_text(x), " holds no values");
  const SampleLayout layout{1, dense.outer, dense.channels, dense.inner};
  const auto* values = static_cast<const float*>(x.data());
  std::vector<ChannelTally> channels;
  {
    py::gil_scoped_release unlocked;
    channels = collect_channels(values, layout);
  }
  py::array_t<float> minimum(dense.channels), maximum(dense.channels);
  py::array_t<double> mean(dense.channels);
  for (int64_t c = 0; c < dense.channels; ++c) {
    const ChannelTally& channel = channels[static_cast<size_t>(c)];
    if (channel.nonfinite > 0) {
      fail("x holds ", channel.nonfinite, " NaN or infinite values in channel ", c, " of axis ", axis);
    }
    minimum.mutable_at(c) = channel.minimum;
    maximum.mutable_at(c) = channel.maximum;
    mean.mutable_at(c) = channel.sum.value() / static_cast<double>(dense.outer * dense.inner);
  }
  return py::make_tuple(minimum, maximum, mean);
}

// One weight per value, in the same memory order, so that both can be read as vectors.
void require_same_layout(const py::array& weights, const py::array& x) {
  bool same = weights.ndim() == x.ndim();
  for (py::ssize_t d = 0; same && d < x.ndim(); ++d) {
    same = weights.shape(d) == x.shape(d) && (x.shape(d) <= 1 || weights.strides(d) == x.strides(d));
  }
  if (!same) fail("weights must have the shape and memory order of x, ", shape_text(x), ", got ", shape_text(weights));
}

py::array_t<double> weighted_counts(const py::array& x, const py::array& weights, int exponent, int64_t first_bin,
                                    int64_t n_bins) {
  require_dense<float>(x, std::nullopt, "x");
  require_dtype<float>(weights, "weights");
  require_same_layout(weights, x);
  require(exponent >= Histogram::kLowestExponent && exponent <= Histogram::kHighestExponent, "exponent must be in ",
          Histogram::kLowestExponent, "..", Histogram::kHighestExponent, ", got ", exponent);
  require(n_bins >= 1 && n_bins <= kMostBins, "n_bins must be in 1..", kMostBins, ", got ", n_bins);
  require(first_bin >= -kMostBins && first_bin <= kMostBins, "first_bin must be in ", -kMostBins, "..", kMostBins,
          ", got ", first_bin);
  py::array_t<double> bins(n_bins);
  const auto* values = static_cast<const float*>(x.data());
  const auto* factors = static_cast<const float*>(weights.data());
  double* out = bins.mutable_data();
  const int64_t size = x.size();
  py::gil_scoped_release unlocked;
  collect_weighted(values, factors, size, exponent, first_bin, n_bins, out);
  return bins;
}

}  // namespace

void register_statistics(py::module_& module) {
  py::class_<Accumulator>(module, "StatisticsAccumulator", "Mergeable statistics of one tensor.")
      .def(py::init<std::optional<int64_t>>(), py::arg("channel_axis"))
      .def("update", &Accumulator::update, py::arg("x").noconvert(), py::arg("samples"))
      .def("merge", &Accumulator::merge, py::arg("other"))
      .def("copy", [](const Accumulator& self) { return std::make_unique<Accumulator>(self); })
      .def("state", &Accumulator::state)
      .def_property_readonly("samples", &Accumulator::samples)
      .def_property_readonly("nonfinite", &Accumulator::nonfinite)
      .def_static("from_state", &Accumulator::from_state, py::arg("channel_axis"), py::arg("state"));
  module.def("exact_values", &exact_values, py::arg("digits").noconvert(),
             "Exact sums, rounded to the nearest double.");
  module.def("channel_range", &channel_range, py::arg("x").noconvert(), py::arg("axis"),
             "Least value, greatest value and mean of each channel.");
  module.def("weighted_counts", &weighted_counts, py::arg("x").noconvert(), py::arg("weights").noconvert(),
             py::arg("exponent"), py::arg("first_bin"), py::arg("n_bins"),
             "Sum of the weights of the values of each bin.");
}

}  // namespace detent::bindings
