// SPDX-License-Identifier: Apache-2.0
// Compares our layouts with CuTe's; test_layouts.py compiles and runs it. Prints "<name>: <differences>" for each.
#include <cstdint>
#include <cstdio>

#include <cute/tensor.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "common/matrix_descriptor.h"
#include "common/tensor_map.h"
#include "emulate/operand.h"

namespace {

using namespace cute;
using Number = cute::bfloat16_t;

void report(const char* name, int columns, long differences) {
  std::printf("%s %d: %ld\n", name, columns, differences);
}

// The permutation of bytes that the copy engine makes.
template <class Theirs>
void compare_swizzle(aapt::Swizzle ours, Theirs theirs) {
  long differences = 0;
  for (std::uint32_t offset = 0; offset < 4096; ++offset) differences += aapt::swizzled(ours, offset) != theirs(offset);
  report("swizzle", static_cast<int>(ours), differences);
}

// The places of an operand of `rows` rows in shared memory, and its descriptor. Atom: a layout of CuTe; `leading` and
// `stride` in bytes as csrc/probes/wgmma.cu gives them.
template <GMMA::Major major, class Atom, class Step>
void compare_operand(const char* name, aapt::Swizzle swizzle, Atom atom, Step order, int leading, int stride) {
  constexpr int kRows = 128, kDepth = 64;
  constexpr bool mn_major = major == GMMA::Major::MN;
  const auto layout = tile_to_shape(atom, Shape<Int<kRows>, Int<kDepth>>{}, order);
  alignas(1024) static Number memory[kRows * kDepth];
  const auto whole = make_tensor(make_smem_ptr(memory), layout);
  const auto operand = local_tile(whole, Shape<Int<kRows>, _16>{}, make_coord(0, 0));
  const std::uint64_t theirs = GMMA::make_gmma_desc<major>(operand);  // at address 0: this is no GPU
  const std::uint64_t ours = aapt::make_matrix_descriptor(0, swizzle, leading, stride).bits;
  constexpr std::uint64_t kLeading = std::uint64_t{0x3fff} << 16;
  const bool leading_counts = mn_major || swizzle == aapt::Swizzle::kNone;
  report((std::string(name) + " descriptor").c_str(), static_cast<int>(swizzle),
         ((ours ^ theirs) & (leading_counts ? ~std::uint64_t{0} : ~kLeading)) != 0);

  const auto places = as_position_independent_swizzle_layout(layout);
  const aapt::emulate::Matrix matrix(theirs);
  long differences = 0;
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < 16; ++k) {
      const int along = mn_major ? row : k, across = mn_major ? k : row;
      const auto place = static_cast<std::uint32_t>(places(row, k)) * 2;
      differences += matrix.address(along / 8, across, mn_major) + along % 8 * 2 != place;
    }
  }
  report(name, static_cast<int>(swizzle), differences);
}

// The elements of the result that the threads have in their accumulators.
template <class Theirs>
void compare_accumulators(int columns, Theirs theirs) {
  long differences = 0;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < columns / 2; ++i) {
      const auto [row, column] = aapt::emulate::accumulator_element(thread, i);
      differences += static_cast<int>(theirs(thread, i)) != row + 64 * column;
    }
  }
  report("accumulators", columns, differences);
}

void compare_a_registers() {
  const SM90::GMMA::ALayout_64x16 theirs{};
  long differences = 0;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 8; ++i) {
      const auto [row, column] = aapt::emulate::a_element(thread, i / 2, i % 2);
      differences += static_cast<int>(theirs(thread, i)) != row + 64 * column;
    }
  }
  report("registers of A", 16, differences);
}

}  // namespace

int main() {
  using aapt::Swizzle;
  compare_swizzle(Swizzle::kNone, cute::Swizzle<0, 4, 3>{});
  compare_swizzle(Swizzle::k32Bytes, cute::Swizzle<1, 4, 3>{});
  compare_swizzle(Swizzle::k64Bytes, cute::Swizzle<2, 4, 3>{});
  compare_swizzle(Swizzle::k128Bytes, cute::Swizzle<3, 4, 3>{});

  // Slabs as wide as the swizzle, one after the other: of 128 rows, or of 64 along K.
  using RowsFirst = Step<_1, _2>;
  using DepthFirst = Step<_2, _1>;
  constexpr auto K = GMMA::Major::K, MN = GMMA::Major::MN;
  compare_operand<K>("K-major", Swizzle::kNone, GMMA::Layout_K_INTER_Atom<Number>{}, RowsFirst{}, 2048, 128);
  compare_operand<K>("K-major", Swizzle::k128Bytes, GMMA::Layout_K_SW128_Atom<Number>{}, RowsFirst{}, 16384, 1024);
  compare_operand<MN>("MN-major", Swizzle::kNone, GMMA::Layout_MN_INTER_Atom<Number>{}, DepthFirst{}, 128, 1024);
  compare_operand<MN>("MN-major", Swizzle::k128Bytes, GMMA::Layout_MN_SW128_Atom<Number>{}, DepthFirst{}, 8192, 1024);

  compare_accumulators(64, SM90::GMMA::CLayout_64x64{});
  compare_accumulators(96, SM90::GMMA::CLayout_64x96{});
  compare_accumulators(128, SM90::GMMA::CLayout_64x128{});
  compare_accumulators(192, SM90::GMMA::CLayout_64x192{});
  compare_accumulators(256, SM90::GMMA::CLayout_64x256{});
  compare_a_registers();
}
