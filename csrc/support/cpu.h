// SPDX-License-Identifier: Apache-2.0
// Which instruction sets this machine has and which one is in use. Chosen once; DETENT_ISA=<name> forces one of
// baseline, avx2, avx512 and avx512vnni (with byte dot products and byte permutations: Ice Lake, Zen 4 and later).
#pragma once

#include <string>
#include <vector>

namespace detent {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3 };

// The set in use. Never better than the machine.
Isa active_isa();

// Switches the whole process, for tests and comparisons. Throws std::invalid_argument for a name that is unknown or
// that this machine cannot run.
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

// Names of all sets that are compiled in, slowest first.
std::vector<std::string> compiled_isas();

// Names of the sets that are compiled in and that this machine runs, slowest first.
std::vector<std::string> available_isas();

}  // namespace detent
