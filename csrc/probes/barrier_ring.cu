// SPDX-License-Identifier: Apache-2.0
// Probe of barriers in shared memory.
#include "probes/probe.h"

namespace aapt::probes {

// ---- barrier_ring: int32 [n, 32] -> int32 [n, 32], 3 x + 1; values: n, variant ----
// Warp 0 puts rows into a ring of two stages, warp 1 takes them out. Variants: 1 the consumer does not wait, 2 the
// producer does not wait, 3 arrivals of the consumer as well, 4 a barrier without barrier_init, 5 a barrier
// written over, 6 a consumer that never arrives.

struct RingShared {
  int row[2][32];
  arch::Barrier full[2], empty[2], unknown;
};

AAPT_KERNEL void barrier_ring_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<RingShared>();
  const int rows = params.value[0], variant = params.value[1], lane = arch::lane_index();
  if (arch::thread_index() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      arch::barrier_init(&shared.full[stage], 32);
      arch::barrier_init(&shared.empty[stage], 1);
    }
    arch::barrier_init_fence();
    if (variant == 5) shared.full[0].state = 1;
  }
  arch::sync_threads();
  for (int i = 0; i < rows; ++i) {
    const int stage = i % 2, round = i / 2;
    if (arch::warp_index() == 0) {
      if (variant != 2) arch::barrier_wait(&shared.empty[stage], (round & 1) ^ 1);
      shared.row[stage][lane] = 3 * static_cast<const int*>(params.input[0])[32 * i + lane];
      arch::barrier_arrive(&shared.full[stage]);
    } else {
      if (variant == 3) arch::barrier_arrive(&shared.full[stage]);
      if (variant == 4) arch::barrier_wait(&shared.unknown, 0);
      if (variant != 1) arch::barrier_wait(&shared.full[stage], round & 1);
      static_cast<int*>(params.output[0])[32 * i + lane] = shared.row[stage][lane] + 1;
      arch::sync_warp();
      if (lane == 0 && variant != 6) arch::barrier_arrive(&shared.empty[stage]);
    }
  }
}

void barrier_ring(const Arguments& arguments, const Stream& stream) {
  require_shape("inputs[0]", arguments.inputs.at(0), {arguments.values.at(0), 32});
  arch::launch(&barrier_ring_kernel, one_block(64, sizeof(RingShared), stream), make_params(arguments, 1, 1, 2));
}

}  // namespace aapt::probes
