// SPDX-License-Identifier: Apache-2.0
// Stages of shared memory that copies fill and products read, in turn.
#pragma once

#include "common/arch.h"

namespace aapt {

// A place in a ring of stages: they are used in turn, and each turn has the other parity of the stage's barriers.
template <int kStages>
struct RingPlace {
  int stage = 0, parity = 0;

  AAPT_DEVICE void advance() {
    stage = stage + 1 == kStages ? 0 : stage + 1;
    parity ^= stage == 0;
  }
};

}  // namespace aapt
