// aggregate_affinity: the block program. One block carries out all steps of a program (plan.h) for one
// map after another; every intermediate plane lives in the block's arena. See docs/relation.md for the
// derivation.
#pragma once

#include <math.h>

#include "convolution.h"
#include "enlarge.h"
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

// Turns the gradient of the layer's output, in place, into that of its convolution's result; writes
// the shares of the norm's parameters and of the bias. `spare` takes the normalised convolution.
template <typename Block>
VSS_HOST_DEVICE void norm_gradient(const Block& block, const LayerTask& task, const float* source,
                                   float* gradient, float* spare) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  const float* norm_weight = task.parameters + layer.norm_weight();
  const float* norm_bias = task.parameters + layer.norm_bias();
  const float mean = task.statistics[0];
  const float rstd = task.statistics[1];
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    totals<2 * kOut>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at<Block>(g, index);
      Lanes<Block> value[kRows][kOut];
      convolve_tile<kKernel, kOut>(g, source, weights, tile, value);
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (tile.y + r >= g.height) continue;
        VSS_UNROLL
        for (int o = 0; o < kOut; ++o) {
          const int place = o * g.channel + g.origin + (tile.y + r) * g.pitch + tile.x;
          const Lanes<Block> normed = (value[r][o] - mean) * rstd;
          store(spare + place, normed);
          Lanes<Block> upstream;
          load(gradient + place, upstream);
          relu_gradient(normed * norm_weight[o] + norm_bias[o], upstream);
          store(gradient + place, upstream);
          total[2 * o] += upstream;
          total[2 * o + 1] += upstream * normed;
        }
      }
    });
  });
  float mean_gradient = 0;    // of the normalised values
  float mean_projection = 0;  // of that gradient times the normalised values
  for (int c = 0; c < layer.out; ++c) {
    mean_gradient += norm_weight[c] * task.scratch[2 * c] / task.elements();
    mean_projection += norm_weight[c] * task.scratch[2 * c + 1] / task.elements();
  }
  if (task.parts != nullptr) {
    block.for_each(layer.out, [&](int64_t c) {
      task.parts[layer.norm_bias() + c] = task.scratch[2 * c];
      task.parts[layer.norm_weight() + c] = task.scratch[2 * c + 1];
    });
  }
  for (int c = 0; c < layer.out; ++c) {
    float* planes = gradient + c * g.channel;
    const float* normed_plane = spare + c * g.channel + g.origin;
    totals<1>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at<Block>(g, index);
      for (int r = 0; r < kRows && tile.y + r < g.height; ++r) {
        const int place = (tile.y + r) * g.pitch + tile.x;
        Lanes<Block> upstream, normed;
        load(planes + g.origin + place, upstream);
        load(normed_plane + place, normed);
        upstream =
            rstd * (upstream * norm_weight[c] - mean_gradient - normed * mean_projection);
        store_row(g, tile, r, planes, upstream);
        total[0] += upstream;
      }
    });
    if (task.parts != nullptr)
      block.for_each(1, [&](int64_t) { task.parts[layer.bias() + c] = task.scratch[0]; });
  }
}

// Writes this map's share of the weight's gradient.
template <typename Block>
VSS_HOST_DEVICE void weight_gradient(const Block& block, const LayerTask& task, const float* source,
                                     const float* gradient) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    constexpr int kTaps = kKernel * kKernel;
    constexpr int kTogether = kKernel <= 3 ? kOut : 1;  // output channels that registers can hold
    for (int c = 0; c < layer.in; ++c) {
      const float* plane = source + c * g.channel;
      for (int o = 0; o < kOut; o += kTogether) {
        const float* upstream = gradient + o * g.channel;
        totals<kTogether * kTaps>(block, g.tiles, task.scratch, [&](int index, auto& total) {
          const Tile tile = tile_at<Block>(g, index);
          weight_gradient_tile<kKernel, kTogether>(g, plane, upstream, tile, total);
        });
        block.for_each(kTogether * kTaps, [&](int64_t i) {
          const int64_t row = (o + i / kTaps) * layer.in + c;
          task.parts[layer.parameters + row * kTaps + i % kTaps] = task.scratch[i];
        });
      }
    }
  });
}

// target = gradient of the layer's input.
template <typename Block>
VSS_HOST_DEVICE void input_gradient(const Block& block, const LayerTask& task, const float* gradient,
                                    float* target) {
  const Grid& g = task.g;
  const Weights weights = turned_weights(task.layer, task.parameters);
  clear_frames(block, g, task.layer.in, target);
  with_shape(task.layer.kernel, task.layer.in, [&]<int kKernel, int kIn>() {
    block.for_each(g.tiles, [&](int64_t index) {
      const Tile tile = tile_at<Block>(g, static_cast<int>(index));
      Lanes<Block> value[kRows][kIn];
      convolve_tile<kKernel, kIn>(g, gradient, weights, tile, value);
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (tile.y + r >= g.height) continue;
        VSS_UNROLL
        for (int c = 0; c < kIn; ++c) store_row(g, tile, r, target + c * g.channel, value[r][c]);
      }
    });
  });
}

// Fills a block's scratch before its first map.
template <typename Block>
VSS_HOST_DEVICE void load_parameters(const Block& block, const Program& program,
                                     const Arguments& arguments) {
  float* parameters = block.scratch() + kTotalsScratch;
  with_type(arguments.parameter_kind, const_cast<void*>(arguments.parameters),
            [&](const auto* data) {
              block.for_each(program.parameter_count,
                             [&](int64_t i) { parameters[i] = static_cast<float>(data[i]); });
            });
  block.sync();
}

// Carries out all steps for one map. The actions of the backward program are compiled only where they
// can occur.
template <bool kBackward, typename Block>
VSS_HOST_DEVICE void run_map(const Block& block, const Program& program, const Arguments& arguments,
                             float* arena, int64_t map) {
  for (int i = 0; i < program.step_count; ++i) {
    const Step& step = program.steps[i];
    const Grid& g = program.grids[step.grid];
    float* source = arena + step.source;
    float* target = arena + step.target;
    if (step.action == Action::load) {
      load_map(block, g, arguments.maps[step.item], map, target);
    } else if (step.action == Action::store) {
      store_map(block, g, arguments.maps[step.item], map, source);
    } else if (step.action == Action::enlarge) {
      enlarge(block, program.grids[step.grid - 1], g, step.item, source, target);
    } else if (kBackward && step.action == Action::shrink) {
      shrink(block, program.grids[step.grid - 1], g, step.item, source, arena + step.spare, target);
    } else {
      const LayerTask task{
          g,
          program.layers[step.item],
          block.scratch() + kTotalsScratch,
          block.scratch(),
          arguments.statistics + (map * program.layer_count + step.item) * 2,
          arguments.parts == nullptr ? nullptr : arguments.parts + map * program.parameter_count,
          arguments.epsilon};
      if constexpr (kBackward) {
        if (step.action == Action::repeat) {
          repeat(block, task, source, target);
        } else if (step.action == Action::norm_gradient) {
          norm_gradient(block, task, source, target, arena + step.spare);
        } else if (step.action == Action::weight_gradient) {
          weight_gradient(block, task, source, target);
        } else {
          input_gradient(block, task, source, target);
        }
      } else {
        refine(block, task, source, target);
      }
    }
    block.sync();
  }
}

}  // namespace vss::aggregation
