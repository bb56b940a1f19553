// SPDX-License-Identifier: Apache-2.0
// Checks and binding of clean_frame: noised - t * velocity, the velocity as tokens.
#include "bindings.h"
#include "clean_frame/params.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"

namespace aapt {
namespace {

constexpr std::int64_t kPixels = 4;  // of a vector

// Every row of a frame starts at a multiple of 16 bytes and consists of adjacent pixels, a multiple of four.
bool consists_of_vectors(const Tensor& frames) {
  bool whole = frames.size(4) % kPixels == 0 && frames.stride[4] == 1 &&
               reinterpret_cast<std::uintptr_t>(frames.data) % sizeof(Vector16) == 0;
  for (int i = 0; i < 4; ++i) whole = whole && (frames.size(i) == 1 || frames.stride[i] % kPixels == 0);
  return whole;
}

template <class Element>
void launch_for_patch(const CleanFrameParams& params, std::int64_t patch, const Stream& stream) {
  (patch == 1 ? launch_clean_frame_portable<Element, 1> : launch_clean_frame_portable<Element, 2>)(params, stream);
}

// tokens [B, F (h / patch) (w / patch), C patch^2]; noised, clean [B, C, F, h, w]; t [B]. clean is dense.
void clean_frame_portable(const Tensor& tokens, const Tensor& noised, const Tensor& t, std::int64_t patch,
                          const Tensor& clean, const Stream& stream) {
  require_shape("noised", noised, {kAnySize, kAnySize, kAnySize, kAnySize, kAnySize});
  const std::int64_t batch = noised.size(0), channels = noised.size(1), frames = noised.size(2);
  const std::int64_t height = noised.size(3), width = noised.size(4);
  require_supported(noised.dtype == Dtype::kFloat32, "noised", "float32 for this kernel", dtype_name(noised.dtype));
  require_valid(patch > 0 && height % patch == 0 && width % patch == 0, "patch",
                "a divisor of " + std::to_string(height) + " and " + std::to_string(width), std::to_string(patch));
  const std::int64_t patches = frames * (height / patch) * (width / patch), features = channels * patch * patch;
  require_shape("tokens", tokens, {batch, patches, features});
  require_shape("t", t, {batch});
  require_dtype("t", t, Dtype::kFloat32);
  require_shape("clean", clean, {batch, channels, frames, height, width});
  require_dtype("clean", clean, Dtype::kFloat32);
  require_dense("clean", clean);

  require_half("tokens", tokens);
  require_one_of("patch", "side", patch, {1, 2});
  require_supported(features % kVectorElements == 0, "tokens", "a multiple of 8 features for this kernel",
                    std::to_string(features));
  require_16_byte_rows("tokens", tokens);
  require_grid("noised", "frames of all rows", batch * frames);
  require_capability(stream.device, 8, 0);
  if (clean.elements() == 0) return;
  to_int("noised", "numbers per frame", channels * height * width);  // more than a frame has threads

  CleanFrameParams params = {};
  params.tokens = tokens.data;
  params.tokens_batch_stride = tokens.stride[0];
  params.token_stride = tokens.stride[1];
  params.noised = noised.as<const float>();
  params.batch_stride = noised.stride[0];
  params.channel_stride = noised.stride[1];
  params.frame_stride = noised.stride[2];
  params.row_stride = noised.stride[3];
  params.pixel_stride = noised.stride[4];
  params.t = t.as<const float>();
  params.t_stride = t.stride[0];
  params.clean = clean.as<float>();
  params.batch = to_int("noised", "rows", batch);
  params.channels = to_int("noised", "channels", channels);
  params.frames = to_int("noised", "frames", frames);
  params.height = to_int("noised", "rows of pixels", height);
  params.width = to_int("noised", "pixels per row", width);
  to_int("tokens", "tokens per row", patches);
  params.whole_vectors = consists_of_vectors(noised) && consists_of_vectors(clean);
  (tokens.dtype == Dtype::kBFloat16 ? launch_for_patch<bfloat16> : launch_for_patch<float16>)(params, patch, stream);
}

}  // namespace

void register_clean_frame(py::module_& module) {
  module.def("clean_frame_portable", &clean_frame_portable, py::arg("tokens"), py::arg("noised"), py::arg("t"),
             py::arg("patch"), py::arg("clean"), py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "noised - t * velocity, the velocity as tokens.");
}

}  // namespace aapt
