// The CUDA launchers of aggregate_affinity: one thread block per map, its planes in shared memory where
// they fit, else in a workspace that bounds how many blocks run at a time.
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "../common/launch.h"
#include "aggregation.h"
#include "aggregation_arguments.h"

namespace vss::aggregation {
namespace {

constexpr int kMaxThreads = kMaxWarps * GpuBlock::kWarp;

// Runs the program for every map. The planes lie behind the parameters in shared memory, or, where a
// workspace is given, in each block's part of it.
template <bool kBackward, bool kShared>
struct RunMaps {
  Program program;
  Arguments arguments;
  int64_t maps;
  float* workspace;

  VSS_DEVICE void operator()(const GpuBlock& block, int64_t index, int64_t blocks) const {
    load_parameters(block, program, arguments);
    float* arena = kShared ? block.scratch() + program.scratch_floats()
                           : workspace + index * program.arena_floats;
    for (int64_t map = index; map < maps; map += blocks)
      run_map<kBackward>(block, program, arguments, arena, map);
  }
};

// A whole number of warps that shares the tiles of the fine grid out evenly. Registers allow
// kMaxThreads on a multiprocessor: where shared memory lets two blocks live there, each takes half, so
// that one computes while the other waits at a barrier.
int threads_for(const Program& program, int64_t shared_bytes, const GpuLimits& limits) {
  constexpr int64_t kReservedBytes = 1024;  // of each block, by CUDA
  const bool two_fit = 2 * (shared_bytes + kReservedBytes) <= limits.multiprocessor_shared_bytes;
  const int tiles = program.grids[kFine].tiles;
  const int rounds = ceil_div(tiles, two_fit ? kMaxThreads / 2 : kMaxThreads);
  return ceil_div(ceil_div(tiles, rounds), GpuBlock::kWarp) * GpuBlock::kWarp;
}

template <bool kBackward>
void launch(const char* op, const Call& call) {
  if (call.maps == 0) return;
  const Program& program = call.program;
  const GpuLimits limits = gpu_limits();
  const int64_t scratch = program.scratch_floats();
  const auto bytes = [](int64_t floats) {
    return (GpuBlock::kReserved + floats) * static_cast<int64_t>(sizeof(float));
  };
  if (bytes(scratch + program.arena_floats) <= limits.block_shared_bytes) {
    const int64_t blocks = std::min<int64_t>(call.maps, (int64_t{1} << 31) - 1);
    const int threads = threads_for(program, bytes(scratch + program.arena_floats), limits);
    launch_blocks<kMaxThreads>(
        op, blocks, threads, scratch + program.arena_floats,
        RunMaps<kBackward, true>{program, call.arguments, call.maps, nullptr});
  } else {
    constexpr int64_t kWorkspaceFloats = int64_t{64} << 18;  // 64 MiB
    const int64_t blocks = std::clamp<int64_t>(
        std::min(kWorkspaceFloats / program.arena_floats, 2 * limits.multiprocessors), 1, call.maps);
    const at::Tensor workspace = at::empty({blocks, program.arena_floats},
                                           call.owned.front().options().dtype(at::kFloat));
    launch_blocks<kMaxThreads>(op, blocks, threads_for(program, bytes(scratch), limits), scratch,
                               RunMaps<kBackward, false>{program, call.arguments, call.maps,
                                                         workspace.mutable_data_ptr<float>()});
  }
}

std::tuple<at::Tensor, at::Tensor> aggregate(const at::Tensor& coarse, const at::Tensor& middle,
                                             const at::Tensor& fine, const at::Tensor& parameters,
                                             at::IntArrayRef layers) {
  const c10::DeviceGuard guard(coarse.device());
  check_maps(coarse, middle, fine, parameters);
  const ForwardCall call =
      forward_call(coarse, middle, fine, parameters, layers, GpuBlock::kLanes);
  launch<false>("aggregate_affinity", call);
  return {call.result, call.statistics};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> aggregate_backward(
    const at::Tensor& grad, const at::Tensor& coarse, const at::Tensor& middle,
    const at::Tensor& fine, const at::Tensor& parameters, const at::Tensor& statistics,
    at::IntArrayRef layers, std::array<bool, 4> needs) {
  const c10::DeviceGuard guard(coarse.device());
  check_maps(coarse, middle, fine, parameters);
  check_gradient(grad, fine);
  const BackwardCall call = backward_call(grad, coarse, middle, fine, parameters, statistics, layers,
                                          needs, GpuBlock::kLanes);
  launch<true>("aggregate_affinity_backward", call);
  return call.gradients(fine.scalar_type(), parameters.scalar_type());
}

}  // namespace
}  // namespace vss::aggregation

TORCH_LIBRARY_IMPL(vss_kernels, VSS_GPU_KEY, m) {
  m.impl("aggregate_affinity", TORCH_FN(vss::aggregation::aggregate));
  m.impl("aggregate_affinity_backward", TORCH_FN(vss::aggregation::aggregate_backward));
}
