// add_norm on a CPU, for inference: checks and the launch of the kernel in kernel.h.
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::add_norm {
namespace {

constexpr const char* kOp = "add_norm_cpu";

Kind kind_of(const char* name, at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return Kind::float32;
    case at::kHalf: return Kind::float16;
    case at::kBFloat16: return Kind::bfloat16;
    default:
      TORCH_CHECK_TYPE(false, kOp, ": ", name, " must be float32, float16 or bfloat16, got ",
                       dtype);
  }
}

template <bool kFloat>
void run(const NormRows<kFloat>& kernel) {
  run_blocks({.op = kOp,
              .blocks = cdiv(kernel.rows, kRows),
              .grain = 4,
              .scratch_floats = kernel.scratch()},
             kernel);
}

// `total` is empty where there is no branch.
std::tuple<at::Tensor, at::Tensor> norm(const at::Tensor& x_any, const at::Tensor& weight_any,
                                        const at::Tensor& bias_any,
                                        const std::optional<at::Tensor>& branch_any, double epsilon,
                                        at::ScalarType dtype) {
  TORCH_CHECK_VALUE(x_any.dim() > 0 && x_any.size(-1) > 0, kOp,
                    ": x must have at least one channel, got shape ", x_any.sizes());
  const Kind x_kind = kind_of("x", x_any.scalar_type()), out_kind = kind_of("dtype", dtype);
  const int64_t channels = x_any.size(-1);
  for (const at::Tensor* vector : {&weight_any, &bias_any}) {
    TORCH_CHECK_TYPE(vector->scalar_type() == at::kFloat, kOp,
                     ": weight and bias must be float32, got ", vector->scalar_type());
    TORCH_CHECK_VALUE(vector->sizes() == at::IntArrayRef({channels}), kOp,
                      ": weight and bias must have shape (", channels, "), got ", vector->sizes());
  }
  const at::Tensor x = x_any.contiguous(), weight = weight_any.contiguous(),
                   bias = bias_any.contiguous();
  at::Tensor branch, total = at::empty({0}, x.options());
  if (branch_any.has_value()) {
    TORCH_CHECK_VALUE(branch_any->sizes() == x.sizes(), kOp, ": branch must have the shape of x, ",
                      x.sizes(), ", got ", branch_any->sizes());
    branch = branch_any->contiguous();
    total = at::empty(x.sizes(), x.options());
  }
  const at::Tensor out = at::empty(x.sizes(), x.options().dtype(dtype));
  if (out.numel() == 0) return {total, out};
  const auto kernel = [&]<bool kFloat>() {
    NormRows<kFloat> f = {x.numel() / channels,
                          channels,
                          static_cast<float>(epsilon),
                          weight.const_data_ptr<float>(),
                          bias.const_data_ptr<float>(),
                          {x.const_data_ptr(), x_kind},
                          {nullptr, Kind::float32},
                          {nullptr, x_kind},
                          {out.mutable_data_ptr(), out_kind}};
    if (branch.defined()) {
      f.branch = {branch.const_data_ptr(), kind_of("branch", branch.scalar_type())};
      f.total.data = total.mutable_data_ptr();
    }
    return f;
  };
  const bool all_float = x_kind == Kind::float32 && out_kind == Kind::float32 &&
                         (!branch.defined() || branch.scalar_type() == at::kFloat);
  if (all_float) {
    run(kernel.operator()<true>());
  } else {
    run(kernel.operator()<false>());
  }
  return {total, out};
}

}  // namespace

void implement(torch::Library& m) { m.impl("add_norm_cpu", TORCH_FN(norm)); }

}  // namespace vss::inline VSS_MACHINE::add_norm
