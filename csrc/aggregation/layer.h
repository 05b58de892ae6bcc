// One layer on one map: convolution, GroupNorm with one group, ReLU.
#pragma once

#include <math.h>

#include "convolution.h"
#include "totals.h"

namespace vss::aggregation {

// A layer at work on one map.
struct LayerTask {
  const Grid& g;
  const Layer& layer;
  const float* parameters;
  float* scratch;     // of totals
  float* statistics;  // mean and 1 / standard deviation
  float* parts;       // this map's share of the parameters' gradients; may be null
  float epsilon;

  VSS_HOST_DEVICE float elements() const {
    return static_cast<float>(layer.out) * static_cast<float>(g.height) *
           static_cast<float>(g.width);
  }
};

// Stores a row of a tile with zeros beyond the grid's last column.
template <typename L>
VSS_HOST_DEVICE void store_row(const Grid& g, Tile tile, int row, float* plane, L& lanes) {
  keep_first(lanes, g.width - tile.x);
  store(plane + g.origin + (tile.y + row) * g.pitch + tile.x, lanes);
}

// Normalises planes in place with one group's statistics; then the ReLU.
template <typename Block>
VSS_HOST_DEVICE void normalise(const Block& block, const LayerTask& task, float mean, float rstd,
                               float* planes) {
  const Grid& g = task.g;
  block.for_each(task.layer.out * g.tiles, [&](int64_t index) {
    const int c = static_cast<int>(index) / g.tiles;
    const Tile tile = tile_at<Block>(g, static_cast<int>(index) % g.tiles);
    const float scale = rstd * task.parameters[task.layer.norm_weight() + c];
    const float shift = task.parameters[task.layer.norm_bias() + c];
    float* plane = planes + c * g.channel;
    for (int r = 0; r < kRows && tile.y + r < g.height; ++r) {
      Lanes<Block> value;
      load(plane + g.origin + (tile.y + r) * g.pitch + tile.x, value);
      value = (value - mean) * scale + shift;
      relu(value);
      store_row(g, tile, r, plane, value);
    }
  });
}

// target = ReLU(GroupNorm(convolution of source)). The variance is taken around the mean in a second
// pass over the plane, so that nothing cancels.
template <typename Block>
VSS_HOST_DEVICE void refine(const Block& block, const LayerTask& task, const float* source,
                            float* target) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  clear_frames(block, g, layer.out, target);
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    totals<1>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at<Block>(g, index);
      Lanes<Block> value[kRows][kOut];
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
  totals<1>(block, layer.out * g.tiles, task.scratch, [&](int index, auto& total) {
    const float* plane = target + index / g.tiles * g.channel + g.origin;
    const Tile tile = tile_at<Block>(g, index % g.tiles);
    for (int r = 0; r < kRows && tile.y + r < g.height; ++r) {
      Lanes<Block> value;
      load(plane + (tile.y + r) * g.pitch + tile.x, value);
      value -= mean;
      keep_first(value, g.width - tile.x);
      total[0] += value * value;
    }
  });
  const float rstd = 1.0f / sqrtf(task.scratch[0] / task.elements() + task.epsilon);
  block.for_each(1, [&](int64_t) {
    task.statistics[0] = mean;
    task.statistics[1] = rstd;
  });
  normalise(block, task, mean, rstd, target);
}

// The same with the statistics saved by the forward pass: one pass.
template <typename Block>
VSS_HOST_DEVICE void repeat(const Block& block, const LayerTask& task, const float* source,
                            float* target) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  const float mean = task.statistics[0];
  const float rstd = task.statistics[1];
  clear_frames(block, g, layer.out, target);
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    block.for_each(g.tiles, [&](int64_t index) {
      const Tile tile = tile_at<Block>(g, static_cast<int>(index));
      Lanes<Block> value[kRows][kOut];
      convolve_tile<kKernel, kOut>(g, source, weights, tile, value);
      VSS_UNROLL
      for (int o = 0; o < kOut; ++o) {
        const float scale = rstd * task.parameters[layer.norm_weight() + o];
        const float shift = task.parameters[layer.norm_bias() + o];
        VSS_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (tile.y + r >= g.height) continue;
          value[r][o] = (value[r][o] - mean) * scale + shift;
          relu(value[r][o]);
          store_row(g, tile, r, target + o * g.channel, value[r][o]);
        }
      }
    });
  });
}

}  // namespace vss::aggregation
