// SPDX-License-Identifier: Apache-2.0
// Eight elements at once, which a thread has as floats: 16 bytes of half precision, or 32 bytes of floats.
#pragma once

#include <cmath>
#include <type_traits>

#include "common/arch.h"

namespace aapt {

using VectorValues = float[kVectorElements];

template <class Element>
AAPT_DEVICE void unpack_vector(const Vector16& vector, VectorValues& values) {
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) {
    values[i] = arch::to_float(Element{static_cast<std::uint16_t>(vector.word[i / 2] >> 16 * (i % 2))});
  }
}

template <class Element>
AAPT_DEVICE Vector16 pack_vector(const VectorValues& values) {
  Vector16 vector;
#pragma unroll
  for (int i = 0; i < 4; ++i) vector.word[i] = arch::pack<Element>(values[2 * i], values[2 * i + 1]);
  return vector;
}

// Eight elements as they lie in memory: read first, unpacked later, so that many loads are on their way together.
template <class Element>
struct RawVector {
  static constexpr int kParts = kVectorElements * static_cast<int>(sizeof(Element)) / 16;
  Vector16 part[kParts];
};

template <class Element>
AAPT_DEVICE RawVector<Element> load_raw(const Element* source) {
  RawVector<Element> raw;
#pragma unroll
  for (int i = 0; i < raw.kParts; ++i) raw.part[i] = arch::load_16(reinterpret_cast<const Vector16*>(source) + i);
  return raw;
}

template <class Element>
AAPT_DEVICE void unpack_raw(const RawVector<Element>& raw, VectorValues& values) {
  if constexpr (std::is_same_v<Element, float>) {
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) values[i] = arch::float_of_bits(raw.part[i / 4].word[i % 4]);
  } else {
    unpack_vector<Element>(raw.part[0], values);
  }
}

AAPT_DEVICE void store_floats(float* target, const float (&values)[4]) {
  Vector16 vector;
#pragma unroll
  for (int i = 0; i < 4; ++i) vector.word[i] = arch::bits_of_float(values[i]);
  arch::store_16(target, vector);
}

// Rounds, where that is needed, and writes.
template <class Element>
AAPT_DEVICE void store_values(Element* target, const VectorValues& values) {
  if constexpr (std::is_same_v<Element, float>) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Vector16 vector;
#pragma unroll
      for (int j = 0; j < 4; ++j) vector.word[j] = arch::bits_of_float(values[4 * i + j]);
      arch::store_16(target + 4 * i, vector);
    }
  } else {
    arch::store_16(target, pack_vector<Element>(values));
  }
}

AAPT_DEVICE void load_floats(const float* source, float (&values)[4]) {
  const Vector16 vector = arch::load_16(source);
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = arch::float_of_bits(vector.word[i]);
}

// Eight weights, floats or in half precision.
AAPT_DEVICE void load_weights(const float* source, VectorValues& values) {
  float low[4], high[4];
  load_floats(source, low);
  load_floats(source + 4, high);
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) values[i] = i < 4 ? low[i % 4] : high[i % 4];
}

template <class Element>
AAPT_DEVICE void load_weights(const Element* source, VectorValues& values) {
  unpack_vector<Element>(arch::load_16(source), values);
}

// Loads eight weights from `first` on of an array whose type is known only now.
template <class Element>
AAPT_DEVICE void load_weights(const void* weights, bool is_float32, std::int64_t first, VectorValues& values) {
  if (is_float32) {
    load_weights(static_cast<const float*>(weights) + first, values);
  } else {
    load_weights(static_cast<const Element*>(weights) + first, values);
  }
}

AAPT_DEVICE float sum_of_squares(const VectorValues& values) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectorElements; ++i) sum = fmaf(values[i], values[i], sum);
  return sum;
}

}  // namespace aapt
