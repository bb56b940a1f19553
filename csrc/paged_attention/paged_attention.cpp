// SPDX-License-Identifier: Apache-2.0
// Choice of the instantiation, and binding of paged_attention.
#include <utility>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "paged_attention/arguments.h"

namespace aapt {
namespace {

void paged_attention_portable(const PagedAttentionArguments& arguments, const Stream& stream) {
  check_arguments(arguments);
  require_capability(stream.device, 8, 0);
  if (arguments.out.elements() == 0) return;
  const bool narrow = arguments.q.size(3) == 64;
  const auto launch = arguments.q.dtype == Dtype::kBFloat16
                          ? (narrow ? launch_paged_attention_portable<bfloat16, 64>
                                    : launch_paged_attention_portable<bfloat16, 128>)
                          : (narrow ? launch_paged_attention_portable<float16, 64>
                                    : launch_paged_attention_portable<float16, 128>);
  launch(params_of(arguments), stream);
}

#ifdef AAPT_HOPPER_KERNELS  // compiled for a Hopper GPU or for the emulation

void paged_attention_sm90(const PagedAttentionArguments& arguments, const Stream& stream) {
  const auto params = sm90_params_of(arguments, stream);
  if (!params) return;
  const bool narrow = arguments.q.size(3) == 64;
  const auto launch =
      arguments.q.dtype == Dtype::kBFloat16
          ? (narrow ? launch_paged_attention_sm90<bfloat16, 64> : launch_paged_attention_sm90<bfloat16, 128>)
          : (narrow ? launch_paged_attention_sm90<float16, 64> : launch_paged_attention_sm90<float16, 128>);
  launch(*params, stream);
}

// The heads of all rows from number `whole` on have their keys split into `parts` parts: equal shares of the entries of
// the page table. part_out float32 [(B * H - whole) * parts, N, D] and part_lse float32 [.., N], dense, are room for
// them.
void paged_attention_sm90_split(const PagedAttentionArguments& arguments, const Stream& stream, const Tensor& part_out,
                                const Tensor& part_lse, int whole, int parts) {
  auto params = sm90_params_of(arguments, stream);
  const Tensor& q = arguments.q;
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
  if (!params) return;
  params->split = {whole, parts, part_out.as<float>(), part_lse.as<float>()};
  const bool narrow = q.size(3) == 64;
  const auto launch = q.dtype == Dtype::kBFloat16
                          ? (narrow ? launch_paged_attention_sm90_split<bfloat16, 64>
                                    : launch_paged_attention_sm90_split<bfloat16, 128>)
                          : (narrow ? launch_paged_attention_sm90_split<float16, 64>
                                    : launch_paged_attention_sm90_split<float16, 128>);
  launch(*params, stream);
}

#endif

// Defines a function of the module with the arguments of every kernel and some more.
template <class... More, class... Names>
void define(py::module_& module, const char* name,
            void (*function)(const PagedAttentionArguments&, const Stream&, More...), const char* doc,
            const Names&... more_names) {
  module.def(
      name,
      [function](const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                 const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                 const Tensor& lse, float scale, More... more, const Stream& stream) {
        function({q, k_pages, v_pages, page_ids, page_valid, page_bias, out, lse, scale}, stream, more...);
      },
      py::arg("q"), py::arg("k_pages"), py::arg("v_pages"), py::arg("page_ids"), py::arg("page_valid"),
      py::arg("page_bias"), py::arg("out"), py::arg("lse"), py::arg("scale"), more_names..., py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(), doc);
}

}  // namespace

void register_paged_attention(py::module_& module) {
  define(module, "paged_attention_portable", &paged_attention_portable, "Attention with cp.async and mma.sync.");
#ifdef AAPT_HOPPER_KERNELS
  define(module, "paged_attention_sm90", &paged_attention_sm90,
         "Attention for Hopper with the copy engine and wgmma.");
  define(module, "paged_attention_sm90_split", &paged_attention_sm90_split,
         "Attention for Hopper in clusters of two blocks, with the keys of some heads in parts.", py::arg("part_out"),
         py::arg("part_lse"), py::arg("whole"), py::arg("parts"));
#endif
}

}  // namespace aapt
