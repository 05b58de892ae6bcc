// Convolutions on planes, a tile at a time. Each tile's results stay in registers, where the caller
// finishes them; every value that is loaded serves all the outputs of the tile that need it.
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

VSS_INLINE Weights forward_weights(const Layer& layer, const float* parameters) {
  const int taps = layer.taps();
  return {parameters + layer.parameters, layer.in, layer.in * taps, taps, 1,
          parameters + layer.bias()};
}

VSS_INLINE Weights transposed_weights(const Layer& layer, const float* parameters) {
  const int taps = layer.taps();
  return {parameters + layer.parameters + taps - 1, layer.out, taps, layer.in * taps, -1, nullptr};
}

// Where the rows start that a tile's convolution reads. Rows below the grid's first row of zeros
// are read only for results below the grid, so that row stands in for them.
template <int kKernel>
struct InputRows {
  int offset[kRows + kKernel - 1];

  VSS_INLINE InputRows(const Grid& g, Tile tile) {
    VSS_UNROLL
    for (int r = 0; r < kRows + kKernel - 1; ++r)
      offset[r] =
          g.origin + smaller(tile.y + r - kKernel / 2, g.height) * g.pitch + tile.x - kKernel / 2;
  }
};

template <int kKernel, int kOut>
VSS_INLINE void convolve_tile(const Grid& g, const float* source, const Weights& w, Tile tile,
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

// Adds a tile's part of the weight gradient for one input channel and kOut output channels, whose
// gradient's planes start at `gradient`. The gradient is zero beyond the grid.
template <int kKernel, int kOut>
VSS_INLINE void weight_gradient_tile(const Grid& g, const float* plane, const float* gradient,
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
VSS_INLINE void with_channels(int channels, const F& f) {
  switch (channels) {
    case 1: return f.template operator()<kKernel, 1>();
    case 2: return f.template operator()<kKernel, 2>();
    case 3: return f.template operator()<kKernel, 3>();
    default: return f.template operator()<kKernel, 4>();
  }
}

template <typename F>
VSS_INLINE void with_shape(int kernel, int channels, const F& f) {
  switch (kernel) {
    case 1: return with_channels<1>(channels, f);
    case 3: return with_channels<3>(channels, f);
    case 5: return with_channels<5>(channels, f);
    default: return with_channels<7>(channels, f);
  }
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
