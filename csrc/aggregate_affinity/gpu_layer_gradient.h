// The way back through one layer of a published chain on a GPU: the gradient of the layer's output
// comes, and that of its input goes, in the registers of the thread that owns the patch.
#pragma once

#include "gpu_layer.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// A layer with the statistics saved by the forward pass. All threads have read the source when it
// returns.
template <typename Chains, typename Layer, int kSide>
VSS_DEVICE Values<kSide, Layer::kOut> recompute_patch(const PatchTask& task, const float* source) {
  Values<kSide, Layer::kOut> values = convolution<kSide, Layer>(task, source);
  const float* statistics = task.statistics<Chains, Layer>();
  const float mean = statistics[0], rstd = statistics[1];
  for_values(values, [&](int, float& value) VSS_LAMBDA { value -= mean; });
  scale_and_clip<Layer>(task, rstd, values);
  task.block.sync();
  return values;
}

// The sums of parameter `parameter`, one for each warp; see leave_sums.
VSS_DEVICE float* parameter_sums(const PatchTask& task, int parameter) {
  return task.sums + parameter * kMaxWarps;
}

// Turns the gradient of the layer's output into that of its convolution's result, which is zero in
// threads without a position; leaves the sums for the norm's parameters.
template <typename Chains, typename Layer, int kSide>
VSS_DEVICE void norm_gradient(const PatchTask& task, const float* source,
                              Values<kSide, Layer::kOut>& gradient) {
  constexpr int kOut = Layer::kOut;
  Values<kSide, kOut> normed = convolution<kSide, Layer>(task, source);
  const float* statistics = task.statistics<Chains, Layer>();
  const float mean = statistics[0], rstd = statistics[1];
  const float* norm_weight = task.parameters + Layer::kNormWeight;
  const float* norm_bias = task.parameters + Layer::kNormBias;
  float partial[2 * kOut] = {};  // of the norm's weights, then of its biases
  VSS_UNROLL
  for (int o = 0; o < kOut; ++o) {
    VSS_UNROLL
    for (int i = 0; i < kSide * kSide; ++i) {
      float& value = normed.at[o][i / kSide][i % kSide];
      float& upstream = gradient.at[o][i / kSide][i % kSide];
      value = (value - mean) * rstd;
      upstream = relu_gradient(value * norm_weight[o] + norm_bias[o], upstream);
      partial[o] += upstream * value;
      partial[kOut + o] += upstream;
    }
  }
  VSS_UNROLL
  for (int n = 0; n < 2 * kOut; ++n) partial[n] = task.patch.live ? partial[n] : 0.0f;
  static_assert(Layer::kNormBias == Layer::kNormWeight + kOut);
  float* sums = parameter_sums(task, Layer::kNormWeight);
  leave_sums<2 * kOut>(task.block, partial, sums);
  task.block.sync();
  float total[2 * kOut];
  take_sums(task.block, sums, total);

  const float reciprocal = 1.0f / task.elements<kSide, Layer>();
  float mean_gradient = 0;    // of the normalised values
  float mean_projection = 0;  // of that gradient times the normalised values
  VSS_UNROLL
  for (int o = 0; o < kOut; ++o) {
    mean_projection += norm_weight[o] * total[o] * reciprocal;
    mean_gradient += norm_weight[o] * total[kOut + o] * reciprocal;
  }
  const float factor = task.patch.live ? rstd : 0.0f;
  VSS_UNROLL
  for (int o = 0; o < kOut; ++o) {
    VSS_UNROLL
    for (int i = 0; i < kSide * kSide; ++i) {
      float& upstream = gradient.at[o][i / kSide][i % kSide];
      upstream = factor * (upstream * norm_weight[o] - mean_gradient -
                           normed.at[o][i / kSide][i % kSide] * mean_projection);
    }
  }
}

// Leaves the sums for the weights and biases.
template <typename Layer, int kSide>
VSS_DEVICE void weight_gradient(const PatchTask& task, const float* source,
                                const Values<kSide, Layer::kOut>& gradient) {
  constexpr int kOut = Layer::kOut, kTaps = Layer::kTaps, kWeights = kOut * kTaps;
  VSS_UNROLL
  for (int c = 0; c < Layer::kIn; ++c) {
    float partial[next_power_of_two(kWeights + kOut)] = {};  // weights from channel c, then biases
    for_patch_rows<kSide, Layer::kKernel>(task, source + c * task.grid<kSide>().channel,
                                          [&](int y, int dy, const auto& row) VSS_LAMBDA {
                                            VSS_UNROLL
                                            for (int o = 0; o < kOut; ++o) {
                                              VSS_UNROLL
                                              for (int dx = 0; dx < Layer::kKernel; ++dx) {
                                                VSS_UNROLL
                                                for (int x = 0; x < kSide; ++x)
                                                  partial[o * kTaps + dy * Layer::kKernel + dx] +=
                                                      gradient.at[o][y][x] * row[x + dx];
                                              }
                                            }
                                          });
    if (c == 0) {
      VSS_UNROLL
      for (int o = 0; o < kOut; ++o) {
        VSS_UNROLL
        for (int i = 0; i < kSide * kSide; ++i)
          partial[kWeights + o] += gradient.at[o][i / kSide][i % kSide];
      }
    }
    const auto place = [c](int n) {
      if (n >= kWeights) return Layer::kBias + n - kWeights;
      return Layer::kWeight + (n / kTaps * Layer::kIn + c) * kTaps + n % kTaps;
    };
    if (c == 0) {
      leave_sums<kWeights + kOut>(task.block, partial, task.sums, place);
    } else {
      leave_sums<kWeights>(task.block, partial, task.sums, place);
    }
  }
}

// The gradient of the layer's input from the planes of that of its convolution.
template <typename Layer, int kSide>
VSS_DEVICE Values<kSide, Layer::kIn> input_gradient(const PatchTask& task, const float* planes) {
  Values<kSide, Layer::kIn> values{};
  convolve_patch<kSide, Layer::kKernel, Layer::kOut>(
      task, planes,
      [&](int c, int o, int tap) VSS_LAMBDA {
        return task.parameters[Layer::kWeight + (o * Layer::kIn + c) * Layer::kTaps + Layer::kTaps -
                               1 - tap];
      },
      values);
  return values;
}

// From the gradient of the layer's output to that of its input. `planes`, with zeros around them,
// take that of the convolution; they may be the source.
template <typename Chains, typename Layer, int kSide>
VSS_DEVICE Values<kSide, Layer::kIn> layer_gradient(const PatchTask& task, const float* source,
                                                    float* planes,
                                                    Values<kSide, Layer::kOut> gradient) {
  norm_gradient<Chains, Layer>(task, source, gradient);
  weight_gradient<Layer>(task, source, gradient);
  task.block.sync();
  store_values(task.patch, task.grid<kSide>(), gradient, planes);
  task.block.sync();
  return input_gradient<Layer, kSide>(task, planes);
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
