// SPDX-License-Identifier: Apache-2.0
// Goes through one row of the page table, or through a part of it.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "paged_attention/params.h"

namespace aapt {

struct Page {
  int id;
  int valid;        // slots 0..valid-1 count; 0: there are no more pages
  float bias_log2;  // added to the scores of the page, in powers of two
};

class PageTable {
 public:
  AAPT_DEVICE PageTable(const PagedAttentionParams& params, int row) : PageTable(params, row, 0, params.entries) {}
  AAPT_DEVICE PageTable(const PagedAttentionParams& params, int row, int first, int end)
      : params_(params), row_(row), entry_(first), end_(end) {}

  // The next used entry. One that lies outside the pool is skipped and makes the table broken: reading it could end the
  // context, ignoring it would be a silent error.
  AAPT_DEVICE Page next() {
    while (entry_ < end_) {
      const int entry = entry_++;
      const int valid = params_.page_valid[row_ * params_.valid_stride[0] + entry * params_.valid_stride[1]];
      if (valid == 0) continue;
      const int id = params_.page_ids[row_ * params_.ids_stride[0] + entry * params_.ids_stride[1]];
      if (valid < 0 || valid > kPageSlots || id < 0 || id >= params_.pages) {
        broken_ = true;
        continue;
      }
      const float bias =
          params_.page_bias ? params_.page_bias[row_ * params_.bias_stride[0] + entry * params_.bias_stride[1]] : 0.0f;
      return {id, valid, bias * kLog2E};
    }
    return {0, 0, 0.0f};
  }

  AAPT_DEVICE bool broken() const { return broken_; }

 private:
  static constexpr float kLog2E = 1.44269504f;
  const PagedAttentionParams& params_;
  int row_;
  int entry_, end_;
  bool broken_ = false;
};

}  // namespace aapt
