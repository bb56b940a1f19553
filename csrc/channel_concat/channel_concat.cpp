// SPDX-License-Identifier: Apache-2.0
#include "channel_concat/channel_concat.h"

#include "channel_concat/noise_keys.h"
#include "channel_concat/params.h"
#include "common/device_info.h"

namespace aapt {
namespace {

// What both variants are given.
struct Arguments {
  const Tensor& recycled;
  const std::optional<Tensor>& control;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  std::int64_t patch;
  const Tensor& tokens;

  std::int64_t control_channels() const { return control ? control->size(1) : 0; }
};

void check_shapes(const Arguments& given) {
  require_shape("recycled", given.recycled, {kAnySize, kAnySize, kAnySize, kAnySize});
  const std::int64_t frames = given.recycled.size(0), height = given.recycled.size(2), width = given.recycled.size(3);
  const Dtype dtype = given.recycled.dtype;
  const std::int64_t patch = given.patch;
  require_valid(patch > 0 && height % patch == 0 && width % patch == 0, "patch",
                "a divisor of " + std::to_string(height) + " and " + std::to_string(width), std::to_string(patch));
  if (given.control) {
    require_shape("control", *given.control, {frames, kAnySize, height, width});
    require_dtype("control", *given.control, dtype);
  }
  const std::int64_t columns = (2 * given.recycled.size(1) + given.control_channels()) * patch * patch;
  require_shape("weight", given.weight, {kAnySize, columns});
  require_dtype("weight", given.weight, dtype);
  if (given.bias) {
    require_shape("bias", *given.bias, {given.weight.size(0)});
    require_dtype("bias", *given.bias, dtype);
  }
  require_shape("tokens", given.tokens, {frames, height / patch * (width / patch), given.weight.size(0)});
  require_dtype("tokens", given.tokens, dtype);
  require_dense("tokens", given.tokens);
}

void check_supported(const Arguments& given) {
  require_half("recycled", given.recycled);
  require_one_of("patch", "side", given.patch, {1, 2});
  require_supported(given.weight.size(0) > 0, "weight", "at least one row for this kernel", "none");
  require_supported(given.weight.size(1) % 8 == 0, "weight", "a multiple of 8 columns for this kernel",
                    std::to_string(given.weight.size(1)));
  require_16_byte_rows("weight", given.weight);
  require_grid("recycled", "frames", given.recycled.size(0));
  require_grid("weight", "tiles of 128 rows", given.weight.size(0) / 128 + 1);
}

ChannelConcatParams::Frames frames_of(const Tensor& tensor) {
  return {tensor.data, tensor.stride[0], tensor.stride[1], tensor.stride[2], tensor.stride[3]};
}

ChannelConcatParams params_of(const Arguments& given) {
  ChannelConcatParams params = {};
  params.recycled = frames_of(given.recycled);
  if (given.control) params.control = frames_of(*given.control);
  params.weight = given.weight.data;
  params.weight_stride = given.weight.stride[0];
  if (given.bias) {
    params.bias = given.bias->data;
    params.bias_stride = given.bias->stride[0];
  }
  params.tokens = given.tokens.data;
  params.frames = to_int("recycled", "frames", given.recycled.size(0));
  params.channels = to_int("recycled", "channels", given.recycled.size(1));
  params.height = to_int("recycled", "rows", given.recycled.size(2));
  params.width = to_int("recycled", "columns", given.recycled.size(3));
  params.token_count = to_int("recycled", "patches per frame", given.tokens.size(1));
  params.columns = to_int("weight", "columns", given.weight.size(1));
  params.features = to_int("weight", "rows", given.weight.size(0));
  params.vector_stores = params.features % 8 == 0 && reinterpret_cast<std::uintptr_t>(given.tokens.data) % 16 == 0;
  return params;
}

template <class Element, bool kMakesNoise>
void launch_for_patch(const ChannelConcatParams& params, std::int64_t patch, const Stream& stream) {
  (patch == 1 ? launch_channel_concat_portable<Element, 1, kMakesNoise>
              : launch_channel_concat_portable<Element, 2, kMakesNoise>)(params, stream);
}

template <bool kMakesNoise>
void launch(const ChannelConcatParams& params, const Arguments& given, const Stream& stream) {
  if (given.recycled.dtype == Dtype::kBFloat16) {
    launch_for_patch<bfloat16, kMakesNoise>(params, given.patch, stream);
  } else {
    launch_for_patch<float16, kMakesNoise>(params, given.patch, stream);
  }
}

}  // namespace

void channel_concat_portable(const Tensor& noised, const Tensor& recycled, const std::optional<Tensor>& control,
                             const Tensor& weight, const std::optional<Tensor>& bias, std::int64_t patch,
                             const Tensor& tokens, const Stream& stream) {
  const Arguments given = {recycled, control, weight, bias, patch, tokens};
  check_shapes(given);
  require_shape("noised", noised, {recycled.size(0), recycled.size(1), recycled.size(2), recycled.size(3)});
  require_dtype("noised", noised, recycled.dtype);
  check_supported(given);
  require_capability(stream.device, 8, 0);
  ChannelConcatParams params = params_of(given);
  if (tokens.elements() == 0) return;

  params.noised = frames_of(noised);
  launch</*kMakesNoise=*/false>(params, given, stream);
}

void channel_concat_noise_portable(const Tensor& recycled, const std::optional<Tensor>& control, const Tensor& weight,
                                   const std::optional<Tensor>& bias, std::int64_t patch, const Tensor& seed,
                                   const Tensor& step, const Tensor& tokens, const Tensor& noise,
                                   const Stream& stream) {
  const Arguments given = {recycled, control, weight, bias, patch, tokens};
  check_shapes(given);
  require_shape("noise", noise, {recycled.size(0), recycled.size(1), recycled.size(2), recycled.size(3)});
  require_dtype("noise", noise, recycled.dtype);
  require_dense("noise", noise);
  const NoiseKeys keys =
      noise_keys(seed, step, recycled.size(0), recycled.size(1) * recycled.size(2) * recycled.size(3));
  check_supported(given);
  require_capability(stream.device, 8, 0);
  ChannelConcatParams params = params_of(given);
  if (tokens.elements() == 0) return;  // with at least one feature: there are no patches, hence no noise

  params.keys = keys;
  params.noise = noise.data;
  params.noised = frames_of(noise);
  launch</*kMakesNoise=*/true>(params, given, stream);
}

}  // namespace aapt
