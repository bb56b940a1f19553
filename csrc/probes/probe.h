// SPDX-License-Identifier: Apache-2.0
// Parameters and small functions of all probes.
#pragma once

#include <string>

#include "common/arch.h"
#include "common/tensor_map.h"
#include "probes/probes.h"

namespace aapt::probes {

// Parameters of every probe kernel.
struct Params {
  TensorMap map[3];
  const void* input[3];
  void* output[2];
  int value[8];
};

inline Params make_params(const Arguments& arguments, std::size_t inputs, std::size_t outputs, std::size_t values) {
  const auto check = [](const char* what, std::size_t got, std::size_t expected) {
    require_valid(got == expected, what, std::to_string(expected), std::to_string(got));
  };
  check("inputs", arguments.inputs.size(), inputs);
  check("outputs", arguments.outputs.size(), outputs);
  check("values", arguments.values.size(), values);
  Params params = {};
  for (std::size_t i = 0; i < inputs; ++i) params.input[i] = arguments.inputs[i].data;
  for (std::size_t i = 0; i < outputs; ++i) params.output[i] = arguments.outputs[i].data;
  for (std::size_t i = 0; i < values && i < 8; ++i) params.value[i] = arguments.values[i];
  return params;
}

inline Swizzle swizzle_of(int bytes) {
  require_valid(bytes == 0 || bytes == 32 || bytes == 64 || bytes == 128, "swizzle", "0, 32, 64 or 128 bytes",
                std::to_string(bytes));
  return static_cast<Swizzle>(bytes);
}

inline Launch one_block(unsigned threads, std::size_t shared_bytes, const Stream& stream) {
  Launch how;
  how.threads = threads;
  how.shared_bytes = shared_bytes;
  how.stream = stream;
  return how;
}

template <class T>
AAPT_DEVICE T& shared_struct() {
  return *reinterpret_cast<T*>(arch::shared_memory());
}

}  // namespace aapt::probes
