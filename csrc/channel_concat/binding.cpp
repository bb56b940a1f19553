// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "channel_concat/channel_concat.h"
#include "common/tensor_binding.h"

namespace py = pybind11;

namespace aapt {

void register_channel_concat(py::module_& module) {
  module.def("philox_normal_portable", &philox_normal_portable, py::arg("seed"), py::arg("step"), py::arg("out"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Noise of (seed, step); shapes in csrc/channel_concat/channel_concat.h, as for the two below.");
  module.def("channel_concat_portable", &channel_concat_portable, py::arg("noised"), py::arg("recycled"),
             py::arg("control"), py::arg("weight"), py::arg("bias"), py::arg("patch"), py::arg("tokens"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Patch embedding with cp.async and mma.sync.");
  module.def("channel_concat_noise_portable", &channel_concat_noise_portable, py::arg("recycled"), py::arg("control"),
             py::arg("weight"), py::arg("bias"), py::arg("patch"), py::arg("seed"), py::arg("step"),
             py::arg("tokens"), py::arg("noise"), py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Patch embedding that makes its noise itself.");
}

}  // namespace aapt
