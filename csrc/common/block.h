// A block: the worker that an operator's algorithm is written for, once, for both machines.
//
// An operator's header holds functions over a `Block`. On the GPU a block is a CUDA thread block with
// shared memory; on the CPU it is a plain loop inside one parallel task, with scratch memory small
// enough to stay in cache. Both offer the same interface:
//
//   kLanes            how many neighbouring elements one work item should take: a SIMD register's
//                     worth on the CPU, one on the GPU, where neighbours belong to other threads
//   for_each(n, f)    calls f(i) once for every i in [0, n), in any order
//   sum(n, f)         the sum of f(i) over i in [0, n), known to the whole block; the order of the
//                     additions is fixed, so that two runs agree bit for bit
//   scratch()         memory that the block's workers share
//   sync()            what was written before is visible to the whole block after
//
// Every line of an algorithm therefore runs in the CPU tests and under the CPU sanitizers; only the
// launchers (cpu.cpp, cuda.cu) differ.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VSS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define VSS_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Marks the CPU function that runs one block. The compiler emits it for several instruction sets
// and the loader picks the best one, so that a portable build still uses wide registers.
// They are the levels of x86-64 and not processors: "arch=haswell" would be picked on a Haswell and on
// no later processor. Sanitizer builds opt out: their run-time is not up yet when the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(__CUDACC__) && !defined(VSS_NO_CPU_CLONES)
#define VSS_CPU_BLOCK \
  __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VSS_CPU_BLOCK
#endif

namespace vss {

template <typename Index>
VSS_HOST_DEVICE constexpr Index ceil_div(Index a, Index b) {
  return (a + b - 1) / b;
}

class CpuBlock {
 public:
  static constexpr int kLanes = 16;

  explicit CpuBlock(float* scratch) : scratch_(scratch) {}

  template <typename F>
  VSS_HOST_DEVICE void for_each(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  template <typename F>
  VSS_HOST_DEVICE float sum(int64_t n, const F& f) const {
    // Independent partial sums let the compiler use wide registers without reordering floats.
    float partial[kLanes] = {};
    const int64_t whole = n / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) partial[lane] += f(i + lane);
    for (int64_t i = whole; i < n; ++i) partial[i - whole] += f(i);
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += partial[lane];
    return total;
  }

  VSS_HOST_DEVICE float* scratch() const { return scratch_; }
  VSS_HOST_DEVICE void sync() const {}

 private:
  float* scratch_;
};

#if defined(__CUDACC__)

class CudaBlock {
 public:
  static constexpr int kLanes = 1;
  static constexpr int kWarp = 32;
  // The launcher adds this many floats of shared memory in front of an algorithm's own scratch.
  static constexpr int kReserved = kWarp;

  __device__ explicit CudaBlock(float* shared) : shared_(shared) {}

  template <typename F>
  __device__ void for_each(int64_t n, const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }

  // The block must have a whole number of warps.
  template <typename F>
  __device__ float sum(int64_t n, const F& f) const {
    float value = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) value += f(i);
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      value += __shfl_xor_sync(0xffffffffu, value, offset);
    if (threadIdx.x % kWarp == 0) shared_[threadIdx.x / kWarp] = value;
    __syncthreads();
    float total = 0;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) total += shared_[warp];
    __syncthreads();  // the partial sums may be overwritten by the next call
    return total;
  }

  __device__ float* scratch() const { return shared_ + kReserved; }
  __device__ void sync() const { __syncthreads(); }

 private:
  float* shared_;
};

#endif  // __CUDACC__

}  // namespace vss
