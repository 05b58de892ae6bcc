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
#define VSS_DEVICE __device__ __forceinline__
#else
#define VSS_HOST_DEVICE inline __attribute__((always_inline))
#define VSS_DEVICE VSS_HOST_DEVICE
#endif

// Whether this compilation is of what a GPU runs: by nvcc, or for the race check (threads.h).
#if defined(__CUDACC__) || defined(VSS_THREADED_BLOCK)
#define VSS_GPU_CODE
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

// A block of threads that share memory. All of them run the algorithm, each taking its share of every
// for_each. `Thread` is what one of them asks of the machine:
//
//   rank(), size()         its number in the block, and how many there are
//   wait(line)             returns once all threads of the block are here
//   exchange(values, mask) swaps the values with the thread of its warp whose rank differs by `mask`
template <typename Thread>
class SharedBlock {
 public:
  static constexpr int kLanes = 1;
  static constexpr int kWarp = 32;
  // The launcher adds this many floats of shared memory in front of an algorithm's own scratch.
  static constexpr int kReserved = kWarp;

  VSS_DEVICE explicit SharedBlock(float* shared, const Thread& thread = {})
      : thread_(thread), shared_(shared) {}

  VSS_DEVICE int rank() const { return thread_.rank(); }
  VSS_DEVICE int size() const { return thread_.size(); }

  template <typename F>
  VSS_DEVICE void for_each(int64_t n, const F& f) const {
    for (int64_t i = rank(); i < n; i += size()) f(i);
  }

  // The block must have a whole number of warps.
  template <typename F>
  VSS_DEVICE float sum(int64_t n, const F& f) const {
    float value = 0;
    for (int64_t i = rank(); i < n; i += size()) value += f(i);
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      float other[1] = {value};
      exchange(other, offset);
      value += other[0];
    }
    if (rank() % kWarp == 0) shared_[rank() / kWarp] = value;
    sync();
    float total = 0;
    for (int warp = 0; warp < size() / kWarp; ++warp) total += shared_[warp];
    sync();  // the partial sums may be overwritten by the next call
    return total;
  }

  template <int kCount>
  VSS_DEVICE void exchange(float (&values)[kCount], int mask) const {
    thread_.exchange(values, mask);
  }

  VSS_DEVICE float* scratch() const { return shared_ + kReserved; }
  VSS_DEVICE void sync(int line = __builtin_LINE()) const { thread_.wait(line); }

 private:
  Thread thread_;
  float* shared_;
};

#if defined(__CUDACC__)

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
};

using GpuBlock = SharedBlock<CudaThread>;

#endif

}  // namespace vss
