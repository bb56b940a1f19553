// SPDX-License-Identifier: Apache-2.0
// Norm and rotation of queries and keys, and the write of keys and values into pages, for every GPU from Ampere on.
//
// A block owns one token of one batch row. Its heads lie side by side, first the query heads, then those of the keys,
// then those of the values, and are cut into vectors of 8 elements. Vector `v` belongs to thread v % block size: all
// loads of a thread are on their way before it needs the first, and a head belongs to 8 or 16 adjacent lanes. A head of
// 56 has 7 vectors; the eighth one is empty.
#pragma once

#include <cmath>

#include "common/arch.h"
#include "common/vector.cuh"
#include "kv_write/config.h"
#include "kv_write/params.h"

namespace aapt {

enum class Part { kQuery, kKey, kValue, kNothing };

// Whose elements a vector holds.
struct Head {
  Part part;
  int index;  // among the heads of its part
};

// Column in its head of every vector of this thread: the block size is a multiple of the lanes of a head.
template <class Config>
AAPT_DEVICE int column_of_vectors() {
  return arch::thread_index() % Config::kLanes * kVectorElements;
}

// Head of the i-th vector of this thread.
template <class Config>
AAPT_DEVICE Head head_of_vector(const KvWriteParams& params, int i) {
  if (column_of_vectors<Config>() >= Config::kHeadDim) return {Part::kNothing, 0};
  const int head = (arch::thread_index() + i * arch::block_size()) / Config::kLanes;
  const int first_key = params.heads, first_value = first_key + params.kv_heads;
  if (head < first_key) return {Part::kQuery, head};
  if (head < first_value) return {Part::kKey, head - first_key};
  if (head < first_value + params.kv_heads) return {Part::kValue, head - first_value};
  return {Part::kNothing, 0};
}

// Eight elements of a head. Nothing for a thread without one: its zeros take part in sums and are never stored.
template <class Config>
AAPT_DEVICE Vector16 load_head(const KvWriteParams& params, Head head, int row, int token, int column) {
  if (head.part == Part::kNothing) return {};
  const bool query = head.part == Part::kQuery, key = head.part == Part::kKey;
  const void* source = query ? params.q : key ? params.k : params.v;
  const KvWriteParams::Rows& stride = query ? params.q_stride : key ? params.k_stride : params.v_stride;
  return arch::load_16(static_cast<const typename Config::Element*>(source) + row * stride.outer +
                       token * stride.token + head.index * stride.head + column);
}

// Cosines and sines of the four pairs that this thread has of every head.
template <class Config>
class Rotation {
 public:
  AAPT_DEVICE Rotation(const KvWriteParams& params, int row, int token, int column) : on_(params.cos != nullptr) {
    if (!on_ || column >= Config::kHeadDim) return;
    load_floats(params.cos + row * params.cos_stride[0] + token * params.cos_stride[1] + column / 2, cos_);
    load_floats(params.sin + row * params.sin_stride[0] + token * params.sin_stride[1] + column / 2, sin_);
  }

  AAPT_DEVICE void apply(VectorValues& values) const {
    if (!on_) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float even = values[2 * i], odd = values[2 * i + 1];
      values[2 * i] = even * cos_[i] - odd * sin_[i];
      values[2 * i + 1] = even * sin_[i] + odd * cos_[i];
    }
  }

  AAPT_DEVICE bool on() const { return on_; }

 private:
  bool on_;
  float cos_[4] = {}, sin_[4] = {};
};

// Mean squares: of this thread's heads, or of all heads. They are formed for values too, which do not need them,
// because a shuffle needs every lane.
template <class Config>
class MeanSquares {
 public:
  AAPT_DEVICE MeanSquares(const KvWriteParams& params, const Vector16 (&vectors)[Config::kVectors],
                          typename Config::SharedMemory& shared) {
    if (!params.q_norm.weight && !params.k_norm.weight) return;  // the same for the whole block, as are the others
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) {
      const Part part = head_of_vector<Config>(params, i).part;
      VectorValues values;
      unpack_vector<typename Config::Element>(vectors[i], values);
      const float squares = sum_of_squares(values);
      of_all_[0] += part == Part::kQuery ? squares : 0.0f;
      of_all_[1] += part == Part::kKey ? squares : 0.0f;
      of_head_[i] = sum_of_lanes<Config::kLanes>(squares) / Config::kHeadDim;
    }
    if (params.q_norm.across_heads || params.k_norm.across_heads) {
      sum_of_block(of_all_, shared.squares);
      of_all_[0] /= static_cast<float>(params.heads * Config::kHeadDim);
      of_all_[1] /= static_cast<float>(params.kv_heads * Config::kHeadDim);
    }
  }

  // For the i-th vector of this thread.
  AAPT_DEVICE float get(int i, Part part, bool across_heads) const {
    return !across_heads ? of_head_[i] : part == Part::kQuery ? of_all_[0] : of_all_[1];
  }

 private:
  float of_head_[Config::kVectors] = {};
  float of_all_[2] = {};
};

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kMaxThreads, 1)
    kv_write_portable(AAPT_GRID_CONSTANT const KvWriteParams params) {
  using Element = typename Config::Element;
  auto& shared = *reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory());
  const int token = arch::block_index().x, row = arch::block_index().y;
  const int column = column_of_vectors<Config>();

  // Load the heads and the angles.
  Vector16 vectors[Config::kVectors];
