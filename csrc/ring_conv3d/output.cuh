// SPDX-License-Identifier: Apache-2.0
// Frames of a ring, and the places in `out`, `normed` and `residual` of what a block has computed.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/arch.h"
#include "ring_conv3d/params.h"

namespace aapt {

// Slot of frame `number` after the one that `start` points to.
AAPT_DEVICE int ring_slot(const std::int32_t* start, int number, int slots) {
  const unsigned first = start ? static_cast<unsigned>(*start) % slots : 0;
  return static_cast<int>((first + number) % slots);
}

// Place of a column: the columns of all phases are ordered (row, column, frame, channel).
struct OutputColumn {
  int row, column;  // of the pixel among the space x space ones of an input pixel
  int frame;        // among the frames_per_frame ones of a frame
  int channel;

  // For column `index` of a phase.
  AAPT_DEVICE OutputColumn(const RingConv3dParams& params, int phase, int index) {
    const unsigned all = static_cast<unsigned>(phase) * params.outputs + index;
    const unsigned block = all / params.out_channels;
    channel = static_cast<int>(all % params.out_channels);
    frame = static_cast<int>(block % params.frames_per_frame);
    column = static_cast<int>(block / params.frames_per_frame % params.space);
    row = static_cast<int>(block / params.frames_per_frame / params.space);
  }
};

// Offset of a column of an input pixel inside its frame of `out`, and inside that of `residual`.
AAPT_DEVICE int offset_in_frame(const RingConv3dParams& params, const OutputColumn& place, int y, int x) {
  const int pixel = (y * params.space + place.row) * params.width * params.space + x * params.space + place.column;
  return pixel * params.out_channels + place.channel;
}

// Elements of a ring before the frame that column `place` of frame t of row `batch` goes to.
AAPT_DEVICE std::int64_t target_frame(const RingConv3dParams& params, const RingTarget& target,
                                      const OutputColumn& place, int batch, int t) {
  const std::int64_t frame_size =
      std::int64_t{params.height} * params.space * params.width * params.space * params.out_channels;
  const int slot = ring_slot(target.start, t * params.frames_per_frame + place.frame, target.slots);
  return (std::int64_t{batch} * target.slots + slot) * frame_size;
}

// That frame of `residual`.
template <class Element>
AAPT_DEVICE const Element* residual_frame(const RingConv3dParams& params, const OutputColumn& place, int batch, int t) {
  const std::int64_t frame_size =
      std::int64_t{params.height} * params.space * params.width * params.space * params.out_channels;
  const std::int64_t before = std::int64_t{batch} * params.frames + t;
  return static_cast<const Element*>(params.residual) +
         (before * params.frames_per_frame + place.frame) * frame_size;
}

// A number in -1..1 as a colour in 0..255, rounded to nearest, halves to even; 0 for nan, as torch has it.
AAPT_DEVICE std::uint8_t colour_of(float x) {
  const float inside = fminf(fmaxf(x, -1.0f), 1.0f);
  return static_cast<std::uint8_t>(rintf((inside + 1.0f) * 127.5f));
}

}  // namespace aapt
