// One layer on one map: convolution, GroupNorm with one group, ReLU. A tile's results stay in
// registers; every value that is loaded serves all the outputs of the tile that need it.
#pragma once

#include "planes.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// A layer's weights as a convolution from `in` channels reads them. The input's gradient is the
// convolution with the roles of the channels exchanged and the kernel reversed.
struct Weights {
  const float* first;
  int in;
  int out_step, in_step, tap_step;
  const float* bias;  // may be null
};

VSS_DEVICE Weights forward_weights(const Layer& layer, const float* parameters) {
  const int taps = layer.taps();
  return {parameters + layer.parameters, layer.in, layer.in * taps, taps, 1,
          parameters + layer.bias()};
}

VSS_DEVICE Weights transposed_weights(const Layer& layer, const float* parameters) {
  const int taps = layer.taps();
  return {parameters + layer.parameters + taps - 1, layer.out, taps, layer.in * taps, -1, nullptr};
}

// Where the rows start that a tile's convolution reads. Rows below the grid's first row of zeros
// are read only for results below the grid, so that row stands in for them.
template <int kKernel>
struct InputRows {
  int offset[kRows + kKernel - 1];

  VSS_DEVICE InputRows(const Grid& g, Tile tile) {
    VSS_UNROLL
    for (int r = 0; r < kRows + kKernel - 1; ++r)
      offset[r] =
          g.origin + smaller(tile.y + r - kKernel / 2, g.height) * g.pitch + tile.x - kKernel / 2;
  }
};

template <int kKernel, int kOut>
VSS_DEVICE void convolve_tile(const Grid& g, const float* source, const Weights& w, Tile tile,
                              Floats (&out)[kRows][kOut]) {
  const InputRows<kKernel> rows(g, tile);
  VSS_UNROLL
  for (int o = 0; o < kOut; ++o) {
    const Floats bias = broadcast(w.bias == nullptr ? 0.0f : w.bias[o]);
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) out[r][o] = bias;
  }
  for (int c = 0; c < w.in; ++c) {
    const float* plane = source + c * g.channel;
    for (int dx = 0; dx < kKernel; ++dx) {
      float column[kKernel][kOut];
      VSS_UNROLL
      for (int dy = 0; dy < kKernel; ++dy) {
        VSS_UNROLL
        for (int o = 0; o < kOut; ++o)
          column[dy][o] =
              w.first[o * w.out_step + c * w.in_step + (dy * kKernel + dx) * w.tap_step];
      }
      VSS_UNROLL
      for (int row = 0; row < kRows + kKernel - 1; ++row) {
        const Floats value = load(plane + rows.offset[row] + dx);
        VSS_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const int dy = row - r;
          if (dy < 0 || dy >= kKernel) continue;
          VSS_UNROLL
          for (int o = 0; o < kOut; ++o) out[r][o] += column[dy][o] * value;
        }
      }
    }
  }
}

// Calls f(row, channel, value) for every row within the grid of a tile's convolution.
template <int kKernel, int kOut, typename F>
VSS_DEVICE void for_convolved_rows(const Grid& g, const float* source, const Weights& w, Tile tile,
                                   const F& f) {
  Floats value[kRows][kOut];
  convolve_tile<kKernel, kOut>(g, source, w, tile, value);
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (tile.y + r >= g.height) continue;
    VSS_UNROLL
    for (int o = 0; o < kOut; ++o) f(r, o, value[r][o]);
  }
}

// Adds a tile's part of the weight gradient for one input channel and kOut output channels, whose
// gradient's planes start at `gradient`. The gradient is zero beyond the grid.
template <int kKernel, int kOut>
VSS_DEVICE void weight_gradient_tile(const Grid& g, const float* plane, const float* gradient,
                                     Tile tile, Floats* total) {
  const InputRows<kKernel> rows(g, tile);
  Floats upstream[kRows][kOut];
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int row = g.origin + smaller(tile.y + r, g.height) * g.pitch + tile.x;
    VSS_UNROLL
    for (int o = 0; o < kOut; ++o) upstream[r][o] = load(gradient + o * g.channel + row);
  }
  VSS_UNROLL
  for (int dx = 0; dx < kKernel; ++dx) {
    VSS_UNROLL
    for (int row = 0; row < kRows + kKernel - 1; ++row) {
      const Floats value = load(plane + rows.offset[row] + dx);
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int dy = row - r;
        if (dy < 0 || dy >= kKernel) continue;
        VSS_UNROLL
        for (int o = 0; o < kOut; ++o)
          total[(o * kKernel + dy) * kKernel + dx] += upstream[r][o] * value;
      }
    }
  }
}

