// SPDX-License-Identifier: Apache-2.0
// Checks the grids of a matrix of weights and owns the arrays behind a ColumnView.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/affine_grid.h"
#include "kernels/codebook.h"
#include "kernels/column_view.h"
#include "support/check.h"

namespace detent {

class ColumnGrids {
 public:
  // scale and zero_point: [entries, groups], entries 1 or rows. Throws std::invalid_argument unless every scale is
  // finite and positive, every zero point in [qmin, qmax].
  static ColumnGrids affine(const float* scale, const int32_t* zero_point, int64_t entries, int64_t groups,
                            int64_t qmin, int64_t qmax) {
    require(kLowestCode <= qmin && qmin <= qmax && qmax <= kHighestCode, "codes must satisfy ", kLowestCode,
            " <= qmin <= qmax <= ", kHighestCode, ", got qmin ", qmin, " and qmax ", qmax);
    ColumnGrids grids(scale, entries, groups);
    for (int64_t i = 0; i < entries * groups; ++i) {
      require(qmin <= zero_point[i] && zero_point[i] <= qmax, "zero_point[", i / groups, ", ", i % groups,
              "] must be in [", qmin, ", ", qmax, "], got ", zero_point[i]);
      grids.lower_.push_back(static_cast<float>(qmin - zero_point[i]));
      grids.upper_.push_back(static_cast<float>(qmax - zero_point[i]));
    }
    grids.view_.lower = grids.lower_.data();
    grids.view_.upper = grids.upper_.data();
    grids.view_.zero_point = zero_point;
    grids.qmin_ = static_cast<int32_t>(qmin);
    grids.qmax_ = static_cast<int32_t>(qmax);
    return grids;
  }

  // table: [tables, levels], tables 1 or rows. Throws std::invalid_argument unless every scale is finite and positive,
  // every table increasing (equal levels allowed) and of 1 to 256 finite levels.
  static ColumnGrids codebook(const float* scale, int64_t entries, int64_t groups, const float* table, int64_t tables,
                              int64_t levels) {
    ColumnGrids grids(scale, entries, groups);
    for (int64_t t = 0; t < tables; ++t) {
      const Codebook checked(table + t * levels, levels);
      const LutView lut = checked.view({});
      grids.bounds_.insert(grids.bounds_.end(), lut.bounds, lut.bounds + levels - 1);
    }
    grids.view_.table = table;
    grids.view_.bounds = grids.bounds_.data();
    grids.view_.levels = levels;
    grids.view_.table_stride = tables == 1 ? 0 : levels;
    grids.view_.bounds_stride = tables == 1 ? 0 : levels - 1;
    grids.qmax_ = static_cast<int32_t>(levels - 1);
    return grids;
  }

  // Gives each column its group. Throws std::invalid_argument unless all are in [0, groups).
  void assign(const int32_t* group, int64_t columns) {
    for (int64_t c = 0; c < columns; ++c) {
      require(0 <= group[c] && group[c] < view_.groups, "group_of_column[", c, "] must be in [0, ", view_.groups,
              "), got ", group[c]);
    }
    view_.group = group;
  }

  // The arrays passed in, and this object, must outlive what is returned.
  const ColumnView& view() const { return view_; }
  int32_t qmin() const { return qmin_; }
  int32_t qmax() const { return qmax_; }

 private:
  ColumnGrids(const float* scale, int64_t entries, int64_t groups) {
    for (int64_t i = 0; i < entries * groups; ++i) {
      require(std::isfinite(scale[i]) && scale[i] > 0.0f, "scale[", i / groups, ", ", i % groups,
              "] must be finite and positive, got ", scale[i]);
    }
    view_.scale = scale;
    view_.scale_stride = entries == 1 ? 0 : groups;
    view_.groups = groups;
  }

  // Moved, never copied: the view points into these.
  std::vector<float> lower_, upper_, bounds_;
  ColumnView view_ = {};
  int32_t qmin_ = 0, qmax_ = 0;

 public:
  ColumnGrids(ColumnGrids&&) = default;
  ColumnGrids(const ColumnGrids&) = delete;
  ColumnGrids& operator=(const ColumnGrids&) = delete;
  ColumnGrids& operator=(ColumnGrids&&) = delete;
};

}  // namespace detent
