// SPDX-License-Identifier: Apache-2.0
// Probes: small kernels that use one primitive of aapt::arch each, so that a test can say whether the emulation, the
// PTX and the hardware agree about it, and kernels that measure what the design of others rests on. They are in a
// module of their own, _probes, which is built with AAPT_PROBES only and never part of a wheel.
//
// Every probe is called with lists of inputs, outputs and whole numbers; its comment says which. `variant` 0 is the
// correct program, other variants leave something out.
#pragma once

#include <string>
#include <vector>

#include "common/arch.h"
#include "common/tensor.h"
#include "common/tensor_map.h"

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
Probe tile_load, tile_multicast, tile_store;                                                            // tile.cu
Probe wgmma_half, wgmma_written;                                                                        // wgmma.cu
Probe wgmma_float8, float8_accumulation;                                                                // float8.cu
Probe gemm;                                                                                             // gemm.cu
Probe l2_bandwidth, shifted_rows;                                                                       // measure.cu

// What every probe kernel is given.
struct Params {
  TensorMap map[3];
  const void* input[3];
  void* output[2];
  int value[8];
};

inline Params make_params(const Arguments& arguments, std::size_t inputs, std::size_t outputs, std::size_t values) {
  const auto check = [](const char* what, std::size_t got, std::size_t expected) {
    require_valid(got == expected, what, std::to_string(expected), std::to_string(got));
  };
  check("inputs", arguments.inputs.size(), inputs);
  check("outputs", arguments.outputs.size(), outputs);
  check("values", arguments.values.size(), values);
  Params params = {};
  for (std::size_t i = 0; i < inputs; ++i) params.input[i] = arguments.inputs[i].data;
  for (std::size_t i = 0; i < outputs; ++i) params.output[i] = arguments.outputs[i].data;
  for (std::size_t i = 0; i < values && i < 8; ++i) params.value[i] = arguments.values[i];
  return params;
}

inline Swizzle swizzle_of(int bytes) {
  require_valid(bytes == 0 || bytes == 32 || bytes == 64 || bytes == 128, "swizzle", "0, 32, 64 or 128 bytes",
                std::to_string(bytes));
  return static_cast<Swizzle>(bytes);
}

inline Launch one_block(unsigned threads, std::size_t shared_bytes, const Stream& stream) {
  Launch how;
  how.threads = threads;
  how.shared_bytes = shared_bytes;
  how.stream = stream;
  return how;
}

template <class T>
AAPT_DEVICE T& shared_struct() {
  return *reinterpret_cast<T*>(arch::shared_memory());
}

}  // namespace aapt::probes
