// SPDX-License-Identifier: Apache-2.0
// Probes: small kernels that use one primitive of aapt::arch each, so that a test can say whether the emulation, the
// PTX and the hardware agree about it, and kernels that measure what the design of others rests on. Primitives that the
// tests of the kernels cover have none. They are in a module of their own, _probes, which is built with AAPT_PROBES only
// and never part of a wheel.
//
// Every probe is called with lists of inputs, outputs and whole numbers; its comment says which. `variant` 0 is the
// correct program, other variants leave something out.
#pragma once

#include <vector>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt::probes {

struct Arguments {
  std::vector<Tensor> inputs, outputs;
  std::vector<int> values;
};

using Probe = void(const Arguments& arguments, const Stream& stream);

Probe named_barrier, cp_async, block_counter, half_precision;  // portable.cu: for every GPU from Ampere on
Probe barrier_ring;                                            // barrier_ring.cu, and the others: Hopper
Probe tile_load, tile_multicast, multicast_ring, tile_store;   // tile.cu
Probe encode_tensor_map;                                       // tile.cu
Probe wgmma, wgmma_written, shifted_rows;                      // wgmma.cu
Probe paged_attention;                                         // attention.cu
Probe l2_bandwidth;                                            // l2_bandwidth.cu

}  // namespace aapt::probes
