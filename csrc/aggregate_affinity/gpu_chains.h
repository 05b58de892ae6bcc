// The published chains of MRCFA, and what runs them forwards on a GPU: a scale's layers one after
// another, in place, and the way from one scale to the next.
#pragma once

#include "gpu_layer_gradient.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// Sun et al., ECCV 2022: the chains of B0 and B2 to B5.
struct OneLayerChains {
  static constexpr int kLengths[kChains] = {1, 1, 1, 1, 1};
  static constexpr int kLayers = 5;
  static constexpr LayerShape kShapes[kLayers] = {
      {3, 1, 1}, {5, 1, 1}, {5, 1, 1}, {3, 1, 1}, {3, 1, 1}};
};

// Those of B1.
struct TwoLayerChains {
  static constexpr int kLengths[kChains] = {2, 2, 2, 2, 2};
  static constexpr int kLayers = 10;
  static constexpr LayerShape kShapes[kLayers] = {{3, 1, 1}, {3, 1, 2}, {3, 1, 1}, {3, 1, 2},
                                                  {5, 1, 1}, {3, 1, 2}, {3, 2, 2}, {3, 2, 2},
                                                  {3, 2, 2}, {3, 2, 1}};
};

template <typename Chains>
constexpr int parameter_count() {
  return LayerOf<Chains, Chains::kLayers - 1>::kNormBias + 1;  // the last layer has one channel
}

// Chain `chain` is layers [chain_begin, chain_end).
template <typename Chains>
constexpr int chain_begin(int chain) {
  int begin = 0;
  for (int i = 0; i < chain; ++i) begin += Chains::kLengths[i];
  return begin;
}

template <typename Chains>
constexpr int chain_end(int chain) {
  return chain_begin<Chains>(chain + 1);
}

// The chain that mixes a grid's sum; grids' own chains have the grids' numbers.
constexpr int mixer_chain(int grid) { return kGrids + grid - 1; }

// Channels of every chain's result but the last.
template <typename Chains>
constexpr int kWide = Chains::kShapes[Chains::kLengths[0] - 1].out;

// How far the kernels of a grid's chains reach.
template <typename Chains>
constexpr int grid_border(int grid) {
  int border = 0;
  for (const int chain : {grid, grid > 0 ? mixer_chain(grid) : grid})
    for (int layer = chain_begin<Chains>(chain); layer < chain_end<Chains>(chain); ++layer)
      border = std::max(border, Chains::kShapes[layer].kernel / 2);
  return border;
}

template <typename Chains>
PatchLayout make_patch_layout(int64_t height, int64_t width) {
  PatchLayout layout{};
  layout.height = static_cast<int>(height);
  layout.width = static_cast<int>(width);
  layout.row_threads = patch_row_threads(width);
  for (int grid = 0; grid < kGrids; ++grid)
    layout.grids[grid] = make_patch_grid(1 << grid, height, width, grid_border<Chains>(grid));
  return layout;
}

// Row or column weights for a patch's upsampling. With aligned corners, an element t of a patch
// (and -1 and kSide, its neighbours) always lies between the coarser elements first(t) and
// first(t) + 1, counted from the coarser patch's first one; this is the weight of the second.
template <int kSide>
struct PatchTaps {
  float second[kSide + 2];

  VSS_DEVICE PatchTaps(int position, float scale) {
    VSS_UNROLL
    for (int t = -1; t <= kSide; ++t)
      second[t + 1] = static_cast<float>(position * kSide + t) * scale -
                      static_cast<float>(position * (kSide / 2) + first(t));
  }

  VSS_INLINE static constexpr int first(int t) { return (t + 1) / 2 - 1; }
  VSS_DEVICE float operator[](int t) const { return second[t + 1]; }
};

// Adds the coarser planes, upsampled.
template <int kSide, int kChannels>
VSS_DEVICE void upsample_patch(const PatchTask& task, const float* coarser,
                               Values<kSide, kChannels>& values) {
  constexpr int kHalf = kSide / 2;
  const PatchGrid& grid = task.grid<kSide>();
  const PatchGrid& from = task.grid<kHalf>();
  const PatchTaps<kSide> rows(task.patch.row, grid.row_scale);
  const PatchTaps<kSide> columns(task.patch.column, grid.column_scale);
  VSS_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    const float* corner = coarser + c * from.channel + task.patch.offset<kHalf>(from) - from.pitch;
    float source[kHalf + 2][kHalf + 2];  // the coarser patch with a neighbour on each side
    VSS_UNROLL
    for (int y = 0; y < kHalf + 2; ++y) load_row<kHalf, 1>(corner + y * from.pitch, source[y]);
    VSS_UNROLL
    for (int y = 0; y < kSide; ++y) {
      float row[kHalf + 2];
      VSS_UNROLL
      for (int x = 0; x < kHalf + 2; ++x) {
        const float upper = source[rows.first(y) + 1][x];
        row[x] = upper + rows[y] * (source[rows.first(y) + 2][x] - upper);
      }
      VSS_UNROLL
      for (int x = 0; x < kSide; ++x) {
        const float left = row[columns.first(x) + 1];
        values.at[c][y][x] += left + columns[x] * (row[columns.first(x) + 2] - left);
      }
    }
  }
}

