// SPDX-License-Identifier: Apache-2.0
// Distribution of the heads of a token over the threads of a block.
#pragma once

#include "common/reduce.cuh"
#include "common/types.h"
#include "kv_write/params.h"

namespace aapt {

template <class ElementType, int kHeadDimension, int kVectorsPerThread>
struct KvWriteConfig {
  using Element = ElementType;
  static constexpr int kHeadDim = kHeadDimension;
  static_assert(kHeadDim % kVectorElements == 0, "a vector belongs to one head");
  static constexpr int kLanes = padded_width(kHeadDim) / kVectorElements;  // that share a head; the last ones may idle
  static_assert(kLanes == 8 || kLanes == 16, "the lanes of a head are adjacent lanes of one warp");
  static constexpr int kVectors = kVectorsPerThread;
  static_assert(kVectors >= 1 && kVectors <= kKvWriteMaxVectors);
  static constexpr int kMaxThreads = kKvWriteMaxThreads;
  static_assert(kMaxThreads <= 1024 && kMaxThreads % 32 == 0);

  struct SharedMemory {
    BlockSums<2> squares;  // of the queries and of the keys, where a norm is across heads
  };
};

}  // namespace aapt
