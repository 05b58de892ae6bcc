// focal_pool on every machine: checks, geometry and launches of the kernels in kernel.h.
#include "../machine/machine.h"

#include "gpu_kernel.h"
#include "kernel.h"

namespace vss::inline VSS_MACHINE::focal_pool {
namespace {

// Kernels read adjacent channels; any other layout of the map is copied once.
at::Tensor with_adjacent_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) <= 1 ? x : x.contiguous();
}

// The most source positions of a patch in one dimension: a sub-window covers side * scale of them
// and reads one more on either end.
int64_t patch_length(const PoolGeometry& g, const Resize& resize) {
  return static_cast<int64_t>(std::ceil(g.side * resize.scale)) + 3;
}

// Floats of scratch that hold any patch.
int64_t patch_capacity(const PoolGeometry& g) {
  return patch_length(g, g.vertical) * patch_length(g, g.horizontal);
}

// The most cells that read one of some adjacent source positions: see Resize::reader_begin and
// reader_end.
int64_t strip_cells(const PoolGeometry& g, const Resize& resize, int64_t positions) {
  return static_cast<int64_t>(std::ceil((positions + 1) / resize.scale) + 6) / g.side + 3;
}

// Floats of scratch that hold a coefficient for each pixel of a strip and each cell that may read
// the strip.
int64_t strip_capacity(const PoolGeometry& g) {
  return g.strip * strip_cells(g, g.vertical, 1) * strip_cells(g, g.horizontal, g.strip);
}

// Pixels of a strip. On a GPU up to sixteen, which gives all threads of a block coefficients and
// sums to compute; fewer where each pixel is read by many cells, so that the scratch stays small.
void set_strip(PoolGeometry& g) {
  constexpr int64_t kMostScratch = 4096;
  g.strip = kGpu ? 16 : 1;
  while (g.strip > 1 && strip_capacity(g) > kMostScratch) g.strip /= 2;
  g.strips_in_row = cdiv(g.horizontal.size, g.strip);
}

PoolGeometry pool_geometry(const at::Tensor& x, const at::Tensor& weight, int64_t rows,
                           int64_t columns) {
  check_dims("focal_pool", "weight", weight, 1);
  check_like("focal_pool", "weight", weight, "x", x);
  const int64_t side = std::lround(std::sqrt(static_cast<double>(weight.numel())));
  TORCH_CHECK_VALUE(side > 0 && side * side == weight.numel(),
                    "focal_pool: weight must hold g*g values, got ", weight.numel());
  TORCH_CHECK_VALUE(rows > 0 && columns > 0, "focal_pool: cells must be positive, got (", rows,
                    ", ", columns, ")");
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
  set_strip(g);
  return g;
}

// A block has one channel a thread where its size allows, and at least 64 threads to fill the
// scratch.
template <typename F>
void launch(const char* op, const PoolGeometry& g, int64_t blocks, int64_t scratch_floats,
            const F& f) {
  constexpr int64_t kGrain = 8;
  run_blocks<kPoolThreads>({.op = op,
                            .blocks = blocks,
                            .grain = kGrain,
                            .threads = std::max<int64_t>(g.channels, 64),
                            .scratch_floats = scratch_floats},
                           f);
}

#if VSS_GPU_CODE

// The most floats of scratch that gpu_kernel.h may need, forward and backward.
int64_t gpu_scratch(const PoolGeometry& g) {
  constexpr int64_t kParts = GpuPoolCell<float, 4>::kParts;
  const int64_t patch =
      2 * patch_capacity(g) + patch_length(g, g.vertical) * g.side;  // a pixel has two numbers
  return std::max(kParts + patch, strip_capacity(g) + strip_cells(g, g.vertical, 1) * g.side);
}

// Whether the kernels of gpu_kernel.h take these sizes: their indices have 32 bits, and larger
// patches leave too few blocks on a multiprocessor.
bool suits_gpu_kernel(const PoolGeometry& g) {
  constexpr int64_t kMostScratch = 8192, kMost = std::numeric_limits<int32_t>::max() / 2;
  const int64_t map = (g.vertical.size - 1) * g.x_row + (g.horizontal.size - 1) * g.x_column;
  return gpu_scratch(g) <= kMostScratch && map + g.channels <= kMost && g.cells() <= kMost &&
         g.strips() <= kMost && g.columns * g.channels <= kMost && g.rows * g.side <= kMost &&
         g.columns * g.side <= kMost && g.channels > 0;
}

// Calls f with the number of neighbouring channels that a thread takes, as a constant.
template <typename F>
void with_pack(bool whole, const F& f) {
  if (whole) {
    f(std::integral_constant<int, 4>());
  } else {
    f(std::integral_constant<int, 1>());
  }
}

bool whole_packs(const PoolGeometry& g, const at::Tensor& x, const at::Tensor& other) {
  return packs(x, 4, {g.x_batch, g.x_row, g.x_column, g.channels}) && packs(other, 4, {});
}

template <typename T>
void launch_cells(const PoolGeometry& g, const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, const at::Tensor& out) {
  with_pack(whole_packs(g, x, out), [&](auto count) {
    run_blocks<kPoolThreads>(
        {.op = "focal_pool",
         .blocks = g.cells(),
         .threads = kPoolThreads,
         .scratch_floats = gpu_scratch(g)},
        GpuPoolCell<T, count()>{GpuGeometry(g), x.const_data_ptr<T>(), weight.const_data_ptr<T>(),
                                bias.const_data_ptr<T>(), out.mutable_data_ptr<T>()});
  });
}

