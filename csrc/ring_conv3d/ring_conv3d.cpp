// SPDX-License-Identifier: Apache-2.0
// Choice of the instantiation, and binding of ring_conv3d.
#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "ring_conv3d/arguments.h"

namespace aapt {
namespace {

// Blocks as wide as wastes the fewest columns, and the widest of those.
template <class Element>
void launch_portable(const RingConv3dParams& params, const Stream& stream) {
  if (params.kernel_h == 1) return launch_ring_conv3d_portable<Element, 128, 8, 0>(params, stream);
  if (params.outputs <= 16) return launch_ring_conv3d_portable<Element, 16, 16, 1>(params, stream);
  const auto columns = [&](int block) { return (params.outputs + block - 1) / block * block; };
  const bool widest = columns(128) <= columns(96) && columns(128) <= columns(64);
  if (widest) return launch_ring_conv3d_portable<Element, 128, 8, 1>(params, stream);
  (columns(96) <= columns(64) ? launch_ring_conv3d_portable<Element, 96, 8, 1>
                              : launch_ring_conv3d_portable<Element, 64, 16, 1>)(params, stream);
}

void ring_conv3d_portable(const RingConv3dArguments& arguments, const Stream& stream) {
  const RingConv3dParams params = params_of(arguments);
  require_grid("frames", "frames", params.frames);
  require_grid("ring", "rows", params.batch);
  require_capability(stream.device, 8, 0);
  if (arguments.out.elements() == 0) return;
  (arguments.ring.dtype == Dtype::kBFloat16 ? launch_portable<bfloat16> : launch_portable<float16>)(params, stream);
}

// The function of the module for a kernel.
template <void (*kKernel)(const RingConv3dArguments&, const Stream&)>
void call(const Tensor& ring, const std::optional<Tensor>& start, const Tensor& weight,
          const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const Tensor& out,
          const std::optional<Tensor>& out_start, std::int64_t frames, const std::string& mode, const Stream& stream) {
  kKernel({ring, start, weight, bias, residual, out, out_start, frames, mode}, stream);
}

template <void (*kKernel)(const RingConv3dArguments&, const Stream&)>
void define(py::module_& module, const char* name, const char* text) {
  module.def(name, &call<kKernel>, py::arg("ring"), py::arg("start"), py::arg("weight"), py::arg("bias"),
             py::arg("residual"), py::arg("out"), py::arg("out_start"), py::arg("frames"), py::arg("mode"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(), text);
}

}  // namespace

void register_ring_conv3d(py::module_& module) {
  define<&ring_conv3d_portable>(module, "ring_conv3d_portable", "Convolution between rings with cp.async and mma.sync.");
}

}  // namespace aapt
