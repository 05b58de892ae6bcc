// fuse_pyramid on every machine: checks, geometry and launches of the kernels in kernel.h and
// backward.h, and of a GPU's own.
#include "../machine/machine.h"

#include "backward.h"
#include "gpu_backward.h"
#include "gpu_kernel.h"
#include "kernel.h"

namespace vss::inline VSS_MACHINE::fuse_pyramid {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kGrain = 4;

bool is_adjacent(const at::Tensor& level, int64_t axis) {
  return level.stride(axis) == 1 || level.size(axis) == 1;
}

struct PyramidInputs {
  std::vector<at::Tensor> levels;
  Pyramid geometry;
  bool channels_adjacent;  // neighbouring channels in memory, not neighbouring columns

  template <typename T>
  Sources<T> sources() const {
    Sources<T> result = {};
    result.first = levels[0].const_data_ptr<T>();
    for (size_t i = 1; i < levels.size(); ++i) result.others[i - 1] = levels[i].const_data_ptr<T>();
    return result;
  }
};

// The first level decides which program runs. Levels of another layout are copied into that one:
// only the smaller ones, unless neither columns nor channels of the first are adjacent.
PyramidInputs pyramid_inputs(at::TensorList levels, bool align_corners) {
  constexpr const char* op = "fuse_pyramid";
  TORCH_CHECK_VALUE(!levels.empty() && levels.size() <= kMaxLevels, op, ": levels must hold 1 to ",
                    kMaxLevels, " maps, got ", levels.size());
  const at::Tensor& first = levels[0];
  check_dims(op, "levels[0]", first, 4);
  TORCH_CHECK_VALUE(first.size(2) > 0 && first.size(3) > 0, op,
                    ": a level must have at least one row and one column, got ", first.sizes());
  PyramidInputs in = {};
  in.channels_adjacent = !is_adjacent(first, 3) && is_adjacent(first, 1);
  Pyramid& p = in.geometry;
  p.batch = first.size(0);
  p.channels = first.size(1);
  p.rows = first.size(2);
  p.columns = first.size(3);
  p.others = static_cast<int>(levels.size()) - 1;
  for (const at::Tensor& level : levels) {
    check_dims(op, "a level", level, 4);
    check_like(op, "a level", level, "levels[0]", first);
    TORCH_CHECK_VALUE(level.size(0) == p.batch && level.size(1) == p.channels, op,
                      ": all levels must have the batch and channels of the first, got ",
                      level.sizes());
    TORCH_CHECK_VALUE(level.size(2) > 0 && level.size(2) <= p.rows && level.size(3) > 0 &&
                          level.size(3) <= p.columns,
                      op, ": a level must not be empty or larger than the first, got ",
                      level.sizes());
    in.levels.push_back(
        in.channels_adjacent
            ? is_adjacent(level, 1) ? level : level.contiguous(at::MemoryFormat::ChannelsLast)
        : is_adjacent(level, 3) ? level
                                : level.contiguous());
  }
  p.first = strides_of(in.levels[0]);
  for (int i = 0; i < p.others; ++i) {
    const at::Tensor& level = in.levels[i + 1];
    p.levels[i] = {Resize(level.size(2), p.rows, align_corners),
                   Resize(level.size(3), p.columns, align_corners), strides_of(level)};
  }
  return in;
}

// What a block takes. On a GPU a warp reads 32 neighbours, and a block has several items for each
// thread.
void set_tile(Pyramid& p, bool channels_adjacent) {
  if constexpr (kGpu) {
    constexpr int kWarp = 32;
    constexpr int64_t kItems = 4 * kThreads;
    p.tile_columns =
        static_cast<int>(tile_width(p.columns, channels_adjacent ? kWarp : 512, kLanes));
    p.tile_channels =
        channels_adjacent ? kWarp : static_cast<int>(std::max<int64_t>(kItems / p.tile_columns, 1));
  } else {
    p.tile_columns = static_cast<int>(tile_width(p.columns, channels_adjacent ? 64 : 512, kLanes));
    p.tile_channels = channels_adjacent ? 16 : 4;
  }
}

#if VSS_GPU_CODE

template <typename T, bool kAligned>
bool launch_columns(const PyramidInputs& in, const at::Tensor& out) {
  constexpr int64_t kMostScratch = 8192, kMost = std::numeric_limits<int32_t>::max() / 2;
  const Pyramid& p = in.geometry;
  const int64_t groups = cdiv<int64_t>(p.columns, kWidth);
  if (p.batch * p.channels > kMost || p.rows > kMost || groups > kMostScratch) return false;
  const GpuFuseColumns<T, kAligned> f = {p,
                                         in.sources<T>(),
                                         out.mutable_data_ptr<T>(),
                                         static_cast<int>(p.bands()),
                                         static_cast<int>(p.batch * p.channels),
                                         static_cast<int>(groups)};
  if (f.scratch_floats() > kMostScratch || f.blocks() > kMost) return false;
  run_blocks<kGpuThreads>({.op = "fuse_pyramid",
                           .blocks = f.blocks(),
                           .threads = kGpuThreads,
                           .scratch_floats = f.scratch_floats()},
                          f);
  return true;
}

// Runs the kernel of gpu_kernel.h; false where it does not take these sizes.
bool run_columns(const PyramidInputs& in, const at::Tensor& out) {
  if (in.channels_adjacent) return false;
  const Pyramid& p = in.geometry;
  const bool aligned =
      packs(in.levels[0], kWidth, {p.first.batch, p.first.channel, p.first.row, p.columns}) &&
      packs(out, kWidth, {});
  bool taken = false;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "fuse_pyramid", [&] {
    taken = aligned ? launch_columns<scalar_t, true>(in, out)
                    : launch_columns<scalar_t, false>(in, out);
  });
  return taken;
}

