// The way back through one layer: norm and ReLU, then weight, then input.
#pragma once

#include "layer.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// Turns the gradient of the layer's output, in place, into that of its convolution's result; writes
// the parts of the norm's parameters and of the bias. `workspace` takes the normalised convolution.
VSS_DEVICE void norm_gradient(const Block& block, const LayerTask& task, const float* source,
                              float* gradient, float* workspace) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  const float* norm_weight = task.parameters + layer.norm_weight();
  const float* norm_bias = task.parameters + layer.norm_bias();
  const float mean = task.statistics[0];
  const float rstd = task.statistics[1];
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    block_reduce<2 * kOut>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at(g, index);
      for_convolved_rows<kKernel, kOut>(
          g, source, weights, tile, [&](int r, int o, Floats value) VSS_LAMBDA {
            const int place = o * g.channel + g.origin + (tile.y + r) * g.pitch + tile.x;
            const Floats normed = (value - mean) * rstd;
            store(workspace + place, normed);
            const Floats upstream =
                relu_gradient(normed * norm_weight[o] + norm_bias[o], load(gradient + place));
            store(gradient + place, upstream);
            total[2 * o] += upstream;
            total[2 * o + 1] += upstream * normed;
          });
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
    const float* normed_plane = workspace + c * g.channel + g.origin;
    block_reduce<1>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at(g, index);
      for (int r = 0; r < kRows && tile.y + r < g.height; ++r) {
        const int place = (tile.y + r) * g.pitch + tile.x;
        const Floats normed = load(normed_plane + place);
        Floats upstream = load(planes + g.origin + place);
        upstream = rstd * (upstream * norm_weight[c] - mean_gradient - normed * mean_projection);
        store_row(g, tile, r, planes, upstream);
        total[0] += upstream;
      }
    });
    if (task.parts != nullptr)
      block.for_each(1, [&](int64_t) { task.parts[layer.bias() + c] = task.scratch[0]; });
  }
}

// Writes this map's part of the weight's gradient.
VSS_DEVICE void weight_gradient(const Block& block, const LayerTask& task, const float* source,
                                const float* gradient) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    constexpr int kTaps = kKernel * kKernel;
    constexpr int kTogether = channels_together(kKernel, kOut);
    for (int c = 0; c < layer.in; ++c) {
      const float* plane = source + c * g.channel;
      for (int o = 0; o < kOut; o += kTogether) {
        const float* upstream = gradient + o * g.channel;
        block_reduce<kTogether * kTaps>(block, g.tiles, task.scratch, [&](int index, auto& total) {
          const Tile tile = tile_at(g, index);
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
VSS_DEVICE void input_gradient(const Block& block, const LayerTask& task, const float* gradient,
                               float* target) {
  const Grid& g = task.g;
  const Weights weights = transposed_weights(task.layer, task.parameters);
  clear_halos(block, g, task.layer.in, target);
  with_shape(task.layer.kernel, task.layer.in, [&]<int kKernel, int kIn>() {
    block.for_each(g.tiles, [&](int64_t index) {
      const Tile tile = tile_at(g, static_cast<int>(index));
      for_convolved_rows<kKernel, kIn>(g, gradient, weights, tile,
                                       [&](int r, int c, Floats value) VSS_LAMBDA {
                                         store_row(g, tile, r, target + c * g.channel, value);
                                       });
    });
  });
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
