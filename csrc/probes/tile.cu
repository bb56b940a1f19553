// SPDX-License-Identifier: Apache-2.0
// Probes of the copy engine with tensor maps.
#include <algorithm>
#include <functional>
#include <numeric>

#include "probes/probe.h"

namespace aapt::probes {

constexpr int kMostBoxBytes = 32 << 10;

struct TileShared {
  char box[kMostBoxBytes];
  char room[1024];  // for boxes that start at the wrong place
  arch::Barrier barrier;
};

// Parameters from the values of these probes: variant, swizzle, box of `tensor`, its first coordinate.
// value: variant, bytes of the box, the box along dimension 0, the coordinates.
Params tile_params(const Arguments& arguments, const char* argument, const Tensor& tensor, const Stream& stream) {
  const std::size_t rank = tensor.shape.size();
  Params params = make_params(arguments, 1, 1, 2 + 2 * rank);
  const auto box = arguments.values.begin() + 2, first = box + static_cast<std::ptrdiff_t>(rank);
  params.map[0] = make_tensor_map(argument, tensor, {box, first}, swizzle_of(arguments.values[1]), stream.device);
  const int bytes = std::accumulate(box, first, dtype_bytes(tensor.dtype), std::multiplies<int>());
  require_valid(bytes <= kMostBoxBytes, "values", "a box of at most 32768 bytes", std::to_string(bytes));
  params.value[1] = bytes;
  params.value[2] = box[0];
  std::copy(first, arguments.values.end(), params.value + 3);
  return params;
}

template <int kRank>
struct Coordinates {
  int at[kRank];
  AAPT_DEVICE explicit Coordinates(const Params& params) {
#pragma unroll
    for (int i = 0; i < kRank; ++i) at[i] = params.value[3 + i];
  }
};

AAPT_DEVICE void copy_words(void* to, const void* from, int bytes) {
  for (int i = arch::thread_index(); i < bytes / 4; i += arch::block_size()) {
    static_cast<std::uint32_t*>(to)[i] = static_cast<const std::uint32_t*>(from)[i];
  }
}

// ---- tile_load: any tensor of rank 1..5 -> the bytes of the box as they lie in shared memory ----
// values: variant, swizzle, box, first coordinate. Variants: 1 no wait, 2 no bytes announced, 3 no fence after the
// initialisation, 4 the box 128 bytes further on, 5 the box outside of shared memory, 6 one arrival too many, 7 onto
// what threads have written without a fence.

template <int kRank>
AAPT_KERNEL void tile_load_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<TileShared>();
  const int variant = params.value[0], bytes = params.value[1];
  char* box = shared.box + (variant == 4 ? 128 : variant == 5 ? kMostBoxBytes : 0);
  if (arch::thread_index() == 0) {
    arch::barrier_init(&shared.barrier, 1);
    if (variant != 3) arch::barrier_init_fence();
  }
  if (variant == 7) shared.box[arch::thread_index()] = 1;
  arch::sync_threads();
  if (arch::thread_index() == 0) {
    if (variant == 2) {
      arch::barrier_arrive(&shared.barrier);
    } else {
      arch::barrier_arrive_expect_bytes(&shared.barrier, bytes);
    }
    if (variant == 6) arch::barrier_arrive(&shared.barrier);
    arch::tile_load(box, params.map[0], &shared.barrier, Coordinates<kRank>(params).at);
  }
  if (variant != 1) arch::barrier_wait(&shared.barrier, 0);
  copy_words(params.output[0], box, bytes);
  if (variant == 1) arch::barrier_wait(&shared.barrier, 0);
}

void tile_load(const Arguments& arguments, const Stream& stream) {
  const Tensor& tensor = arguments.inputs.at(0);
  const Params params = tile_params(arguments, "inputs[0]", tensor, stream);
  constexpr void (*kernels[])(Params) = {&tile_load_kernel<1>, &tile_load_kernel<2>, &tile_load_kernel<3>,
                                         &tile_load_kernel<4>, &tile_load_kernel<5>};
  arch::launch(kernels[tensor.shape.size() - 1], one_block(128, sizeof(TileShared), stream), params);
}

