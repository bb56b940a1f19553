// SPDX-License-Identifier: Apache-2.0
// Attention over pages, as the rest of the world calls it.
#pragma once

#include <optional>

#include "common/launch.h"
#include "common/tensor.h"

namespace aapt {

// q, out [B, N, H, D]; k_pages, v_pages [P, 64, Hkv, D]; page_ids, page_valid int32 [B, M]; page_bias float32 [B, M];
// lse float32 [B, H, N]. out and lse are dense. Throws std::invalid_argument or Unsupported before anything is launched.
void paged_attention_portable(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                              const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                              const Tensor& lse, float scale, const Stream& stream);

// The same for Hopper, in the variants of params.h.
void paged_attention_sm90(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                          const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                          const Tensor& lse, float scale, const Stream& stream);
void paged_attention_sm90_overlap(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages,
                                  const Tensor& page_ids, const Tensor& page_valid,
                                  const std::optional<Tensor>& page_bias, const Tensor& out, const Tensor& lse,
                                  float scale, const Stream& stream);
void paged_attention_sm90_cluster(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages,
                                  const Tensor& page_ids, const Tensor& page_valid,
                                  const std::optional<Tensor>& page_bias, const Tensor& out, const Tensor& lse,
                                  float scale, const Stream& stream);

// The heads of all rows from number `whole` on have their keys split into `parts` parts: equal shares of the entries of
// the page table. part_out float32 [(B * H - whole) * parts, N, D] and part_lse float32 [.., N] are room for them, dense.
void paged_attention_sm90_split(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_ids,
                                const Tensor& page_valid, const std::optional<Tensor>& page_bias, const Tensor& out,
                                const Tensor& lse, float scale, const Tensor& part_out, const Tensor& part_lse,
                                int whole, int parts, const Stream& stream);

}  // namespace aapt
