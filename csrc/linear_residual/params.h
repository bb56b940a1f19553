// SPDX-License-Identifier: Apache-2.0
// What the kernel of a linear layer with a residual sum is given. All numbers of elements.
#pragma once

#include <cstdint>

#include "common/launch.h"

namespace aapt {

struct LinearResidualParams {
  // Elements of a token lie one after the other, tokens so many elements apart.
  struct Tokens {
    const void* data;
    std::int64_t stride;
  };
  Tokens inputs;       // [tokens, depth]
  Tokens residual;     // [tokens, width]
  const void* weight;  // [width, depth]
  const void* bias;    // [width], or null
  const void* gate;    // [width], or null
  void* out;           // [tokens, width], dense
  int tokens, width, depth;
};

// Defined per element type in instantiations/.
template <class Element>
void launch_linear_residual_sm90(const LinearResidualParams& params, const Stream& stream);

}  // namespace aapt
