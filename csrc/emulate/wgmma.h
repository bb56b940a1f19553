// SPDX-License-Identifier: Apache-2.0
// The emulated wgmma. A product is done when the whole warpgroup waits for it, or at a random moment after the whole
// warpgroup has issued it; operands, those in registers too, are read then.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "emulate/aligned.h"

namespace aapt::emulate {

struct Operands {
  std::uint64_t a;               // descriptor, where A is in shared memory
  const std::uint32_t* a_words;  // where it is in registers, else null
  std::uint64_t b;               // descriptor
  bool b_mn_major;
};

// Each is an instruction of the whole warpgroup, at `place` in the kernel's source.
void fence_products(Place place);
void issue_product(Dtype dtype, const Operands& operands, float* d, int columns, bool accumulate, Place place);
void commit_products(Place place);
void wait_for_products(std::size_t pending, Place place);

}  // namespace aapt::emulate
