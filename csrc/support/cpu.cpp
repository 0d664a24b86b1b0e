// SPDX-License-Identifier: Apache-2.0
#include "support/cpu.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace detent {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
  if (vnni) return Isa::kAvx512Vnni;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa parse_isa(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(best_isa()); ++i) {
    if (name == isa_name(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  std::string message = "instruction set '" + name + "' is not available; this machine has:";
  for (const std::string& known : available_isas()) message += " " + known;
  throw std::invalid_argument(message);
}

std::atomic<int>& active_slot() {
  static std::atomic<int> slot{[] {
    const char* forced = std::getenv("DETENT_ISA");
    return static_cast<int>(forced && *forced ? parse_isa(forced) : best_isa());
  }()};
  return slot;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(active_slot().load(std::memory_order_relaxed)); }

void set_isa(const std::string& name) { active_slot().store(static_cast<int>(parse_isa(name))); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Vnni:
      return "avx512vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::vector<std::string> compiled_isas() {
#if defined(__x86_64__)
  return {"baseline", "avx2", "avx512", "avx512vnni"};
#else
  return {"baseline"};
#endif
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names = compiled_isas();
  names.resize(static_cast<size_t>(best_isa()) + 1);
  return names;
}

}  // namespace detent
