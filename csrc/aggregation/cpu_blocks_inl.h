// The definitions behind cpu_blocks.h, for the files that compile them.
#pragma once

#include "aggregation.h"
#include "cpu_blocks.h"

namespace vss::aggregation {

template <int kLanes, bool kBackward>
void run_maps(const Program& program, const Arguments& arguments, float* scratch, float* arena,
              int64_t begin, int64_t end) {
  const LaneBlock<kLanes> block(scratch);
  load_parameters(block, program, arguments);
  for (int64_t map = begin; map < end; ++map)
    run_map<kBackward>(block, program, arguments, arena, map);
}

template <int kLanes>
constexpr CpuBlocks cpu_blocks() {
  return {kLanes, run_maps<kLanes, false>, run_maps<kLanes, true>};
}

}  // namespace vss::aggregation
