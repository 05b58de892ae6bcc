// reduced_attention on a CPU, for inference: checks and launches of the kernels in kernel.h and
// matrix_units.h.
#include <ATen/native/CPUBlas.h>  // not ours, so before target.h

#include "../machine/machine.h"

#if defined(VSS_AVX512)
#include "matrix_units.h"
#else
#include "kernel.h"
#endif

namespace vss::inline VSS_MACHINE::reduced_attention {
namespace {

constexpr const char* kOp = "reduced_attention_cpu";

template <typename T>
void attend_in_registers(const Sizes& n, const at::Tensor& query, const at::Tensor& key_value,
                         const at::Tensor& out) {
  const at::Tensor packed =
      at::zeros({n.batch * n.heads, n.packed()}, query.options().dtype(at::kFloat));
  run_blocks({.op = kOp, .blocks = n.batch * n.heads},
             PackHead<T>{n, key_value.const_data_ptr<T>(), packed.mutable_data_ptr<float>()});
  run_blocks({.op = kOp,
              .blocks = n.batch * n.heads * n.blocks_of_head(),
              .scratch_floats = AttendQueries<T>::scratch(n)},
             AttendQueries<T>{n, query.const_data_ptr<T>(), packed.const_data_ptr<float>(),
                              out.mutable_data_ptr<T>()});
}

// Returns whether it did.
bool attend_in_matrix_units(const Sizes& n, const at::Tensor& query, const at::Tensor& key_value,
                            const at::Tensor& out) {
#if defined(VSS_AVX512)
  if (query.scalar_type() != at::kBFloat16 || !fits_matrix_units(n)) return false;
  const at::Tensor packed = at::zeros({n.batch * n.heads, narrow_packed(n)}, query.options());
  run_blocks(
      {.op = kOp, .blocks = n.batch * n.heads},
      PackNarrowHead{n, key_value.const_data_ptr<Narrow>(), packed.mutable_data_ptr<Narrow>()});
  run_blocks({.op = kOp,
              .blocks = n.batch * n.heads * narrow_blocks_of_head(n),
              .scratch_floats = AttendNarrowQueries::scratch(n)},
             AttendNarrowQueries{n, query.const_data_ptr<Narrow>(), packed.const_data_ptr<Narrow>(),
                                 out.mutable_data_ptr<Narrow>()});
  return true;
#else
  return false;
#endif
}

at::Tensor attend(const at::Tensor& query_any, const at::Tensor& key_value_any) {
  check_dims(kOp, "query", query_any, 4);
  check_dims(kOp, "key_value", key_value_any, 5);
  check_like(kOp, "key_value", key_value_any, "query", query_any);
  const auto dtype = query_any.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16, kOp,
                   ": query must be float32, float16 or bfloat16, got ", dtype);
  const at::Tensor query = query_any.contiguous(), key_value = key_value_any.contiguous();
  const Sizes n{query.size(0), query.size(1), key_value.size(1), query.size(2), query.size(3)};
  TORCH_CHECK_VALUE(key_value.size(0) == n.batch && key_value.size(2) == 2 &&
                        key_value.size(3) == n.heads && key_value.size(4) == n.dim && n.keys > 0,
                    kOp, ": key_value must be (", n.batch, ", at least 1, 2, ", n.heads, ", ",
                    n.dim, "), got ", key_value.sizes());
  at::Tensor out = at::empty(query.sizes(), query.options());
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(dtype, kOp, [&] {
    if (!attend_in_matrix_units(n, query, key_value, out))
      attend_in_registers<scalar_t>(n, query, key_value, out);
  });
  return out;
}

}  // namespace

void implement(torch::Library& m) { m.impl("reduced_attention_cpu", TORCH_FN(attend)); }

}  // namespace vss::inline VSS_MACHINE::reduced_attention
