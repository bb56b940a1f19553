// SPDX-License-Identifier: Apache-2.0
// Arguments of a call, their checks, and the kernels' parameters made from them.
#pragma once

#include <optional>
#include <string>

#include "common/tensor.h"
#include "ring_conv3d/params.h"

namespace aapt {

// T' is T, and 2T for "double_time", or f T for "shuffle"; H' and W' are 2H and 2W for "upsample" and "shuffle".
// At least one of `out` and `normed` is there.
struct RingConv3dArguments {
  const Tensor& ring;                         // [B, S, H, W, C], S >= T + kt - 1
  const std::optional<Tensor>& start;         // int32 [1]
  const Tensor& weight;                       // [P, taps, O, C]
  const std::optional<Tensor>& bias;          // [O]
  const std::optional<Tensor>& residual;      // [B, T', H', W', O']
  const std::optional<Tensor>& out;           // [B, S', H', W', O'], S' >= T', in the dtype of the ring or uint8
  const std::optional<Tensor>& out_start;     // int32 [1]
  std::int64_t frames;                        // T
  const std::string& mode;
  const std::optional<Tensor>& gamma;         // [O'], with `normed` only
  const std::optional<Tensor>& normed;        // [B, S'', H', W', O'], S'' >= T'
  const std::optional<Tensor>& normed_start;  // int32 [1]
  float eps;

  // Either of both results: they differ in the number of slots, and maybe in the dtype.
  const Tensor& result() const { return out ? *out : *normed; }
};

// Parameters of arguments that every kernel takes. Throws std::invalid_argument for those that mean nothing, Unsupported
// for another dtype than bfloat16 and float16, for channels that are no multiple of 16, for a ring or weight that starts
// at no multiple of 16 bytes, for a frame of more elements than an int counts, and for a norm of channels that are no
// multiple of 8 or in tensors that start at no multiple of 16 bytes.
RingConv3dParams params_of(const RingConv3dArguments& arguments);

}  // namespace aapt
