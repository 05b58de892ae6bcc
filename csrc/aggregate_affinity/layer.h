// One layer on one map: convolution, GroupNorm with one group, ReLU.
#pragma once

#include "convolution.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// A layer at work on one map.
struct LayerTask {
  const Grid& g;
  const Layer& layer;
  const float* parameters;
  float* scratch;     // of block_reduce
  float* statistics;  // mean and 1 / standard deviation
  float* parts;       // this map's part of the parameters' gradients; may be null
  float epsilon;

  VSS_INLINE float elements() const {
    return static_cast<float>(layer.out) * static_cast<float>(g.height) *
           static_cast<float>(g.width);
  }
};

// A NaN stays one, as in torch.relu.
VSS_INLINE Floats relu(Floats x) { return x < 0.0f ? Floats{} : x; }

// Zeroes the gradient where the ReLU's argument was not positive.
VSS_INLINE Floats relu_gradient(Floats argument, Floats gradient) {
  return argument <= 0.0f ? Floats{} : gradient;
}

// Stores a row of a tile with zeros beyond the grid's last column.
VSS_INLINE void store_row(const Grid& g, Tile tile, int row, float* plane, Floats& lanes) {
  lanes = keep_first(lanes, g.width - tile.x);
  store(plane + g.origin + (tile.y + row) * g.pitch + tile.x, lanes);
}

// Normalises planes in place with one group's statistics; then the ReLU.
VSS_INLINE void normalise(const Block& block, const LayerTask& task, float mean, float rstd,
                          float* planes) {
  const Grid& g = task.g;
  block.for_each(task.layer.out * g.tiles, [&](int64_t index) {
    const int c = static_cast<int>(index) / g.tiles;
    const Tile tile = tile_at(g, static_cast<int>(index) % g.tiles);
    const float scale = rstd * task.parameters[task.layer.norm_weight() + c];
    const float shift = task.parameters[task.layer.norm_bias() + c];
    float* plane = planes + c * g.channel;
    for (int r = 0; r < kRows && tile.y + r < g.height; ++r) {
      Floats value = load(plane + g.origin + (tile.y + r) * g.pitch + tile.x);
      value = relu((value - mean) * scale + shift);
      store_row(g, tile, r, plane, value);
    }
  });
}

// target = ReLU(GroupNorm(convolution of source)). The variance is taken around the mean in a
// second pass over the plane, so that nothing cancels.
VSS_INLINE void refine(const Block& block, const LayerTask& task, const float* source,
                       float* target) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  clear_halos(block, g, layer.out, target);
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    block_reduce<1>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at(g, index);
      Floats value[kRows][kOut];
      convolve_tile<kKernel, kOut>(g, source, weights, tile, value);
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (tile.y + r >= g.height) continue;
        VSS_UNROLL
        for (int o = 0; o < kOut; ++o) {
          store_row(g, tile, r, target + o * g.channel, value[r][o]);
          total[0] += value[r][o];
        }
      }
    });
  });
  const float mean = task.scratch[0] / task.elements();
  block_reduce<1>(block, layer.out * g.tiles, task.scratch, [&](int index, auto& total) {
    const float* plane = target + index / g.tiles * g.channel + g.origin;
    const Tile tile = tile_at(g, index % g.tiles);
    for (int r = 0; r < kRows && tile.y + r < g.height; ++r) {
      const Floats value =
          keep_first(load(plane + (tile.y + r) * g.pitch + tile.x) - mean, g.width - tile.x);
      total[0] += value * value;
    }
  });
  const float rstd = 1.0f / std::sqrt(task.scratch[0] / task.elements() + task.epsilon);
  block.for_each(1, [&](int64_t) {
    task.statistics[0] = mean;
    task.statistics[1] = rstd;
  });
  normalise(block, task, mean, rstd, target);
}

// The same with the statistics saved by the forward pass: one pass.
VSS_INLINE void recompute(const Block& block, const LayerTask& task, const float* source,
                          float* target) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  const float mean = task.statistics[0];
  const float rstd = task.statistics[1];
  clear_halos(block, g, layer.out, target);
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    block.for_each(g.tiles, [&](int64_t index) {
      const Tile tile = tile_at(g, static_cast<int>(index));
      Floats value[kRows][kOut];
      convolve_tile<kKernel, kOut>(g, source, weights, tile, value);
      VSS_UNROLL
      for (int o = 0; o < kOut; ++o) {
        const float scale = rstd * task.parameters[layer.norm_weight() + o];
        const float shift = task.parameters[layer.norm_bias() + o];
        VSS_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (tile.y + r >= g.height) continue;
          value[r][o] = relu((value[r][o] - mean) * scale + shift);
          store_row(g, tile, r, target + o * g.channel, value[r][o]);
        }
      }
    });
  });
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
