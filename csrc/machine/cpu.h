// Runs blocks on the CPU's threads.
#pragma once

namespace vss::inline VSS_MACHINE {

class Block {
 public:
  Block(float* scratch, float* workspace) : scratch_(scratch), workspace_(workspace) {}

  template <typename F>
  VSS_INLINE void for_each(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  template <typename F>
  VSS_INLINE float sum(int64_t n, const F& f) const {
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

  VSS_INLINE float* scratch() const { return scratch_; }
  VSS_INLINE float* workspace() const { return workspace_; }
  VSS_INLINE void sync() const {}

 private:
  float* scratch_;
  float* workspace_;
};

// Floats that start at a cache line, which is also the widest register; zeros.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t count) : memory_(count + kLine) {
    const int64_t past = reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(float) % kLine;
    data_ = memory_.data() + (kLine - past) % kLine;
  }
  float* data() const { return data_; }
  static constexpr int64_t whole_lines(int64_t count) { return cdiv(count, kLine) * kLine; }

 private:
  static constexpr int64_t kLine = 16;
  std::vector<float> memory_;
  float* data_;
};

inline void check_scratch(const char*, int64_t) {}  // as much as there is

// One function for a whole range, so that what does not change from block to block stays in
// registers.
template <typename F>
__attribute__((noinline, flatten)) void run_range(const F& f, const Block& block, int64_t begin,
                                                  int64_t end) {
  begin_worker(f, block);
  for (int64_t i = begin; i < end; ++i) f(block, i);
}

// Calls f(block, i) for every i in [0, launch.blocks), split over the threads. `kThreads` is the
// GPU's.
template <int kThreads = 0, typename F>
void run_blocks(const Launch& launch, const F& f) {
  at::parallel_for(0, launch.blocks, launch.grain, [&](int64_t begin, int64_t end) {
    const int64_t scratch = AlignedFloats::whole_lines(launch.scratch_floats);
    const AlignedFloats memory(scratch + launch.workspace_floats);
    run_range(f, Block(memory.data(), memory.data() + scratch), begin, end);
  });
}

}  // namespace vss::inline VSS_MACHINE
