// SPDX-License-Identifier: Apache-2.0
// Checks and binding of kv_write: norm, rotation and the write into pages.
#include <optional>
#include <utility>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "kv_write/params.h"

namespace aapt {
namespace {

void check_weight(const char* argument, const Tensor& weight, std::int64_t heads, std::int64_t width, Dtype dtype) {
  require_shape(argument, weight, {kAnySize});
  const std::int64_t size = weight.size(0);
  require_valid(size == width || size == heads * width, argument,
                "shape [" + std::to_string(width) + "] or [" + std::to_string(heads * width) + "]",
                "[" + std::to_string(size) + "]");
  require_weight(argument, weight, dtype);
  require_16_byte_rows(argument, weight);
}

void check_angles(const char* argument, const Tensor& angles, const Tensor& q) {
  require_shape(argument, angles, {q.size(0), q.size(1), q.size(3) / 2});
  require_dtype(argument, angles, Dtype::kFloat32);
  require_16_byte_rows(argument, angles);
}

void check_tokens(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_pages, const Tensor& v_pages,
                  const Tensor& page_ids, const Tensor& out) {
  require_pages(q, k_pages, v_pages);
  const std::int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), width = q.size(3);
  const std::int64_t kv_heads = k_pages.size(2);
  require_shape("k", k, {batch, tokens, kv_heads, width});
  require_dtype("k", k, q.dtype);
  require_shape("v", v, {batch, tokens, kv_heads, width});
  require_dtype("v", v, q.dtype);
  require_shape("page_ids", page_ids, {batch, (tokens + kPageSlots - 1) / kPageSlots});
  require_dtype("page_ids", page_ids, Dtype::kInt32);
  require_shape("out", out, {batch, tokens, heads, width});
  require_dtype("out", out, q.dtype);
  require_dense("out", out);

  require_one_of("q", "head width", width, {56, 64, 128});
  constexpr int largest = kKvWriteMaxThreads * kKvWriteMaxVectors * kVectorElements;  // elements of a token
  const std::int64_t most_heads = largest / padded_width(static_cast<int>(width));
  require_supported(heads + 2 * kv_heads <= most_heads, "q",
                    "at most " + std::to_string(most_heads) + " heads of this width in q, k and v for this kernel",
                    std::to_string(heads + 2 * kv_heads));
  for (const auto& [argument, tensor] : {std::pair<const char*, const Tensor&>{"q", q}, {"k", k}, {"v", v},
                                         {"k_pages", k_pages}, {"v_pages", v_pages}, {"out", out}}) {
    require_16_byte_rows(argument, tensor);
  }
  require_grid("q", "rows", batch);
}

KvWriteParams::Norm norm(const std::optional<Tensor>& weight, std::int64_t width) {
  if (!weight) return {};
  return {weight->data, weight->dtype == Dtype::kFloat32, /*across_heads=*/weight->size(0) != width};
}

KvWriteParams::Rows rows(const Tensor& tensor) { return {tensor.stride[0], tensor.stride[1], tensor.stride[2]}; }

template <class Element>
auto launch_of(std::int64_t width) {
  return width == 56   ? launch_kv_write_portable<Element, 56>
         : width == 64 ? launch_kv_write_portable<Element, 64>
                       : launch_kv_write_portable<Element, 128>;
}

// q, out [B, N, H, D]; k, v [B, N, Hkv, D]; q_weight [D] or [H * D]; k_weight [D] or [Hkv * D]; cos, sin float32
// [B, N, D / 2]; k_pages, v_pages [P, 64, Hkv, D], changed; page_ids int32 [B, ceil(N / 64)]. out is dense. Nothing
// else may overlap the pages or out. A token whose page is outside the pool is not written, its row of out is NaN.
void kv_write_portable(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& q_weight,
                       const std::optional<Tensor>& k_weight, const std::optional<Tensor>& cos,
                       const std::optional<Tensor>& sin, const Tensor& k_pages, const Tensor& v_pages,
                       const Tensor& page_ids, const Tensor& out, float eps, const Stream& stream) {
  check_tokens(q, k, v, k_pages, v_pages, page_ids, out);
  const std::int64_t tokens = q.size(1), width = q.size(3);
  if (q_weight) check_weight("q_weight", *q_weight, q.size(2), width, q.dtype);
  if (k_weight) check_weight("k_weight", *k_weight, k.size(2), width, q.dtype);
  require_valid(cos.has_value() == sin.has_value(), "sin", cos ? "a tensor, as cos is one" : "None, as cos is None",
                sin ? "a tensor" : "None");
  if (cos) check_angles("cos", *cos, q);
  if (sin) check_angles("sin", *sin, q);
  require_capability(stream.device, 8, 0);
  if (q.size(0) == 0 || tokens == 0) return;

  KvWriteParams params = {};
  params.q = q.data;
  params.k = k.data;
  params.v = v.data;
  if (cos) {
    params.cos = cos->as<const float>();
    params.sin = sin->as<const float>();
    for (int i = 0; i < 2; ++i) {
      params.cos_stride[i] = cos->stride[i];
      params.sin_stride[i] = sin->stride[i];
    }
  }
  params.page_ids = page_ids.as<const std::int32_t>();
  params.k_pages = k_pages.data;
  params.v_pages = v_pages.data;
  params.out = out.data;
  params.q_norm = norm(q_weight, width);
  params.k_norm = norm(k_weight, width);
  params.q_stride = rows(q);
  params.k_stride = rows(k);
  params.v_stride = rows(v);
  params.k_pages_stride = rows(k_pages);
  params.v_pages_stride = rows(v_pages);
  for (int i = 0; i < 2; ++i) params.ids_stride[i] = page_ids.stride[i];
  params.batch = to_int("q", "rows", q.size(0));
  params.tokens = to_int("q", "tokens", tokens);
  params.heads = to_int("q", "heads", q.size(2));
  params.kv_heads = to_int("k", "heads", k.size(2));
  params.pages = to_int("k_pages", "pages", k_pages.size(0));
  params.eps = eps;

  const auto launch = q.dtype == Dtype::kBFloat16 ? launch_of<bfloat16>(width) : launch_of<float16>(width);
  launch(params, stream);
}

}  // namespace

void register_kv_write(py::module_& module) {
  module.def("kv_write_portable", &kv_write_portable, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("q_weight"),
             py::arg("k_weight"), py::arg("cos"), py::arg("sin"), py::arg("k_pages"), py::arg("v_pages"),
             py::arg("page_ids"), py::arg("out"), py::arg("eps"), py::arg("stream"),
             py::call_guard<py::gil_scoped_release>(),
             "Norm, rotation and the write into pages.");
}

}  // namespace aapt
