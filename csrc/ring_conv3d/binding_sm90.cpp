// SPDX-License-Identifier: Apache-2.0
// Choice of the instantiation, and binding of ring_conv3d/sm90.
#include <pybind11/stl.h>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "ring_conv3d/params_sm90.h"

namespace aapt {
namespace {

template <class Element>
void launch(TileShape shape, const RingConv3dSm90Params& params, const Stream& stream) {
  if (shape.outputs == 64) return launch_ring_conv3d_sm90<Element, 512, 64>(params, stream);
  if (shape.outputs == 96) return launch_ring_conv3d_sm90<Element, 256, 96>(params, stream);
  if (shape.outputs == 192) return launch_ring_conv3d_sm90<Element, 128, 192>(params, stream);
  if (shape.pixels == 256) return launch_ring_conv3d_sm90<Element, 256, 128>(params, stream);
  launch_ring_conv3d_sm90<Element, 128, 128>(params, stream);
}

void ring_conv3d_sm90(const RingConv3dArguments& arguments, const Stream& stream) {
  const RingConv3dParams params = params_of(arguments);
  require_hopper(stream.device);
  if (arguments.out.elements() == 0) return;
  const TileShape shape = choose_tile(params, multiprocessor_count(stream.device));
  const RingConv3dSm90Params sm90 = sm90_params_of(params, shape, arguments, stream);
  (arguments.ring.dtype == Dtype::kBFloat16 ? launch<bfloat16> : launch<float16>)(shape, sm90, stream);
}

}  // namespace

void register_ring_conv3d_sm90(py::module_& module) {
  module.def(
      "ring_conv3d_sm90",
      [](const Tensor& ring, const std::optional<Tensor>& start, const Tensor& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, const Tensor& out,
         const std::optional<Tensor>& out_start, std::int64_t frames, const std::string& mode, const Stream& stream) {
        ring_conv3d_sm90({ring, start, weight, bias, residual, out, out_start, frames, mode}, stream);
      },
      py::arg("ring"), py::arg("start"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("out"),
      py::arg("out_start"), py::arg("frames"), py::arg("mode"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(), "Convolution for Hopper with the copy engine and wgmma.");
}

}  // namespace aapt
