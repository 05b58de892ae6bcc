// select_tokens on a CPU: checks and launches of the kernels in kernel.h. (On a GPU the operator is
// written in Triton.)
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::select_tokens {
namespace {

// Target tokens as floats, with zeros behind the channels.
template <typename T>
struct WidenTarget {
  Sizes n;
  const T* from;
  float* to;

  void operator()(const Block&, int64_t row) const {
    widen(from + row * n.channels, n.channels, to + row * n.wide_channels());
  }
};

at::Tensor select(const at::Tensor& target_any, const at::Tensor& reference_any,
                  int64_t num_selected, int64_t top) {
  constexpr const char* op = "select_tokens_cpu";
  check_dims(op, "target", target_any, 3);
  check_dims(op, "reference", reference_any, 4);
  check_like(op, "reference", reference_any, "target", target_any);
  const at::Tensor target = target_any.contiguous(), reference = reference_any.contiguous();
  const int64_t batch = target.size(0);
  const Sizes n{reference.size(1), target.size(1), reference.size(2),
                target.size(2),    num_selected,   top};
  TORCH_CHECK_VALUE(reference.size(0) == batch && reference.size(3) == n.channels, op,
                    ": reference must match target ", target.sizes(), ", got ", reference.sizes());
  TORCH_CHECK_VALUE(num_selected >= 1 && num_selected <= n.tokens, op,
                    ": num_selected must be between 1 and ", n.tokens, ", got ", num_selected);
  TORCH_CHECK_VALUE(top >= 1 && top <= n.positions, op, ": top must be between 1 and ", n.positions,
                    ", got ", top);
  at::Tensor index = at::empty({batch, n.frames, num_selected}, target.options().dtype(at::kLong));
  if (index.numel() == 0) return index;
  const auto floats = target.options().dtype(at::kFloat);
  const at::Tensor wide = at::empty({batch, n.positions, n.wide_channels()}, floats);
  const at::Tensor scores = at::empty({batch, n.frames, n.tokens}, floats);
  VSS_DISPATCH_FLOATING(target.scalar_type(), op, [&] {
    run_blocks({.op = op, .blocks = batch * n.positions, .grain = 64},
               WidenTarget<scalar_t>{n, target.const_data_ptr<scalar_t>(),
                                     wide.mutable_data_ptr<float>()});
    run_blocks(
        {.op = op,
         .blocks = batch * n.frames * n.panels(),
         .scratch_floats = ScorePanel<scalar_t>::scratch(n)},
        ScorePanel<scalar_t>{n, wide.const_data_ptr<float>(), reference.const_data_ptr<scalar_t>(),
                             scores.mutable_data_ptr<float>()});
  });
  run_blocks({.op = op, .blocks = batch * n.frames, .scratch_floats = ChooseBest::scratch(n)},
             ChooseBest{n, scores.const_data_ptr<float>(), index.mutable_data_ptr<int64_t>()});
  return index;
}

}  // namespace

void implement(torch::Library& m) { m.impl("select_tokens_cpu", TORCH_FN(select)); }

}  // namespace vss::inline VSS_MACHINE::select_tokens
