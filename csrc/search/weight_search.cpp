// SPDX-License-Identifier: Apache-2.0
#include "search/weight_search.h"

#include "search/exact_scale.h"
#include "search/uniform_range.h"

namespace detent::DETENT_ISA {
namespace {

constexpr double kLargest = 0x1p127;
constexpr int kExactBits = 8;
constexpr int kOctaves = 64;

// A channel brought to [1, 2) by a power of two, with what undoes it.
struct Prepared {
  Channel channel;
  Cost cost;
  int64_t size;
  int exponent;       // value = normalized * 2^exponent
  double error_unit;  // error = normalized cost * error_unit
  double most_saved;  // no threshold below this can be best (normalized)
  bool negligible;    // every value gets code 0 on every grid allowed
};

struct Scratch {
  float* x;
  float* h;
  ExactScratch* exact;
};

int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }

int64_t scratch_bytes(int64_t size) {
  const int64_t n = padded(size);
  const int64_t header = (static_cast<int64_t>(sizeof(ExactScratch)) + 63) / 64 * 64;
  return header + n * static_cast<int64_t>(sizeof(Breakpoint) + 2 * sizeof(float) + sizeof(uint8_t)) + 64;
}

Scratch carve(void* memory, int64_t size) {
  const int64_t n = padded(size);
  char* at = static_cast<char*>(memory);
  Scratch scratch;
  scratch.exact = reinterpret_cast<ExactScratch*>(at);
  at += (static_cast<int64_t>(sizeof(ExactScratch)) + 63) / 64 * 64;
  scratch.x = reinterpret_cast<float*>(at);
  scratch.h = scratch.x + n;
  scratch.exact->breakpoints = reinterpret_cast<Breakpoint*>(scratch.h + n);
  scratch.exact->changed = reinterpret_cast<uint8_t*>(scratch.exact->breakpoints + n);
  return scratch;
}

// Smallest and largest value in fixed lanes; false if any value is NaN or infinite.
bool find_range(const float* x, int64_t size, float* least, float* most) {
  float low[kLanes] = {}, high[kLanes] = {};
  uint32_t bad[kLanes] = {};
  const auto visit = [&](int64_t i, int lane) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof(bits));
    bad[lane] |= (bits & 0x7f800000u) == 0x7f800000u;
    low[lane] = x[i] < low[lane] ? x[i] : low[lane];
    high[lane] = x[i] > high[lane] ? x[i] : high[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) visit(i + lane, lane);
  }
  for (; i < size; ++i) visit(i, 0);
  uint32_t any = 0;
  *least = *most = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) {
    any |= bad[lane];
    *least = low[lane] < *least ? low[lane] : *least;
    *most = high[lane] > *most ? high[lane] : *most;
  }
  return any == 0;
}

void scale_into(const float* from, int64_t size, int exponent, float* to) {
  const double factor = __builtin_ldexp(1.0, -exponent);
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(static_cast<double>(from[i]) * factor);
  for (int64_t i = size; i < padded(size); ++i) to[i] = 0.0f;
}

// sum h, sum h x^2, sum |x|, sum h |x| and max h x^2 of the normalized channel.
struct Moments {
  double importance, energy, magnitudes, weighted_magnitudes, largest;
};

template <bool Weighted>
Moments find_moments(const float* x, const float* h, int64_t size) {
  double lanes[4][kLanes];
  double largest_lanes[kLanes];
  for (int lane = 0; lane < kLanes; lane += kHalf) {
    DoubleVec sums[4] = {}, largest{};
    for (int64_t i = lane; i < padded(size); i += kLanes) {
      const DoubleVec value = load_double(x + i);
      const DoubleVec absolute = value < 0.0 ? -value : value;
      DoubleVec square = absolute * absolute;
      if constexpr (Weighted) {
        const DoubleVec importance = load_double(h + i);
        square *= importance;
        sums[0] += importance;
        sums[3] += importance * absolute;
      }
      sums[1] += square;
      sums[2] += absolute;
      largest = square > largest ? square : largest;
    }
    for (int i = 0; i < 4; ++i) memcpy(&lanes[i][lane], &sums[i], sizeof(DoubleVec));
    memcpy(&largest_lanes[lane], &largest, sizeof(DoubleVec));
  }
  Moments moments{static_cast<double>(size), add_lanes(lanes[1]), add_lanes(lanes[2]), 0.0, 0.0};
  if constexpr (Weighted) moments.importance = add_lanes(lanes[0]);
  moments.weighted_magnitudes = Weighted ? add_lanes(lanes[3]) : moments.magnitudes;
  for (const double value : largest_lanes) moments.largest = larger(moments.largest, value);
  return moments;
}

