// Checks of the attention's arguments, its geometry and its result tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <tuple>

#include "../common/checks.h"
#include "attention.h"

namespace vss::focal {

inline at::Tensor with_adjacent_head(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) <= 1 ? x : x.contiguous();
}

struct AttentionInputs {
  at::Tensor query;      // (batch, windows * positions, heads, dim)
  at::Tensor key_value;  // (batch, tokens, 2, heads, dim)
  at::Tensor bias;       // (heads, positions, wide_keys), float, zeros behind the keys
  at::Tensor table;      // (windows, keys)
  AttentionGeometry geometry;
};

inline AttentionInputs attention_inputs(const char* op, const at::Tensor& query,
                                        const at::Tensor& key_value, const at::Tensor& bias,
                                        const at::Tensor& table) {
  check_dims(op, "query", query, 4);
  check_dims(op, "key_value", key_value, 5);
  check_dims(op, "bias", bias, 3);
  check_dims(op, "table", table, 2);
  check_like(op, "key_value", key_value, "query", query);
  check_like(op, "bias", bias, "query", query);
  TORCH_CHECK_TYPE(table.scalar_type() == at::kInt, op, ": table must be int32, got ",
                   table.scalar_type());
  AttentionInputs in{with_adjacent_head(query), with_adjacent_head(key_value), {},
                     table.contiguous(), {}};
  AttentionGeometry& g = in.geometry;
  g.batch = query.size(0);
  g.heads = query.size(2);
  g.dim = query.size(3);
  g.windows = table.size(0);
  g.positions = bias.size(1);
  g.keys = table.size(1);
  g.tokens = key_value.size(1);
  g.scale = 1.0f / std::sqrt(static_cast<float>(g.dim));
  TORCH_CHECK_VALUE(query.size(1) == g.windows * g.positions, op, ": query must have ", g.windows,
                    " windows of ", g.positions, " positions, got ", query.sizes());
  TORCH_CHECK_VALUE(key_value.size(0) == g.batch && g.tokens >= query.size(1) &&
                        key_value.size(2) == 2 && key_value.size(3) == g.heads &&
                        key_value.size(4) == g.dim,
                    op, ": key_value must match query ", query.sizes(), ", got ",
                    key_value.sizes());
  TORCH_CHECK_VALUE(bias.size(0) == g.heads && bias.size(2) == g.keys && g.keys >= g.positions, op,
                    ": bias must be (", g.heads, ", positions, ", g.keys, "), got ", bias.sizes());
  const int32_t* entries = in.table.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < in.table.numel(); ++i) {
    const bool own = i % g.keys < g.positions;
    TORCH_CHECK_VALUE(entries[i] >= (own ? 0 : -1) && entries[i] < (own ? query.size(1) : g.tokens),
                      op, ": table holds ", entries[i], " for slot ", i % g.keys, " of ", g.tokens,
                      " tokens");
  }
  g.query_batch = in.query.stride(0);
  g.query_token = in.query.stride(1);
  g.query_head = in.query.stride(2);
  g.token_batch = in.key_value.stride(0);
  g.token_stride = in.key_value.stride(1);
  g.value_offset = in.key_value.stride(2);
  g.token_head = in.key_value.stride(3);
  in.bias = at::zeros({g.heads, g.positions, g.wide_keys()}, bias.options().dtype(at::kFloat));
  in.bias.narrow(2, 0, g.keys).copy_(bias);
  return in;
}

inline at::Tensor log_sum_exp_for(const AttentionInputs& in) {
  const AttentionGeometry& g = in.geometry;
  return at::empty({g.batch, g.heads, g.windows, g.positions}, in.bias.options());
}

// The rows of one window, clip and head.
template <typename T>
AttentionWindow<T> window_of(const AttentionInputs& in, int64_t b, int64_t head, int64_t window) {
  const AttentionGeometry& g = in.geometry;
  const T* key = in.key_value.const_data_ptr<T>() + b * g.token_batch + head * g.token_head;
  return {in.table.const_data_ptr<int32_t>() + window * g.keys,
          in.query.const_data_ptr<T>() + b * g.query_batch + head * g.query_head, key,
          key + g.value_offset};
}

}  // namespace vss::focal
