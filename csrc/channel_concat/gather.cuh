// SPDX-License-Identifier: Apache-2.0
// The left operand of the patch embedding: rows of patches, which exist in shared memory only.
#pragma once

#include "channel_concat/params.h"
#include "common/arch.h"

namespace aapt {

// Writes the columns of one token, as many as its thread has to gather, into slabs of the patch matrix.
template <class Config>
class PatchGatherer {
 public:
  using Element = typename Config::Element;

  AAPT_DEVICE PatchGatherer(const ChannelConcatParams& params, int frame, int first_token)
      : params_(params),
        frame_(frame),
        token_(arch::thread_index() % Config::kTokens),
        first_piece_(arch::warp_index() / (Config::kTokens / 32)) {
    // Rows beyond the last token repeat it: they are multiplied, but never stored.
    const int token = first_token + token_ < params.token_count ? first_token + token_ : params.token_count - 1;
    const int patches_per_row = params.width / kPatch;
    const int y = token / patches_per_row * kPatch, x = token % patches_per_row * kPatch;
    noised_ = patch_of(params.noised, y, x);
    recycled_ = patch_of(params.recycled, y, x);
    control_ = patch_of(params.control, y, x);
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

  // Writes the pieces that load has read.
  AAPT_DEVICE void store(Element* slab_memory) const {
    const typename Config::PatchLayout layout;
#pragma unroll
    for (int i = 0; i < Config::kGathered; ++i) {
      *reinterpret_cast<Vector16*>(slab_memory + layout(token_, piece_column(i))) = pieces_[i];
    }
  }

 private:
  static constexpr int kPatch = Config::kPatch;
  static constexpr int kArea = kPatch * kPatch;
  static constexpr int kChannelsPerPiece = 8 / kArea;

  AAPT_DEVICE const Element* patch_of(const ChannelConcatParams::Frames& frames, int y, int x) const {
    return static_cast<const Element*>(frames.pixels) + frame_ * frames.frame_stride + y * frames.row_stride +
           x * frames.pixel_stride;
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
      const std::int64_t channel_stride = in_noised     ? params_.noised.channel_stride
                                          : in_recycled ? params_.recycled.channel_stride
                                                        : params_.control.channel_stride;
      const std::int64_t row_stride = in_noised     ? params_.noised.row_stride
                                      : in_recycled ? params_.recycled.row_stride
                                                    : params_.control.row_stride;
      const std::int64_t pixel_stride = in_noised     ? params_.noised.pixel_stride
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

  const ChannelConcatParams& params_;
  int frame_, token_, first_piece_;
  const Element *noised_, *recycled_, *control_;
  Vector16 pieces_[Config::kGathered];
};

}  // namespace aapt