// Thresholds below this leave more error than coding one value exactly and all others as zero does: with threshold t
// the cost falls short of that of an all-zero code by at most sum of h p |x|^(p-1) t (for squares 2 t sum h |x|).
double least_useful_threshold(const Prepared& job, const Moments& moments) {
  const double n = static_cast<double>(job.size);
  const double absolute_most = larger(job.channel.top, job.channel.bottom);
  if (job.cost == Cost::kSquare) {
    return moments.weighted_magnitudes > 0.0 ? 0.5 * moments.largest / moments.weighted_magnitudes : absolute_most;
  }
  const double p = job.cost == Cost::kAbsolute ? 1.0 : job.channel.power;
  return p >= 1.0 ? absolute_most / (n * p) : absolute_most * __builtin_pow(n, -1.0 / p);
}

ChannelStatus prepare(const WeightSearchSpec& spec, const ChannelJob& job, const Scratch& scratch, Prepared* out) {
  float least, most, least_h = 0.0f, most_h = 1.0f;
  if (!find_range(job.x, job.size, &least, &most)) return ChannelStatus::kNotFinite;
  if (job.h && (!find_range(job.h, job.size, &least_h, &most_h) || least_h < 0.0f))
    return ChannelStatus::kBadImportance;
  Prepared& p = *out;
  p.size = job.size;
  p.cost = spec.metric == WeightMetric::kMae  ? Cost::kAbsolute
           : spec.metric == WeightMetric::kLp ? Cost::kPower
                                              : Cost::kSquare;
  if (p.cost == Cost::kPower && spec.p == 2.0) p.cost = Cost::kSquare;
  if (p.cost == Cost::kPower && spec.p == 1.0) p.cost = Cost::kAbsolute;
  const float largest = -least > most ? -least : most;
  p.negligible = largest <= spec.min_threshold * 0x1p-24;
  p.exponent = p.negligible ? 0 : __builtin_ilogb(static_cast<double>(largest));
  const int h_exponent = job.h && most_h > 0.0f ? __builtin_ilogb(static_cast<double>(most_h)) : 0;
  scale_into(job.x, job.size, p.exponent, scratch.x);
  if (job.h) scale_into(job.h, job.size, h_exponent, scratch.h);
  Channel& c = p.channel;
  c.x = scratch.x;
  c.h = job.h ? scratch.h : nullptr;
  c.rows = padded(job.size) / kLanes;
  c.top = __builtin_ldexp(static_cast<double>(most), -p.exponent);
  c.bottom = __builtin_ldexp(-static_cast<double>(least), -p.exponent);
  c.power = p.cost == Cost::kSquare ? 2.0 : p.cost == Cost::kAbsolute ? 1.0 : spec.p;
  const Moments moments = c.h ? find_moments<true>(c.x, c.h, job.size) : find_moments<false>(c.x, c.h, job.size);
  c.importance = moments.importance;
  c.energy = moments.energy;
  c.magnitudes = moments.magnitudes;
  p.most_saved = least_useful_threshold(p, moments);
  p.error_unit =
      __builtin_pow(2.0, p.exponent * c.power) * __builtin_ldexp(1.0, h_exponent) / static_cast<double>(job.size);
  return ChannelStatus::kFine;
}

// The error of a grid by definition: float32 quotient, code and value; differences and sums in float64.
template <Cost C, bool Weighted>
double cost_by_definition(const Channel& channel, float scale, float low, float high) {
  double lanes[kLanes] = {};
  for (int64_t r = 0; r < channel.rows; ++r) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t i = r * kLanes + lane;
      const float x = channel.x[i];
      const double d = static_cast<double>(fake_quantize_value(x, scale, low, high)) - static_cast<double>(x);
      const double size = d < 0.0 ? -d : d;
      const double cost = C == Cost::kSquare ? d * d : C == Cost::kAbsolute ? size : __builtin_pow(size, channel.power);
      lanes[lane] += Weighted ? static_cast<double>(channel.h[i]) * cost : cost;
    }
  }
  return add_lanes(lanes);
}

double true_cost(const Prepared& job, float scale, float low, float high) {
  const Channel& c = job.channel;
  switch (job.cost) {
    case Cost::kSquare:
      return c.h ? cost_by_definition<Cost::kSquare, true>(c, scale, low, high)
                 : cost_by_definition<Cost::kSquare, false>(c, scale, low, high);
    case Cost::kAbsolute:
      return cost_by_definition<Cost::kAbsolute, false>(c, scale, low, high);
    default:
      return cost_by_definition<Cost::kPower, false>(c, scale, low, high);
  }
}

struct Threshold {
  double value;  // normalized
  double cost;
};

double cost_at(const Prepared& job, CodeRange codes, double steps, double threshold) {
  return true_cost(job, static_cast<float>(threshold) / static_cast<float>(steps), static_cast<float>(codes.low),
                   static_cast<float>(codes.high));
}

