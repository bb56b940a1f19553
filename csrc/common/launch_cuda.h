// SPDX-License-Identifier: Apache-2.0
// Launch of a kernel by the CUDA runtime.
#pragma once

#include "common/launch.h"

namespace aapt {

// Starts `kernel`, a __global__ function with one parameter, on the GPU and the stream of `how`; `params` points to the
// parameter. The thread's current GPU stays as it is. Throws std::runtime_error when the launch fails.
void launch_kernel(const void* kernel, const Launch& how, const void* params);

}  // namespace aapt
