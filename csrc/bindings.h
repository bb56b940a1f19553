// SPDX-License-Identifier: Apache-2.0
// One register function per topic; each lives beside the code it exposes.
#pragma once

#include <pybind11/pybind11.h>

namespace aapt {

void register_build_info(pybind11::module_& module);
void register_device_info(pybind11::module_& module);

}  // namespace aapt
