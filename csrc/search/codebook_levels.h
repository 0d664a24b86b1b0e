// SPDX-License-Identifier: Apache-2.0
// The best levels of a codebook for given steps: an exact dynamic program.
//
// Levels are whole numbers in -128..127, and zero is one of them. Two neighbours i < j share what lies between them at
// their middle (i + j) / 2, which is a multiple of one half: so sums over cells half a unit wide know the cost of every
// pair exactly, however many values there are. Best chains from either end to zero meet there.
#pragma once

#include <cstdint>
#include <vector>

namespace detent {

constexpr int kLatticeLow = -128;
constexpr int kLatticeHigh = 127;
constexpr int kCells = 512;  // cell b holds values v with b - 256 <= 2 v < b - 255; the outer two hold all beyond

// Sums over the values of each cell: of weights, of weight x v, of weight x v^2.
struct CellSums {
  std::vector<double> weight = std::vector<double>(kCells);
  std::vector<double> first = std::vector<double>(kCells);
  std::vector<double> second = std::vector<double>(kCells);
};

// `count` levels, increasing, one of them 0, with the least total squared distance of the values to the nearest level.
// Of equally good choices one, always the same. Requires 2 <= count <= 128.
std::vector<int> choose_levels(const CellSums& cells, int count);

}  // namespace detent
