// Runs blocks on the CPU's threads: what launch.h is for a GPU.
#pragma once

#include <ATen/Parallel.h>

#include <vector>

#include "block.h"

namespace vss {

// Splits [0, count) over the threads and runs f(block, begin, end) for each share; each thread gets a
// block with its own scratch. Below `grain` blocks another thread is not worth its start.
template <typename F>
void parallel_blocks(int64_t count, int64_t grain, int64_t scratch_floats, const F& f) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats);
    f(CpuBlock(scratch.data()), begin, end);
  });
}

}  // namespace vss
