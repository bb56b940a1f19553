// SPDX-License-Identifier: Apache-2.0
#include "ring_conv3d/arguments.h"

#include <algorithm>
#include <vector>

namespace aapt {
namespace {

struct Kernel {
  int t, h, w;
};

// What a mode is made of; ops/ring_conv3d.py has the same tables.
struct Mode {
  const char* name;
  int phases;
  std::vector<Kernel> kernels;
  int space;
  std::vector<int> frames_per_frame;
};

const Mode& mode_of(const std::string& name) {
  static const std::vector<Mode> modes = {
      {"same", 1, {{3, 3, 3}, {1, 3, 3}, {3, 1, 1}, {1, 1, 1}}, 1, {1}},
      {"upsample", 4, {{1, 2, 2}}, 2, {1}},
      {"double_time", 1, {{3, 1, 1}}, 1, {2}},
      {"shuffle", 1, {{1, 1, 1}}, 2, {1, 2}},
  };
  const auto found = std::find_if(modes.begin(), modes.end(), [&](const Mode& mode) { return name == mode.name; });
  require_valid(found != modes.end(), "mode", "same or upsample or double_time or shuffle", name);
  return *found;
}

Kernel kernel_of(const Mode& mode, std::int64_t taps) {
  std::string counts;
  for (const Kernel& kernel : mode.kernels) {
    const int count = kernel.t * kernel.h * kernel.w;
    if (taps == count) return kernel;
    counts += (counts.empty() ? "" : " or ") + std::to_string(count);
  }
  require_valid(false, "weight", counts + " taps for " + mode.name, std::to_string(taps));
  return {};
}

// Frames written per frame: what the columns of a pixel are enough for.
int frames_per_frame_of(const Mode& mode, const char* argument, std::int64_t columns, std::int64_t out_channels) {
  for (const int count : mode.frames_per_frame) {
    if (columns == std::int64_t{mode.space} * mode.space * count * out_channels) return count;
  }
  require_valid(false, argument, std::string("as many channels as ") + mode.name + " makes of the rows of the weight",
                std::to_string(out_channels));
  return 0;
}

void check_start(const char* argument, const std::optional<Tensor>& start) {
  if (!start) return;
  require_shape(argument, *start, {1});
  require_dtype(argument, *start, Dtype::kInt32);
}

void require_slots(const char* argument, std::int64_t slots, std::int64_t least) {
  require_valid(slots >= least, argument, "at least " + std::to_string(least) + " slots", std::to_string(slots));
}

// Checks a ring that results are written to, of the shape [B, slots, H', W', O'] but for its slots.
RingTarget target_of(const char* argument, const Tensor& tensor, const Tensor& result, const char* start_argument,
                     const std::optional<Tensor>& start, std::int64_t least) {
  require_shape(argument, tensor, {result.size(0), kAnySize, result.size(2), result.size(3), result.size(4)});
  require_slots(argument, tensor.size(1), least);
  require_dense(argument, tensor);
  check_start(start_argument, start);
  return {tensor.data, start ? start->as<const std::int32_t>() : nullptr, to_int(argument, "slots", tensor.size(1))};
}

bool starts_a_vector(const std::optional<Tensor>& tensor) {
  return !tensor || reinterpret_cast<std::uintptr_t>(tensor->data) % 16 == 0;
}

// The norm of each pixel, if one is wanted.
void add_norm(const RingConv3dArguments& arguments, const Mode& mode, std::int64_t written, RingConv3dParams& params) {
  const auto& normed = arguments.normed;
  const auto& gamma = arguments.gamma;
  require_valid(normed.has_value() == gamma.has_value(), "gamma", normed ? "a tensor, as for normed" : "None",
                gamma ? "a tensor" : "None");
  if (!normed) return;
  const Tensor& result = arguments.result();
  params.normed = target_of("normed", *normed, result, "normed_start", arguments.normed_start, written);
  require_dtype("normed", *normed, arguments.ring.dtype);
  require_valid(!params.bytes, "out", "None or the dtype of the ring beside normed", "uint8");
  const bool whole_pixels = mode.space * mode.space == mode.phases && params.frames_per_frame == 1;
  require_valid(whole_pixels, "normed", "None for this mode", mode.name);
  require_shape("gamma", *gamma, {result.size(4)});
  require_weight("gamma", *gamma, arguments.ring.dtype);
  require_16_byte_rows("gamma", *gamma);
  require_supported(params.vectors, "normed",
                    "a multiple of 8 channels, in tensors that start at multiples of 16 bytes, for this kernel",
                    std::to_string(params.out_channels) + " channels");
  params.gamma = gamma->data;
  params.gamma_is_float32 = gamma->dtype == Dtype::kFloat32;
  params.eps = arguments.eps;
}

}  // namespace

RingConv3dParams params_of(const RingConv3dArguments& arguments) {
  const auto& [ring, start, weight, bias, residual, out, out_start, frames, mode_name, gamma, normed, normed_start,
               eps] = arguments;
  const Mode& mode = mode_of(mode_name);
  require_valid(out || normed, "out", "a tensor, as normed is None", "None");
  const Tensor& result = arguments.result();
  const char* result_name = out ? "out" : "normed";
  require_valid(frames >= 1, "frames", "at least 1", std::to_string(frames));
  require_shape("ring", ring, {kAnySize, kAnySize, kAnySize, kAnySize, kAnySize});
  const std::int64_t batch = ring.size(0), height = ring.size(2), width = ring.size(3), channels = ring.size(4);
  require_shape("weight", weight, {mode.phases, kAnySize, kAnySize, channels});
  const Kernel kernel = kernel_of(mode, weight.size(1));
  const std::int64_t outputs = weight.size(2);
  require_slots("ring", ring.size(1), frames + kernel.t - 1);
  require_shape(result_name, result, {batch, kAnySize, mode.space * height, mode.space * width, kAnySize});
  const std::int64_t out_channels = result.size(4);
  const int frames_per_frame = frames_per_frame_of(mode, result_name, mode.phases * outputs, out_channels);
  const std::int64_t written = frames * frames_per_frame;
  RingConv3dParams params = {};
  if (out) params.out = target_of("out", *out, result, "out_start", out_start, written);
  params.bytes = out && out->dtype == Dtype::kUInt8;
  if (out && !params.bytes) require_dtype("out", *out, ring.dtype);
  check_start("start", start);

  require_dense("ring", ring);
  require_dense("weight", weight);
  require_dtype("weight", weight, ring.dtype);
  if (bias) {
    require_shape("bias", *bias, {outputs});
    require_dtype("bias", *bias, ring.dtype);
    require_dense("bias", *bias);
  }
  if (residual) {
    require_shape("residual", *residual,
                  {batch, written, result.size(2), result.size(3), out_channels});
    require_dtype("residual", *residual, ring.dtype);
    require_dense("residual", *residual);
  }

  require_half("ring", ring);
  require_supported(channels > 0 && channels % 16 == 0, "ring", "a multiple of 16 channels for this kernel",
                    std::to_string(channels));
  require_16_byte_rows("ring", ring);
  require_16_byte_rows("weight", weight);

  params.ring = ring.data;
  params.weight = weight.data;
  if (start) params.start = start->as<const std::int32_t>();
  if (bias) params.bias = bias->data;
  if (residual) params.residual = residual->data;
  params.batch = to_int("ring", "rows", batch);
  params.slots = to_int("ring", "slots", ring.size(1));
  params.height = to_int("ring", "rows of pixels", height);
  params.width = to_int("ring", "pixels per row", width);
  params.channels = to_int("ring", "channels", channels);
  to_int("ring", "elements per frame", height * width * channels);
  params.frames = to_int("frames", "frames", frames);
  params.phases = mode.phases;
  params.kernel_t = kernel.t;
  params.kernel_h = kernel.h;
  params.kernel_w = kernel.w;
  params.outputs = to_int("weight", "rows", outputs);
  params.space = mode.space;
  params.frames_per_frame = frames_per_frame;
  params.out_channels = to_int(result_name, "channels", out_channels);
  to_int(result_name, "elements per frame", result.size(2) * result.size(3) * out_channels);
  params.vectors = out_channels % kVectorElements == 0 && !params.bytes && starts_a_vector(out) &&
                   starts_a_vector(normed) && starts_a_vector(residual);
  add_norm(arguments, mode, written, params);
  return params;
}

}  // namespace aapt