// The gradients that are wanted; the others' tensors are left alone.
template <typename T>
void launch_backward(const PoolGeometry& g, const at::Tensor& grad, const at::Tensor& x,
                     const at::Tensor& weight, const at::Tensor& grad_x,
                     const at::Tensor& grad_weight, const at::Tensor& grad_bias,
                     bool of_parameters) {
  constexpr const char* op = "focal_pool_backward";
  const int64_t cells = of_parameters ? g.cells() : 0;
  const int64_t strips = grad_x.numel() > 0 ? g.strips() : 0;
  const at::Tensor parts = at::empty({g.side * g.side + 1, cells}, x.options().dtype(at::kFloat));
  with_pack(whole_packs(g, x, grad) && packs(grad_x, 4, {}), [&](auto count) {
    run_blocks<kPoolThreads>(
        {.op = op,
         .blocks = cells + strips,
         .threads = kPoolThreads,
         .scratch_floats = gpu_scratch(g)},
        GpuPoolBackward<T, count()>{GpuGeometry(g), grad.const_data_ptr<T>(), x.const_data_ptr<T>(),
                                    weight.const_data_ptr<T>(), grad_x.mutable_data_ptr<T>(),
                                    parts.mutable_data_ptr<float>(), static_cast<int>(cells)});
  });
  if (!of_parameters) return;
  run_blocks<kPoolThreads>(
      {.op = op, .blocks = parts.size(0), .threads = kPoolThreads},
      GpuPoolSums<T>{parts.const_data_ptr<float>(), static_cast<int>(cells),
                     static_cast<int>(g.side * g.side), grad_weight.mutable_data_ptr<T>(),
                     grad_bias.mutable_data_ptr<T>()});
}

#endif

at::Tensor pool(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& bias,
                at::IntArrayRef cells) {
  const c10::DeviceGuard guard(x_any.device());
  TORCH_CHECK_VALUE(cells.size() == 2, "focal_pool: cells must be (rows, columns)");
  check_dims("focal_pool", "x", x_any, 4);
  check_dims("focal_pool", "bias", bias, 0);
  check_like("focal_pool", "bias", bias, "x", x_any);
  const at::Tensor x = with_adjacent_channels(x_any), weight = weight_any.contiguous();
  const PoolGeometry g = pool_geometry(x, weight, cells[0], cells[1]);
  at::Tensor out = at::empty({g.batch, g.rows, g.columns, g.channels}, x.options());
  if (out.numel() == 0) return out;
#if VSS_GPU_CODE
  if (suits_gpu_kernel(g)) {
    VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_pool",
                          [&] { launch_cells<scalar_t>(g, x, weight, bias, out); });
    return out;
  }
#endif
  check_scratch("focal_pool_backward", strip_capacity(g));
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_pool", [&] {
    launch("focal_pool", g, g.cells(), patch_capacity(g),
           PoolCell<scalar_t>{g, x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
                              bias.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>()});
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pool_backward(const at::Tensor& grad_any,
                                                             const at::Tensor& x_any,
                                                             const at::Tensor& weight_any,
                                                             std::array<bool, 3> needs) {
  constexpr const char* op = "focal_pool_backward";
  const c10::DeviceGuard guard(x_any.device());
  check_dims(op, "grad", grad_any, 4);
  check_dims(op, "x", x_any, 4);
  check_like(op, "grad", grad_any, "x", x_any);
  const at::Tensor grad = grad_any.contiguous(), x = with_adjacent_channels(x_any),
                   weight = weight_any.contiguous();
  const PoolGeometry g = pool_geometry(x, weight, grad.size(1), grad.size(2));
  TORCH_CHECK_VALUE(grad.size(0) == g.batch && grad.size(3) == g.channels, op,
                    ": grad must match x, got ", grad.sizes());
  const int64_t taps = g.side * g.side;
  const at::TensorOptions options = x.options();
  const at::Tensor grad_x = needs[0] ? at::empty(x.sizes(), options) : at::empty({0}, options);
#if VSS_GPU_CODE
  if (suits_gpu_kernel(g)) {
    const bool of_parameters = needs[1] || needs[2];
    const at::Tensor grad_weight = at::empty({taps}, options), grad_bias = at::empty({}, options);
    VSS_DISPATCH_FLOATING(x.scalar_type(), op, [&] {
      launch_backward<scalar_t>(g, grad, x, weight, grad_x, grad_weight, grad_bias, of_parameters);
    });
    return {grad_x, grad_weight, grad_bias};
  }
#endif
  const at::Tensor parts =
      at::empty({needs[1] || needs[2] ? g.cells() : 0, taps + 1}, options.dtype(at::kFloat));
  VSS_DISPATCH_FLOATING(x.scalar_type(), op, [&] {
    const auto* incoming = grad.const_data_ptr<scalar_t>();
    if (grad_x.numel() > 0) {
      launch(op, g, g.strips(), strip_capacity(g),
             PoolStripBackward<scalar_t>{g, incoming, weight.const_data_ptr<scalar_t>(),
                                         grad_x.mutable_data_ptr<scalar_t>()});
    }
    if (parts.numel() > 0) {
      launch(op, g, g.cells(), patch_capacity(g),
             PoolWeightBackward<scalar_t>{g, incoming, x.const_data_ptr<scalar_t>(),
                                          parts.mutable_data_ptr<float>()});
    }
  });
  const at::Tensor sums = parts.sum(0).to(x.scalar_type());
  return {grad_x, sums.narrow(0, 0, taps).clone(), sums.select(0, taps).clone()};
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("focal_pool", TORCH_FN(pool));
  m.impl("focal_pool_backward", TORCH_FN(pool_backward));
}

}  // namespace vss::inline VSS_MACHINE::focal_pool
