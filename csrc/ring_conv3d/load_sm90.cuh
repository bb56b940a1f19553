// SPDX-License-Identifier: Apache-2.0
// The thread that loads: boxes of pixels and the weights of taps, into two rings of stages in shared memory.
#pragma once

#include "common/arch.h"
#include "common/ring_place.cuh"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/output.cuh"
#include "ring_conv3d/params_sm90.h"
#include "ring_conv3d/tile_sm90.cuh"

namespace aapt::ring_conv3d_sm90_parts {

template <class Config>
class Loader {
 public:
  AAPT_DEVICE Loader(typename Config::SharedMemory& shared, const RingConv3dSm90Params& params)
      : shared_(shared), params_(params) {}

  // All that the products of a tile read, in their order: for 64 channels, a frame and a shift along the row a box of
  // pixels, then the weights of the taps that find their pixels in it, one row after the other.
  AAPT_DEVICE void load(const Tile& tile) {
    const RingConv3dParams& common = params_.common;
    const int taps = common.kernel_t * common.kernel_h * common.kernel_w;
    for (int channel = 0; channel < common.channels; channel += Config::kSlab) {
      for (int i = 0; i < common.kernel_t; ++i) {
        const int slot = ring_slot(common.start, tile.frame + i, common.slots);
        for (int k = 0; k < common.kernel_w; ++k) {
          load_box({tile.row * common.slots + slot, tile.y + tile.phase / 2 - common.kernel_h / 2,
                    tile.x + tile.phase % 2 - common.kernel_w / 2 + k, channel});
          for (int j = 0; j < common.kernel_h; ++j) {
            const int tap = (i * common.kernel_h + j) * common.kernel_w + k;
            load_weights(tile.phase * taps + tap, tile.first_output, channel);
          }
        }
      }
    }
  }

  // Waits until all stages have been read, in both blocks: then no copy is on its way from here to the other block, and
  // no arrival from there to barriers of this one.
  AAPT_DEVICE void finish() {
    for (int i = 0; i < Config::kBoxes; ++i, box_.advance()) {
      arch::barrier_wait_bounded(&shared_.empty_boxes[box_.stage], box_.parity ^ 1);
    }
    for (int i = 0; i < Config::kWeights; ++i, weight_.advance()) {
      arch::barrier_wait_bounded(&shared_.empty_weights[weight_.stage], weight_.parity ^ 1);
    }
  }

 private:
  // What lies outside of the frame arrives as zeros: the padding in space.
  AAPT_DEVICE void load_box(const int (&first)[4]) {
    const int stage = box_.stage;
    arch::barrier_wait_bounded(&shared_.empty_boxes[stage], box_.parity ^ 1);
    arch::barrier_arrive_expect_bytes(&shared_.full_boxes[stage],
                                      (Config::kHeight + params_.common.kernel_h - 1) * Config::kRowBytes);
    arch::tile_load(shared_.boxes[stage], params_.ring, &shared_.full_boxes[stage], first);
    box_.advance();
  }

  // Each block brings half of the outputs, to both. The stage is free when both have read it.
  AAPT_DEVICE void load_weights(int matrix, int first_output, int channel) {
    constexpr int kOwn = Config::kOutputs / Config::kCluster;
    const int stage = weight_.stage, first = arch::cluster_rank() * kOwn;
    arch::barrier_wait_bounded(&shared_.empty_weights[stage], weight_.parity ^ 1);
    arch::barrier_arrive_expect_bytes(&shared_.full_weights[stage], Config::kWeightBytes);
    arch::tile_load_multicast(shared_.weights[stage] + first * Config::kLineBytes, params_.weight,
                              &shared_.full_weights[stage], {matrix, first_output + first, channel}, 0b11);
    weight_.advance();
  }

  typename Config::SharedMemory& shared_;
  const RingConv3dSm90Params& params_;
  RingPlace<Config::kBoxes> box_;
  RingPlace<Config::kWeights> weight_;
};

}  // namespace aapt::ring_conv3d_sm90_parts
