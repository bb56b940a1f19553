// SPDX-License-Identifier: Apache-2.0
// Tokens of velocity and noised frames -> clean frames, as the rest of the world calls it.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt {

// tokens [B, F (h / patch) (w / patch), C patch^2]; noised, clean [B, C, F, h, w]; t [B]. clean is dense.
// Throws std::invalid_argument or Unsupported before anything is launched.
void clean_frame_portable(const Tensor& tokens, const Tensor& noised, const Tensor& t, std::int64_t patch,
                          const Tensor& clean, const Stream& stream);

}  // namespace aapt
