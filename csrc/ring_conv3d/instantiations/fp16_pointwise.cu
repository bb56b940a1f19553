// SPDX-License-Identifier: Apache-2.0
#include "ring_conv3d/kernel_portable.cuh"

template void aapt::launch_ring_conv3d_portable<aapt::float16, 128, 8, 0>(const RingConv3dParams&, const Stream&);
