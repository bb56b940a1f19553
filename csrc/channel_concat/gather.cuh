// SPDX-License-Identifier: Apache-2.0
// The left operand of the patch embedding: rows of patches, which exist in shared memory only.
#pragma once

#include "channel_concat/params.h"
#include "channel_concat/philox.cuh"
#include "common/arch.h"

namespace aapt {

// Writes the columns of one token, as many as its thread has to gather, into slabs of the patch matrix.
template <class Config>
class PatchGatherer {
 public:
  using Element = typename Config::Element;

  // Where noise has still to be made, the recycled frame stands in for the noised one, and is overwritten: so that all
  // pixels are read in the same way.
  AAPT_DEVICE PatchGatherer(const ChannelConcatParams& params, int frame, int first_token, bool makes_noise)
      : params_(params),
        noised_frames_(makes_noise ? params.recycled : params.noised),
        frame_(frame),
        token_(arch::thread_index() % Config::kTokens),
        first_piece_(arch::warp_index() / (Config::kTokens / 32)),
        makes_noise_(makes_noise && first_token + token_ < params.token_count) {
    // Rows beyond the last token repeat it: they are multiplied, but never stored.
    const int token = first_token + token_ < params.token_count ? first_token + token_ : params.token_count - 1;
    const int patches_per_row = params.width / kPatch;
    y_ = token / patches_per_row * kPatch;
    x_ = token % patches_per_row * kPatch;
    noised_ = patch_of(noised_frames_);
    recycled_ = patch_of(params.recycled);
    control_ = patch_of(params.control);
  }

  // Starts to read the thread's part of a slab.
  AAPT_DEVICE void load(int slab) {
#pragma unroll
    for (int i = 0; i < Config::kGathered; ++i) {
      const int column = slab * Config::kSlab + piece_column(i);
      if (column < params_.columns) {  // a multiple of 8: a piece is there or not as a whole
        load_piece(pieces_[i], column / 8 * kChannelsPerPiece);
      } else {
        pieces_[i] = {};
      }
    }
  }

  // Writes what load has read, and makes the noise of the slab.
  AAPT_DEVICE void store(Element* slab_memory, int slab) const {
    const typename Config::PatchLayout layout;
#pragma unroll
    for (int i = 0; i < Config::kGathered; ++i) {
      *reinterpret_cast<Vector16*>(slab_memory + layout(token_, piece_column(i))) = pieces_[i];
    }
    if (makes_noise_) make_noise(slab_memory, slab);
  }

 private:
  static constexpr int kPatch = Config::kPatch;
  static constexpr int kArea = kPatch * kPatch;
  static constexpr int kChannelsPerPiece = 8 / kArea;

  AAPT_DEVICE const Element* patch_of(const ChannelConcatParams::Frames& frames) const {
    return static_cast<const Element*>(frames.pixels) + frame_ * frames.frame_stride + y_ * frames.row_stride +
           x_ * frames.pixel_stride;
  }

  AAPT_DEVICE int piece_column(int i) const { return 8 * (first_piece_ + i * Config::kGatherStep); }

  // Eight elements of the patch matrix, from a channel on. The sources are the same for a whole warp, and chosen
  // without branches.
  AAPT_DEVICE void load_piece(Vector16& piece, int first_channel) const {
    std::uint32_t element[8];
#pragma unroll
    for (int i = 0; i < kChannelsPerPiece; ++i) {
      const int channel = first_channel + i;
      const bool in_noised = channel < params_.channels, in_recycled = channel < 2 * params_.channels;
      const std::int64_t channel_stride = in_noised     ? noised_frames_.channel_stride
                                          : in_recycled ? params_.recycled.channel_stride
                                                        : params_.control.channel_stride;
      const std::int64_t row_stride = in_noised     ? noised_frames_.row_stride
                                      : in_recycled ? params_.recycled.row_stride
                                                    : params_.control.row_stride;
      const std::int64_t pixel_stride = in_noised     ? noised_frames_.pixel_stride
                                        : in_recycled ? params_.recycled.pixel_stride
                                                      : params_.control.pixel_stride;
      const int before = in_noised ? 0 : in_recycled ? params_.channels : 2 * params_.channels;
      const Element* patch =
          (in_noised ? noised_ : in_recycled ? recycled_ : control_) + (channel - before) * channel_stride;
#pragma unroll
      for (int pixel = 0; pixel < kArea; ++pixel) {
        element[i * kArea + pixel] = patch[pixel / kPatch * row_stride + pixel % kPatch * pixel_stride].bits;
      }
    }
#pragma unroll
    for (int word = 0; word < 4; ++word) piece.word[word] = element[2 * word] | element[2 * word + 1] << 16;
  }

  // Rows of patches, one after the other: unrolled, the logarithms and sines would be most of the kernel. The thread
  // overwrites pixels that it has stored itself, and for the next features it reads what it has written to the noised
  // frame itself, so there is nothing to wait for. Other blocks with the same tokens write the same numbers there.
  AAPT_DEVICE void make_noise(Element* slab_memory, int slab) const {
    const typename Config::PatchLayout layout;
    constexpr int kRowsPerPiece = 8 / kPatch;
    const NormalNumbers numbers(params_.keys, frame_);
    auto* noise = static_cast<Element*>(params_.noise) +
                  frame_ * (std::int64_t{params_.channels} * params_.height * params_.width);
    const int columns = params_.channels * kArea;
#pragma unroll 1
    for (int i = 0; i < Config::kGathered * kRowsPerPiece; ++i) {
      const int in_slab = piece_column(i / kRowsPerPiece) + i % kRowsPerPiece * kPatch;
      const int column = slab * Config::kSlab + in_slab;
      if (column >= columns) return;
      const int channel = column / kArea, y = column / kPatch % kPatch;
      const std::int64_t number = (std::int64_t{channel} * params_.height + y_ + y) * params_.width + x_;
      const NormalPair pair = numbers.pair(number / 2);
      const std::uint32_t both = arch::pack<Element>(pair.first, pair.second);
      // The patches of a frame start at even numbers when their side is 2; when it is 1, each one is half of a pair.
#pragma unroll
      for (int x = 0; x < kPatch; ++x) {
        const Element element = {static_cast<std::uint16_t>((number + x) % 2 ? both >> 16 : both)};
        slab_memory[layout(token_, in_slab + x)] = element;
        noise[number + x] = element;
      }
    }
  }

  const ChannelConcatParams& params_;
  const ChannelConcatParams::Frames& noised_frames_;
  int frame_, token_, first_piece_;
  bool makes_noise_;
  int y_, x_;  // the first pixel of the token's patch
  const Element *noised_, *recycled_, *control_;
  Vector16 pieces_[Config::kGathered];
};

}  // namespace aapt
