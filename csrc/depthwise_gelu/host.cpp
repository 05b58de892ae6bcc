// depthwise_gelu on every machine: checks, geometry and launches of the kernels in kernel.h and
// backward.h.
#include "../machine/machine.h"

#include "backward.h"
#include "kernel.h"

namespace vss::inline VSS_MACHINE::depthwise_gelu {
namespace {

constexpr int kThreads = 128;
constexpr TileSize kTile = kGpu ? TileSize{8, 16, 64} : TileSize{15, 128, 64};
constexpr int kThreadsBackward = 256;
constexpr TileSize kTileBackward = kGpu ? TileSize{14, 15, 32} : TileSize{15, 64, 32};

// Kernels read adjacent channels; any other layout of the map is copied once.
at::Tensor with_adjacent_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

// Divides `size` evenly into parts of at most `most`.
int even_part(int64_t size, int64_t most) {
  return static_cast<int>(cdiv(size, std::max<int64_t>(cdiv(size, most), 1)));
}

Geometry make_geometry(const char* op, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& bias, const TileSize& most) {
  check_dims(op, "x", x, 4);
  check_dims(op, "weight", weight, 4);
  check_dims(op, "bias", bias, 1);
  check_like(op, "weight", weight, "x", x);
  check_like(op, "bias", bias, "x", x);
  for (int axis = 1; axis < 4; ++axis)
    TORCH_CHECK_VALUE(x.size(axis) > 0 && x.size(axis) <= std::numeric_limits<int>::max(), op,
                      ": x must have 1 to 2^31 - 1 rows, columns and channels, got ", x.sizes());
  TORCH_CHECK_VALUE(weight.size(0) == x.size(3) && weight.size(1) == 1 && weight.size(2) == kSide &&
                        weight.size(3) == kSide,
                    op, ": weight must have shape (", x.size(3), ", 1, 3, 3), got ",
                    weight.sizes());
  TORCH_CHECK_VALUE(bias.size(0) == x.size(3), op, ": bias must have ", x.size(3), " values, got ",
                    bias.size(0));
  Geometry g = {};
  g.batch = x.size(0);
  g.rows = static_cast<int>(x.size(1));
  g.columns = static_cast<int>(x.size(2));
  g.channels = static_cast<int>(x.size(3));
  g.x_batch = x.stride(0);
  g.x_row = x.stride(1);
  g.x_column = x.stride(2);
  g.weight_channel = weight.stride(0);
  g.weight_row = weight.stride(2);
  g.weight_column = weight.stride(3);
  g.bias_channel = bias.stride(0);
  g.tile = {even_part(g.rows, most.rows), even_part(g.columns, most.columns),
            std::min(g.channels, most.channels)};
  return g;
}

at::Tensor convolve(const at::Tensor& x_any, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr const char* op = "depthwise_gelu";
  const c10::DeviceGuard guard(x_any.device());
  check_dims(op, "x", x_any, 4);
  const at::Tensor x = with_adjacent_channels(x_any);
  const Geometry g = make_geometry(op, x, weight, bias, kTile);
  const at::Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(x.scalar_type(), op, [&] {
    using Kernel = ConvolveTile<scalar_t>;
    const int64_t strips = cdiv(g.tile.rows, Kernel::kRows);
    run_blocks<kThreads>({.op = op,
                          .blocks = g.blocks(),
                          .threads = strips * g.tile.channels,
                          .scratch_floats = Kernel::scratch_floats(g)},
                         Kernel{g, x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
                                bias.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>()});
  });
  return out;
}

// The gradients of x, weight and bias, and the result of the forward pass: those that `needs`
// wants.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& grad_any, const at::Tensor& x_any, const at::Tensor& weight,
    const at::Tensor& bias, std::array<bool, 4> needs) {
  constexpr const char* op = "depthwise_gelu_backward";
  const c10::DeviceGuard guard(x_any.device());
  check_dims(op, "x", x_any, 4);
  check_like(op, "grad", grad_any, "x", x_any);
  TORCH_CHECK_VALUE(grad_any.sizes() == x_any.sizes(), op, ": grad must have the shape of x, ",
                    x_any.sizes(), ", got ", grad_any.sizes());
  const at::Tensor grad = grad_any.contiguous(), x = with_adjacent_channels(x_any);
  const Geometry g = make_geometry(op, x, weight, bias, kTileBackward);
  const at::TensorOptions options = x.options();
  const auto empty_if = [&](bool needed, const at::Tensor& like) {
    return needed ? at::empty(like.sizes(), options) : at::empty({0}, options);
  };
  const at::Tensor grad_x = empty_if(needs[0], x), grad_weight = empty_if(needs[1], weight),
                   grad_bias = empty_if(needs[2], bias), result = empty_if(needs[3], x);
  const bool needs_parts = needs[1] || needs[2];
  const at::Tensor parts =
      at::empty({needs_parts ? g.tiles() : 0, kParameters, g.channels}, options.dtype(at::kFloat));
  VSS_DISPATCH_FLOATING(x.scalar_type(), op, [&] {
    const auto run = [&](auto gives_result) {
      using Kernel = ConvolveTileBackward<scalar_t, decltype(gives_result)::value>;
      const int64_t strips = cdiv(g.tile.rows + 2, Kernel::kRows);
      run_blocks<kThreadsBackward>(
          {.op = op,
           .blocks = g.blocks(),
           .threads = strips * g.tile.channels,
           .scratch_floats = Kernel::scratch_floats(g)},
          Kernel{g, grad.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                 weight.const_data_ptr<scalar_t>(), bias.const_data_ptr<scalar_t>(),
                 needs[0] ? grad_x.mutable_data_ptr<scalar_t>() : nullptr,
                 needs[3] ? result.mutable_data_ptr<scalar_t>() : nullptr,
                 needs_parts ? parts.mutable_data_ptr<float>() : nullptr});
    };
    if (x.numel() > 0 && (needs[0] || needs[3] || needs_parts)) {
      if (needs[3])
        run(std::true_type{});
      else
        run(std::false_type{});
    }
    if (needs_parts) {
      using Kernel = SumParts<scalar_t>;
      constexpr int kThreadsSum = Kernel::kRuns * Kernel::kChannels;
      const Kernel kernel = {parts.const_data_ptr<float>(), g.tiles(), g.channels,
                             needs[1] ? grad_weight.mutable_data_ptr<scalar_t>() : nullptr,
                             needs[2] ? grad_bias.mutable_data_ptr<scalar_t>() : nullptr};
      run_blocks<kThreadsSum>({.op = op,
                               .blocks = static_cast<int64_t>(kParameters) * kernel.slabs(),
                               .grain = 16,
                               .threads = kThreadsSum,
                               .scratch_floats = Kernel::kScratchFloats},
                              kernel);
    }
  });
  return {grad_x, grad_weight, grad_bias, result};
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("depthwise_gelu", TORCH_FN(convolve));
  m.impl("depthwise_gelu_backward", TORCH_FN(convolve_backward));
}

}  // namespace vss::inline VSS_MACHINE::depthwise_gelu
