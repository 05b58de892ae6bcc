// attend_selected on a CPU: checks and launches of the kernels in kernel.h and backward.h. (On a
// GPU the operator is written in Triton.)
#include "../machine/machine.h"

#include "backward.h"

namespace vss::inline VSS_MACHINE::attend_selected {
namespace {

struct Inputs {
  at::Tensor affinity, value, index;  // contiguous
  Sizes n;
};

Inputs inputs_of(const char* op, const at::Tensor& affinity, const at::Tensor& value,
                 const at::Tensor& index) {
  check_dims(op, "affinity", affinity, 4);
  check_dims(op, "value", value, 4);
  check_dims(op, "index", index, 3);
  check_like(op, "value", value, "affinity", affinity);
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, op, ": index must be int64, got ",
                   index.scalar_type());
  TORCH_CHECK_VALUE(value.size(0) == affinity.size(0) && value.size(1) == affinity.size(1), op,
                    ": value must match affinity ", affinity.sizes(), ", got ", value.sizes());
  TORCH_CHECK_VALUE(index.sizes() == affinity.sizes().slice(0, 3), op, ": index must be (",
                    affinity.sizes().slice(0, 3), "), got ", index.sizes());
  Inputs in{affinity.contiguous(), value.contiguous(), index.contiguous(), {}};
  in.n = {affinity.size(0) * affinity.size(1), affinity.size(2), affinity.size(3), value.size(2),
          value.size(3)};
  check_positions(op, in.index, in.n.tokens);
  return in;
}

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& affinity, const at::Tensor& value,
                                          const at::Tensor& index) {
  constexpr const char* op = "attend_selected_cpu";
  const Inputs in = inputs_of(op, affinity, value, index);
  const Sizes& n = in.n;
  const auto floats = value.options().dtype(at::kFloat);
  const auto out_shape = {affinity.size(0), affinity.size(1), n.positions, n.channels};
  const auto statistics_shape = {affinity.size(0), affinity.size(1), int64_t{2}, n.positions};
  if (n.selected == 0)
    return {at::zeros(out_shape, value.options()), at::zeros(statistics_shape, floats)};
  at::Tensor out = at::empty(out_shape, value.options());
  at::Tensor statistics = at::empty(statistics_shape, floats);
  if (statistics.numel() == 0) return {out, statistics};
  const at::Tensor panels = at::empty({n.matrices, n.panels(), n.selected, kPanel}, floats);
  VSS_DISPATCH_FLOATING(value.scalar_type(), op, [&] {
    run_blocks({.op = op, .blocks = n.matrices * n.panels()},
               GatherPanel<scalar_t>{n, in.value.const_data_ptr<scalar_t>(),
                                     in.index.const_data_ptr<int64_t>(),
                                     panels.mutable_data_ptr<float>()});
    run_blocks({.op = op,
                .blocks = n.matrices * n.stretches(),
                .scratch_floats = AttendStretch<scalar_t>::scratch(n)},
               AttendStretch<scalar_t>{
                   n, in.affinity.const_data_ptr<scalar_t>(), panels.const_data_ptr<float>(),
                   out.mutable_data_ptr<scalar_t>(), statistics.mutable_data_ptr<float>()});
  });
  return {out, statistics};
}

std::tuple<at::Tensor, at::Tensor> attend_backward(const at::Tensor& grad_any,
                                                   const at::Tensor& affinity,
                                                   const at::Tensor& statistics_any,
                                                   const at::Tensor& value, const at::Tensor& index,
                                                   std::array<bool, 2> needs) {
  constexpr const char* op = "attend_selected_cpu_backward";
  const Inputs in = inputs_of(op, affinity, value, index);
  const Sizes& n = in.n;
  check_like(op, "grad", grad_any, "affinity", affinity);
  TORCH_CHECK_VALUE(grad_any.dim() == 4 && grad_any.size(0) * grad_any.size(1) == n.matrices &&
                        grad_any.size(2) == n.positions && grad_any.size(3) == n.channels,
                    op, ": grad must be the result's, got ", grad_any.sizes());
  TORCH_CHECK_VALUE(statistics_any.scalar_type() == at::kFloat &&
                        statistics_any.numel() == 2 * n.matrices * n.positions,
                    op, ": statistics must be the forward's");
  const at::Tensor grad = grad_any.contiguous(), statistics = statistics_any.contiguous();
  at::Tensor grad_affinity = needs[0] ? at::empty(affinity.sizes(), affinity.options())
                                      : at::empty({0}, affinity.options());
  at::Tensor grad_value =
      needs[1] ? at::empty(value.sizes(), value.options()) : at::empty({0}, value.options());
  if (n.matrices == 0 || !(needs[0] || needs[1])) return {grad_affinity, grad_value};
  const auto floats = value.options().dtype(at::kFloat);
  const at::Tensor values = at::empty({n.matrices, n.selected, n.wide_channels()}, floats);
  const at::Tensor parts =
      at::zeros({needs[1] ? n.matrices : 0, parts_of(n), n.selected, n.wide_channels()}, floats);
  VSS_DISPATCH_FLOATING(value.scalar_type(), op, [&] {
    const int64_t* positions = in.index.const_data_ptr<int64_t>();
    run_blocks({.op = op, .blocks = n.matrices},
               GatherRows<scalar_t>{n.selected, n.tokens, n.channels, n.wide_channels(),
                                    in.value.const_data_ptr<scalar_t>(), positions,
                                    values.mutable_data_ptr<float>()});
    run_blocks({.op = op,
                .blocks = n.matrices * parts_of(n),
                .scratch_floats = BackwardPart<scalar_t>::scratch(n)},
               BackwardPart<scalar_t>{
                   n, grad.const_data_ptr<scalar_t>(), in.affinity.const_data_ptr<scalar_t>(),
                   statistics.const_data_ptr<float>(), values.const_data_ptr<float>(),
                   needs[0] ? grad_affinity.mutable_data_ptr<scalar_t>() : nullptr,
                   needs[1] ? parts.mutable_data_ptr<float>() : nullptr});
    if (!needs[1]) return;
    const PlaceRows<scalar_t> place{parts_of(n),       n.selected,
                                    n.tokens,          n.channels,
                                    n.wide_channels(), parts.const_data_ptr<float>(),
                                    positions,         grad_value.mutable_data_ptr<scalar_t>()};
    run_blocks({.op = op, .blocks = n.matrices, .scratch_floats = place.scratch()}, place);
  });
  return {grad_affinity, grad_value};
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("attend_selected_cpu", TORCH_FN(attend));
  m.impl("attend_selected_cpu_backward", TORCH_FN(attend_backward));
}

}  // namespace vss::inline VSS_MACHINE::attend_selected
