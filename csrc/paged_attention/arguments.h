// SPDX-License-Identifier: Apache-2.0
// Arguments of a call, their checks, and the kernels' parameters made from them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "common/tensor.h"
#include "paged_attention/params.h"

namespace aapt {

struct PagedAttentionArguments {
  const Tensor& q;           // [B, N, H, D]
  const Tensor& k_pages;     // [P, 64, Hkv, D]
  const Tensor& v_pages;     // [P, 64, Hkv, D]
  const Tensor& page_ids;    // int32 [B, M]
  const Tensor& page_valid;  // int32 [B, M]
  const std::optional<Tensor>& page_bias;  // float32 [B, M]
  const Tensor& out;         // [B, N, H, D], dense
  const Tensor& lse;         // float32 [B, H, N], dense
  float scale;
};

// Checks the arguments of a kernel for heads of these widths. Throws std::invalid_argument or Unsupported.
void check_arguments(const PagedAttentionArguments& arguments, std::initializer_list<std::int64_t> widths);

// Parameters of checked arguments.
PagedAttentionParams params_of(const PagedAttentionArguments& arguments);

// Checks what the kernels for Hopper need beyond that, the GPU included, and makes their tensor maps. Without anything
// to compute there is no result: a tensor map of an empty tensor does not exist.
std::optional<PagedAttentionSm90Params> sm90_params_of(const PagedAttentionArguments& arguments, const Stream& stream);

}  // namespace aapt