Threshold search_power_of_two(const Prepared& job, const WeightSearchSpec& spec, CodeRange codes, double steps,
                              double unclipped) {
  const double floor = __builtin_ldexp(spec.min_threshold, -job.exponent);
  const double lowest = larger(job.most_saved * 0.5, floor);
  int k = __builtin_ilogb(unclipped);
  if (__builtin_ldexp(1.0, k) < unclipped) ++k;
  const double cap = __builtin_ldexp(kLargest, -job.exponent);
  Threshold best{smaller(__builtin_ldexp(1.0, k), cap), 0.0};
  best.cost = cost_at(job, codes, steps, best.value);
  if (spec.metric == WeightMetric::kNoClipping) return best;
  for (int i = -1; i < kOctaves; ++i) {
    const double threshold = __builtin_ldexp(1.0, k - i);
    if (threshold < lowest) break;
    if (threshold > cap) continue;
    const double cost = cost_at(job, codes, steps, threshold);
    // At equal error the smaller threshold: the finer grid.
    if (cost < best.cost || (cost == best.cost && threshold < best.value)) best = {threshold, cost};
    // Smaller thresholds clip at least as much. The margin covers the float32 rounding of values.
    if (clipping_cost(job.cost, job.channel, cost, threshold / steps) > 1.001 * best.cost) break;
  }
  return best;
}

Threshold search_symmetric(const Prepared& job, const WeightSearchSpec& spec, int bits, CodeRange codes, double steps,
                           double unclipped, ExactScratch& scratch) {
  const double floor = __builtin_ldexp(spec.min_threshold, -job.exponent);
  double scale = unclipped / steps;
  const ScaleRange range{larger(floor, job.most_saved) / steps, scale};
  const bool all_code_zero = larger(job.channel.top, job.channel.bottom) <= 0.5 * floor / steps;
  if (spec.metric == WeightMetric::kNoClipping || all_code_zero || job.channel.energy == 0.0) {
    // Nothing to search: the least threshold that clips nothing is as good as any.
  } else if (spec.exact && job.cost == Cost::kSquare && bits <= kExactBits) {
    scale = ExactSearch(job.channel, codes, range, scratch).run();
  } else {
    scale = search_scale(job.cost, job.channel, codes, range, scratch.nodes).scale;
  }
  const double cap = __builtin_ldexp(kLargest, -job.exponent);
  const double threshold = smaller(cap, larger(floor, static_cast<double>(static_cast<float>(scale * steps))));
  return {threshold, cost_at(job, codes, steps, threshold)};
}

void search_width(const WeightSearchSpec& spec, const Prepared& job, const ChannelJob& out, int width,
                  ExactScratch& scratch) {
  const int bits = spec.bits[width];
  const int64_t at = width * out.step;
  const double steps = static_cast<double>(int64_t{1} << (bits - 1));
  if (spec.grid == WeightGrid::kUniform) {
    const Limits limits = search_uniform(job.cost, job.channel, bits, spec.metric == WeightMetric::kNoClipping,
                                         __builtin_ldexp(spec.min_threshold, -job.exponent), scratch.nodes);
    const double cap = __builtin_ldexp(kLargest, -job.exponent);
    const float lower = 0.0f - static_cast<float>(smaller(limits.lower, cap));  // zero, never -0
    const float upper = static_cast<float>(smaller(limits.upper, cap));
    const UniformGrid grid = uniform_grid(lower, upper, bits);
    out.first[at] = static_cast<float>(__builtin_ldexp(static_cast<double>(lower), job.exponent));
    out.second[at] = static_cast<float>(__builtin_ldexp(static_cast<double>(upper), job.exponent));
    out.error[at] = job.error_unit * true_cost(job, grid.scale, grid.low, grid.high);
    return;
  }
  const CodeRange codes{spec.narrow_range ? 1.0 - steps : -steps, steps - 1.0};
  const double floor = __builtin_ldexp(spec.min_threshold, -job.exponent);
  const double unclipped = larger(floor, steps * larger(job.channel.top / codes.high, job.channel.bottom / -codes.low));
  const Threshold best = spec.grid == WeightGrid::kPowerOfTwo
                             ? search_power_of_two(job, spec, codes, steps, unclipped)
                             : search_symmetric(job, spec, bits, codes, steps, unclipped, scratch);
  out.first[at] = static_cast<float>(__builtin_ldexp(best.value, job.exponent));
  out.error[at] = job.error_unit * best.cost;
}

ChannelStatus search(const WeightSearchSpec& spec, const ChannelJob& job) {
  const Scratch scratch = carve(job.scratch, job.size);
  Prepared prepared;
  const ChannelStatus status = prepare(spec, job, scratch, &prepared);
  if (status != ChannelStatus::kFine) return status;
  for (int width = 0; width < spec.widths; ++width) search_width(spec, prepared, job, width, *scratch.exact);
  return status;
}

}  // namespace

const WeightSearchTable weight_search_table = {scratch_bytes, search};

}  // namespace detent::DETENT_ISA
