// SPDX-License-Identifier: Apache-2.0
// Parameters of the gate_residual_norm kernel. The maths is in python/aapt_fast/ops/gate_residual_norm.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

constexpr int kGateResidualNormMaxWidth = 8192;

struct GateResidualNormParams {
  // strides in elements
  struct Rows {
    std::int64_t row, token;
  };

  struct Modulation {
    const void* data;  // [d], [B, 1, d] or [B, N, d], rows dense; null: left out
    bool is_float32;
    Rows stride;  // 0 along dimensions that it does not have
  };

  const void* x;   // [B, N, d], rows of d dense
  const void* y;   // [B, N, d] or null
  void* residual;  // [B, N, d], dense, or null
  void* normed;    // [B, N, d], dense
  Modulation gate, scale, shift;
  Rows x_stride, y_stride;

  int batch, tokens, width;
  float eps;
};

template <class Element>
void launch_gate_residual_norm_portable(const GateResidualNormParams& params, const Stream& stream);

}  // namespace aapt
