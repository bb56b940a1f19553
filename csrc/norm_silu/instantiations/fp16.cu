// SPDX-License-Identifier: Apache-2.0
#include "norm_silu/kernel_portable.cuh"

template void aapt::launch_norm_silu_portable<aapt::float16>(const NormSiluParams&, const Stream&);