// The adjoint: what a coarser patch gathers from the gradient's planes. Coarser element u is read
// by the elements 2u - 1 to 2u + 2 of the patch and its neighbours.
template <int kSide, int kChannels>
VSS_DEVICE Values<kSide / 2, kChannels> upsample_patch_adjoint(const PatchTask& task,
                                                               const float* planes) {
  constexpr int kHalf = kSide / 2;
  const PatchGrid& grid = task.grid<kSide>();
  const PatchTaps<kSide> rows(task.patch.row, grid.row_scale);
  const PatchTaps<kSide> columns(task.patch.column, grid.column_scale);
  const auto weight = [](const PatchTaps<kSide>& taps, int u, int t)
                          VSS_LAMBDA { return taps.first(t) == u ? 1.0f - taps[t] : taps[t]; };
  Values<kHalf, kChannels> values{};
  VSS_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    const float* corner = planes + c * grid.channel + task.patch.offset<kSide>(grid) - grid.pitch;
    float gathered[kHalf][kSide + 2] = {};  // along the columns of the map
    VSS_UNROLL
    for (int t = -1; t <= kSide; ++t) {
      float row[kSide + 2];
      load_row<kSide, 1>(corner + (t + 1) * grid.pitch, row);
      VSS_UNROLL
      for (int u = 0; u < kHalf; ++u) {
        if (t < 2 * u - 1 || t > 2 * u + 2) continue;
        VSS_UNROLL
        for (int x = 0; x < kSide + 2; ++x) gathered[u][x] += weight(rows, u, t) * row[x];
      }
    }
    VSS_UNROLL
    for (int u = 0; u < kHalf * kHalf; ++u) {
      VSS_UNROLL
      for (int t = 2 * (u % kHalf) - 1; t <= 2 * (u % kHalf) + 2; ++t)
        values.at[c][u / kHalf][u % kHalf] +=
            weight(columns, u % kHalf, t) * gathered[u / kHalf][t + 1];
    }
  }
  return values;
}

// Layers [kLayer, kEnd), in place; the last one's result stays in registers.
template <typename Chains, bool kBackward, int kSide, int kLayer, int kEnd>
VSS_DEVICE auto run_layers(const PatchTask& task, float* planes) {
  using Layer = LayerOf<Chains, kLayer>;
  Values<kSide, Layer::kOut> values;
  if constexpr (kBackward) {
    values = recompute_patch<Chains, Layer, kSide>(task, planes);
  } else {
    values = refine_patch<Chains, Layer, kSide>(task, planes);
  }
  if constexpr (kLayer + 1 == kEnd) {
    return values;
  } else {
    store_values(task.patch, task.grid<kSide>(), values, planes);
    task.block.sync();
    return run_layers<Chains, kBackward, kSide, kLayer + 1, kEnd>(task, planes);
  }
}

template <typename Chains, bool kBackward, int kSide, int kChain>
VSS_DEVICE auto run_chain(const PatchTask& task, float* planes) {
  return run_layers<Chains, kBackward, kSide, chain_begin<Chains>(kChain),
                    chain_end<Chains>(kChain)>(task, planes);
}

template <int kSide, int kChannels>
VSS_DEVICE void store_all(const PatchTask& task, const Values<kSide, kChannels>& values,
                          float* planes) {
  store_values(task.patch, task.grid<kSide>(), values, planes);
  task.block.sync();
}

// The coarse scale's map, in place, to its result.
template <typename Chains, bool kBackward>
VSS_DEVICE void refine_coarse(const PatchTask& task, float* coarse) {
  store_all(task, run_chain<Chains, kBackward, 1, kCoarse>(task, coarse), coarse);
}

// A finer scale's map, in place, to its sum with the coarser result, and that to the scale's
// result, which stays in registers.
template <typename Chains, bool kBackward, int kGrid>
VSS_DEVICE auto refine_and_mix(const PatchTask& task, float* planes, const float* coarser) {
  constexpr int kSide = 1 << kGrid;
  auto sum = run_chain<Chains, kBackward, kSide, kGrid>(task, planes);
  upsample_patch(task, coarser, sum);
  store_all(task, sum, planes);
  return run_chain<Chains, kBackward, kSide, mixer_chain(kGrid)>(task, planes);
}

// Floats of scratch that the parameters take.
template <typename Chains>
constexpr int kParameterFloats = cdiv(parameter_count<Chains>(), 4) * 4;

// Fills the scratch of a block before its first map: the parameters as float32, then zeros in the
// room for sums.
template <typename Chains>
VSS_DEVICE void begin_scratch(const Block& block, const Arguments& arguments, int sum_floats) {
  with_type(arguments.parameter_kind, const_cast<void*>(arguments.parameters),
            [&](const auto* data) {
              VSS_LOOP
              for (int i = block.rank(); i < parameter_count<Chains>(); i += block.size())
                block.scratch()[i] = static_cast<float>(data[i]);
            });
  clear(block, block.scratch() + kParameterFloats<Chains>, sum_floats);
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