// ---- tile_multicast: [R, C] -> per block of a cluster of two, the bytes of two boxes ----
// values: variant, swizzle, box, first coordinate. Each block loads one box into both; the second block's lies next to
// the first one's along dimension 0. Variant 1: into itself only.

struct MulticastShared {
  char box[2][kMostBoxBytes];
  arch::Barrier barrier;
};

template <int kRank>
AAPT_KERNEL void tile_multicast_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<MulticastShared>();
  const int bytes = params.value[1], rank = arch::cluster_rank();
  const bool both = params.value[0] != 1;
  if (arch::thread_index() == 0) {
    arch::barrier_init(&shared.barrier, 1);
    arch::barrier_init_fence();
  }
  arch::cluster_sync();  // the other block's barrier is there as well
  if (arch::thread_index() == 0) {
    Coordinates<kRank> first(params);
    first.at[0] += rank * params.value[2];
    arch::barrier_arrive_expect_bytes(&shared.barrier, both ? 2 * bytes : bytes);
    arch::tile_load_multicast(shared.box[rank], params.map[0], &shared.barrier, first.at,
                              static_cast<std::uint16_t>(both ? 3 : 1 << rank));
  }
  arch::barrier_wait(&shared.barrier, 0);
  char* out = static_cast<char*>(params.output[0]) + arch::block_index().x * 2 * bytes;
  for (int box = 0; box < 2; ++box) copy_words(out + box * bytes, shared.box[box], bytes);
  arch::cluster_sync();  // a block stays until nothing comes to it any more
}

void tile_multicast(const Arguments& arguments, const Stream& stream) {
  const Tensor& tensor = arguments.inputs.at(0);
  const Params params = tile_params(arguments, "inputs[0]", tensor, stream);
  Launch how = one_block(128, sizeof(MulticastShared), stream);
  how.grid.x = how.cluster = 2;
  constexpr void (*kernels[])(Params) = {&tile_multicast_kernel<1>, &tile_multicast_kernel<2>,
                                         &tile_multicast_kernel<3>, &tile_multicast_kernel<4>,
                                         &tile_multicast_kernel<5>};
  arch::launch(kernels[tensor.shape.size() - 1], how, params);
}

// ---- multicast_ring: int32 [n, 64] -> int32 [2, n, 64], the rows as each block of a cluster has seen them ----
// values: n, variant. A row comes in two halves, one from each block to both, into a ring of two stages; every warp
// releases a stage in both blocks. Variants: 1 in its own block only, 2 no wait for a release, 3 a block may end
// before its neighbour.

struct MulticastRingShared {
  std::uint32_t row[2][64];
  arch::Barrier full[2], empty[2];
};

AAPT_KERNEL void multicast_ring_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<MulticastRingShared>();
  const int rows = params.value[0], variant = params.value[1], rank = arch::cluster_rank();
  constexpr int kReaders = 2;  // warps; a third one loads
  if (arch::thread_index() == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      arch::barrier_init(&shared.full[stage], 1);
      arch::barrier_init(&shared.empty[stage], variant == 1 ? kReaders : 2 * kReaders);
    }
    arch::barrier_init_fence();
  }
  arch::cluster_sync();
  auto* out = static_cast<std::uint32_t*>(params.output[0]) + 64 * rank * rows;
  for (int i = 0; i < rows; ++i) {
    const int stage = i % 2, parity = i / 2 % 2;
    if (arch::thread_index() < 32 * kReaders) {
      arch::barrier_wait(&shared.full[stage], parity);
      out[64 * i + arch::thread_index()] = shared.row[stage][arch::thread_index()];
      arch::sync_warp();
      if (variant == 1 ? arch::lane_index() == rank : arch::lane_index() < 2) {
        arch::barrier_release_remote(&shared.empty[stage], arch::lane_index());
      }
    } else if (arch::thread_index() == 32 * kReaders) {
      if (variant != 2) arch::barrier_wait(&shared.empty[stage], parity ^ 1);
      arch::barrier_arrive_expect_bytes(&shared.full[stage], 256);
      arch::tile_load_multicast(&shared.row[stage][32 * rank], params.map[0], &shared.full[stage], {i, 32 * rank}, 3);
    }
  }
  arch::sync_warp();
  if (variant != 3) arch::cluster_sync();
}

