// SPDX-License-Identifier: Apache-2.0
// Checks and binding of channel_concat, the patch embedding of channels joined from two or three sources.
#include <optional>

#include "bindings.h"
#include "channel_concat/params.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"

namespace aapt {
namespace {

ChannelConcatParams::Frames frames_of(const Tensor& tensor) {
  return {tensor.data, tensor.stride[0], tensor.stride[1], tensor.stride[2], tensor.stride[3]};
}

template <class Element>
void launch(const ChannelConcatParams& params, std::int64_t patch, const Stream& stream) {
  (patch == 1 ? launch_channel_concat_portable<Element, 1> : launch_channel_concat_portable<Element, 2>)(params,
                                                                                                       stream);
}

// noised, recycled [B, C, h, w]; control [B, Cc, h, w]; weight [d, (2C + Cc) * patch^2]; bias [d];
// tokens [B, (h / patch) * (w / patch), d], dense.
void channel_concat_portable(const Tensor& noised, const Tensor& recycled, const std::optional<Tensor>& control,
                             const Tensor& weight, const std::optional<Tensor>& bias, std::int64_t patch,
                             const Tensor& tokens, const Stream& stream) {
  require_shape("recycled", recycled, {kAnySize, kAnySize, kAnySize, kAnySize});
  const std::int64_t frames = recycled.size(0), channels = recycled.size(1);
  const std::int64_t height = recycled.size(2), width = recycled.size(3);
  const Dtype dtype = recycled.dtype;
  require_valid(patch > 0 && height % patch == 0 && width % patch == 0, "patch",
                "a divisor of " + std::to_string(height) + " and " + std::to_string(width), std::to_string(patch));
  if (control) {
    require_shape("control", *control, {frames, kAnySize, height, width});
    require_dtype("control", *control, dtype);
  }
  const std::int64_t columns = (2 * channels + (control ? control->size(1) : 0)) * patch * patch;
  require_shape("weight", weight, {kAnySize, columns});
  require_dtype("weight", weight, dtype);
  if (bias) {
    require_shape("bias", *bias, {weight.size(0)});
    require_dtype("bias", *bias, dtype);
  }
  require_shape("tokens", tokens, {frames, height / patch * (width / patch), weight.size(0)});
  require_dtype("tokens", tokens, dtype);
  require_dense("tokens", tokens);
  require_shape("noised", noised, {frames, channels, height, width});
  require_dtype("noised", noised, dtype);

  require_half("recycled", recycled);
  require_one_of("patch", "side", patch, {1, 2});
  require_supported(weight.size(0) > 0, "weight", "at least one row for this kernel", "none");
  require_supported(columns % 8 == 0, "weight", "a multiple of 8 columns for this kernel", std::to_string(columns));
  require_16_byte_rows("weight", weight);
  require_grid("recycled", "frames", frames);
  require_grid("weight", "tiles of 128 rows", weight.size(0) / 128 + 1);
  require_capability(stream.device, 8, 0);

  ChannelConcatParams params = {};
  params.noised = frames_of(noised);
  params.recycled = frames_of(recycled);
  if (control) params.control = frames_of(*control);
  params.weight = weight.data;
  params.weight_stride = weight.stride[0];
  if (bias) {
    params.bias = bias->data;
    params.bias_stride = bias->stride[0];
  }
  params.tokens = tokens.data;
  params.frames = to_int("recycled", "frames", frames);
  params.channels = to_int("recycled", "channels", channels);
  params.height = to_int("recycled", "rows", height);
  params.width = to_int("recycled", "columns", width);
  params.token_count = to_int("recycled", "patches per frame", tokens.size(1));
  params.columns = to_int("weight", "columns", columns);
  params.features = to_int("weight", "rows", weight.size(0));
  params.vector_stores = params.features % 8 == 0 && reinterpret_cast<std::uintptr_t>(tokens.data) % 16 == 0;
  if (tokens.elements() == 0) return;
  (dtype == Dtype::kBFloat16 ? launch<bfloat16> : launch<float16>)(params, patch, stream);
}

}  // namespace

void register_channel_concat(py::module_& module) {
  module.def("channel_concat_portable", &channel_concat_portable, py::arg("noised"), py::arg("recycled"),
             py::arg("control"), py::arg("weight"), py::arg("bias"), py::arg("patch"), py::arg("tokens"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Patch embedding with cp.async and mma.sync.");
}

}  // namespace aapt
