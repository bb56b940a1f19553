// SPDX-License-Identifier: Apache-2.0
#include "paged_attention/paged_attention.h"

#include <cmath>
#include <utility>

#include "common/device_info.h"
#include "paged_attention/params.h"

namespace aapt {
namespace {

void check(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
           const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out, const Tensor& lse,
           float scale) {
  require_shape("k_pages", k_pages, {kAnySize, kPageSlots, kAnySize, kAnySize});
  const std::int64_t kv_heads = k_pages.size(2), width = k_pages.size(3);
  require_half("k_pages", k_pages);
  require_shape("v_pages", v_pages, {k_pages.size(0), kPageSlots, kv_heads, width});
  require_dtype("v_pages", v_pages, k_pages.dtype);
  require_shape("q", q, {kAnySize, kAnySize, kAnySize, width});
  require_dtype("q", q, k_pages.dtype);
  const std::int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2);
  require_valid(kv_heads > 0 && heads % kv_heads == 0, "q",
                "a number of heads that is a multiple of the pages' " + std::to_string(kv_heads),
                std::to_string(heads));
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

  require_one_of("q", "head width", width, {64, 128});
  require_16_byte_rows("q", q);
  require_16_byte_rows("k_pages", k_pages);
  require_16_byte_rows("v_pages", v_pages);
  // The running maximum is taken of the raw scores.
  require_supported(scale > 0 && std::isfinite(scale), "scale", "a positive number for this kernel",
                    std::to_string(scale));
  require_grid("q", "heads", heads);
  require_grid("q", "rows", batch);
}

PagedAttentionParams::Rows rows(const Tensor& tensor) { return {tensor.stride[0], tensor.stride[1], tensor.stride[2]}; }

PagedAttentionParams params_of(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                               const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                               const Tensor& lse, float scale) {
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

template <Sm90Variant kVariant>
void run_sm90(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
              const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out, const Tensor& lse,
              float scale, const Stream& stream, const SplitKeys& split = {}) {
  check(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale);
  require_supported(k_pages.size(0) > 0, "k_pages", "at least one page for this kernel", "none");
  require_hopper(stream.device);
  if (out.elements() == 0) return;
  const auto map_of = [](const char* argument, const Tensor& tensor) {
    return make_tensor_map(argument, tensor, {1, 64, 1, 64}, Swizzle::k128Bytes);
  };
  PagedAttentionSm90Params params = {};
  params.common = params_of(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale);
  params.q = map_of("q", q);
  params.out = map_of("out", out);
  params.k_pages = map_of("k_pages", k_pages);
  params.v_pages = map_of("v_pages", v_pages);
  params.split = split;
  const bool narrow = q.size(3) == 64;
  if (q.dtype == Dtype::kBFloat16) {
    (narrow ? launch_paged_attention_sm90<bfloat16, 64, kVariant>
            : launch_paged_attention_sm90<bfloat16, 128, kVariant>)(params, stream);
  } else {
    (narrow ? launch_paged_attention_sm90<float16, 64, kVariant>
            : launch_paged_attention_sm90<float16, 128, kVariant>)(params, stream);
  }
}

}  // namespace

void paged_attention_portable(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                              const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                              const Tensor& lse, float scale, const Stream& stream) {
  check(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale);
  require_capability(stream.device, 8, 0);
  if (out.elements() == 0) return;
  const PagedAttentionParams params =
      params_of(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale);
  const bool narrow = q.size(3) == 64;
  if (q.dtype == Dtype::kBFloat16) {
    (narrow ? launch_paged_attention_portable<bfloat16, 64> : launch_paged_attention_portable<bfloat16, 128>)(params,
                                                                                                           stream);
  } else {
    (narrow ? launch_paged_attention_portable<float16, 64> : launch_paged_attention_portable<float16, 128>)(params,
                                                                                                         stream);
  }
}

void paged_attention_sm90(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                          const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                          const Tensor& lse, float scale, const Stream& stream) {
  run_sm90<Sm90Variant::kPlain>(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale, stream);
}

void paged_attention_sm90_overlap(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages,
                                  const Tensor& page_ids, const Tensor& page_valid,
                                  const std::optional<Tensor>& page_bias, const Tensor& out, const Tensor& lse,
                                  float scale, const Stream& stream) {
  run_sm90<Sm90Variant::kOverlap>(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale, stream);
}

void paged_attention_sm90_cluster(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages,
                                  const Tensor& page_ids, const Tensor& page_valid,
                                  const std::optional<Tensor>& page_bias, const Tensor& out, const Tensor& lse,
                                  float scale, const Stream& stream) {
  run_sm90<Sm90Variant::kCluster>(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale, stream);
}

void paged_attention_sm90_split(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                                const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                                const Tensor& lse, float scale, const Tensor& part_out, const Tensor& part_lse,
                                int whole, int parts, const Stream& stream) {
  check(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale);
  const std::int64_t heads = q.size(0) * q.size(2), split = heads - whole;
  require_valid(whole >= 0 && split >= 0, "whole", "0 to " + std::to_string(heads) + " heads", std::to_string(whole));
  require_valid(parts >= 1, "parts", "at least 1", std::to_string(parts));
  require_grid("parts", "parts of all heads", whole + split * parts);
  require_shape("part_out", part_out, {split * parts, q.size(1), q.size(3)});
  require_shape("part_lse", part_lse, {split * parts, q.size(1)});
  for (const auto& [argument, tensor] : {std::pair{"part_out", &part_out}, std::pair{"part_lse", &part_lse}}) {
    require_dtype(argument, *tensor, Dtype::kFloat32);
    require_dense(argument, *tensor);
  }
  require_16_byte_rows("part_out", part_out);
  run_sm90<Sm90Variant::kSplit>(q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale, stream,
                                {whole, parts, part_out.as<float>(), part_lse.as<float>()});
}

}  // namespace aapt
