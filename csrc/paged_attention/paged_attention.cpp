// SPDX-License-Identifier: Apache-2.0
// Choice of the instantiation, and binding of paged_attention.
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include <pybind11/stl.h>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "paged_attention/arguments.h"

namespace aapt {
namespace {

template <class Element>
auto portable_launch(std::int64_t width) {
  return width == 56   ? launch_paged_attention_portable<Element, 56>
         : width == 64 ? launch_paged_attention_portable<Element, 64>
                       : launch_paged_attention_portable<Element, 128>;
}

void paged_attention_portable(const PagedAttentionArguments& arguments, const Stream& stream) {
  check_arguments(arguments, {56, 64, 128});
  require_capability(stream.device, 8, 0);
  if (arguments.out.elements() == 0) return;
  const std::int64_t width = arguments.q.size(3);
  const auto launch =
      arguments.q.dtype == Dtype::kBFloat16 ? portable_launch<bfloat16>(width) : portable_launch<float16>(width);
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

// Where the parts begin and end, from their shares of the entries of the page table.
SplitKeys split_of(int whole, const std::vector<int>& shares) {
  const bool positive = std::all_of(shares.begin(), shares.end(), [](int share) { return share > 0; });
  const std::int64_t sum = std::accumulate(shares.begin(), shares.end(), std::int64_t{0});
  require_valid(shares.size() <= SplitKeys::kMostParts && positive && sum == SplitKeys::kShares, "shares",
                "at most " + std::to_string(SplitKeys::kMostParts) + " positive numbers that add up to " +
                    std::to_string(SplitKeys::kShares),
                std::to_string(shares.size()) + " that add up to " + std::to_string(sum));
  SplitKeys split = {whole, static_cast<int>(shares.size()), {}, nullptr, nullptr};
  std::partial_sum(shares.begin(), shares.end(), split.cuts + 1);
  return split;
}

// The heads of all rows from number `whole` on have their keys split into parts with these shares of the entries of the
// page table. part_out [(B * H - whole) * parts, N, 1, D] in the dtype of q and part_lse float32 [.., N], dense, are
// room for them.
void paged_attention_sm90_split(const PagedAttentionArguments& arguments, const Stream& stream, const Tensor& part_out,
                                const Tensor& part_lse, int whole, const std::vector<int>& shares) {
  auto params = sm90_params_of(arguments, stream);
  const Tensor& q = arguments.q;
  const std::int64_t heads = q.size(0) * q.size(2), split = heads - whole;
  require_valid(whole >= 0 && split >= 0, "whole", "0 to " + std::to_string(heads) + " heads", std::to_string(whole));
  SplitKeys keys = split_of(whole, shares);
  require_grid("shares", "parts of all heads", whole + split * keys.parts);
  require_shape("part_out", part_out, {split * keys.parts, q.size(1), 1, q.size(3)});
  require_shape("part_lse", part_lse, {split * keys.parts, q.size(1)});
  require_dtype("part_out", part_out, q.dtype);
  require_dtype("part_lse", part_lse, Dtype::kFloat32);
  require_dense("part_out", part_out);
  require_dense("part_lse", part_lse);
  require_16_byte_rows("part_out", part_out);
  if (!params) return;
  if (split > 0) {
    keys.out = part_out.data;
    keys.lse = part_lse.as<float>();
    params->parts = make_tensor_map("part_out", part_out, {1, 64, 1, 64}, Swizzle::k128Bytes, stream.device);
  }
  params->split = keys;
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
         py::arg("part_lse"), py::arg("whole"), py::arg("shares"));
#endif
}

}  // namespace aapt
