// SPDX-License-Identifier: Apache-2.0
// Checks and binding of norm_silu: a norm and SiLU, written into a ring.
#include <optional>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "norm_silu/params.h"

namespace aapt {
namespace {

NormSiluParams::Weight weight_of(const char* argument, const std::optional<Tensor>& weight, const Tensor& x) {
  if (!weight) return {};
  require_shape(argument, *weight, {x.size(4)});
  require_weight(argument, *weight, x.dtype);
  require_16_byte_rows(argument, *weight);
  return {weight->data, weight->dtype == Dtype::kFloat32};
}

// x [B, T, H, W, C]; gamma, beta [C]; out [B, S', H, W, C], dense, S' >= T; out_start int32 [1]; partial, with groups
// only, float32 [B * T, chunks, groups, 2], room for sums. groups is 0 for the norm of a pixel.
void norm_silu_portable(const Tensor& x, const Tensor& gamma, const std::optional<Tensor>& beta, std::int64_t groups,
                        float eps, const Tensor& out, const std::optional<Tensor>& out_start,
                        const std::optional<Tensor>& partial, const Stream& stream) {
  require_shape("x", x, {kAnySize, kAnySize, kAnySize, kAnySize, kAnySize});
  const std::int64_t batch = x.size(0), frames = x.size(1), height = x.size(2), width = x.size(3), channels = x.size(4);
  require_dense("x", x);
  require_shape("out", out, {batch, kAnySize, height, width, channels});
  require_dtype("out", out, x.dtype);
  require_dense("out", out);
  require_valid(out.size(1) >= frames, "out", "at least " + std::to_string(frames) + " slots",
                std::to_string(out.size(1)));
  require_valid(groups == 0 || (groups > 0 && channels % groups == 0), "groups",
                "0 or a divisor of " + std::to_string(channels) + " channels", std::to_string(groups));
  require_valid(groups > 0 || !beta, "beta", "None, as there are no groups", "a tensor");
  require_valid((groups > 0) == partial.has_value(), "partial", groups > 0 ? "a tensor" : "None",
                partial ? "a tensor" : "None");
  if (out_start) {
    require_shape("out_start", *out_start, {1});
    require_dtype("out_start", *out_start, Dtype::kInt32);
  }
  const bool floats = x.dtype == Dtype::kFloat32;
  if (!floats) require_half("x", x);
  require_supported(channels > 0 && channels % kVectorElements == 0 && channels <= kNormSiluMaxChannels, "x",
                    "a multiple of 8 channels up to " + std::to_string(kNormSiluMaxChannels) + " for this kernel",
                    std::to_string(channels));
  require_supported(groups <= kNormSiluMaxGroups, "groups",
                    "at most " + std::to_string(kNormSiluMaxGroups) + " for this kernel", std::to_string(groups));
  require_16_byte_rows("x", x);
  require_16_byte_rows("out", out);

  NormSiluParams params = {};
  params.x = x.data;
  params.out = out.data;
  if (out_start) params.out_start = out_start->as<const std::int32_t>();
  params.gamma = weight_of("gamma", gamma, x);
  params.beta = weight_of("beta", beta, x);
  params.eps = eps;
  if (partial) {
    require_shape("partial", *partial, {batch * frames, kAnySize, groups, 2});
    require_dtype("partial", *partial, Dtype::kFloat32);
    require_dense("partial", *partial);
    require_valid(partial->size(1) >= 1, "partial", "at least one chunk", std::to_string(partial->size(1)));
    params.partial = partial->as<float>();
    params.chunks = to_int("partial", "chunks", partial->size(1));
  }
  params.groups = to_int("groups", "groups", groups);
  params.batch = to_int("x", "rows", batch);
  params.frames = to_int("x", "frames", frames);
  params.pixels = to_int("x", "pixels per frame", height * width);
  params.channels = to_int("x", "channels", channels);
  params.out_slots = to_int("out", "slots", out.size(1));
  require_grid("x", "frames of all rows", batch * frames);
  require_capability(stream.device, 8, 0);
  if (x.elements() == 0) return;
  (floats                         ? launch_norm_silu_portable<float>
   : x.dtype == Dtype::kBFloat16 ? launch_norm_silu_portable<bfloat16>
                                 : launch_norm_silu_portable<float16>)(params, stream);
}

}  // namespace

void register_norm_silu(py::module_& module) {
  module.def("norm_silu_portable", &norm_silu_portable, py::arg("x"), py::arg("gamma"), py::arg("beta"),
             py::arg("groups"), py::arg("eps"), py::arg("out"), py::arg("out_start"), py::arg("partial"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(), "A norm and SiLU, written into a ring.");
}

}  // namespace aapt
