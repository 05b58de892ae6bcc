// A block: the worker that a kernel is written for, once, for all machines.
//
// On a GPU a block is a CUDA thread block with shared memory; on a CPU it is a plain loop inside
// one parallel task, with scratch memory small enough to stay in cache. `Block` is the machine's
// own, with the same interface on each:
//
//   for_each(n, f)    calls f(i) once for every i in [0, n), in any order
//   sum(n, f)         the sum of f(i) over i in [0, n), known to the whole block; the order of the
//                     additions is fixed, so that two runs agree bit for bit
//   scratch()         memory that the block's workers share
//   workspace()       memory of the block's own, slower and larger, where the launch asked for it
//   sync()            what was written before is visible to the whole block after
//
// Almost every line of a kernel therefore runs in the CPU tests and under the CPU sanitizers. What
// a GPU alone runs (`if constexpr (kGpu)`, the sums over a warp) runs in the race check.
#pragma once

namespace vss::inline VSS_MACHINE {

template <typename Index>
VSS_INLINE constexpr Index cdiv(Index a, Index b) {
  return (a + b - 1) / b;
}

// The positions [begin, end).
struct Range {
  int64_t begin, end;
  VSS_INLINE int64_t size() const { return end - begin; }
};

// What run_blocks() is asked for.
struct Launch {
  const char* op;
  int64_t blocks;
  int64_t grain = 1;     // CPU: blocks that are worth starting another thread for
  int64_t threads = 32;  // GPU: threads of a block; rounded up to whole warps, bounded by kThreads
  int64_t scratch_floats = 0;    // CPU: zeros when a worker starts. GPU: whatever was there
  int64_t workspace_floats = 0;  // of every worker; zeros nowhere
};

// Kernels that have something to do before a worker's first block do it in begin(block).
template <typename F, typename Block>
VSS_INLINE void begin_worker(const F& f, const Block& block) {
  if constexpr (requires { f.begin(block); }) f.begin(block);
}

#if VSS_GPU_CODE

// A block of threads that share memory. All of them run the kernel, each taking its part of every
// for_each. `Thread` is what one of them asks of the machine:
//
//   rank(), size()         its number in the block, and how many there are
//   wait(line)             returns once all threads of the block are here
//   exchange(values, mask) swaps the values with the thread of its warp whose rank differs by
//                          `mask`
//   shift<kBy>(values)     takes over the values of the thread that is kBy ranks on in its warp;
//                          where there is none, the values stay
template <typename Thread>
class SharedBlock {
 public:
  static constexpr int kWarp = 32;
  // Every launch adds this many floats of shared memory in front of the kernel's own scratch.
  static constexpr int kReserved = kWarp;

  VSS_DEVICE SharedBlock(float* shared, float* workspace, const Thread& thread = {})
      : thread_(thread), shared_(shared), workspace_(workspace) {}

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

  template <int kBy, int kCount>
  VSS_DEVICE void shift(float (&values)[kCount]) const {
    thread_.template shift<kBy>(values);
  }

  VSS_DEVICE float* scratch() const { return shared_ + kReserved; }
  VSS_DEVICE float* workspace() const { return workspace_; }
  VSS_DEVICE void sync(int line = __builtin_LINE()) const { thread_.wait(line); }

 private:
  Thread thread_;
  float* shared_;
  float* workspace_;
};

// What bounds a launch on the current device.
struct GpuLimits {
  int64_t block_shared_bytes, multiprocessor_shared_bytes;
  int64_t multiprocessors, block_threads;
};

template <typename Block>
constexpr int64_t shared_bytes(int64_t scratch_floats) {
  return (Block::kReserved + scratch_floats) * static_cast<int64_t>(sizeof(float));
}

// How many workers a launch gets, each taking every so manieth block: as many as blocks, or, where
// each needs a workspace, what keeps the device busy within 64 MiB of them.
inline int64_t worker_count(const Launch& launch, const GpuLimits& limits) {
  constexpr int64_t kMostWorkers = (int64_t{1} << 31) - 1;
  constexpr int64_t kWorkspaceFloats = int64_t{64} << 18;
  if (launch.workspace_floats == 0) return std::min(launch.blocks, kMostWorkers);
  return std::clamp<int64_t>(
      std::min(kWorkspaceFloats / launch.workspace_floats, 2 * limits.multiprocessors), 1,
      launch.blocks);
}

// A worker's part of a launch: the program that a GPU's block, or the race check's, carries out.
template <typename F, typename Block>
VSS_DEVICE void run_worker(const F& f, const Block& block, int64_t blocks, int64_t worker,
                           int64_t workers) {
  begin_worker(f, block);
  for (int64_t index = worker; index < blocks; index += workers) f(block, index);
}

#endif

}  // namespace vss::inline VSS_MACHINE
