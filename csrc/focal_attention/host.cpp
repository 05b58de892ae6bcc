// focal_attention on a CPU: checks, geometry and launches of the kernels in kernel.h. (On a GPU the
// operator is written in Triton.)
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::focal_attention {
namespace {

at::Tensor with_adjacent_head(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) <= 1 ? x : x.contiguous();
}

struct AttentionInputs {
  at::Tensor query;      // (batch, windows * positions, heads, dim)
  at::Tensor key_value;  // (batch, tokens, 2, heads, dim)
  at::Tensor bias;       // (heads, positions, wide_keys), float, zeros behind the keys
  at::Tensor table;      // (windows, keys)
  AttentionGeometry geometry;

  template <typename T>
  AttentionTensors<T> tensors() const {
    return {query.const_data_ptr<T>(), key_value.const_data_ptr<T>(),
            table.const_data_ptr<int32_t>(), bias.const_data_ptr<float>()};
  }
};

AttentionInputs attention_inputs(const char* op, const at::Tensor& query,
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
  AttentionInputs in{
      with_adjacent_head(query), with_adjacent_head(key_value), {}, table.contiguous(), {}};
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
  TORCH_CHECK_VALUE(
      key_value.size(0) == g.batch && g.tokens >= query.size(1) && key_value.size(2) == 2 &&
          key_value.size(3) == g.heads && key_value.size(4) == g.dim,
      op, ": key_value must match query ", query.sizes(), ", got ", key_value.sizes());
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

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key_value,
                                          const at::Tensor& bias, const at::Tensor& table) {
  const AttentionInputs in = attention_inputs("focal_attend", query, key_value, bias, table);
  const AttentionGeometry& g = in.geometry;
  at::Tensor out = at::empty(query.sizes(), query.options());
  at::Tensor statistics =
      at::empty({g.batch, g.heads, g.windows, 2, g.positions}, in.bias.options());
  if (out.numel() == 0) return {out, statistics};
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_attend", [&] {
    run_blocks({.op = "focal_attend",
                .blocks = g.batch * g.heads * g.windows,
                .scratch_floats = ForwardScratch::size(g)},
               AttendWindow<scalar_t>{g, in.tensors<scalar_t>(), out.mutable_data_ptr<scalar_t>(),
                                      statistics.mutable_data_ptr<float>()});
  });
  return {out, statistics};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& grad_any, const at::Tensor& query, const at::Tensor& key_value,
    const at::Tensor& bias, const at::Tensor& table, const at::Tensor& statistics_any) {
  constexpr const char* op = "focal_attend_backward";
  const AttentionInputs in = attention_inputs(op, query, key_value, bias, table);
  const AttentionGeometry& g = in.geometry;
  check_like(op, "grad", grad_any, "query", query);
  TORCH_CHECK_VALUE(grad_any.sizes() == query.sizes(), op, ": grad must match query, got ",
                    grad_any.sizes());
  TORCH_CHECK_VALUE(statistics_any.scalar_type() == at::kFloat &&
                        statistics_any.numel() == 2 * query.size(0) * query.size(1) * query.size(2),
                    op, ": statistics must be the forward's");
  const at::Tensor grad = grad_any.contiguous(), statistics = statistics_any.contiguous();
  at::Tensor grad_query = at::empty(query.sizes(), query.options());
  at::Tensor grad_key_value = at::empty(key_value.sizes(), query.options());
  const at::Tensor bias_parts =
      at::zeros({g.batch, g.heads, g.positions, g.wide_keys()}, in.bias.options());
  if (grad_key_value.numel() > 0) {
    VSS_DISPATCH_FLOATING(query.scalar_type(), op, [&] {
      run_blocks(
          {.op = op, .blocks = g.batch * g.heads, .scratch_floats = BackwardScratch::size(g)},
          AttendHeadBackward<scalar_t>{
              g, in.tensors<scalar_t>(), grad.const_data_ptr<scalar_t>(),
              statistics.const_data_ptr<float>(), grad_query.mutable_data_ptr<scalar_t>(),
              grad_key_value.mutable_data_ptr<scalar_t>(), bias_parts.mutable_data_ptr<float>()});
    });
  }
  return {grad_query, grad_key_value,
          bias_parts.narrow(3, 0, g.keys).sum(0).to(bias.scalar_type()).contiguous()};
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("focal_attend", TORCH_FN(attend));
  m.impl("focal_attend_backward", TORCH_FN(attend_backward));
}

}  // namespace vss::inline VSS_MACHINE::focal_attention
