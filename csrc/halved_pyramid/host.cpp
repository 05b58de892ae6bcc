// halved_pyramid on a CPU, for inference: checks and launches of the kernels in kernel.h.
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::halved_pyramid {
namespace {

std::vector<Tap> taps_of(int64_t size, int64_t resized) {
  const Resize resize(size, resized);
  std::vector<Tap> taps;
  for (int64_t position = 0; position < resized; ++position) taps.push_back(resize.tap(position));
  return taps;
}

at::Tensor fuse(const at::Tensor& first_any, const at::Tensor& weight_any,
                const at::Tensor& bias_any, at::TensorList others_any) {
  constexpr const char* op = "halved_pyramid_cpu";
  check_dims(op, "first", first_any, 4);
  check_dims(op, "weight", weight_any, 2);
  check_dims(op, "bias", bias_any, 1);
  check_like(op, "weight", weight_any, "first", first_any);
  check_like(op, "bias", bias_any, "first", first_any);
  TORCH_CHECK_VALUE(first_any.size(1) > 0 && first_any.size(1) % kSide == 0 &&
                        first_any.size(2) > 0 && first_any.size(2) % kSide == 0,
                    op, ": first must have even numbers of rows and columns, got ",
                    first_any.sizes());
  TORCH_CHECK_VALUE(
      weight_any.size(1) == first_any.size(3) && bias_any.size(0) == weight_any.size(0), op,
      ": weight and bias must be (channels, ", first_any.size(3), ") and (channels,), got ",
      weight_any.sizes(), " and ", bias_any.sizes());
  TORCH_CHECK_VALUE(others_any.size() <= kMaxOthers, op, ": others must hold at most ", kMaxOthers,
                    " maps, got ", others_any.size());
  const at::Tensor first = first_any.contiguous(), weight = weight_any.contiguous(),
                   bias = bias_any.contiguous();
  Pyramid p = {};
  p.batch = first.size(0);
  p.rows = first.size(1) / kSide;
  p.columns = first.size(2) / kSide;
  p.channels = weight.size(0);
  p.depth = first.size(3);
  p.others = static_cast<int>(others_any.size());
  std::vector<at::Tensor> others;
  std::vector<std::vector<Tap>> taps;
  for (const at::Tensor& level : others_any) {
    check_dims(op, "a level", level, 4);
    check_like(op, "a level", level, "first", first);
    TORCH_CHECK_VALUE(level.size(0) == p.batch && level.size(1) > 0 && level.size(2) > 0 &&
                          level.size(3) == p.channels,
                      op, ": a level must be (", p.batch, ", at least 1, at least 1, ", p.channels,
                      "), got ", level.sizes());
    others.push_back(level.contiguous());
    taps.push_back(taps_of(level.size(1), first.size(1)));
    taps.push_back(taps_of(level.size(2), first.size(2)));
  }
  for (int l = 0; l < p.others; ++l)
    p.levels[l] = {others[l].size(1), others[l].size(2), taps[2 * l].data(),
                   taps[2 * l + 1].data()};
  const at::Tensor out = at::empty({p.batch, p.rows, p.columns, p.channels}, first.options());
  if (out.numel() == 0) return out;
  const at::Tensor packed =
      at::zeros({p.panels(), p.depth + 1, kPanel}, first.options().dtype(at::kFloat));
  VSS_DISPATCH_FLOATING(first.scalar_type(), op, [&] {
    run_blocks(
        {.op = op, .blocks = p.panels()},
        PackPanel<scalar_t>{p, weight.const_data_ptr<scalar_t>(), bias.const_data_ptr<scalar_t>(),
                            packed.mutable_data_ptr<float>()});
    FuseRow<scalar_t> kernel = {p,
                                first.const_data_ptr<scalar_t>(),
                                {},
                                packed.const_data_ptr<float>(),
                                out.mutable_data_ptr<scalar_t>()};
    for (int l = 0; l < p.others; ++l) kernel.others[l] = others[l].const_data_ptr<scalar_t>();
    run_blocks({.op = op, .blocks = p.blocks(), .scratch_floats = p.scratch()}, kernel);
  });
  return out;
}

}  // namespace

void implement(torch::Library& m) { m.impl("halved_pyramid_cpu", TORCH_FN(fuse)); }

}  // namespace vss::inline VSS_MACHINE::halved_pyramid
