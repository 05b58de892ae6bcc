// The CUDA launchers of aggregate_affinity: one thread block per map, its planes in shared memory where
// they fit, else in a workspace that bounds how many blocks run at a time.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "aggregation.h"
#include "aggregation_arguments.h"

namespace vss::aggregation {
namespace {

constexpr int kMaxThreads = kMaxWarps * CudaBlock::kWarp;

template <bool kBackward, bool kShared>
__global__ void __launch_bounds__(kMaxThreads)
    run_maps(const __grid_constant__ Program program, const __grid_constant__ Arguments arguments,
             int64_t maps, float* workspace) {
  extern __shared__ float shared[];
  const CudaBlock block(shared);
  load_parameters(block, program, arguments);
  float* arena = kShared ? block.scratch() + program.scratch_floats()
                         : workspace + blockIdx.x * static_cast<int64_t>(program.arena_floats);
  for (int64_t map = blockIdx.x; map < maps; map += gridDim.x)
    run_map<kBackward>(block, program, arguments, arena, map);
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// A whole number of warps that shares the tiles of the fine grid out evenly. Registers allow
// kMaxThreads on a multiprocessor: where shared memory lets two blocks live there, each takes half, so
// that one computes while the other waits at a barrier.
int threads_for(const Program& program, int64_t shared_bytes) {
  constexpr int64_t kReservedBytes = 1024;  // of each block, by CUDA
  const bool two_fit = 2 * (shared_bytes + kReservedBytes) <=
                       device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int tiles = program.grids[kFine].tiles;
  const int rounds = ceil_div(tiles, two_fit ? kMaxThreads / 2 : kMaxThreads);
  return ceil_div(ceil_div(tiles, rounds), CudaBlock::kWarp) * CudaBlock::kWarp;
}

template <bool kBackward>
void launch(const Call& call) {
  if (call.maps == 0) return;
  const Program& program = call.program;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t scratch = CudaBlock::kReserved + program.scratch_floats();
  const int64_t bytes = (scratch + program.arena_floats) * sizeof(float);
  if (bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) {
    const auto kernel = run_maps<kBackward, true>;
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
    const int64_t blocks = std::min<int64_t>(call.maps, (int64_t{1} << 31) - 1);
    kernel<<<blocks, threads_for(program, bytes), bytes, stream>>>(program, call.arguments, call.maps, nullptr);
  } else {
    constexpr int64_t kWorkspaceFloats = int64_t{64} << 18;  // 64 MiB
    const int64_t blocks = std::clamp<int64_t>(
        std::min<int64_t>(kWorkspaceFloats / program.arena_floats,
                          2 * device_attribute(cudaDevAttrMultiProcessorCount)),
        1, call.maps);
    const at::Tensor workspace = at::empty({blocks, program.arena_floats},
                                           call.owned.front().options().dtype(at::kFloat));
    const int64_t scratch_bytes = scratch * sizeof(float);
    run_maps<kBackward, false>
        <<<blocks, threads_for(program, scratch_bytes), scratch_bytes, stream>>>(
            program, call.arguments, call.maps, workspace.mutable_data_ptr<float>());
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor> aggregate(const at::Tensor& coarse, const at::Tensor& middle,
                                             const at::Tensor& fine, const at::Tensor& parameters,
                                             at::IntArrayRef layers) {
  const c10::cuda::CUDAGuard guard(coarse.device());
  check_maps(coarse, middle, fine, parameters);
  const ForwardCall call =
      forward_call(coarse, middle, fine, parameters, layers, CudaBlock::kLanes);
  launch<false>(call);
  return {call.result, call.statistics};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> aggregate_backward(
    const at::Tensor& grad, const at::Tensor& coarse, const at::Tensor& middle,
    const at::Tensor& fine, const at::Tensor& parameters, const at::Tensor& statistics,
    at::IntArrayRef layers, std::array<bool, 4> needs) {
  const c10::cuda::CUDAGuard guard(coarse.device());
  check_maps(coarse, middle, fine, parameters);
  check_gradient(grad, fine);
  const BackwardCall call = backward_call(grad, coarse, middle, fine, parameters, statistics, layers,
                                          needs, CudaBlock::kLanes);
  launch<true>(call);
  return call.gradients(fine.scalar_type(), parameters.scalar_type());
}

}  // namespace
}  // namespace vss::aggregation

TORCH_LIBRARY_IMPL(vss_kernels, CUDA, m) {
  m.impl("aggregate_affinity", TORCH_FN(vss::aggregation::aggregate));
  m.impl("aggregate_affinity_backward", TORCH_FN(vss::aggregation::aggregate_backward));
}
