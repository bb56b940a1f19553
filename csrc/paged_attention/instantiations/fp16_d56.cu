// SPDX-License-Identifier: Apache-2.0
#include "paged_attention/kernel_portable.cuh"

template void aapt::launch_paged_attention_portable<aapt::float16, 56>(const PagedAttentionParams&, const Stream&);
