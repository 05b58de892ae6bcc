// Launches blocks on the current device and stream. The race check, which runs the same launchers on
// threads of the CPU, replaces what stands here by threads.h.
//
//   VSS_GPU_KEY                 the dispatch key that the launchers register their operators for
//   gpu_limits()                what bounds a launch on the current device
//   launch_blocks<kThreads>(op, blocks, threads, scratch_floats, f)
//                               runs f(block, index, blocks) for each of them; kThreads bounds `threads`
//   launch_each<kThreads>(op, count, threads, scratch_floats, f)
//                               runs f(block, i) for every i in [0, count)
//
// Nothing here waits for the GPU or allocates, so that launches can be captured in a CUDA graph.
#pragma once

#include <algorithm>

#include "block.h"

#if defined(VSS_THREADED_BLOCK)
#include "threads.h"
#define VSS_GPU_KEY CPU
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#define VSS_GPU_KEY CUDA
#endif

namespace vss {

struct GpuLimits {
  int64_t block_shared_bytes, multiprocessor_shared_bytes;
  int64_t multiprocessors;
};

#if defined(VSS_THREADED_BLOCK)

// So little shared memory that the tests' maps take either way.
inline GpuLimits gpu_limits() { return {16 << 10, 32 << 10, 1}; }

#else

inline GpuLimits gpu_limits() {
  const auto attribute = [device = c10::cuda::current_device()](cudaDeviceAttr name) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  return {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          attribute(cudaDevAttrMultiProcessorCount)};
}

template <int kThreads, typename F>
__global__ void __launch_bounds__(kThreads) run_blocks(const __grid_constant__ F f) {
  extern __shared__ float shared[];
  f(GpuBlock(shared), static_cast<int64_t>(blockIdx.x), static_cast<int64_t>(gridDim.x));
}

template <int kThreads, typename F>
void launch_blocks(const char* op, int64_t blocks, int64_t threads, int64_t scratch_floats,
                   const F& f) {
  constexpr int64_t kSharedBytes = 48 * 1024;  // what a kernel may use without asking
  const int64_t bytes = (GpuBlock::kReserved + scratch_floats) * sizeof(float);
  if (bytes > kSharedBytes) {
    const int64_t limit = gpu_limits().block_shared_bytes;
    TORCH_CHECK(bytes <= limit, op, ": a block needs ", bytes, " bytes of shared memory, the GPU has ",
                limit, "; use the eager backend");
    C10_CUDA_CHECK(cudaFuncSetAttribute(run_blocks<kThreads, F>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
  }
  run_blocks<kThreads, F><<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), bytes,
                            c10::cuda::getCurrentCUDAStream()>>>(f);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

#endif

template <typename F>
struct EachIndex {
  int64_t count;
  F f;

  VSS_DEVICE void operator()(const GpuBlock& block, int64_t index, int64_t blocks) const {
    for (int64_t i = index; i < count; i += blocks) f(block, i);
  }
};

// The threads are rounded up to whole warps, and bounded by kThreads.
template <int kThreads, typename F>
void launch_each(const char* op, int64_t count, int64_t threads, int64_t scratch_floats, const F& f) {
  static_assert(kThreads % GpuBlock::kWarp == 0);
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
  if (count == 0) return;
  threads = std::clamp<int64_t>(ceil_div<int64_t>(threads, GpuBlock::kWarp) * GpuBlock::kWarp,
                                GpuBlock::kWarp, kThreads);
  launch_blocks<kThreads>(op, std::min(count, kMostBlocks), threads, scratch_floats,
                          EachIndex<F>{count, f});
}

}  // namespace vss
