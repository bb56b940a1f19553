// SPDX-License-Identifier: Apache-2.0
// One register function per topic; each lives beside the code it exposes.
#pragma once

#include <pybind11/pybind11.h>

namespace aapt {

void register_build_info(pybind11::module_& module);
void register_device_info(pybind11::module_& module);

// with kernels only
void register_tensor(pybind11::module_& module);
void register_channel_concat(pybind11::module_& module);
void register_paged_attention(pybind11::module_& module);
void register_kv_write(pybind11::module_& module);
void register_block(pybind11::module_& module);
void register_clean_frame(pybind11::module_& module);

// with CUDA only
void register_linear_residual(pybind11::module_& module);

// in the emulation only
void register_emulate(pybind11::module_& module);

}  // namespace aapt
