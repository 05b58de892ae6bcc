// One layer of a published chain on a GPU: a thread convolves its patch, and the result stays in
// its registers through GroupNorm and ReLU. The same mathematics as layer.h and layer_gradient.h,
// with a layer's shape known when compiled.
#pragma once

#include "gpu_patch.h"
#include "layer.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

struct LayerShape {
  int kernel, in, out;

  VSS_INLINE constexpr int weights() const { return out * in * kernel * kernel; }
  VSS_INLINE constexpr int parameters() const { return weights() + 3 * out; }
};

// Layer `kLayer` of chains, which list their shapes in kShapes; where its parameters are packed.
template <typename Chains, int kLayer>
struct LayerOf {
  static constexpr int kIndex = kLayer;
  static constexpr int kKernel = Chains::kShapes[kLayer].kernel;
  static constexpr int kIn = Chains::kShapes[kLayer].in;
  static constexpr int kOut = Chains::kShapes[kLayer].out;
  static constexpr int kTaps = kKernel * kKernel;

  static constexpr int first_parameter() {
    int first = 0;
    for (int layer = 0; layer < kLayer; ++layer) first += Chains::kShapes[layer].parameters();
    return first;
  }
  static constexpr int kWeight = first_parameter();
  static constexpr int kBias = kWeight + kOut * kIn * kTaps;
  static constexpr int kNormWeight = kBias + kOut;
  static constexpr int kNormBias = kNormWeight + kOut;
};

// What a thread works with while its block takes one map.
struct PatchTask {
  const Block& block;
  const PatchLayout& layout;
  const Arguments& arguments;
  Patch patch;
  int64_t map;
  const float* parameters;
  float* sums;  // see leave_sums

  template <int kSide>
  VSS_DEVICE const PatchGrid& grid() const {
    return layout.grids[kSide / 2];  // sides 1, 2 and 4
  }
  template <int kSide, typename Layer>
  VSS_DEVICE float elements() const {
    return static_cast<float>(Layer::kOut * kSide * kSide) *
           static_cast<float>(layout.height * layout.width);
  }
  template <typename Chains, typename Layer>
  VSS_DEVICE float* statistics() const {
    return arguments.statistics + (map * Chains::kLayers + Layer::kIndex) * 2;
  }
};

// Calls f(row of the source, row of the result, row of the kernel, the source's elements) for all
// rows that a patch's convolution of one plane reads.
template <int kSide, int kKernel, typename F>
VSS_DEVICE void for_patch_rows(const PatchTask& task, const float* plane, const F& f) {
  constexpr int kRadius = kKernel / 2;
  const PatchGrid& grid = task.grid<kSide>();
  const float* corner = plane + task.patch.offset<kSide>(grid) - kRadius * grid.pitch;
  VSS_UNROLL
  for (int r = 0; r < kSide + kKernel - 1; ++r) {
    float row[kSide + 2 * kRadius];
    load_row<kSide, kRadius>(corner + r * grid.pitch, row);
    VSS_UNROLL
    for (int y = 0; y < kSide; ++y) {
      const int dy = r - y;
      if (dy >= 0 && dy < kKernel) f(y, dy, row);
    }
  }
}

// Adds the convolution of kIn planes with weight(o, c, tap).
template <int kSide, int kKernel, int kIn, int kOut, typename F>
VSS_DEVICE void convolve_patch(const PatchTask& task, const float* source, const F& weight,
                               Values<kSide, kOut>& out) {
  VSS_UNROLL
  for (int c = 0; c < kIn; ++c) {
    float kernel[kOut][kKernel * kKernel];
    VSS_UNROLL
    for (int o = 0; o < kOut; ++o) {
      VSS_UNROLL
      for (int tap = 0; tap < kKernel * kKernel; ++tap) kernel[o][tap] = weight(o, c, tap);
    }
    for_patch_rows<kSide, kKernel>(task, source + c * task.grid<kSide>().channel,
                                   [&](int y, int dy, const auto& row) VSS_LAMBDA {
                                     VSS_UNROLL
                                     for (int o = 0; o < kOut; ++o) {
                                       VSS_UNROLL
                                       for (int dx = 0; dx < kKernel; ++dx) {
                                         VSS_UNROLL
                                         for (int x = 0; x < kSide; ++x)
                                           out.at[o][y][x] +=
                                               kernel[o][dy * kKernel + dx] * row[x + dx];
                                       }
                                     }
                                   });
  }
}

template <int kSide, typename Layer>
VSS_DEVICE Values<kSide, Layer::kOut> convolution(const PatchTask& task, const float* source) {
  Values<kSide, Layer::kOut> out;
  VSS_UNROLL
  for (int o = 0; o < Layer::kOut; ++o) {
    const float bias = task.parameters[Layer::kBias + o];
    VSS_UNROLL
    for (int i = 0; i < kSide * kSide; ++i) out.at[o][i / kSide][i % kSide] = bias;
  }
  convolve_patch<kSide, Layer::kKernel, Layer::kIn>(
      task, source,
      [&](int o, int c, int tap) VSS_LAMBDA {
        return task.parameters[Layer::kWeight + (o * Layer::kIn + c) * Layer::kTaps + tap];
      },
      out);
  return out;
}

// Calls f(channel, value) for every value; the value may be changed.
template <int kSide, int kChannels, typename F>
VSS_DEVICE void for_values(Values<kSide, kChannels>& values, const F& f) {
  VSS_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    VSS_UNROLL
    for (int i = 0; i < kSide * kSide; ++i) f(c, values.at[c][i / kSide][i % kSide]);
  }
}

// ReLU(GroupNorm) of values that the mean was taken from.
template <typename Layer, int kSide>
VSS_DEVICE void scale_and_clip(const PatchTask& task, float rstd,
                               Values<kSide, Layer::kOut>& values) {
  for_values(values, [&](int o, float& value) VSS_LAMBDA {
    const float scale = rstd * task.parameters[Layer::kNormWeight + o];
    value = relu(value * scale + task.parameters[Layer::kNormBias + o]);
  });
}

// A sum over the block that all its threads get. Two slots take turns: one may still be read.
VSS_DEVICE float block_sum(const PatchTask& task, int slot, float value) {
  float* sums = task.sums + slot * kMaxWarps;
  float partial[1] = {task.patch.live ? value : 0.0f};
  leave_sums<1>(task.block, partial, sums);
  task.block.sync();
  float total[1];
  take_sums(task.block, sums, total);
  return total[0];
}

// A layer in the forward pass. All threads have read the source when it returns.
template <typename Chains, typename Layer, int kSide>
VSS_DEVICE Values<kSide, Layer::kOut> refine_patch(const PatchTask& task, const float* source) {
  Values<kSide, Layer::kOut> values = convolution<kSide, Layer>(task, source);
  float total = 0;
  for_values(values, [&](int, float value) VSS_LAMBDA { total += value; });
  const float reciprocal = 1.0f / task.elements<kSide, Layer>();
  const float mean = block_sum(task, 0, total) * reciprocal;
  float squares = 0;
  for_values(values, [&](int, float& value) VSS_LAMBDA {
    value -= mean;
    squares += value * value;
  });
  const float variance = block_sum(task, 1, squares) * reciprocal;
  const float rstd = 1.0f / std::sqrt(variance + task.arguments.epsilon);
  if (task.block.rank() == 0) {
    float* statistics = task.statistics<Chains, Layer>();
    statistics[0] = mean;
    statistics[1] = rstd;
  }
  scale_and_clip<Layer>(task, rstd, values);
  return values;
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
