// SPDX-License-Identifier: Apache-2.0
#include "channel_concat/kernel_portable.cuh"

template void aapt::launch_channel_concat_portable<aapt::bfloat16, 1>(const ChannelConcatParams&, const Stream&);
template void aapt::launch_channel_concat_portable<aapt::bfloat16, 2>(const ChannelConcatParams&, const Stream&);
