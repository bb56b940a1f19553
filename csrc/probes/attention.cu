// SPDX-License-Identifier: Apache-2.0
// The attention of paged_attention/sm90 without overlap: where a GPU gives wrong results with the one and right ones
// with the other, the error lies in the order of the products.
#include "paged_attention/arguments.h"
#include "paged_attention/kernel_sm90.cuh"
#include "probes/probe.h"

namespace aapt::probes {
namespace {

using namespace paged_attention_sm90_parts;

// The loop over the tiles, one step after the other; the two warpgroups drift apart by themselves.
struct InTurn {
  template <class Config>
  AAPT_DEVICE static void run(typename Config::SharedMemory& shared, const PagedAttentionParams& params, int group,
                              Accumulators<Config::kHeadDim>& out, OnlineSoftmax<1>& softmax) {
    for (RingPlace<Config::kStages> place;; place.advance()) {
      const int stage = place.stage;
      arch::barrier_wait(&shared.full_k[stage], place.parity);
      const TileFacts facts = shared.facts[stage];
      if (!facts.any()) return;

      Accumulators<Config::kKeys> scores;
      multiply_keys<Config>(scores, shared.q[group], shared.k[stage]);
      arch::wgmma_wait<0>(flat<Config::kKeys>(scores));
      release<Config>(&shared.empty_k[stage]);

      mask_and_bias<Config>(scores, facts, params);
      softmax.absorb(scores, out, params.scale_log2, 0.0f);

      Weights<Config> weights;
      weights.pack(scores);
      arch::barrier_wait(&shared.full_v[stage], place.parity);
      if (facts.partial()) arch::barrier_wait(&shared.cleared_v[stage], place.parity);
      multiply_values<Config>(out, weights, shared.v[stage]);
      arch::wgmma_wait<0>(flat<Config::kHeadDim>(out));
      release<Config>(&shared.empty_v[stage]);
    }
  }
};

template <class Config>
AAPT_KERNEL void AAPT_LAUNCH_BOUNDS(Config::kThreads, 1)
    paged_attention_kernel(AAPT_GRID_CONSTANT const PagedAttentionSm90Params params) {
  attend<Config, InTurn>(params);
}

template <class Element, int kHeadDim>
void launch_attention(const PagedAttentionSm90Params& params, const Stream& stream) {
  using Config = PagedAttentionSm90Config<Element, kHeadDim, /*kSplitsKeys=*/false>;
  arch::launch(&paged_attention_kernel<Config>, launch_of<Config>(params, stream), params);
}

}  // namespace

// inputs: q, k_pages, v_pages, page_ids, page_valid and, if there is one, page_bias; outputs: out, lse. Shapes in
// paged_attention/arguments.h; the scale is 1 / sqrt(D).
void paged_attention(const Arguments& arguments, const Stream& stream) {
  const auto& inputs = arguments.inputs;
  require_valid(inputs.size() == 5 || inputs.size() == 6, "inputs", "5 or 6 tensors", std::to_string(inputs.size()));
  const std::optional<Tensor> page_bias = inputs.size() == 6 ? std::optional(inputs[5]) : std::nullopt;
  const float scale = 1.0f / std::sqrt(static_cast<float>(inputs[0].size(3)));
  const auto params = sm90_params_of({inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], page_bias,
                                      arguments.outputs.at(0), arguments.outputs.at(1), scale},
                                     stream);
  if (!params) return;
  require_dtype("q", inputs[0], Dtype::kBFloat16);
  (inputs[0].size(3) == 64 ? launch_attention<bfloat16, 64> : launch_attention<bfloat16, 128>)(*params, stream);
}

}  // namespace aapt::probes
