// SPDX-License-Identifier: Apache-2.0
#include "ring_conv3d/kernel_sm90.cuh"

template void aapt::launch_ring_conv3d_sm90<aapt::bfloat16, 256, 128>(const RingConv3dSm90Params&, const Stream&);
