// SPDX-License-Identifier: Apache-2.0
// Online softmax over the accumulator fragments of a warp.
//
// A thread holds, of each tile of 16 rows, parts of the rows lane / 4 and lane / 4 + 8: elements 0 and 1 of an
// accumulator belong to the first, 2 and 3 to the second. The four lanes that share lane / 4 share these rows.
#pragma once

#include <cmath>

#include "common/arch.h"

namespace aapt {

// Scores of keys from `valid` on become minus infinity.
template <int kRowTiles, int kTiles>
AAPT_DEVICE void mask_keys(float (&scores)[kRowTiles][kTiles][4], int valid) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = 8 * n + arch::lane_index() % 4 * 2 + i % 2;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        if (key >= valid) scores[tile][n][i] = -INFINITY;
      }
    }
  }
}

template <int kRowTiles>
class OnlineSoftmax {
 public:
  AAPT_DEVICE OnlineSoftmax() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      maximum_[r] = -INFINITY;
      sum_[r] = 0.0f;
    }
  }

  // Turns raw scores s into weights 2^(s * scale + bias - maximum) and rescales `out` when the maximum grows.
  template <int kTiles, int kOutTiles>
  AAPT_DEVICE void absorb(float (&scores)[kRowTiles][kTiles][4], float (&out)[kRowTiles][kOutTiles][4],
                          float scale_log2, float bias_log2) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) rescale_row(out, r, weigh_row(scores, r, scale_log2, bias_log2));
  }

  // First half of absorb, for an `out` that a product is still adding to.
  template <int kTiles>
  AAPT_DEVICE void weigh(float (&scores)[kRowTiles][kTiles][4], float (&corrections)[2 * kRowTiles],
                         float scale_log2) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) corrections[r] = weigh_row(scores, r, scale_log2, 0.0f);
  }

  // Second half of absorb; nothing to do where no row of the warp has a new maximum, as in most tiles.
  template <int kOutTiles>
  AAPT_DEVICE void rescale(float (&out)[kRowTiles][kOutTiles][4], const float (&corrections)[2 * kRowTiles]) {
    bool same = true;
#pragma unroll
    for (int r = 0; r < kRows; ++r) same = same && corrections[r] == 1.0f;
    if (arch::all_lanes(same)) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r) rescale_row(out, r, corrections[r]);
  }

  // Divides by the sums. A row without any key becomes 0; with a broken page table everything becomes NaN.
  template <int kOutTiles>
  AAPT_DEVICE void finish(float (&out)[kRowTiles][kOutTiles][4], bool broken) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum_[r] += arch::shuffle_xor(sum_[r], 1);
      sum_[r] += arch::shuffle_xor(sum_[r], 2);
      const float inverse = broken ? NAN : sum_[r] == 0.0f ? 0.0f : 1.0f / sum_[r];
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        out[r / 2][n][r % 2 * 2] *= inverse;
        out[r / 2][n][r % 2 * 2 + 1] *= inverse;
      }
    }
  }

  // Natural logarithm of the sum of exponentials of the r-th of this thread's rows (they lie 8 apart).
  AAPT_DEVICE float lse(int r, bool broken) const {
    constexpr float kLn2 = 0.693147181f;
    return broken ? NAN : sum_[r] == 0.0f ? -INFINITY : (maximum_[r] + arch::log2_approx(sum_[r])) * kLn2;
  }

 private:
  static constexpr int kRows = 2 * kRowTiles;

  // Returns what the output so far has to be multiplied by.
  template <int kTiles>
  AAPT_DEVICE float weigh_row(float (&scores)[kRowTiles][kTiles][4], int r, float scale_log2, float bias_log2) {
    const int tile = r / 2, first = r % 2 * 2;
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      largest = fmaxf(largest, fmaxf(scores[tile][n][first], scores[tile][n][first + 1]));
    }
    largest = fmaxf(largest, arch::shuffle_xor(largest, 1));
    largest = fmaxf(largest, arch::shuffle_xor(largest, 2));

    const float maximum = fmaxf(maximum_[r], fmaf(largest, scale_log2, bias_log2));
    // A row whose scores are all minus infinity: anything finite keeps infinity minus infinity away.
    const float base = maximum == -INFINITY ? 0.0f : maximum;
    const float correction = arch::exp2_approx(maximum_[r] - base);
    const float offset = bias_log2 - base;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = first; i < first + 2; ++i) {
        scores[tile][n][i] = arch::exp2_approx(fmaf(scores[tile][n][i], scale_log2, offset));
        sum += scores[tile][n][i];
      }
    }
    maximum_[r] = maximum;
    sum_[r] = sum_[r] * correction + sum;  // of this lane's keys only; finish() adds the lanes
    return correction;
  }

  template <int kOutTiles>
  AAPT_DEVICE void rescale_row(float (&out)[kRowTiles][kOutTiles][4], int r, float correction) {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      out[r / 2][n][r % 2 * 2] *= correction;
      out[r / 2][n][r % 2 * 2 + 1] *= correction;
    }
  }

  float maximum_[kRows];
  float sum_[kRows];
};

}  // namespace aapt
