// SPDX-License-Identifier: Apache-2.0
#include "gate_residual_norm/kernel_portable.cuh"

template void aapt::launch_gate_residual_norm_portable<aapt::float16>(const GateResidualNormParams&, const Stream&);
