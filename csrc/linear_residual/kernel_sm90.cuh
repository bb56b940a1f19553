// SPDX-License-Identifier: Apache-2.0
// The product and the sum as one CUTLASS kernel for Hopper: tiles by the copy engine, wgmma in two warpgroups, and an
// epilogue that loads the residual's tile while the product is computed.
//
//     out = gate * (accumulator + bias) + residual        in float32, rounded once
//
// CUTLASS reaches the hardware by itself, not through common/arch.h: this kernel does not run in the emulation.
#pragma once

#include <cutlass/bfloat16.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/operations.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/half.h>

#include "common/cuda_check.h"
#include "common/types.h"
#include "linear_residual/params.h"

namespace aapt::linear_residual {

using cute::_0;
using cute::_1;
using cute::Shape;
using cute::Stride;
using std::int64_t;

// 1,196 tokens of 3,072 are 10 x 12 tiles: one wave on 132 multiprocessors. Pairs of blocks share tiles of the weight.
using Tile = Shape<cute::_128, cute::_256, cute::_64>;
using Cluster = Shape<cute::_2, _1, _1>;
constexpr int kAlignment = 8;  // elements of 16 bytes

template <class Element>
struct Epilogue {
  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  using PerColumn = cutlass::epilogue::fusion::Sm90RowBroadcast<0, Tile, Element, float, Stride<_0, _1, _0>>;
  using Linear = cutlass::epilogue::fusion::Sm90EVT<
      cutlass::epilogue::fusion::Sm90Compute<cutlass::plus, float, float, kRound>,
      cutlass::epilogue::fusion::Sm90AccFetch, PerColumn>;
  using Sum = cutlass::epilogue::fusion::Sm90EVT<
      cutlass::epilogue::fusion::Sm90Compute<cutlass::homogeneous_multiply_add, Element, float, kRound>, PerColumn, Linear,
      cutlass::epilogue::fusion::Sm90SrcFetch<Element>>;
  using Collective = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Element, cutlass::layout::RowMajor, kAlignment,
      Element, cutlass::layout::RowMajor, kAlignment, cutlass::epilogue::TmaWarpSpecializedCooperative,
      Sum>::CollectiveOp;

  static typename Sum::Arguments arguments(const LinearResidualParams& params) {
    const typename PerColumn::Arguments bias = {static_cast<const Element*>(params.bias), Element(0), {}};
    const typename PerColumn::Arguments gate = {static_cast<const Element*>(params.gate), Element(1), {}};
    return {gate, {{}, bias, {}}, {}, {}};
  }
};

template <class Element>
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor, kAlignment, Element,
    cutlass::layout::ColumnMajor, kAlignment, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
        sizeof(typename Epilogue<Element>::Collective::SharedStorage))>,
    cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;

// Its name is that of the kernel in the machine code.
template <class Element>
struct linear_residual_sm90
    : cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop<Element>,
                                           typename Epilogue<Element>::Collective> {};

inline void check(cutlass::Status status, const char* call) {
  if (status == cutlass::Status::kSuccess) return;
  cuda_check(cudaPeekAtLastError(), call);
  throw std::runtime_error(std::string("linear_residual_sm90: ") + call + ": " + cutlassGetStatusString(status));
}

template <class Element>
void launch(const LinearResidualParams& params, const Stream& stream) {
  using Kernel = linear_residual_sm90<Element>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Strides = Stride<int64_t, _1, int64_t>;
  const DeviceGuard guard(stream.device);

  typename Gemm::Arguments arguments = {
      cutlass::gemm::GemmUniversalMode::kGemm,
      {params.tokens, params.width, params.depth, 1},
      {static_cast<const Element*>(params.inputs.data), Strides{params.inputs.stride, _1{}, 0},
       static_cast<const Element*>(params.weight), Strides{params.depth, _1{}, 0}},
      {Epilogue<Element>::arguments(params), static_cast<const Element*>(params.residual.data),
       Strides{params.residual.stride, _1{}, 0}, static_cast<Element*>(params.out), Strides{params.width, _1{}, 0}}};
  int multiprocessors = 0;
  cuda_check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, stream.device),
             "cudaDeviceGetAttribute");
  arguments.hw_info.device_id = stream.device;
  arguments.hw_info.sm_count = multiprocessors;

  check(Gemm::can_implement(arguments), "can_implement");
  Gemm gemm;
  const auto handle = reinterpret_cast<cudaStream_t>(stream.handle);
  check(gemm.initialize(arguments, nullptr, handle), "initialize");
  check(gemm.run(handle), "run");
}

}  // namespace aapt::linear_residual
