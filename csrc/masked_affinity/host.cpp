// masked_affinity on a CPU: checks and launches of the kernels in kernel.h and backward.h. (On a
// GPU the operator is written in Triton.)
#include "../machine/machine.h"

#include "backward.h"

namespace vss::inline VSS_MACHINE::masked_affinity {
namespace {

struct Inputs {
  at::Tensor target, reference, index;  // contiguous
  Sizes n;

  // The kept tokens as floats, (batch, frames, selected, wide_channels).
  at::Tensor gather(const char* op) const {
    at::Tensor rows = at::empty({n.batch, n.frames, n.selected, n.wide_channels()},
                                reference.options().dtype(at::kFloat));
    VSS_DISPATCH_FLOATING(reference.scalar_type(), "masked_affinity_cpu", [&] {
      run_blocks(
          {.op = op, .blocks = n.batch * n.frames},
          GatherRows<scalar_t>{n.selected, n.tokens, n.channels, n.wide_channels(),
                               reference.const_data_ptr<scalar_t>(),
                               index.const_data_ptr<int64_t>(), rows.mutable_data_ptr<float>()});
    });
    return rows;
  }
};

Inputs inputs_of(const char* op, const at::Tensor& target, const at::Tensor& reference,
                 const at::Tensor& index) {
  check_dims(op, "target", target, 3);
  check_dims(op, "reference", reference, 4);
  check_dims(op, "index", index, 3);
  check_like(op, "reference", reference, "target", target);
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, op, ": index must be int64, got ",
                   index.scalar_type());
  TORCH_CHECK_VALUE(reference.size(0) == target.size(0) && reference.size(3) == target.size(2), op,
                    ": reference must match target ", target.sizes(), ", got ", reference.sizes());
  TORCH_CHECK_VALUE(index.size(0) == reference.size(0) && index.size(1) == reference.size(1), op,
                    ": index must match reference ", reference.sizes(), ", got ", index.sizes());
  Inputs in{target.contiguous(), reference.contiguous(), index.contiguous(), {}};
  in.n = {target.size(0), reference.size(1), index.size(2),
          target.size(1), reference.size(2), target.size(2)};
  check_positions(op, in.index, in.n.tokens);
  return in;
}

at::Tensor multiply_kept(const at::Tensor& target, const at::Tensor& reference,
                         const at::Tensor& index) {
  constexpr const char* op = "masked_affinity_cpu";
  const Inputs in = inputs_of(op, target, reference, index);
  const Sizes& n = in.n;
  at::Tensor out = at::empty({n.batch, n.frames, n.selected, n.positions}, target.options());
  if (out.numel() == 0) return out;
  const at::Tensor rows = in.gather(op);
  VSS_DISPATCH_FLOATING(target.scalar_type(), op, [&] {
    run_blocks(
        {.op = op,
         .blocks = n.batch * n.stretches(),
         .scratch_floats = StretchAffinity<scalar_t>::scratch(n)},
        StretchAffinity<scalar_t>{n, in.target.const_data_ptr<scalar_t>(),
                                  rows.const_data_ptr<float>(), out.mutable_data_ptr<scalar_t>()});
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> multiply_kept_backward(const at::Tensor& grad_any,
                                                          const at::Tensor& target,
                                                          const at::Tensor& reference,
                                                          const at::Tensor& index,
                                                          std::array<bool, 2> needs) {
  constexpr const char* op = "masked_affinity_cpu_backward";
  const Inputs in = inputs_of(op, target, reference, index);
  const Sizes& n = in.n;
  check_like(op, "grad", grad_any, "target", target);
  TORCH_CHECK_VALUE(grad_any.dim() == 4 && grad_any.size(0) == n.batch &&
                        grad_any.size(1) == n.frames && grad_any.size(2) == n.selected &&
                        grad_any.size(3) == n.positions,
                    op, ": grad must be the result's, got ", grad_any.sizes());
  const at::Tensor grad = grad_any.contiguous();
  at::Tensor grad_target =
      needs[0] ? at::empty(target.sizes(), target.options()) : at::empty({0}, target.options());
  at::Tensor grad_reference =
      needs[1] ? at::empty(reference.sizes(), target.options()) : at::empty({0}, target.options());
  VSS_DISPATCH_FLOATING(target.scalar_type(), op, [&] {
    if (grad_target.numel() > 0) {
      const at::Tensor rows = in.gather(op);
      run_blocks(
          {.op = op,
           .blocks = n.batch * n.stretches(),
           .scratch_floats = TargetGradient<scalar_t>::scratch(n)},
          TargetGradient<scalar_t>{n, grad.const_data_ptr<scalar_t>(), rows.const_data_ptr<float>(),
                                   grad_target.mutable_data_ptr<scalar_t>()});
    }
    if (grad_reference.numel() > 0) {
      const int64_t matrices = n.batch * n.frames;
      const at::Tensor parts = at::zeros({matrices, parts_of(n), n.selected, n.wide_channels()},
                                         target.options().dtype(at::kFloat));
      run_blocks({.op = op,
                  .blocks = matrices * parts_of(n),
                  .scratch_floats = RowGradient<scalar_t>::scratch(n)},
                 RowGradient<scalar_t>{n, grad.const_data_ptr<scalar_t>(),
                                       in.target.const_data_ptr<scalar_t>(),
                                       parts.mutable_data_ptr<float>()});
      const PlaceRows<scalar_t> place{parts_of(n),
                                      n.selected,
                                      n.tokens,
                                      n.channels,
                                      n.wide_channels(),
                                      parts.const_data_ptr<float>(),
                                      in.index.const_data_ptr<int64_t>(),
                                      grad_reference.mutable_data_ptr<scalar_t>()};
      run_blocks({.op = op, .blocks = matrices, .scratch_floats = place.scratch()}, place);
    }
  });
  return {grad_target, grad_reference};
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("masked_affinity_cpu", TORCH_FN(multiply_kept));
  m.impl("masked_affinity_cpu_backward", TORCH_FN(multiply_kept_backward));
}

}  // namespace vss::inline VSS_MACHINE::masked_affinity
