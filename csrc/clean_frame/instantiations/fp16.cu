// SPDX-License-Identifier: Apache-2.0
#include "clean_frame/kernel_portable.cuh"

template void aapt::launch_clean_frame_portable<aapt::float16, 1>(const CleanFrameParams&, const Stream&);
template void aapt::launch_clean_frame_portable<aapt::float16, 2>(const CleanFrameParams&, const Stream&);
