// SPDX-License-Identifier: Apache-2.0
// A warpgroup that multiplies: half of the pixels of a tile, all of its outputs.
#pragma once

#include "common/arch.h"
#include "common/ring_place.cuh"
#include "ring_conv3d/config_sm90.h"
#include "ring_conv3d/params_sm90.h"
#include "ring_conv3d/tile_sm90.cuh"

namespace aapt::ring_conv3d_sm90_parts {

// A thread's share of the result of its warpgroup: kRowTiles times 64 pixels by the outputs of a tile.
template <class Config>
using Sums = float[Config::kRowTiles][Config::kSums];

template <class Config>
AAPT_DEVICE void fence(Sums<Config>& sums) {
  if constexpr (Config::kRowTiles == 1) {
    arch::wgmma_fence(sums[0]);
  } else if constexpr (Config::kRowTiles == 2) {
    arch::wgmma_fence(sums[0], sums[1]);
  } else {
    arch::wgmma_fence(sums[0], sums[1], sums[2], sums[3]);
  }
}

template <class Config>
AAPT_DEVICE void wait_for_all(Sums<Config>& sums) {
  if constexpr (Config::kRowTiles == 1) {
    arch::wgmma_wait<0>(sums[0]);
  } else if constexpr (Config::kRowTiles == 2) {
    arch::wgmma_wait<0>(sums[0], sums[1]);
  } else {
    arch::wgmma_wait<0>(sums[0], sums[1], sums[2], sums[3]);
  }
}

// Keeps the second warpgroup a few taps behind the first one: then each writes its result while the other one has the
// tensor cores. The distance lasts, because the first one begins the next tile while the second one writes. Barrier 1:
// the second one may begin.
class HeadStart {
 public:
  AAPT_DEVICE HeadStart(int group, bool wanted) : group_(group), over_(!wanted) {}
  AAPT_DEVICE void take() {
    if (group_ == 1 && !over_) arch::named_barrier_sync(1, 2 * 128);
    if (group_ == 1) over_ = true;
  }
  AAPT_DEVICE void give() {
    if (group_ == 0 && !over_) arch::named_barrier_arrive(1, 2 * 128);
    if (group_ == 0) over_ = true;
  }

 private:
  int group_;
  bool over_;
};

template <class Config>
class Multiplier {
 public:
  AAPT_DEVICE Multiplier(typename Config::SharedMemory& shared, const RingConv3dSm90Params& params, int group)
      : shared_(shared), params_(params), group_(group), head_start_(group, Config::kBoxes > 2) {}

  // Goes through what the loading thread brings for a tile, in the same order. A product is started before the one
  // before it is done; then what that one read is free.
  AAPT_DEVICE void multiply(Sums<Config>& sums) {
    const RingConv3dParams& common = params_.common;
    const int slabs = (common.channels + Config::kSlab - 1) / Config::kSlab;
    const int boxes_of_slab = common.kernel_t * common.kernel_w, boxes = slabs * boxes_of_slab;
    const int last_steps = (common.channels - (slabs - 1) * Config::kSlab) / 16;
    int box_before = 0, weight_before = 0, taps = 0;
    head_start_.take();
    for (int box = 0; box < boxes; ++box, box_.advance()) {
      // The last slab may have fewer than 64 channels.
      const int steps = box < boxes - boxes_of_slab ? Config::kSlab / 16 : last_steps;
      arch::barrier_wait(&shared_.full_boxes[box_.stage], box_.parity);
      for (int j = 0; j < common.kernel_h; ++j, weight_.advance()) {
        const bool first = box == 0 && j == 0;
        arch::barrier_wait(&shared_.full_weights[weight_.stage], weight_.parity);
        start_products(sums, j, steps, !first);
        arch::wgmma_wait<1>();
        if (!first) release_weights(weight_before);
        if (!first && j == 0) release_box(box_before);
        weight_before = weight_.stage;
        // Leave stages for the copies: two boxes, or the weights of three taps.
        if (++taps == Config::kWeights - 3) head_start_.give();
      }
      if (box == Config::kBoxes - 3) head_start_.give();
      box_before = box_.stage;
    }
    head_start_.give();
    wait_for_all<Config>(sums);
    release_weights(weight_before);
    release_box(box_before);
  }

 private:
  // sums += pixels of the present box, j rows further down, times the present weights.
  AAPT_DEVICE void start_products(Sums<Config>& sums, int j, int steps, bool accumulate) {
    const char* rows = shared_.boxes[box_.stage] + j * Config::kRowBytes;
    // Describe both operands: lines of 128 bytes, K-major, 1024 bytes from eight lines to the next.
    const auto pixels = make_matrix_descriptor(arch::shared_address(rows), Swizzle::k128Bytes, 0, 1024)
                            .moved(group_ * Config::kRowTiles * 64 * Config::kLineBytes);
    const auto weights = make_matrix_descriptor(arch::shared_address(shared_.weights[weight_.stage]),
                                                Swizzle::k128Bytes, 0, 1024);
    // Add up products of 16 channels. A group of products ends in the branch where it began: after the branches, ptxas
    // would close an empty one, and each wait would be for the products just started.
    if (steps == Config::kSlab / 16) {
      fence<Config>(sums);
#pragma unroll
      for (int step = 0; step < Config::kSlab / 16; ++step) {
        start_step(sums, pixels.moved(32 * step), weights.moved(32 * step), accumulate || step > 0);
      }
      arch::wgmma_commit();
    } else {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        fence<Config>(sums);
        start_step(sums, pixels.moved(32 * step), weights.moved(32 * step), accumulate || step > 0);
        arch::wgmma_commit();
      }
    }
  }

  AAPT_DEVICE static void start_step(Sums<Config>& sums, MatrixDescriptor pixels, MatrixDescriptor weights,
                                     bool accumulate) {
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
      arch::wgmma<typename Config::Element>(sums[tile], pixels.moved(tile * 64 * Config::kLineBytes), weights,
                                            accumulate);
    }
  }

  // By each warp, which has read all that it will of a stage.
  AAPT_DEVICE void release_box(int stage) {
    if (arch::lane_index() == 0) arch::barrier_arrive(&shared_.empty_boxes[stage]);
  }
  AAPT_DEVICE void release_weights(int stage) {
    if (arch::lane_index() < Config::kCluster) {
      arch::barrier_release_remote(&shared_.empty_weights[stage], arch::lane_index());
    }
  }

  typename Config::SharedMemory& shared_;
  const RingConv3dSm90Params& params_;
  int group_;
  HeadStart head_start_;
  RingPlace<Config::kBoxes> box_;
  RingPlace<Config::kWeights> weight_;
};

}  // namespace aapt::ring_conv3d_sm90_parts