template <typename T, bool kAligned>
bool launch_gather(const char* op, const PyramidBackward& p, const T* grad, T* const* grad_levels) {
  std::vector<GpuFuseBackward<T, kAligned>> launches;
  for (int first = 0; first < p.levels; first += kGroup) {
    launches.emplace_back(p, first, grad, grad_levels, gpu_limits());
    if (!launches.back().fits(gpu_limits())) return false;
  }
  for (const auto& f : launches) {
    run_blocks<kGpuThreads>({.op = op,
                             .blocks = f.blocks(),
                             .threads = f.threads(),
                             .scratch_floats = f.scratch_floats()},
                            f);
  }
  return true;
}

// Runs the kernel of gpu_backward.h; false where it does not take these sizes.
template <typename T>
bool run_gather(const char* op, const PyramidBackward& p, const at::Tensor& grad,
                T* const* grad_levels) {
  constexpr int64_t kMostPlanes = 1 << 30, kLongestSide = 1 << 16;
  if (p.planes > kMostPlanes || std::max(p.rows, p.columns) > kLongestSide) return false;
  const auto* from = grad.const_data_ptr<T>();
  return packs(grad, kWidth, {p.columns}) ? launch_gather<T, true>(op, p, from, grad_levels)
                                          : launch_gather<T, false>(op, p, from, grad_levels);
}

#endif

at::Tensor fuse(at::TensorList levels, bool align_corners) {
  TORCH_CHECK_VALUE(!levels.empty(), "fuse_pyramid: levels must hold at least one map");
  const c10::DeviceGuard guard(levels[0].device());
  PyramidInputs in = pyramid_inputs(levels, align_corners);
  Pyramid& p = in.geometry;
  set_tile(p, in.channels_adjacent);
  const at::Tensor out = at::empty(in.levels[0].sizes(), in.levels[0].options());
  if (out.numel() == 0) return out;
#if VSS_GPU_CODE
  if (run_columns(in, out)) return out;
#endif
  const Launch launch = {.op = "fuse_pyramid",
                         .blocks = p.blocks(),
                         .grain = kGrain,
                         .threads = kThreads,
                         .scratch_floats = p.scratch_floats(in.channels_adjacent)};
  VSS_DISPATCH_FLOATING(out.scalar_type(), "fuse_pyramid", [&] {
    const Sources<scalar_t> sources = in.sources<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    if (in.channels_adjacent) {
      run_blocks<kThreads>(launch, FuseChannels<scalar_t>{p, sources, result});
    } else {
      run_blocks<kThreads>(launch, FuseColumns<scalar_t>{p, sources, result});
    }
  });
  return out;
}

// `sizes` holds rows and columns of every level whose gradient is wanted. A block takes a band of
// rows of the incoming gradient.
std::vector<at::Tensor> fuse_backward(const at::Tensor& grad_any, at::IntArrayRef sizes,
                                      bool align_corners) {
  constexpr const char* op = "fuse_pyramid_backward";
  constexpr int64_t kChunkFloats = 4096;  // of a level's rows in scratch: 16 KiB
  const c10::DeviceGuard guard(grad_any.device());
  check_dims(op, "grad", grad_any, 4);
  TORCH_CHECK_VALUE(sizes.size() % 2 == 0 && sizes.size() <= 2 * kMaxLevels, op,
                    ": sizes must hold rows and columns of at most ", kMaxLevels, " levels");
  const at::Tensor grad = grad_any.contiguous();
  PyramidBackward p = {};
  p.planes = grad.size(0) * grad.size(1);
  p.rows = grad.size(2);
  p.columns = grad.size(3);
  p.levels = static_cast<int>(sizes.size() / 2);
  constexpr int64_t band_rows = kGpu ? 32 : 128;
  p.bands = std::max<int64_t>(cdiv(p.rows, band_rows), 1);
  p.chunk = std::clamp<int64_t>(kChunkFloats / std::max<int64_t>(p.columns, 1), 1, band_rows);
  std::vector<at::Tensor> grad_levels;
  for (int i = 0; i < p.levels; ++i) {
    const int64_t rows = sizes[2 * i], columns = sizes[2 * i + 1];
    TORCH_CHECK_VALUE(rows > 0 && rows <= p.rows && columns > 0 && columns <= p.columns, op,
                      ": a level must not be empty or larger than grad, got ", rows, " x ",
                      columns);
    p.vertical[i] = Resize(rows, p.rows, align_corners);
    p.horizontal[i] = Resize(columns, p.columns, align_corners);
    grad_levels.push_back(at::empty({grad.size(0), grad.size(1), rows, columns}, grad.options()));
  }
  const Launch launch = {.op = op,
                         .blocks = p.blocks(),
                         .grain = kGrain,
                         .threads = kThreads,
                         .scratch_floats = p.scratch_floats()};
  VSS_DISPATCH_FLOATING(grad.scalar_type(), op, [&] {
    FuseBackward<scalar_t> f = {p, grad.const_data_ptr<scalar_t>(), {}};
    for (int i = 0; i < p.levels; ++i)
      f.grad_levels[i] = grad_levels[i].mutable_data_ptr<scalar_t>();
#if VSS_GPU_CODE
    if (run_gather<scalar_t>(op, p, grad, f.grad_levels)) return;
#endif
    run_blocks<kThreads>(launch, f);
  });
  return grad_levels;
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("fuse_pyramid", TORCH_FN(fuse));
  m.impl("fuse_pyramid_backward", TORCH_FN(fuse_backward));
}

}  // namespace vss::inline VSS_MACHINE::fuse_pyramid
