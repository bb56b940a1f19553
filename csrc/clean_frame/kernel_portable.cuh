// SPDX-License-Identifier: Apache-2.0
// Tokens of velocity and noised frames -> clean frames, for every GPU from Ampere on.
#pragma once

#include <cmath>

#include "clean_frame/config.h"
#include "clean_frame/params.h"
#include "common/arch.h"
#include "common/vector.cuh"

namespace aapt {

// The rectangle of this thread, one per channel.
template <class Config>
struct Rectangle {
  int batch, frame;
  int first_channel;
  int patch_row, x;  // its row of patches, and its first pixel in a row of pixels
  bool exists;

  AAPT_DEVICE explicit Rectangle(const CleanFrameParams& params) {
    const unsigned frame_of_all = arch::block_index().y, frames = params.frames;
    batch = static_cast<int>(frame_of_all / frames);
    frame = static_cast<int>(frame_of_all % frames);

    const unsigned vectors = params.channels / Config::kChannels;  // of a token
    const unsigned per_row = (params.width + Config::kPixels - 1) / Config::kPixels;
    const unsigned index = arch::block_index().x * Config::kThreads + arch::thread_index();
    const unsigned others = index / Config::kNeighbours;
    const unsigned rectangle = others / vectors * Config::kNeighbours + index % Config::kNeighbours;
    first_channel = static_cast<int>(others % vectors) * Config::kChannels;
    patch_row = static_cast<int>(rectangle / per_row);
    x = static_cast<int>(rectangle % per_row) * Config::kPixels;
    exists = patch_row < params.height / Config::kPatch;
  }

  AAPT_DEVICE int channel(int row) const { return first_channel + row / Config::kPatch; }
  AAPT_DEVICE int y(int row) const { return patch_row * Config::kPatch + row % Config::kPatch; }
};

template <class Config>
using Pixels = float[Config::kRows][Config::kPixels];

template <class Config>
AAPT_DEVICE void load_tokens(const CleanFrameParams& params, const Rectangle<Config>& rectangle,
                             RawVector<typename Config::Element> (&vectors)[Config::kTokens]) {
  const int per_row = params.width / Config::kPatch;
  const int first_of_row = (rectangle.frame * (params.height / Config::kPatch) + rectangle.patch_row) * per_row;
  const auto* tokens = static_cast<const typename Config::Element*>(params.tokens) +
                       rectangle.batch * params.tokens_batch_stride +
                       rectangle.first_channel * Config::kPatch * Config::kPatch;
#pragma unroll
  for (int i = 0; i < Config::kTokens; ++i) {
    // After the end of a row its last token stands in, for pixels that are never written.
    const int in_row = rectangle.x / Config::kPatch + i;
    const int token = first_of_row + (in_row < per_row ? in_row : per_row - 1);
    vectors[i] = load_raw(tokens + token * params.token_stride);
  }
}

// All threads have vectors or none has; to branch once, outside the loops, lets all loads start together.
template <class Config>
AAPT_DEVICE void load_noised(const CleanFrameParams& params, const Rectangle<Config>& rectangle,
                             Pixels<Config>& pixels) {
  const float* noised = params.noised + rectangle.batch * params.batch_stride +
                        rectangle.frame * params.frame_stride + rectangle.x * params.pixel_stride;
  const auto first_of = [&](int row) {
    return noised + rectangle.channel(row) * params.channel_stride + rectangle.y(row) * params.row_stride;
  };
  if (params.whole_vectors) {
#pragma unroll
    for (int row = 0; row < Config::kRows; ++row) load_floats(first_of(row), pixels[row]);
  } else {
#pragma unroll
    for (int row = 0; row < Config::kRows; ++row) {
#pragma unroll
      for (int i = 0; i < Config::kPixels; ++i) {
        const bool inside = rectangle.x + i < params.width;
        pixels[row][i] = inside ? first_of(row)[i * params.pixel_stride] : 0.0f;
      }
    }
  }
}

template <class Config>
AAPT_DEVICE void store_clean(const CleanFrameParams& params, const Rectangle<Config>& rectangle,
                             const Pixels<Config>& pixels) {
  const auto first_of = [&](int row) {
    const std::int64_t channel = std::int64_t{rectangle.batch} * params.channels + rectangle.channel(row);
    const std::int64_t line = (channel * params.frames + rectangle.frame) * params.height + rectangle.y(row);
    return params.clean + line * params.width + rectangle.x;
  };
  if (params.whole_vectors) {
#pragma unroll
    for (int row = 0; row < Config::kRows; ++row) store_floats(first_of(row), pixels[row]);
  } else {
#pragma unroll
    for (int row = 0; row < Config::kRows; ++row) {
#pragma unroll
      for (int i = 0; i < Config::kPixels; ++i) {
        if (rectangle.x + i < params.width) first_of(row)[i] = pixels[row][i];
      }
    }
  }
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    clean_frame_portable(AAPT_GRID_CONSTANT const CleanFrameParams params) {
  const Rectangle<Config> rectangle(params);
  if (!rectangle.exists) return;

  // Start all loads before anything is unpacked, which waits for them.
  RawVector<typename Config::Element> vectors[Config::kTokens];
  load_tokens(params, rectangle, vectors);
  const float t = params.t[rectangle.batch * params.t_stride];
  Pixels<Config> pixels;
  load_noised(params, rectangle, pixels);

  VectorValues velocity[Config::kTokens];
#pragma unroll
  for (int i = 0; i < Config::kTokens; ++i) unpack_raw(vectors[i], velocity[i]);
#pragma unroll
  for (int row = 0; row < Config::kRows; ++row) {
#pragma unroll
    for (int i = 0; i < Config::kPixels; ++i) {
      const float of_pixel = velocity[i / Config::kPatch][row * Config::kPatch + i % Config::kPatch];
      pixels[row][i] = fmaf(-t, of_pixel, pixels[row][i]);
    }
  }
  store_clean(params, rectangle, pixels);
}

template <class Element, int kPatch>
void launch_clean_frame_portable(const CleanFrameParams& params, const Stream& stream) {
  using Config = CleanFrameConfig<Element, kPatch>;
  const unsigned per_row = (params.width + Config::kPixels - 1) / Config::kPixels;
  const unsigned rectangles = per_row * (params.height / kPatch);
  const unsigned groups = (rectangles + Config::kNeighbours - 1) / Config::kNeighbours;
  const unsigned threads = groups * Config::kNeighbours * (params.channels / Config::kChannels);
  Launch how;
  how.grid.x = (threads + Config::kThreads - 1) / Config::kThreads;
  how.grid.y = static_cast<unsigned>(params.batch) * params.frames;
  how.threads = Config::kThreads;
  how.stream = stream;
  arch::launch(&clean_frame_portable<Config>, how, params);
}

}  // namespace aapt
