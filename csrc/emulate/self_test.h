// SPDX-License-Identifier: Apache-2.0
// Functions for tests/kernels/test_emulation.py, about the emulation itself: its conversions, and kernels with planted
// errors that it has to show.
#pragma once

#include "common/tensor.h"

namespace aapt::emulate {

// float32 [n] to bfloat16 or float16 [n], and back.
void round_numbers(const Tensor& source, const Tensor& result);
void widen_numbers(const Tensor& source, const Tensor& result);

// One block, of whose threads the first `threads_that_arrive` come to its barrier.
void run_barrier(int threads, int threads_that_arrive);

// Copies `source` [n] to `result` [n] through shared memory, asynchronously, with or without waiting for the copy.
void run_copy(const Tensor& source, const Tensor& result, bool wait);

// result int32 [n] = n - 1, ..., 1, 0, each number written by one thread and read by another, with or without a barrier
// between the two.
void run_reversal(const Tensor& result, bool synchronise);

}  // namespace aapt::emulate
