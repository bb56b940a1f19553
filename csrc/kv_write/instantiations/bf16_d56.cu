// SPDX-License-Identifier: Apache-2.0
#include "kv_write/kernel_portable.cuh"

template void aapt::launch_kv_write_portable<aapt::bfloat16, 56>(const KvWriteParams&, const Stream&);
