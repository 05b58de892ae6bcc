// The backward pass of the published chains on a GPU. Gradients go from layer to layer in
// registers; planes hold the layers' inputs, and the gradient that a convolution is about to read.
// As in plan.h, the fine scale comes first, and the coarser ones are computed again for their own
// way back.
#pragma once

#include "gpu_chains.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// A scale's planes: its map, then its sum; the first refining layer's result, where there are two;
// and, one after another, the coarser scale's result, the first mixing layer's, and gradients.
struct ScalePlanes {
  float *sum, *inner, *mixed;
};

template <typename Chains>
struct AggregatePatchesBackward {
  PatchLayout layout;
  Arguments arguments;

  // Channels of the first of two refining layers.
  template <int kGrid>
  static constexpr int kInner =
      Chains::kLengths[kGrid] == 1 ? 0 : Chains::kShapes[chain_begin<Chains>(kGrid)].out;

  template <int kGrid>
  VSS_INLINE int mixed_floats() const {
    const int own = layout.grids[kGrid].channel;
    const int coarser = layout.grids[kGrid == 0 ? 0 : kGrid - 1].channel;
    return kWide<Chains> * (own < coarser ? coarser : own);
  }
  template <int kGrid>
  VSS_INLINE int scale_floats() const {
    return (kWide<Chains> + kInner<kGrid>)*layout.grids[kGrid].channel + mixed_floats<kGrid>();
  }
  // A block's scratch: parameters, every warp's sums for them, and the planes of one scale, which
  // have room for the coarse ones beside the middle result.
  static constexpr int kSums = parameter_count<Chains>() * kMaxWarps;
  int64_t scratch_floats() const {
    const int planes =
        std::max({scale_floats<kCoarse>(), scale_floats<kMiddle>(), scale_floats<kFine>()});
    return kParameterFloats<Chains> + kSums + planes;
  }

  VSS_DEVICE void begin(const Block& block) const {
    begin_scratch<Chains>(block, arguments, kSums);
  }

  VSS_DEVICE void operator()(const Block& block, int64_t map) const {
    float* sums = block.scratch() + kParameterFloats<Chains>;
    float* arena = sums + kSums;
    const PatchTask task{block, layout,          arguments, Patch(layout, block.rank()),
                         map,   block.scratch(), sums};

    float* middle = planes_of<kFine>(arena).mixed;
    clear(block, middle, mixed_floats<kFine>());
    clear(block, arena, kWide<Chains> * layout.grids[kCoarse].channel);
    block.sync();
    load_planes<kMiddle>(task, middle);
    load_planes<kCoarse>(task, arena);
    block.sync();
    refine_coarse<Chains, true>(task, arena);
    store_all(task, refine_and_mix<Chains, true, kMiddle>(task, middle, arena), middle);
    const auto middle_gradient = scale_gradient<kFine>(
        task, planes_of<kFine>(arena), load_patch<4>(task.patch, arguments.maps[kResult], map));

    block.sync();
    float* coarse = planes_of<kMiddle>(arena).mixed;
    clear(block, coarse, mixed_floats<kMiddle>());
    block.sync();
    load_planes<kCoarse>(task, coarse);
    block.sync();
    refine_coarse<Chains, true>(task, coarse);
    const auto coarse_gradient =
        scale_gradient<kMiddle>(task, planes_of<kMiddle>(arena), middle_gradient);

    block.sync();
    clear(block, arena, scale_floats<kCoarse>());
    block.sync();
    const ScalePlanes planes = planes_of<kCoarse>(arena);
    load_planes<kCoarse>(task, planes.sum);
    block.sync();
    refine_first<kCoarse>(task, planes);
    refinement_gradient<kCoarse>(task, planes, coarse_gradient);
    store_parameter_gradients(task);
  }

 private:
  template <int kGrid>
  VSS_DEVICE ScalePlanes planes_of(float* arena) const {
    float* inner = arena + kWide<Chains> * layout.grids[kGrid].channel;
    return {arena, inner, inner + kInner<kGrid> * layout.grids[kGrid].channel};
  }

  template <int kGrid>
  VSS_DEVICE void load_planes(const PatchTask& task, float* plane) const {
    constexpr int kSide = 1 << kGrid;
    store_values(task.patch, task.grid<kSide>(),
                 load_patch<kSide>(task.patch, arguments.maps[kGrid], task.map), plane);
  }

