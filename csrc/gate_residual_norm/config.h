// SPDX-License-Identifier: Apache-2.0
// Distribution of the elements of a token over threads.
#pragma once

#include "gate_residual_norm/params.h"
#include "common/reduce.cuh"
#include "common/types.h"

namespace aapt {

// A token belongs to a warp where it fits into its registers, without any barrier; a wider one to a block.
template <class ElementType, int kVectorsPerThread, bool kOneWarpPerToken>
struct GateResidualNormConfig {
  using Element = ElementType;
  static constexpr int kVectors = kVectorsPerThread;  // of 8 elements, held in registers
  static constexpr bool kWarpPerToken = kOneWarpPerToken;
  static constexpr int kWarpsPerBlock = 4;  // with a warp per token
  static constexpr int kMaxThreads = kWarpPerToken ? 32 * kWarpsPerBlock : 320;
  static constexpr int kMaxWidth = (kWarpPerToken ? 32 : kMaxThreads) * kVectors * kVectorElements;

  struct SharedMemory {
    BlockSums<1> squares;
  };
};

}  // namespace aapt
