// SPDX-License-Identifier: Apache-2.0
// Gate, residual sum, RMSNorm and modulation of one token by one warp or one block, for every GPU from Ampere on.
//
// Memory is read once and written once: the sum stays in registers, in float, while its mean square is formed.
#pragma once

#include <cmath>

#include "gate_residual_norm/config.h"
#include "gate_residual_norm/params.h"
#include "common/arch.h"
#include "common/vector.cuh"

namespace aapt {

// The token of this thread, and which of its elements the thread has.
template <class Config>
struct Place {
  int row, token;
  int thread, threads;  // among those that share the token
  int width;

  AAPT_DEVICE explicit Place(const GateResidualNormParams& params) : width(params.width) {
    const unsigned block = arch::block_index().x, tokens = params.tokens;
    const unsigned token_of_all = Config::kWarpPerToken ? block * Config::kWarpsPerBlock + arch::warp_index() : block;
    row = static_cast<int>(token_of_all / tokens);
    token = static_cast<int>(token_of_all % tokens);
    thread = Config::kWarpPerToken ? arch::lane_index() : arch::thread_index();
    threads = Config::kWarpPerToken ? 32 : arch::block_size();
  }

  AAPT_DEVICE std::int64_t offset(const GateResidualNormParams::Rows& stride) const {
    return row * stride.row + token * stride.token;
  }

  AAPT_DEVICE bool has(int i) const { return (thread + i * threads) * kVectorElements < width; }

  // First element of the i-th vector of this thread. A thread that has none reads the last one of the token, so that
  // all its loads can start together without a branch between them.
  AAPT_DEVICE int column(int i) const {
    return has(i) ? (thread + i * threads) * kVectorElements : width - kVectorElements;
  }
};

// Elements of a token that one thread has, as floats.
template <class Config>
using TokenValues = VectorValues[Config::kVectors];

// The dtype is the same for all threads; to ask for it once, outside the loops, lets all loads start together.
template <class Config>
AAPT_DEVICE void load_modulation(const GateResidualNormParams::Modulation& modulation, const Place<Config>& place,
                                 TokenValues<Config>& values) {
  const std::int64_t offset = place.offset(modulation.stride);
  if (modulation.is_float32) {
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) {
      load_weights(static_cast<const float*>(modulation.data) + offset + place.column(i), values[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) {
      using Element = typename Config::Element;
      load_weights(static_cast<const Element*>(modulation.data) + offset + place.column(i), values[i]);
    }
  }
}

// values = x + gate * y
template <class Config>
AAPT_DEVICE void add_gated(const GateResidualNormParams& params, const Place<Config>& place,
                           TokenValues<Config>& values) {
  using Element = typename Config::Element;
  const auto* x = static_cast<const Element*>(params.x) + place.offset(params.x_stride);
  // Start all loads before anything is unpacked, which waits for them.
  RawVector<Element> x_vectors[Config::kVectors];
#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) x_vectors[i] = load_raw(x + place.column(i));
  RawVector<Element> y_vectors[Config::kVectors] = {};
  TokenValues<Config> gate = {};
  if (params.y) {
    const auto* y = static_cast<const Element*>(params.y) + place.offset(params.y_stride);
#pragma unroll
    for (int i = 0; i < Config::kVectors; ++i) y_vectors[i] = load_raw(y + place.column(i));
    if (params.gate.data) load_modulation(params.gate, place, gate);
  }

#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) {
    VectorValues y;
    unpack_raw(x_vectors[i], values[i]);
    unpack_raw(y_vectors[i], y);
#pragma unroll
    for (int j = 0; j < kVectorElements; ++j) {
      if (params.y) values[i][j] = params.gate.data ? fmaf(gate[i][j], y[j], values[i][j]) : values[i][j] + y[j];
    }
  }
}

// values = values * inverse * (1 + scale) + shift
template <class Config>
AAPT_DEVICE void normalise_and_modulate(const GateResidualNormParams& params, const Place<Config>& place, float inverse,
                                        TokenValues<Config>& values) {
  TokenValues<Config> scale = {}, shift = {};  // zeros change nothing
  if (params.scale.data) load_modulation(params.scale, place, scale);
  if (params.shift.data) load_modulation(params.shift, place, shift);
#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < kVectorElements; ++j) {
      values[i][j] = values[i][j] * inverse * (1.0f + scale[i][j]) + shift[i][j];
    }
  }
}

