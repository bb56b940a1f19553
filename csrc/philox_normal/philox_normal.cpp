// SPDX-License-Identifier: Apache-2.0
// Checks and binding of philox_normal.
#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "philox_normal/params.h"

namespace aapt {
namespace {

// seed, step int64 [B]; out float32 [B, C, h, w], dense.
void philox_normal_portable(const Tensor& seed, const Tensor& step, const Tensor& out, const Stream& stream) {
  require_shape("out", out, {kAnySize, kAnySize, kAnySize, kAnySize});
  require_dtype("out", out, Dtype::kFloat32);
  require_dense("out", out);
  const std::int64_t frames = out.size(0), size = out.size(1) * out.size(2) * out.size(3);
  require_shape("seed", seed, {frames});
  require_dtype("seed", seed, Dtype::kInt64);
  require_shape("step", step, {frames});
  require_dtype("step", step, Dtype::kInt64);
  constexpr std::int64_t largest = (std::int64_t{1} << 34) - 4;  // four numbers for each of 2^32 counters
  require_valid(size <= largest, "shape", "at most " + std::to_string(largest) + " numbers per frame",
                std::to_string(size));
  require_grid("seed", "frames", frames);
  require_capability(stream.device, 8, 0);
  if (out.elements() == 0) return;

  PhiloxNormalParams params = {};
  params.seed = seed.as<const std::int64_t>();
  params.step = step.as<const std::int64_t>();
  params.seed_stride = seed.stride[0];
  params.step_stride = step.stride[0];
  params.out = out.as<float>();
  params.size = size;
  params.frames = to_int("seed", "frames", frames);
  params.vector_stores = size % 4 == 0 && reinterpret_cast<std::uintptr_t>(out.data) % 16 == 0;
  launch_philox_normal_portable(params, stream);
}

}  // namespace

void register_philox_normal(py::module_& module) {
  module.def("philox_normal_portable", &philox_normal_portable, py::arg("seed"), py::arg("step"), py::arg("out"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(), "Normal numbers of (seed, step).");
}

}  // namespace aapt
