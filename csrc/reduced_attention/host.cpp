// reduced_attention on a CPU, for inference in float32: checks and launches of the kernels in
// kernel.h.
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::reduced_attention {
namespace {

at::Tensor attend(const at::Tensor& query_any, const at::Tensor& key_value_any) {
  constexpr const char* op = "reduced_attention_cpu";
  check_dims(op, "query", query_any, 4);
  check_dims(op, "key_value", key_value_any, 5);
  check_like(op, "key_value", key_value_any, "query", query_any);
  TORCH_CHECK_TYPE(query_any.scalar_type() == at::kFloat, op, ": query must be float32, got ",
                   query_any.scalar_type());
  const at::Tensor query = query_any.contiguous(), key_value = key_value_any.contiguous();
  const Sizes n{query.size(0), query.size(1), key_value.size(1), query.size(2), query.size(3)};
  TORCH_CHECK_VALUE(key_value.size(0) == n.batch && key_value.size(2) == 2 &&
                        key_value.size(3) == n.heads && key_value.size(4) == n.dim && n.keys > 0,
                    op, ": key_value must be (", n.batch, ", at least 1, 2, ", n.heads, ", ", n.dim,
                    "), got ", key_value.sizes());
  at::Tensor out = at::empty(query.sizes(), query.options());
  if (out.numel() == 0) return out;
  const at::Tensor packed = at::zeros({n.batch * n.heads, n.packed()}, query.options());
  run_blocks({.op = op, .blocks = n.batch * n.heads},
             PackHead{n, key_value.const_data_ptr<float>(), packed.mutable_data_ptr<float>()});
  run_blocks({.op = op,
              .blocks = n.batch * n.heads * n.blocks_of_head(),
              .scratch_floats = AttendQueries::scratch(n)},
             AttendQueries{n, query.const_data_ptr<float>(), packed.const_data_ptr<float>(),
                           out.mutable_data_ptr<float>()});
  return out;
}

}  // namespace

void implement(torch::Library& m) { m.impl("reduced_attention_cpu", TORCH_FN(attend)); }

}  // namespace vss::inline VSS_MACHINE::reduced_attention
