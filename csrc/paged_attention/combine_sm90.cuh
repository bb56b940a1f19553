// SPDX-License-Identifier: Apache-2.0
// Adds up the parts of split heads, always in the same order.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "paged_attention/params.h"

namespace aapt::paged_attention_sm90_parts {

constexpr int kCombineThreads = 256;

template <int kHeadDim>
constexpr int kCombineRows = kCombineThreads / (kHeadDim / 4);  // a thread has four columns of one row

// In a namespace of the kernel's name: its machine code belongs to that kernel.
namespace paged_attention_sm90_split {

template <class Element, int kHeadDim>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(kCombineThreads, 1)
    combine(AAPT_GRID_CONSTANT const PagedAttentionSm90Params params) {
  constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
  constexpr int kThreadsPerRow = kHeadDim / 4;
  const SplitKeys& split = params.split;
  const int tokens = params.common.tokens, column = arch::thread_index() % kThreadsPerRow * 4;
  const int token = static_cast<int>(arch::block_index().x) * kCombineRows<kHeadDim> +
                    arch::thread_index() / kThreadsPerRow;
  if (token >= tokens) return;
  const int head = split.whole + static_cast<int>(arch::block_index().y);  // of those of all rows
  const auto row_of = [&](int part) {
    return (std::int64_t{arch::block_index().y} * split.parts + part) * tokens + token;
  };

  // Find the largest log-sum-exp of the parts.
  float maximum = -INFINITY;
  for (int part = 0; part < split.parts; ++part) maximum = fmaxf(maximum, split.lse[row_of(part)]);
  const float base = maximum == -INFINITY ? 0.0f : maximum;  // without any key: keeps infinity minus infinity away
  // Add up the parts with their weights.
  float sum = 0.0f, out[4] = {};
  for (int part = 0; part < split.parts; ++part) {
    const float weight = arch::exp2_approx((split.lse[row_of(part)] - base) * kLog2E);  // NaN of a broken table stays
    const Vector16 values = arch::load_16(split.out + row_of(part) * kHeadDim + column);
    sum += weight;
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] += weight * arch::float_of_bits(values.word[i]);
  }

  // Divide, round and write.
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  struct alignas(8) Words {
    std::uint32_t word[2];
  };
  const int heads = params.common.heads;
  const std::int64_t place = (std::int64_t{head / heads} * tokens + token) * heads + head % heads;
  *reinterpret_cast<Words*>(static_cast<char*>(params.common.out) + (place * kHeadDim + column) * sizeof(Element)) = {
      {arch::pack<Element>(out[0] * inverse, out[1] * inverse),
       arch::pack<Element>(out[2] * inverse, out[3] * inverse)}};
  if (column == 0) {
    params.common.lse[std::int64_t{head} * tokens + token] =
        sum == 0.0f ? -INFINITY : base + arch::log2_approx(sum) * kLn2;
  }
}

}  // namespace paged_attention_sm90_split
}  // namespace aapt::paged_attention_sm90_parts
