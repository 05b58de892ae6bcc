// aggregate_affinity on a GPU for the published chains: a block takes one map, a thread the patches
// of one coarse position. See docs/relation.md. Every other chain runs the program of plan.h.
#pragma once

#include "gpu_chains.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

template <typename Chains>
struct AggregatePatches {
  PatchLayout layout;
  Arguments arguments;

  // A block's scratch: parameters, room for two sums, planes of all three grids.
  static constexpr int kSums = 2 * kMaxWarps;

  VSS_INLINE int plane_floats() const {
    return kWide<Chains> * (layout.grids[kCoarse].channel + layout.grids[kMiddle].channel +
                            layout.grids[kFine].channel);
  }
  int64_t scratch_floats() const { return kParameterFloats<Chains> + kSums + plane_floats(); }

  VSS_DEVICE void begin(const Block& block) const {
    begin_scratch<Chains>(block, arguments, kSums);
  }

  VSS_DEVICE void operator()(const Block& block, int64_t map) const {
    float* sums = block.scratch() + kParameterFloats<Chains>;
    float* coarse = sums + kSums;
    float* middle = coarse + kWide<Chains> * layout.grids[kCoarse].channel;
    float* fine = middle + kWide<Chains> * layout.grids[kMiddle].channel;
    const PatchTask task{block, layout,          arguments, Patch(layout, block.rank()),
                         map,   block.scratch(), sums};

    const auto coarse_map = load_patch<1>(task.patch, arguments.maps[kCoarse], map);
    const auto middle_map = load_patch<2>(task.patch, arguments.maps[kMiddle], map);
    const auto fine_map = load_patch<4>(task.patch, arguments.maps[kFine], map);
    clear(block, coarse, plane_floats());
    block.sync();
    store_values(task.patch, task.grid<1>(), coarse_map, coarse);
    store_values(task.patch, task.grid<2>(), middle_map, middle);
    store_all(task, fine_map, fine);

    refine_coarse<Chains, false>(task, coarse);
    store_all(task, refine_and_mix<Chains, false, kMiddle>(task, middle, coarse), middle);
    store_patch(task.patch, arguments.maps[kResult], map,
                refine_and_mix<Chains, false, kFine>(task, fine, middle));
  }
};

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