void multicast_ring(const Arguments& arguments, const Stream& stream) {
  const Tensor& rows = arguments.inputs.at(0);
  require_shape("inputs[0]", rows, {arguments.values.at(0), 64});
  require_shape("outputs[0]", arguments.outputs.at(0), {2, arguments.values[0], 64});
  Params params = make_params(arguments, 1, 1, 2);
  params.map[0] = make_tensor_map("inputs[0]", rows, {1, 32}, Swizzle::kNone, stream.device);
  Launch how = one_block(96, sizeof(MulticastRingShared), stream);
  how.grid.x = how.cluster = 2;
  arch::launch(&multicast_ring_kernel, how, params);
}

// ---- tile_store: the bytes of a box as they shall lie in shared memory -> any tensor of rank 1..5 ----
// values: variant, swizzle, box, first coordinate. Variants: 1 no fence, 2 the box overwritten before it was read, 3 no
// wait before the end.

template <int kRank>
AAPT_KERNEL void tile_store_kernel(AAPT_GRID_CONSTANT const Params params) {
  auto& shared = shared_struct<TileShared>();
  const int variant = params.value[0], bytes = params.value[1];
  copy_words(shared.box, params.input[0], bytes);
  if (variant != 1) arch::fence_proxy_async();
  arch::sync_threads();
  if (arch::thread_index() == 0) {
    arch::tile_store(params.map[0], shared.box, Coordinates<kRank>(params).at);
    arch::store_commit();
    if (variant != 2 && variant != 3) arch::store_wait_read<0>();
  }
  arch::sync_threads();
  for (int i = arch::thread_index(); i < bytes; i += arch::block_size()) shared.box[i] = 0;  // the place is used again
  arch::fence_proxy_async();
  arch::sync_threads();
  if (arch::thread_index() == 0 && variant == 2) arch::store_wait_read<0>();
}

void tile_store(const Arguments& arguments, const Stream& stream) {
  const Tensor& tensor = arguments.outputs.at(0);
  const Params params = tile_params(arguments, "outputs[0]", tensor, stream);
  constexpr void (*kernels[])(Params) = {&tile_store_kernel<1>, &tile_store_kernel<2>, &tile_store_kernel<3>,
                                         &tile_store_kernel<4>, &tile_store_kernel<5>};
  arch::launch(kernels[tensor.shape.size() - 1], one_block(128, sizeof(TileShared), stream), params);
}

// ---- encode_tensor_map: any tensor -> nothing; values: swizzle, box ----
// Makes a map without the checks of make_tensor_map, so that the driver's own answer shows.

void encode_tensor_map(const Arguments& arguments, const Stream& stream) {
  const Tensor& tensor = arguments.inputs.at(0);
  const std::size_t rank = tensor.shape.size();
  make_params(arguments, 1, 0, 1 + rank);
  MapDescription description = {};
  description.address = reinterpret_cast<std::uintptr_t>(tensor.data);
  description.rank = static_cast<std::uint8_t>(rank);
  description.element_bytes = static_cast<std::uint8_t>(dtype_bytes(tensor.dtype));
  description.swizzle_bytes = static_cast<std::uint8_t>(arguments.values[0]);
  for (std::size_t i = 0; i < rank; ++i) {
    const std::size_t at = rank - 1 - i;
    if (at >= kMaxMapRank) continue;
    description.size[at] = static_cast<std::uint64_t>(tensor.shape[i]);
    description.box[at] = static_cast<std::uint16_t>(arguments.values[1 + i]);
    if (at == 0) continue;
    description.stride_bytes[at - 1] = static_cast<std::uint64_t>(tensor.stride[i]) * description.element_bytes;
  }
  aapt::encode_tensor_map(description, tensor.dtype, stream.device);
}

}  // namespace aapt::probes
