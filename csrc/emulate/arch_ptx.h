// SPDX-License-Identifier: Apache-2.0
// aapt::arch on the emulated machine: the twins of common/arch_ptx.h, which documents them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "common/launch.h"
#include "common/types.h"
#include "emulate/machine.h"

#define AAPT_DEVICE inline
#define AAPT_KERNEL
#define AAPT_GRID_CONSTANT
#define AAPT_LAUNCH_BOUNDS(threads, blocks)

namespace aapt::arch {

using emulate::machine;
using Call = emulate::Place;  // of an instruction that all lanes execute together

// ---- who and where ----

inline int thread_index() { return machine().thread().index; }
inline int block_size() { return machine().block().threads; }
inline int lane_index() { return machine().thread().lane(); }
inline int warp_index() { return machine().thread().warp(); }
inline Index3 block_index() { return machine().block().index; }

inline char* shared_memory() { return machine().block().shared.data(); }

inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(static_cast<const char*>(pointer) - shared_memory());
}

// ---- barriers and exchange ----

inline void sync_threads(Call call = Call::here()) {
  machine().arrive(0, machine().block().threads, /*wait_for_others=*/true, "sync_threads", call);
}

// Not .aligned: lanes may come from different places.
inline void sync_warp() {
  const int nothing = 0;
  machine().collective("sync_warp", &nothing, sizeof nothing);
}

inline void named_barrier_sync(int id, int threads, Call call = Call::here()) {
  machine().arrive(id, threads, /*wait_for_others=*/true, "named_barrier_sync", call);
}

inline void named_barrier_arrive(int id, int threads, Call call = Call::here()) {
  machine().arrive(id, threads, /*wait_for_others=*/false, "named_barrier_arrive", call);
}

// PTX lets lanes come from different places; no kernel here has a reason to.
template <class T>
inline T shuffle_xor(T value, int mask, Call call = Call::here()) {
  machine().aligned("shuffle_xor", call);
  const emulate::Deposit* deposits = machine().collective("shuffle_xor", &value, sizeof value);
  T result;
  std::memcpy(&result, deposits[(lane_index() ^ mask) & 31].word, sizeof result);
  return result;
}

inline bool all_lanes(bool value, Call call = Call::here()) {
  machine().aligned("all_lanes", call);
  const int brought = value;
  const emulate::Deposit* deposits = machine().collective("all_lanes", &brought, sizeof brought);
  return std::all_of(deposits, deposits + 32, [](const emulate::Deposit& lane) { return lane.word[0] != 0; });
}

// ---- arithmetic ----

// The approximate instructions take subnormal numbers as zero and give none.
inline float flush_subnormal(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
inline float exp2_approx(float x) { return flush_subnormal(std::exp2(x)); }
inline float log2_approx(float x) { return std::log2(flush_subnormal(x)); }

inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }
inline float reciprocal_approx(float x) { return flush_subnormal(1.0f / flush_subnormal(x)); }

inline std::uint32_t multiply_high(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::uint32_t>(std::uint64_t{a} * b >> 32);
}

inline float round_to_float(std::uint32_t x) { return static_cast<float>(x); }
inline double log_double(double x) { return std::log(x); }

inline void sincospi_double(double x, double* sin_result, double* cos_result) {
  constexpr double pi = 3.14159265358979323846;
  *sin_result = std::sin(pi * x);
  *cos_result = std::cos(pi * x);
}

// ---- half precision ----

inline float to_float(bfloat16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline float to_float(float16 x) {
  const int exponent = x.bits >> 10 & 31;
  const int fraction = x.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction ? NAN : INFINITY;
  } else {
    magnitude = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24);
  }
  return x.bits >> 15 ? -magnitude : magnitude;
}

inline std::uint16_t round_to(bfloat16, float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline std::uint16_t round_to(float16, float x) {
  const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (x != x) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude == 0) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int scale = std::max(exponent - 11, -24);  // the weight of the last bit kept
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -scale)));
  if (scale == -24) return sign | units;  // subnormal, or rounded up to the first normal number
  return sign | static_cast<std::uint16_t>(((scale + 24) << 10) + units);  // a carry of `units` moves the exponent
}

template <class T>
inline std::uint32_t pack(float low, float high) {
  return round_to(T{}, low) | std::uint32_t{round_to(T{}, high)} << 16;
}

