// SPDX-License-Identifier: Apache-2.0
// Gate, residual sum, RMSNorm and modulation, as the rest of the world calls it.
#pragma once

#include <optional>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt {

// x, y, residual, normed [B, N, d]; gate, scale, shift [d], [B, 1, d] or [B, N, d]. residual and normed are dense; the
// sum is not written where there is no residual.
// Throws std::invalid_argument or Unsupported before anything is launched.
void gate_residual_norm_portable(const Tensor& x, const std::optional<Tensor>& y, const std::optional<Tensor>& gate,
                                 const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                 const std::optional<Tensor>& residual, const Tensor& normed, float eps,
                                 const Stream& stream);

}  // namespace aapt
