// What the CPU and the CUDA launcher of focal_pool share: checks, geometry, results, scratch sizes.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>
#include <cmath>
#include <tuple>

#include "../common/checks.h"
#include "pool.h"

namespace vss::focal {

// Kernels read adjacent channels; any other layout of the map is copied once.
inline at::Tensor with_adjacent_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) <= 1 ? x : x.contiguous();
}

inline void set_strip(PoolGeometry& g, int64_t strip) {
  g.strip = strip;
  g.strips_in_row = ceil_div(g.horizontal.size, strip);
}

inline PoolGeometry pool_geometry(const at::Tensor& x, const at::Tensor& weight, int64_t rows,
                                  int64_t columns) {
  check_dims("focal_pool", "weight", weight, 1);
  check_like("focal_pool", "weight", weight, "x", x);
  const int64_t side = std::lround(std::sqrt(static_cast<double>(weight.numel())));
  TORCH_CHECK_VALUE(side > 0 && side * side == weight.numel(),
                    "focal_pool: weight must hold g*g values, got ", weight.numel());
  TORCH_CHECK_VALUE(rows > 0 && columns > 0, "focal_pool: cells must be positive, got (", rows, ", ",
                    columns, ")");
  TORCH_CHECK_VALUE(x.size(1) > 0 && x.size(2) > 0,
                    "focal_pool: x must have at least one row and one column, got ", x.sizes());
  PoolGeometry g;
  g.batch = x.size(0);
  g.channels = x.size(3);
  g.rows = rows;
  g.columns = columns;
  g.side = side;
  g.vertical = Resize(x.size(1), rows * side);
  g.horizontal = Resize(x.size(2), columns * side);
  g.x_batch = x.stride(0);
  g.x_row = x.stride(1);
  g.x_column = x.stride(2);
  set_strip(g, 1);
  return g;
}

struct PoolInputs {
  at::Tensor x, weight;
  PoolGeometry geometry;
};

inline PoolInputs pool_inputs(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                              at::IntArrayRef cells) {
  TORCH_CHECK_VALUE(cells.size() == 2, "focal_pool: cells must be (rows, columns)");
  check_dims("focal_pool", "x", x, 4);
  check_dims("focal_pool", "bias", bias, 0);
  check_like("focal_pool", "bias", bias, "x", x);
  PoolInputs in{with_adjacent_channels(x), weight.contiguous(), {}};
  in.geometry = pool_geometry(in.x, in.weight, cells[0], cells[1]);
  return in;
}

inline at::Tensor pool_output(const PoolInputs& in) {
  const PoolGeometry& g = in.geometry;
  return at::empty({g.batch, g.rows, g.columns, g.channels}, in.x.options());
}

struct PoolBackwardInputs {
  at::Tensor grad, x, weight;
  PoolGeometry geometry;
  at::Tensor grad_x;  // empty where it is not needed
  at::Tensor parts;   // (cells, side * side + 1), float; no rows where it is not needed
};

inline PoolBackwardInputs pool_backward_inputs(const at::Tensor& grad, const at::Tensor& x,
                                               const at::Tensor& weight,
                                               std::array<bool, 3> needs) {
  check_dims("focal_pool_backward", "grad", grad, 4);
  check_dims("focal_pool_backward", "x", x, 4);
  check_like("focal_pool_backward", "grad", grad, "x", x);
  PoolBackwardInputs in{grad.contiguous(), with_adjacent_channels(x), weight.contiguous(), {}, {}, {}};
  in.geometry = pool_geometry(in.x, in.weight, grad.size(1), grad.size(2));
  const PoolGeometry& g = in.geometry;
  TORCH_CHECK_VALUE(grad.size(0) == g.batch && grad.size(3) == g.channels,
                    "focal_pool_backward: grad must match x, got ", grad.sizes());
  const at::TensorOptions options = in.x.options();
  in.grad_x = needs[0] ? at::empty(x.sizes(), options) : at::empty({0}, options);
  const int64_t cells = needs[1] || needs[2] ? g.cells() : 0;
  in.parts = at::empty({cells, g.side * g.side + 1}, options.dtype(at::kFloat));
  return in;
}

// The gradients of x, weight and bias, once the kernels have filled grad_x and parts.
inline std::tuple<at::Tensor, at::Tensor, at::Tensor> pool_gradients(const PoolBackwardInputs& in) {
  const at::Tensor totals = in.parts.sum(0).to(in.x.scalar_type());
  const int64_t taps = in.geometry.side * in.geometry.side;
  return {in.grad_x, totals.narrow(0, 0, taps).clone(), totals.select(0, taps).clone()};
}

// Floats of scratch that hold any patch: a sub-window covers side * scale source positions and
// reads one more on either end.
inline int64_t patch_capacity(const PoolGeometry& g) {
  const auto span = [&](const Resize& resize) {
    return static_cast<int64_t>(std::ceil(g.side * resize.scale)) + 3;
  };
  return span(g.vertical) * span(g.horizontal);
}

// Floats of scratch that hold a coefficient for each pixel of a strip and each cell that may read
// the strip: see Resize::reader_begin and reader_end.
inline int64_t strip_capacity(const PoolGeometry& g) {
  const auto cells = [&](const Resize& resize, int64_t positions) {
    return static_cast<int64_t>(std::ceil((positions + 1) / resize.scale) + 6) / g.side + 3;
  };
  return g.strip * cells(g.vertical, 1) * cells(g.horizontal, g.strip);
}

}  // namespace vss::focal
