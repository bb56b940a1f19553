// SPDX-License-Identifier: Apache-2.0
#include "paged_attention/arguments.h"

#include <cmath>

#include "common/device_info.h"

namespace aapt {
namespace {

PagedAttentionParams::Rows rows(const Tensor& tensor) { return {tensor.stride[0], tensor.stride[1], tensor.stride[2]}; }

}  // namespace

void check_arguments(const PagedAttentionArguments& arguments, std::initializer_list<std::int64_t> widths) {
  const auto& [q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale] = arguments;
  require_pages(q, k_pages, v_pages);
  const std::int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), width = q.size(3);
  require_shape("page_ids", page_ids, {batch, kAnySize});
  require_dtype("page_ids", page_ids, Dtype::kInt32);
  require_shape("page_valid", page_valid, {batch, page_ids.size(1)});
  require_dtype("page_valid", page_valid, Dtype::kInt32);
  if (page_bias) {
    require_shape("page_bias", *page_bias, {batch, page_ids.size(1)});
    require_dtype("page_bias", *page_bias, Dtype::kFloat32);
  }
  require_shape("out", out, {batch, tokens, heads, width});
  require_dtype("out", out, q.dtype);
  require_dense("out", out);
  require_shape("lse", lse, {batch, heads, tokens});
  require_dtype("lse", lse, Dtype::kFloat32);
  require_dense("lse", lse);

  require_one_of("q", "head width", width, widths);
  require_16_byte_rows("q", q);
  require_16_byte_rows("k_pages", k_pages);
  require_16_byte_rows("v_pages", v_pages);
  // The running maximum is taken of the raw scores.
  require_supported(scale > 0 && std::isfinite(scale), "scale", "a positive number for this kernel",
                    std::to_string(scale));
  require_grid("q", "heads", heads);
  require_grid("q", "rows", batch);
}

PagedAttentionParams params_of(const PagedAttentionArguments& arguments) {
  const auto& [q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale] = arguments;
  PagedAttentionParams params = {};
  params.q = q.data;
  params.k_pages = k_pages.data;
  params.v_pages = v_pages.data;
  params.page_ids = page_ids.as<const std::int32_t>();
  params.page_valid = page_valid.as<const std::int32_t>();
  params.out = out.data;
  params.lse = lse.as<float>();
  params.q_stride = rows(q);
  params.k_stride = rows(k_pages);
  params.v_stride = rows(v_pages);
  for (int i = 0; i < 2; ++i) {
    params.ids_stride[i] = page_ids.stride[i];
    params.valid_stride[i] = page_valid.stride[i];
    if (page_bias) params.bias_stride[i] = page_bias->stride[i];
  }
  if (page_bias) params.page_bias = page_bias->as<const float>();
  params.batch = to_int("q", "rows", q.size(0));
  params.tokens = to_int("q", "tokens", q.size(1));
  params.heads = to_int("q", "heads", q.size(2));
  params.kv_heads = to_int("k_pages", "heads", k_pages.size(2));
  params.entries = to_int("page_ids", "entries", page_ids.size(1));
  params.pages = to_int("k_pages", "pages", k_pages.size(0));
  params.scale_log2 = scale * 1.44269504f;
  return params;
}

std::optional<PagedAttentionSm90Params> sm90_params_of(const PagedAttentionArguments& arguments, const Stream& stream) {
  check_arguments(arguments, {64, 128});
  require_supported(arguments.k_pages.size(0) > 0, "k_pages", "at least one page for this kernel", "none");
  require_hopper(stream.device);
  if (arguments.out.elements() == 0) return std::nullopt;
  const auto map_of = [&](const char* argument, const Tensor& tensor) {
    return make_tensor_map(argument, tensor, {1, 64, 1, 64}, Swizzle::k128Bytes, stream.device);
  };
  PagedAttentionSm90Params params = {};
  params.common = params_of(arguments);
  params.q = map_of("q", arguments.q);
  params.out = map_of("out", arguments.out);
  params.k_pages = map_of("k_pages", arguments.k_pages);
  params.v_pages = map_of("v_pages", arguments.v_pages);
  return params;
}

}  // namespace aapt
