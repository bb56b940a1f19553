// SPDX-License-Identifier: Apache-2.0
// Adds up the parts of split heads, always in the same order.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "common/vector.cuh"
#include "paged_attention/params.h"

namespace aapt::paged_attention_sm90_parts {

constexpr int kCombineThreads = 256;

template <int kHeadDim>
constexpr int kCombineRows = kCombineThreads / (kHeadDim / kVectorElements);  // a thread has eight columns of one row

// In a namespace of the kernel's name: its machine code belongs to that kernel.
namespace paged_attention_sm90_split {

// Begins while the last blocks of the kernel that makes the parts are still at work.
template <class Element, int kHeadDim>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(kCombineThreads, 1)
    combine(AAPT_GRID_CONSTANT const PagedAttentionSm90Params params) {
  constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
  constexpr int kThreadsPerRow = kHeadDim / kVectorElements;
  const SplitKeys& split = params.split;
  const int tokens = params.common.tokens, column = arch::thread_index() % kThreadsPerRow * kVectorElements;
  const int token = static_cast<int>(arch::block_index().x) * kCombineRows<kHeadDim> +
                    arch::thread_index() / kThreadsPerRow;
  const int head = split.whole + static_cast<int>(arch::block_index().y);  // of those of all rows
  const auto row_of = [&](int part) {
    return (std::int64_t{arch::block_index().y} * split.parts + part) * tokens + token;
  };
  arch::wait_for_kernel_before();
  if (token >= tokens) return;

  // Find the largest log-sum-exp of the parts.
  float maximum = -INFINITY;
  for (int part = 0; part < split.parts; ++part) maximum = fmaxf(maximum, split.lse[row_of(part)]);
  const float base = maximum == -INFINITY ? 0.0f : maximum;  // without any key: keeps infinity minus infinity away
  // Add up the parts with their weights. Their loads are ordinary ones: arch::load_16 may be moved before the wait.
  float sum = 0.0f;
  VectorValues out = {};
  for (int part = 0; part < split.parts; ++part) {
    const float weight = arch::exp2_approx((split.lse[row_of(part)] - base) * kLog2E);  // NaN of a broken table stays
    const auto* row = static_cast<const Element*>(split.out) + row_of(part) * kHeadDim;
    VectorValues values;
    unpack_vector<Element>(*reinterpret_cast<const Vector16*>(row + column), values);
    sum += weight;
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) out[i] += weight * values[i];
  }

  // Divide, round and write.
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) out[i] *= inverse;
  const int heads = params.common.heads;
  const std::int64_t place = (std::int64_t{head / heads} * tokens + token) * heads + head % heads;
  arch::store_16(static_cast<Element*>(params.common.out) + place * kHeadDim + column, pack_vector<Element>(out));
  if (column == 0) {
    params.common.lse[std::int64_t{head} * tokens + token] =
        sum == 0.0f ? -INFINITY : base + arch::log2_approx(sum) * kLn2;
  }
}

}  // namespace paged_attention_sm90_split
}  // namespace aapt::paged_attention_sm90_parts
