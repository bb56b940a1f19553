// SPDX-License-Identifier: Apache-2.0
// Norm, rotation and the write into pages, as the rest of the world calls it.
#pragma once

#include <optional>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt {

// q, out [B, N, H, D]; k, v [B, N, Hkv, D]; q_weight [D] or [H * D]; k_weight [D] or [Hkv * D]; cos, sin float32
// [B, N, D / 2]; k_pages, v_pages [P, 64, Hkv, D], changed; page_ids int32 [B, ceil(N / 64)]. out is dense. Nothing else
// may overlap the pages or out. A token whose page is outside the pool is not written, and its row of out is NaN.
// Throws std::invalid_argument or Unsupported before anything is launched.
void kv_write_portable(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& q_weight,
                       const std::optional<Tensor>& k_weight, const std::optional<Tensor>& cos,
                       const std::optional<Tensor>& sin, const Tensor& k_pages, const Tensor& v_pages,
                       const Tensor& page_ids, const Tensor& out, float eps, const Stream& stream);

}  // namespace aapt
