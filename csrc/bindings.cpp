// SPDX-License-Identifier: Apache-2.0
// The only pybind11 module: aapt_fast._C. Python reaches it through ops/_load.py.
#include "bindings.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled part of aapt_fast; takes pointers, sizes and streams, knows nothing of torch.";
  aapt::register_build_info(module);
  aapt::register_device_info(module);
#ifdef AAPT_KERNELS  // compiled for a GPU or for the emulation
  aapt::register_tensor(module);
  aapt::register_channel_concat(module);
  aapt::register_paged_attention(module);
  aapt::register_kv_write(module);
  aapt::register_gate_residual_norm(module);
  aapt::register_clean_frame(module);
  aapt::register_norm_silu(module);
  aapt::register_philox_normal(module);
  aapt::register_ring_conv3d(module);
#endif
#ifdef AAPT_EMULATE
  aapt::register_emulate(module);
#endif
}
