// SPDX-License-Identifier: Apache-2.0
// Noise and the patch embedding of the channel-wise concatenation, as the rest of the world calls them. All functions
// throw std::invalid_argument or Unsupported before anything is launched.
#pragma once

#include <optional>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt {

// seed, step int64 [B]; out float32 [B, C, h, w], dense.
void philox_normal_portable(const Tensor& seed, const Tensor& step, const Tensor& out, const Stream& stream);

// noised, recycled [B, C, h, w]; control [B, Cc, h, w]; weight [d, (2C + Cc) * patch^2]; bias [d];
// tokens [B, (h / patch) * (w / patch), d], dense.
void channel_concat_portable(const Tensor& noised, const Tensor& recycled, const std::optional<Tensor>& control,
                             const Tensor& weight, const std::optional<Tensor>& bias, std::int64_t patch,
                             const Tensor& tokens, const Stream& stream);

// The same with noise of seed and step, int64 [B], which is also written to noise [B, C, h, w], dense.
void channel_concat_noise_portable(const Tensor& recycled, const std::optional<Tensor>& control, const Tensor& weight,
                                   const std::optional<Tensor>& bias, std::int64_t patch, const Tensor& seed,
                                   const Tensor& step, const Tensor& tokens, const Tensor& noise,
                                   const Stream& stream);

}  // namespace aapt
