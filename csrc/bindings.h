// SPDX-License-Identifier: Apache-2.0
// One register function per topic; each lives beside the code it exposes.
#pragma once

#include <pybind11/pybind11.h>

namespace aapt {

namespace py = pybind11;

void register_build_info(py::module_& module);
void register_device_info(py::module_& module);

// with kernels only
void register_tensor(py::module_& module);
void register_channel_concat(py::module_& module);
void register_paged_attention(py::module_& module);
void register_kv_write(py::module_& module);
void register_gate_residual_norm(py::module_& module);
void register_clean_frame(py::module_& module);
void register_norm_silu(py::module_& module);
void register_philox_normal(py::module_& module);
void register_ring_conv3d(py::module_& module);

// in the emulation only
void register_emulate(py::module_& module);

}  // namespace aapt
