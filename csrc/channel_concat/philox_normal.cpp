// SPDX-License-Identifier: Apache-2.0
#include "channel_concat/channel_concat.h"
#include "channel_concat/noise_keys.h"
#include "channel_concat/params.h"
#include "common/device_info.h"

namespace aapt {

NoiseKeys noise_keys(const Tensor& seed, const Tensor& step, std::int64_t frames, std::int64_t size) {
  require_shape("seed", seed, {frames});
  require_dtype("seed", seed, Dtype::kInt64);
  require_shape("step", step, {frames});
  require_dtype("step", step, Dtype::kInt64);
  constexpr std::int64_t largest = (std::int64_t{1} << 34) - 4;
  require_valid(size <= largest, "shape", "at most " + std::to_string(largest) + " numbers per frame",
                std::to_string(size));
  return {seed.as<const std::int64_t>(), step.as<const std::int64_t>(), seed.stride[0], step.stride[0]};
}

void philox_normal_portable(const Tensor& seed, const Tensor& step, const Tensor& out, const Stream& stream) {
  require_shape("out", out, {kAnySize, kAnySize, kAnySize, kAnySize});
  require_dtype("out", out, Dtype::kFloat32);
  require_dense("out", out);
  PhiloxNormalParams params = {};
  params.size = out.size(1) * out.size(2) * out.size(3);
  params.keys = noise_keys(seed, step, out.size(0), params.size);
  require_grid("seed", "frames", out.size(0));
  require_capability(stream.device, 8, 0);
  if (out.elements() == 0) return;

  params.out = out.as<float>();
  params.frames = to_int("seed", "frames", out.size(0));
  params.vector_stores = params.size % 4 == 0 && reinterpret_cast<std::uintptr_t>(out.data) % 16 == 0;
  launch_philox_normal_portable(params, stream);
}

}  // namespace aapt