// Calls f.operator()<kernel, channels>() for the given numbers.
template <int kKernel, typename F>
VSS_DEVICE void with_channels(int channels, const F& f) {
  switch (channels) {
    case 1: return f.template operator()<kKernel, 1>();
    case 2: return f.template operator()<kKernel, 2>();
    case 3: return f.template operator()<kKernel, 3>();
    default: return f.template operator()<kKernel, 4>();
  }
}

template <typename F>
VSS_DEVICE void with_shape(int kernel, int channels, const F& f) {
  switch (kernel) {
    case 1: return with_channels<1>(channels, f);
    case 3: return with_channels<3>(channels, f);
    case 5: return with_channels<5>(channels, f);
    default: return with_channels<7>(channels, f);
  }
}

// A layer at work on one map.
struct LayerTask {
  const Grid& g;
  const Layer& layer;
  const float* parameters;
  float* scratch;     // of block_reduce
  float* statistics;  // mean and 1 / standard deviation
  float* parts;       // this map's part of the parameters' gradients; may be null
  float epsilon;

  VSS_DEVICE float elements() const {
    return static_cast<float>(layer.out) * static_cast<float>(g.height) *
           static_cast<float>(g.width);
  }
};

// A NaN stays one, as in torch.relu.
VSS_DEVICE Floats relu(Floats x) { return x < 0.0f ? Floats{} : x; }

// Zeroes the gradient where the ReLU's argument was not positive.
VSS_DEVICE Floats relu_gradient(Floats argument, Floats gradient) {
  return argument <= 0.0f ? Floats{} : gradient;
}

// Stores a row of a tile with zeros beyond the grid's last column.
VSS_DEVICE void store_row(const Grid& g, Tile tile, int row, float* plane, Floats& lanes) {
  lanes = keep_first(lanes, g.width - tile.x);
  store(plane + g.origin + (tile.y + row) * g.pitch + tile.x, lanes);
}

// Normalises planes in place with one group's statistics; then the ReLU.
VSS_DEVICE void normalise(const Block& block, const LayerTask& task, float mean, float rstd,
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
VSS_DEVICE void refine(const Block& block, const LayerTask& task, const float* source,
                       float* target) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  clear_halos(block, g, layer.out, target);
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    block_reduce<1>(block, g.tiles, task.scratch, [&](int index, auto& total) {
      const Tile tile = tile_at(g, index);
      for_convolved_rows<kKernel, kOut>(g, source, weights, tile,
                                        [&](int r, int o, Floats value) VSS_LAMBDA {
                                          store_row(g, tile, r, target + o * g.channel, value);
                                          total[0] += value;
                                        });
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
VSS_DEVICE void recompute(const Block& block, const LayerTask& task, const float* source,
                          float* target) {
  const Grid& g = task.g;
  const Layer& layer = task.layer;
  const Weights weights = forward_weights(layer, task.parameters);
  const float mean = task.statistics[0];
  const float rstd = task.statistics[1];
  clear_halos(block, g, layer.out, target);
  with_shape(layer.kernel, layer.out, [&]<int kKernel, int kOut>() {
    float scale[kOut], shift[kOut];
    VSS_UNROLL
    for (int o = 0; o < kOut; ++o) {
      scale[o] = rstd * task.parameters[layer.norm_weight() + o];
      shift[o] = task.parameters[layer.norm_bias() + o];
    }
    block.for_each(g.tiles, [&](int64_t index) {
      const Tile tile = tile_at(g, static_cast<int>(index));
      for_convolved_rows<kKernel, kOut>(g, source, weights, tile,
                                        [&](int r, int o, Floats value) VSS_LAMBDA {
                                          value = relu((value - mean) * scale[o] + shift[o]);
                                          store_row(g, tile, r, target + o * g.channel, value);
                                        });
    });
  });
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
