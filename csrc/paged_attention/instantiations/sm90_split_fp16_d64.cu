// SPDX-License-Identifier: Apache-2.0
#include "paged_attention/kernel_sm90.cuh"

template void aapt::launch_paged_attention_sm90_split<aapt::float16, 64>(
    const PagedAttentionSm90Params&, const Stream&);