  // Runs a refinement's layers but the last; returns what that one reads.
  template <int kGrid>
  VSS_DEVICE const float* refine_first(const PatchTask& task, const ScalePlanes& planes) const {
    constexpr int kFirst = chain_begin<Chains>(kGrid);
    if constexpr (kInner<kGrid> == 0) {
      return planes.sum;
    } else {
      store_all(task,
                recompute_patch<Chains, LayerOf<Chains, kFirst>, (1 << kGrid)>(task, planes.sum),
                planes.inner);
      return planes.inner;
    }
  }

  // From the gradient of a scale's result to that of the coarser result, which lies in
  // planes.mixed.
  template <int kGrid, int kSide>
  VSS_DEVICE auto scale_gradient(
      const PatchTask& task, const ScalePlanes& planes,
      const Values<kSide, kGrid == kFine ? 1 : kWide<Chains>>& gradient) const {
    static_assert(kSide == 1 << kGrid);
    constexpr int kMixer = chain_begin<Chains>(mixer_chain(kGrid));
    constexpr bool kTwoMixers = Chains::kLengths[mixer_chain(kGrid)] == 2;
    clear(task.block, planes.sum, static_cast<int>(planes.mixed - planes.sum));
    task.block.sync();
    load_planes<kGrid>(task, planes.sum);
    task.block.sync();
    const float* input = refine_first<kGrid>(task, planes);
    auto sum =
        recompute_patch<Chains, LayerOf<Chains, chain_end<Chains>(kGrid) - 1>, kSide>(task, input);
    upsample_patch(task, planes.mixed, sum);
    task.block.sync();
    clear(task.block, planes.mixed, mixed_floats<kGrid>());
    store_all(task, sum, planes.sum);

    Values<kSide, kWide<Chains>> sum_gradient;
    if constexpr (kTwoMixers) {
      store_all(task, recompute_patch<Chains, LayerOf<Chains, kMixer>, kSide>(task, planes.sum),
                planes.mixed);
      sum_gradient = layer_gradient<Chains, LayerOf<Chains, kMixer>>(
          task, planes.sum, planes.mixed,
          layer_gradient<Chains, LayerOf<Chains, kMixer + 1>>(task, planes.mixed, planes.mixed,
                                                              gradient));
    } else {
      sum_gradient =
          layer_gradient<Chains, LayerOf<Chains, kMixer>>(task, planes.sum, planes.mixed, gradient);
    }
    task.block.sync();
    load_planes<kGrid>(task, planes.sum);
    store_all(task, sum_gradient, planes.mixed);
    const auto coarser = upsample_patch_adjoint<kSide, kWide<Chains>>(task, planes.mixed);
    refinement_gradient<kGrid>(task, planes, sum_gradient);
    return coarser;
  }

  // From the gradient of a refinement's result to that of its map, which lies in planes.sum.
  template <int kGrid>
  VSS_DEVICE void refinement_gradient(const PatchTask& task, const ScalePlanes& planes,
                                      const Values<(1 << kGrid), kWide<Chains>>& gradient) const {
    constexpr int kFirst = chain_begin<Chains>(kGrid);
    Values<(1 << kGrid), 1> map_gradient;
    if constexpr (kInner<kGrid> == 0) {
      map_gradient =
          layer_gradient<Chains, LayerOf<Chains, kFirst>>(task, planes.sum, planes.mixed, gradient);
    } else {
      map_gradient = layer_gradient<Chains, LayerOf<Chains, kFirst>>(
          task, planes.sum, planes.mixed,
          layer_gradient<Chains, LayerOf<Chains, kFirst + 1>>(task, planes.inner, planes.mixed,
                                                              gradient));
    }
    const Maps& maps = arguments.maps[kCoarseGradient + kGrid];
    if (maps.data != nullptr) store_patch(task.patch, maps, task.map, map_gradient);
  }

  VSS_DEVICE void store_parameter_gradients(const PatchTask& task) const {
    task.block.sync();
    if (arguments.parts == nullptr) return;
    constexpr int kCount = parameter_count<Chains>();
    VSS_LOOP
    for (int i = task.block.rank(); i < kCount; i += task.block.size()) {
      float total = 0;
      VSS_UNROLL
      for (int warp = 0; warp < kMaxWarps; warp += 4) {
        const auto four = load_vector<4>(task.sums + i * kMaxWarps + warp);
        total += (four.at[0] + four.at[1]) + (four.at[2] + four.at[3]);
      }
      arguments.parts[task.map * kCount + i] = total;
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
