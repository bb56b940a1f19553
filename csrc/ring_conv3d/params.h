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
// Slots of a ring [B, slots, H * space, W * space, O'] that frames are written to; `data` is null for none.
struct RingTarget {
  void* data;
  const std::int32_t* start;  // [1], or null for 0
  int slots;
};

struct RingConv3dParams {
  const void* ring;               // [B, S, H, W, C]
  const std::int32_t* start;      // [1], or null for 0
  const void* weight;             // [phases, kernel_t * kernel_h * kernel_w, O, C]
  const void* bias;               // [O], or null
  const void* residual;           // [B, T * frames_per_frame, H * space, W * space, O'], or null
  RingTarget out;                 // the result, or null where only its norm is wanted
  RingTarget normed;              // SiLU of the norm of the result, or null; O' is O then
  const void* gamma;              // [O'], with `normed`

  int batch, slots, height, width, channels;  // B, S, H, W, C
  int frames;                                 // T
  int phases, kernel_t, kernel_h, kernel_w;
  int outputs;                                // O, of a phase
  int space, frames_per_frame;
  int out_channels;                           // O'
  float eps;                                  // the smallest norm to divide by
  bool gamma_is_float32;                      // else in the dtype of the ring
  bool bytes;    // `out` is uint8: -1..1 becomes 0..255
  bool vectors;  // O' is a multiple of 8, out is no bytes, and all of its shape start at multiples of 16 bytes
};

// One instantiation per element type, columns and rows of pixels of a block, and border in pixels (0 or 1).
template <class Element, int kOutputs, int kTileHeight, int kHalo>
void launch_ring_conv3d_portable(const RingConv3dParams& params, const Stream& stream);

}  // namespace aapt
