// SPDX-License-Identifier: Apache-2.0
// A linear layer that ends in a residual sum: out = x + gate * (inputs weight^T + bias).
#pragma once

#include <optional>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt {

// x [B, N, d], inputs [B, N, k], weight [d, k], bias [d], gate [d] or [B, 1, d], out [B, N, d]; all bfloat16 or float16.
// Throws before anything is launched: std::invalid_argument or Unsupported for arguments, std::runtime_error for CUDA.
void linear_residual_sm90(const Tensor& x, const Tensor& inputs, const Tensor& weight,
                             const std::optional<Tensor>& bias, const std::optional<Tensor>& gate, const Tensor& out,
                             const Stream& stream);

}  // namespace aapt