// Rounds once and writes.
template <class Config>
AAPT_DEVICE void store_token(void* out, std::int64_t first, const Place<Config>& place,
                             const TokenValues<Config>& values) {
  using Element = typename Config::Element;
#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) {
    if (place.has(i)) store_values(static_cast<Element*>(out) + first + place.column(i), values[i]);
  }
}

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kMaxThreads, 1)
    gate_residual_norm_portable(AAPT_GRID_CONSTANT const GateResidualNormParams params) {
  const Place<Config> place(params);
  if (Config::kWarpPerToken && place.row >= params.batch) return;  // whole warps, and no barrier waits for them
  const std::int64_t first = (std::int64_t{place.row} * params.tokens + place.token) * params.width;

  TokenValues<Config> values;
  add_gated(params, place, values);
  if (params.residual) store_token(params.residual, first, place, values);

  // The mean square is that of the sum before it was rounded. Elements that were read twice count once.
  float squares[1] = {};
#pragma unroll
  for (int i = 0; i < Config::kVectors; ++i) squares[0] += place.has(i) ? sum_of_squares(values[i]) : 0.0f;
  if constexpr (Config::kWarpPerToken) {
    squares[0] = sum_of_lanes<32>(squares[0]);
  } else {
    sum_of_block(squares, reinterpret_cast<typename Config::SharedMemory*>(arch::shared_memory())->squares);
  }
  const float inverse = arch::rsqrt_approx(squares[0] / static_cast<float>(params.width) + params.eps);

  normalise_and_modulate(params, place, inverse, values);
  store_token(params.normed, first, place, values);
}

// True if the width fits this configuration, which then runs.
template <class Config>
bool launch_gate_residual_norm_with(const GateResidualNormParams& params, const Stream& stream) {
  if (params.width > Config::kMaxWidth) return false;
  const unsigned tokens = static_cast<unsigned>(params.batch) * params.tokens;
  constexpr int per_warp = 32 * Config::kVectors * kVectorElements;
  Launch how;
  if (Config::kWarpPerToken) {
    how.grid.x = (tokens + Config::kWarpsPerBlock - 1) / Config::kWarpsPerBlock;
    how.threads = Config::kMaxThreads;
  } else {
    how.grid.x = tokens;
    how.threads = (params.width + per_warp - 1) / per_warp * 32;
    how.shared_bytes = sizeof(typename Config::SharedMemory);
  }
  how.stream = stream;
  arch::launch(&gate_residual_norm_portable<Config>, how, params);
  return true;
}

// The first configuration that the width fits: the fewest vectors per thread, and a warp per token up to 1024 elements.
template <class Element>
void launch_gate_residual_norm_portable(const GateResidualNormParams& params, const Stream& stream) {
  static_assert(GateResidualNormConfig<Element, 4, false>::kMaxWidth >= kGateResidualNormMaxWidth);
  (void)(launch_gate_residual_norm_with<GateResidualNormConfig<Element, 1, true>>(params, stream) ||
         launch_gate_residual_norm_with<GateResidualNormConfig<Element, 2, true>>(params, stream) ||
         launch_gate_residual_norm_with<GateResidualNormConfig<Element, 4, true>>(params, stream) ||
         launch_gate_residual_norm_with<GateResidualNormConfig<Element, 1, false>>(params, stream) ||
         launch_gate_residual_norm_with<GateResidualNormConfig<Element, 2, false>>(params, stream) ||
         launch_gate_residual_norm_with<GateResidualNormConfig<Element, 4, false>>(params, stream));
}

}  // namespace aapt
