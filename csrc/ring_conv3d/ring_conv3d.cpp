// SPDX-License-Identifier: Apache-2.0
// Choice of the instantiation, and binding of ring_conv3d.
#include <pybind11/stl.h>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "ring_conv3d/arguments.h"
#include "ring_conv3d/params_sm90.h"

namespace aapt {
namespace {

// Columns of the widest block: a norm needs all channels of a pixel in one.
constexpr int kWidestBlock = 128;

// Blocks as wide as wastes the fewest columns, and the widest of those. Up to 128 columns these are one block.
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
  require_supported(!arguments.normed || params.outputs <= kWidestBlock, "normed",
                    "at most " + std::to_string(kWidestBlock) + " channels for this kernel",
                    std::to_string(params.outputs));
  require_capability(stream.device, 8, 0);
  if (arguments.result().elements() == 0) return;
  (arguments.ring.dtype == Dtype::kBFloat16 ? launch_portable<bfloat16> : launch_portable<float16>)(params, stream);
}

#ifdef AAPT_HOPPER_KERNELS  // compiled for a Hopper GPU or for the emulation

using LaunchSm90 = void (*)(const RingConv3dSm90Params&, const Stream&);

// The instantiation for tiles of this shape.
template <class Element>
LaunchSm90 sm90_of(TileShape shape) {
  const auto is = [&](int pixels, int outputs) { return shape.pixels == pixels && shape.outputs == outputs; };
  if (is(512, 64)) return launch_ring_conv3d_sm90<Element, 512, 64>;
  if (is(256, 96)) return launch_ring_conv3d_sm90<Element, 256, 96>;
  if (is(256, 128)) return launch_ring_conv3d_sm90<Element, 256, 128>;
  if (is(128, 128)) return launch_ring_conv3d_sm90<Element, 128, 128>;
  require_valid(is(128, 192), "pixels, outputs", "512, 64 or 256, 96 or 256, 128 or 128, 128 or 128, 192",
                std::to_string(shape.pixels) + ", " + std::to_string(shape.outputs));
  return launch_ring_conv3d_sm90<Element, 128, 192>;
}

void ring_conv3d_sm90(const RingConv3dArguments& arguments, const Stream& stream, int pixels, int outputs,
                      int clusters) {
  const RingConv3dParams params = params_of(arguments);
  const TileShape shape{pixels, outputs};
  const bool bf16 = arguments.ring.dtype == Dtype::kBFloat16;
  const LaunchSm90 launch = bf16 ? sm90_of<bfloat16>(shape) : sm90_of<float16>(shape);
  require_supported(!arguments.normed || params.outputs <= outputs, "normed",
                    "at most as many channels as a tile, " + std::to_string(outputs) + ", for this kernel",
                    std::to_string(params.outputs));
  require_hopper(stream.device);
  if (arguments.result().elements() == 0) return;
  launch(sm90_params_of(params, arguments, shape, clusters, stream), stream);
}

#endif

// Defines a function of the module with the arguments of every kernel and some more.
template <class... More, class... Names>
void define(py::module_& module, const char* name,
            void (*function)(const RingConv3dArguments&, const Stream&, More...), const char* text,
            const Names&... more_names) {
  module.def(
      name,
      [function](const Tensor& ring, const std::optional<Tensor>& start, const Tensor& weight,
                 const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                 const std::optional<Tensor>& out, const std::optional<Tensor>& out_start, std::int64_t frames,
                 const std::string& mode, const std::optional<Tensor>& gamma, const std::optional<Tensor>& normed,
                 const std::optional<Tensor>& normed_start, float eps, More... more, const Stream& stream) {
        function({ring, start, weight, bias, residual, out, out_start, frames, mode, gamma, normed, normed_start, eps},
                 stream, more...);
      },
      py::arg("ring"), py::arg("start"), py::arg("weight"), py::arg("bias"), py::arg("residual"), py::arg("out"),
      py::arg("out_start"), py::arg("frames"), py::arg("mode"), py::arg("gamma"), py::arg("normed"),
      py::arg("normed_start"), py::arg("eps"), more_names..., py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(), text);
}

}  // namespace

void register_ring_conv3d(py::module_& module) {
  define(module, "ring_conv3d_portable", &ring_conv3d_portable,
         "Convolution between rings with cp.async and mma.sync.");
#ifdef AAPT_HOPPER_KERNELS
  define(module, "ring_conv3d_sm90", &ring_conv3d_sm90,
         "Convolution between rings for Hopper with the copy engine and wgmma, in tiles of pixels by outputs.",
         py::arg("pixels"), py::arg("outputs"), py::arg("clusters"));
#endif
}

}  // namespace aapt