// ---- 16 bytes ----

inline void require_aligned_16(const void* address, const char* operation) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16) {
    emulate::misuse(std::string(operation) + " at an address that is no multiple of 16");
  }
}

inline Vector16 load_16(const void* global) {
  require_aligned_16(global, "load_16");
  Vector16 vector;
  std::memcpy(&vector, global, sizeof vector);
  return vector;
}

inline void store_16(void* global, const Vector16& vector) {
  require_aligned_16(global, "store_16");
  std::memcpy(global, &vector, sizeof vector);
}

inline std::uint32_t bits_of_float(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of_bits(std::uint32_t bits) {
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// ---- asynchronous copies ----

inline void cp_async_16(void* shared, const void* global, int valid_bytes) {
  const emulate::Copy copy{shared, global, valid_bytes};
  if (machine().coin()) {
    copy.land();  // hardware may be as early as this, or as late as the wait
  } else {
    machine().thread().open_copies.push_back(copy);
  }
}

inline void cp_async_commit() {
  emulate::Thread& thread = machine().thread();
  thread.copy_groups.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

template <int kPending>
inline void cp_async_wait() {
  auto& groups = machine().thread().copy_groups;
  while (groups.size() > kPending) {
    for (const emulate::Copy& copy : groups.front()) copy.land();
    groups.erase(groups.begin());
  }
}

// ---- tensor cores ----

inline void ldmatrix_any(std::uint32_t (&words)[4], const void* row, bool transposed, Call call) {
  machine().aligned("ldmatrix", call);
  const emulate::Deposit* deposits = machine().collective("ldmatrix", &row, sizeof row);
  const int lane = lane_index();
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int across = 2 * (lane % 4) + i, along = lane / 4;
      const std::uint16_t* elements;
      std::memcpy(&elements, deposits[8 * matrix + (transposed ? across : along)].word, sizeof elements);
      pair[i] = elements[transposed ? along : across];
    }
    std::memcpy(&words[matrix], pair, sizeof pair);
  }
}

inline void ldmatrix(std::uint32_t (&words)[4], const void* row, Call call = Call::here()) {
  ldmatrix_any(words, row, false, call);
}

inline void ldmatrix_transposed(std::uint32_t (&words)[4], const void* row, Call call = Call::here()) {
  ldmatrix_any(words, row, true, call);
}

// Done once per warp, by its last lane to come. A deposit holds a[4], b0, b1 and d[4].
template <class T>
inline void mma_16x8x16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                        Call call = Call::here()) {
  machine().aligned("mma", call);
  std::uint32_t words[10] = {a[0], a[1], a[2], a[3], b0, b1};
  std::memcpy(words + 6, d, sizeof d);
  const auto multiply = [](emulate::Deposit* deposits) {
    const auto element = [&](int lane, int word, int half) {
      return to_float(T{static_cast<std::uint16_t>(deposits[lane].word[word] >> 16 * half)});
    };
    float matrix_a[16][16], matrix_b[8][16];
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 8; ++i) {
        matrix_a[lane / 4 + 8 * (i / 2 % 2)][2 * (lane % 4) + i % 2 + 8 * (i / 4)] = element(lane, i / 2, i % 2);
      }
      for (int i = 0; i < 4; ++i) {
        matrix_b[lane / 4][2 * (lane % 4) + i % 2 + 8 * (i / 2)] = element(lane, 4 + i / 2, i % 2);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const float* row = matrix_a[lane / 4 + 8 * (i / 2)];
        const float* column = matrix_b[2 * (lane % 4) + i % 2];
        float sum = 0, before;
        for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
        std::memcpy(&before, &deposits[lane].word[6 + i], sizeof before);
        sum += before;
        std::memcpy(&deposits[lane].word[6 + i], &sum, sizeof sum);
      }
    }
  };
  const emulate::Deposit* deposits = machine().collective("mma", words, sizeof words, multiply);
  std::memcpy(d, &deposits[lane_index()].word[6], sizeof d);
}

// ---- host side ----

template <class Params>
void launch(void (*kernel)(Params), const Launch& how, const Params& params) {
  emulate::run(how, [&] { kernel(params); });
}

}  // namespace aapt::arch
