// Runs blocks on the current device and stream. Nothing here waits for the GPU, and only a
// workspace is allocated (by PyTorch's allocator), so that launches can be captured in a CUDA
// graph.
#pragma once

namespace vss::inline VSS_MACHINE {

class CudaThread {
 public:
  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }
  __device__ void wait(int) const { __syncthreads(); }

  template <int kCount>
  __device__ void exchange(float (&values)[kCount], int mask) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) values[n] = __shfl_xor_sync(0xffffffffu, values[n], mask);
  }

  template <int kBy, int kCount>
  __device__ void shift(float (&values)[kCount]) const {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      if constexpr (kBy < 0) values[n] = __shfl_up_sync(0xffffffffu, values[n], -kBy);
      if constexpr (kBy > 0) values[n] = __shfl_down_sync(0xffffffffu, values[n], kBy);
    }
  }
};

using Block = SharedBlock<CudaThread>;

constexpr int kMostDevices = 64;

// What bounds a launch on the current device; asked for once per device.
inline const GpuLimits& gpu_limits() {
  static std::array<GpuLimits, kMostDevices> limits;
  static std::array<std::once_flag, kMostDevices> known;
  const int device = c10::cuda::current_device();
  TORCH_CHECK(device < kMostDevices, "more than ", kMostDevices, " CUDA devices");
  std::call_once(known[device], [device] {
    const auto attribute = [device](cudaDeviceAttr name) {
      int value = 0;
      C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
      return value;
    };
    limits[device] = {attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                      attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
                      attribute(cudaDevAttrMultiProcessorCount),
                      attribute(cudaDevAttrMaxThreadsPerBlock)};
  });
  return limits[device];
}

// Refuses scratch that no block can have. A forward pass calls it for its backward pass too, so
// that a training step is refused as a whole.
inline void check_scratch(const char* op, int64_t scratch_floats) {
  const int64_t bytes = shared_bytes<Block>(scratch_floats),
                limit = gpu_limits().block_shared_bytes;
  TORCH_CHECK(bytes <= limit, op, ": a block needs ", bytes,
              " bytes of shared memory, the GPU has ", limit, "; use the eager backend");
}

template <int kThreads, typename F>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ F f, int64_t blocks,
                                                   float* workspace, int64_t workspace_floats) {
  extern __shared__ float shared[];
  const int64_t worker = blockIdx.x;
  run_worker(f, Block(shared, workspace + worker * workspace_floats), blocks, worker,
             static_cast<int64_t>(gridDim.x));
}

// Lets a kernel use all the shared memory that the device grants a block, more than the 48 KiB that
// need no asking. Once, since another thread may be launching the same kernel.
template <int kThreads, typename F>
void allow_shared_memory(const GpuLimits& limits) {
  static std::array<std::once_flag, kMostDevices> allowed;
  std::call_once(allowed[c10::cuda::current_device()], [&] {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel<kThreads, F>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(limits.block_shared_bytes)));
  });
}

template <int kThreads, typename F>
void run_blocks(const Launch& launch, const F& f) {
  static_assert(kThreads % Block::kWarp == 0);
  if (launch.blocks == 0) return;
  const GpuLimits& limits = gpu_limits();
  check_scratch(launch.op, launch.scratch_floats);
  allow_shared_memory<kThreads, F>(limits);
  const int64_t bytes = shared_bytes<Block>(launch.scratch_floats);
  const int64_t workers = worker_count(launch, limits);
  at::Tensor workspace;
  float* memory = nullptr;
  if (launch.workspace_floats > 0) {
    workspace = at::empty(
        {workers, launch.workspace_floats},
        at::TensorOptions().device(at::kCUDA, c10::cuda::current_device()).dtype(at::kFloat));
    memory = workspace.mutable_data_ptr<float>();
  }
  const int64_t threads = std::clamp<int64_t>(
      cdiv<int64_t>(launch.threads, Block::kWarp) * Block::kWarp, Block::kWarp, kThreads);
  kernel<kThreads, F>
      <<<static_cast<unsigned>(workers), static_cast<unsigned>(threads), bytes,
         c10::cuda::getCurrentCUDAStream()>>>(f, launch.blocks, memory, launch.workspace_floats);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace vss::inline VSS_MACHINE