#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) {
    vectors[i] = load_head<Config>(params, head_of_vector<Config>(params, i), row, token, column);
  }
  const Rotation<Config> rotation(params, row, token, column);
  const MeanSquares<Config> mean_squares(params, vectors, shared);

  // Writing to a page outside the pool could end the context, leaving the token out would be a silent error: its keys
  // and values are dropped, and its queries become NaN.
  const int page = params.page_ids[row * params.ids_stride[0] + token / kPageSlots * params.ids_stride[1]];
  const bool inside = page >= 0 && page < params.pages;
  const auto slot_of = [&](void* pages, const KvWriteParams::Rows& stride, int head) {
    return static_cast<Element*>(pages) + page * stride.outer + token % kPageSlots * stride.token +
           head * stride.head + column;
  };

#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) {
    const Head head = head_of_vector<Config>(params, i);
    if (head.part == Part::kNothing) continue;
    if (head.part == Part::kValue) {  // as it is, bit by bit
      if (inside) arch::store_16(slot_of(params.v_pages, params.v_pages_stride, head.index), vectors[i]);
      continue;
    }
    const KvWriteParams::Norm& norm = head.part == Part::kQuery ? params.q_norm : params.k_norm;
    if (norm.weight || rotation.on()) {
      // Normalise, rotate, and round once.
      VectorValues values;
      unpack_vector<Element>(vectors[i], values);
      if (norm.weight) {
        VectorValues weight;
        const int first = norm.across_heads ? head.index * Config::kHeadDim + column : column;
        load_weights<Element>(norm.weight, norm.weight_is_float32, first, weight);
        const float inverse = arch::rsqrt_approx(mean_squares.get(i, head.part, norm.across_heads) + params.eps);
#pragma unroll
        for (int j = 0; j < kVectorElements; ++j) values[j] = values[j] * inverse * weight[j];
      }
      rotation.apply(values);
      vectors[i] = pack_vector<Element>(values);
    }
    // Without a norm and a rotation these are the bits that came.
    if (head.part == Part::kKey) {
      if (inside) arch::store_16(slot_of(params.k_pages, params.k_pages_stride, head.index), vectors[i]);
      continue;
    }
    const std::uint32_t nans = arch::pack<Element>(NAN, NAN);
    if (!inside) vectors[i] = {{nans, nans, nans, nans}};
    const std::int64_t heads_before = (std::int64_t{row} * params.tokens + token) * params.heads + head.index;
    arch::store_16(static_cast<Element*>(params.out) + heads_before * Config::kHeadDim + column, vectors[i]);
  }
}

// With the fewest vectors per thread that a block has room for: more threads have more loads on their way.
template <class Element, int kHeadDim, int kVectors = 1>
void launch_kv_write_with(int vectors, const KvWriteParams& params, const Stream& stream) {
  using Config = KvWriteConfig<Element, kHeadDim, kVectors>;
  const int threads = (vectors + kVectors - 1) / kVectors;
  if constexpr (kVectors < kKvWriteMaxVectors) {
    if (threads > Config::kMaxThreads) {
      return launch_kv_write_with<Element, kHeadDim, 2 * kVectors>(vectors, params, stream);
    }
  }
  Launch how;
  how.grid.x = params.tokens;
  how.grid.y = params.batch;
  how.threads = (threads + 31) / 32 * 32;
  how.shared_bytes = sizeof(typename Config::SharedMemory);
  how.stream = stream;
  arch::launch(&kv_write_portable<Config>, how, params);
}

template <class Element, int kHeadDim>
void launch_kv_write_portable(const KvWriteParams& params, const Stream& stream) {
  const int heads = params.heads + 2 * params.kv_heads;
  launch_kv_write_with<Element, kHeadDim>(heads * (padded_width(kHeadDim) / kVectorElements), params, stream);
}

}  // namespace aapt
