// SPDX-License-Identifier: Apache-2.0
// wgmma in PTX: products of a warpgroup (four warps, the first of them a multiple of four), for the architecture 90a.
//
// The order of things, per warpgroup: wgmma_fence(accumulators), wgmma(...) any number of times, wgmma_commit(),
// wgmma_wait<0>(accumulators). In between nothing touches the accumulators or operands in registers, and nothing
// overwrites the operands in shared memory.
#pragma once

#include <cstdint>

#include "common/arch_sm90.h"
#include "common/matrix_descriptor.h"

namespace aapt::arch {

// Keeps the compiler from moving uses of registers across this place: wgmma uses them behind its back.
template <int kCount>
AAPT_DEVICE void keep_registers(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// Before the first wgmma, and before the next one after registers that it uses were touched.
template <class... Accumulators>
AAPT_DEVICE void wgmma_fence(Accumulators&... accumulators) {
  (keep_registers(accumulators), ...);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of products since the last one.
AAPT_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all but the last kPending groups are done. Names the accumulators that may be touched from here on.
template <int kPending, class... Accumulators>
AAPT_DEVICE void wgmma_wait(Accumulators&... accumulators) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (keep_registers(accumulators), ...);
}

// ---- the instructions: one struct per number of columns N, made by macros ----

template <class T, int kColumns>
struct WgmmaInstruction;

// Eight accumulators from number `i` on: their operands, and their places in the instruction.
#define AAPT_D8(i)                                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define AAPT_D16(i) AAPT_D8(i), AAPT_D8(i + 8)
#define AAPT_D32(i) AAPT_D16(i), AAPT_D16(i + 16)
#define AAPT_D64(i) AAPT_D32(i), AAPT_D32(i + 32)
#define AAPT_P32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AAPT_P48 AAPT_P32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define AAPT_P64 AAPT_P48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AAPT_P96 AAPT_P64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define AAPT_P128 AAPT_P96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// The text of one instruction; `places` are the accumulators, `rest` the operands after them.
#define AAPT_WGMMA_TEXT(columns, types, places, rest, accumulate)                             \
  "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " accumulate ", 0;\n"                   \
  "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." types " {" places "}, " rest ";\n}"

// Structs with both forms of a product, A in shared memory and in registers. c0..c6: count + 0 .. count + 6 as text.
#define AAPT_WGMMA_OF(T, types, columns, count, places, outputs, c0, c1, c2, c3, c4, c5, c6)                         \
  template <>                                                                                                        \
  struct WgmmaInstruction<T, columns> {                                                                              \
    template <int kMajorB>                                                                                           \
    AAPT_DEVICE static void shared(float (&d)[count], std::uint64_t a, std::uint64_t b, int accumulate) {            \
      asm volatile(AAPT_WGMMA_TEXT(columns, types, places, "%" c0 ", %" c1 ", accumulate, 1, 1, 0, %" c3, "%" c2)    \
                   : outputs                                                                                         \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(kMajorB));                                                 \
    }                                                                                                                \
    template <int kMajorB>                                                                                           \
    AAPT_DEVICE static void registers(float (&d)[count], const std::uint32_t (&a)[4], std::uint64_t b,               \
                                      int accumulate) {                                                              \
      asm volatile(AAPT_WGMMA_TEXT(columns, types, places,                                                           \
                                   "{%" c0 ", %" c1 ", %" c2 ", %" c3 "}, %" c4 ", accumulate, 1, 1, %" c6, "%" c5)  \
                   : outputs                                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kMajorB));             \
    }                                                                                                                \
  };

#define AAPT_WGMMA(columns, count, places, outputs, c0, c1, c2, c3, c4, c5, c6)                                \
  AAPT_WGMMA_OF(bfloat16, "bf16.bf16", columns, count, places, AAPT_LIST(outputs), c0, c1, c2, c3, c4, c5, c6) \
  AAPT_WGMMA_OF(float16, "f16.f16", columns, count, places, AAPT_LIST(outputs), c0, c1, c2, c3, c4, c5, c6)
#define AAPT_LIST(...) __VA_ARGS__

AAPT_WGMMA(64, 32, AAPT_P32, AAPT_D32(0), "32", "33", "34", "35", "36", "37", "38")
AAPT_WGMMA(96, 48, AAPT_P48, AAPT_LIST(AAPT_D32(0), AAPT_D16(32)), "48", "49", "50", "51", "52", "53", "54")
AAPT_WGMMA(128, 64, AAPT_P64, AAPT_D64(0), "64", "65", "66", "67", "68", "69", "70")
AAPT_WGMMA(192, 96, AAPT_P96, AAPT_LIST(AAPT_D64(0), AAPT_D32(64)), "96", "97", "98", "99", "100", "101", "102")
AAPT_WGMMA(256, 128, AAPT_P128, AAPT_LIST(AAPT_D64(0), AAPT_D64(64)), "128", "129", "130", "131", "132", "133", "134")

#undef AAPT_D8
#undef AAPT_D16
#undef AAPT_D32
#undef AAPT_D64
#undef AAPT_P32
#undef AAPT_P48
#undef AAPT_P64
#undef AAPT_P96
#undef AAPT_P128
#undef AAPT_WGMMA_TEXT
#undef AAPT_WGMMA_OF
#undef AAPT_WGMMA
#undef AAPT_LIST

// ---- the products ----

// d[64, N] = a[64, 16] b[N, 16]^T, or += with `accumulate`, for bfloat16 and float16; N is 64, 96, 128, 192 or
// 256. Lane l of warp w of the warpgroup has in d[4 j + 2 h + e] row 16 w + l / 4 + 8 h and column 8 j + 2 (l % 4) + e.
// Both operands in shared memory, A K-major.
template <class T, Major kMajorB = Major::kK, int kCount>
AAPT_DEVICE void wgmma(float (&d)[kCount], MatrixDescriptor a, MatrixDescriptor b, bool accumulate) {
  WgmmaInstruction<T, 2 * kCount>::template shared<static_cast<int>(kMajorB)>(d, a.bits, b.bits, accumulate);
}

// wgmma with A in registers. Lane l of warp w has in a[i] the row 16 w + l / 4 + 8 (i % 2) and two adjacent elements of
// K, from column 2 (l % 4) + 8 (i / 2) on.
template <class T, Major kMajorB = Major::kK, int kCount>
AAPT_DEVICE void wgmma(float (&d)[kCount], const std::uint32_t (&a)[4], MatrixDescriptor b, bool accumulate) {
  WgmmaInstruction<T, 2 * kCount>::template registers<static_cast<int>(kMajorB)>(d, a, b.bits, accumulate);
}

}  // namespace aapt::arch
