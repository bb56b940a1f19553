// SPDX-License-Identifier: Apache-2.0
// Probes: small kernels that use one primitive of aapt::arch each, so that a test can say whether the emulation, the
// PTX and the hardware agree about it, and kernels that measure what the design of others rests on. They are in a
// module of their own, _probes, which is built with AAPT_PROBES only and never part of a wheel.
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

// for every GPU from Ampere on, portable.cu
Probe exchange, named_barrier, cp_async, ldmatrix, mma, half_precision, arithmetic;
// Hopper
Probe barrier_ring, bulk_copy, cluster_exchange, matrix_store, float8_conversion, elect, early_start;  // block.cu
Probe tile_load, tile_multicast, multicast_ring, tile_store;                            // tile.cu
Probe wgmma_half, wgmma_written;                                                                        // wgmma.cu
Probe wgmma_float8, float8_accumulation;                                                                // float8.cu
Probe paged_attention;                                                                                  // attention.cu
Probe gemm;                                                                                             // gemm.cu
Probe l2_bandwidth, shifted_rows;                                                                       // measure.cu

}  // namespace aapt::probes
