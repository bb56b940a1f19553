// SPDX-License-Identifier: Apache-2.0
// Parameters of the kernels of ring_conv3d. The maths is in python/aapt_fast/ops/ring_conv3d.py.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

// All tensors are dense. A mode of the op is its factors: the kernels know no others.
//
//                  phases  kernel_t, _h, _w           space  frames_per_frame
//   "same"              1  3 or 1, 3 or 1 (h is w)        1                 1
//   "upsample"          4  1, 2, 2                        2                 1
//   "double_time"       1  3, 1, 1                        1                 2
//   "shuffle"           1  1, 1, 1                        2            1 or 2
//
// Tap (i, j, k) of a phase reads pixel (h + j + phase / 2 - kernel_h / 2, w + k + phase % 2 - kernel_w / 2) of slot
// (start + t + i) mod slots; output.cuh says where a column of a phase goes.
struct RingConv3dParams {
  const void* ring;               // [B, S, H, W, C]
  const std::int32_t* start;      // [1], or null for 0
  const void* weight;             // [phases, kernel_t * kernel_h * kernel_w, O, C]
  const void* bias;               // [O], or null
  const void* residual;           // [B, T * frames_per_frame, H * space, W * space, O'], or null
  void* out;                      // [B, S', H * space, W * space, O']
  const std::int32_t* out_start;  // [1], or null for 0

  int batch, slots, height, width, channels;  // B, S, H, W, C
  int frames;                                 // T
  int phases, kernel_t, kernel_h, kernel_w;
  int outputs;                                // O, of a phase
  int space, frames_per_frame;
  int out_slots, out_channels;                // S', O'
  bool vectors;  // O' is a multiple of 8, and out and residual start at multiples of 16 bytes
};

// One instantiation per element type, columns and rows of pixels of a block, and border in pixels (0 or 1).
template <class Element, int kOutputs, int kTileHeight, int kHalo>
void launch_ring_conv3d_portable(const RingConv3dParams& params, const Stream& stream);

}  // namespace aapt
