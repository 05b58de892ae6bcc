// Gradients of attend_selected on a CPU.
//
// With the probabilities p[s, q], values v[s, e] and the gradient g[q, e] of the result,
//
//   gradient of p[s, q] = sum over e of v[s, e] g[q, e]            =: d[s, q]
//   gradient of the affinity = p[s, q] (d[s, q] - sum over s of p[s, q] d[s, q])
//   gradient of v[s, e] = sum over q of p[s, q] g[q, e]
//
// A block owns one part of a frame's target positions and goes over it stretch by stretch. What its
// part gives to the values' gradients, it keeps apart; they are added up in the order of the parts.
#pragma once

#include "kernel.h"

namespace vss::inline VSS_MACHINE::attend_selected {

// As many parts as let several threads work on one frame; their number depends on sizes alone.
constexpr int64_t kMostParts = 8;

inline int64_t parts_of(const Sizes& n) { return std::min(n.stretches(), kMostParts); }

template <typename T>
struct BackwardPart {
  Sizes n;
  const T* grad;            // (matrices, positions, channels)
  const T* affinity;        // (matrices, selected, positions)
  const float* statistics;  // (matrices, 2, positions)
  const float* values;      // (matrices, selected, wide_channels)
  T* grad_affinity;         // as the affinity, or null
  float* grad_values;       // (matrices, parts, selected, wide_channels), zeros before; or null

  static int64_t scratch(const Sizes& n) {
    return Softmax::size(n.selected) + (n.selected + 2 * n.wide_channels()) * kStretch;
  }

  void operator()(const Block& block, int64_t i) const {
    const int64_t parts = parts_of(n), matrix = i / parts, part = i % parts;
    const int64_t begin = n.stretches() * part / parts, end = n.stretches() * (part + 1) / parts;
    const Softmax softmax(block.scratch(), n.selected);
    float* gradients = block.scratch() + Softmax::size(n.selected);  // (selected, kStretch)
    float* grad_rows = gradients + n.selected * kStretch;            // (kStretch, wide_channels)
    float* grad_columns = grad_rows + kStretch * n.wide_channels();  // (wide_channels, kStretch)
    const int64_t wide = n.wide_channels();
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t first = stretch * kStretch;
      const int64_t count = std::min(n.positions - first, kStretch);
      const int64_t at = matrix * n.selected * n.positions + first;
      softmax.repeat(affinity + at, statistics + 2 * matrix * n.positions + first, n.selected,
                     n.positions, count);
      std::fill_n(grad_rows, kStretch * wide, 0.0f);
      for (int64_t q = 0; q < count; ++q)
        widen(grad + (matrix * n.positions + first + q) * n.channels, n.channels,
              grad_rows + q * wide);
      if (grad_affinity != nullptr) {
        for (int64_t q = 0; q < kStretch; q += kLanes)
          for (int64_t c = 0; c < wide; c += kLanes)
            transpose(grad_rows + q * wide + c, wide, grad_columns + c * kStretch + q, kStretch);
        multiply({values + matrix * n.selected * wide, wide, 1}, grad_columns, kStretch, gradients,
                 kStretch, n.selected, kStretch, wide);
        through_softmax(softmax, gradients);
        for (int64_t s = 0; s < n.selected; ++s)
          for (int64_t q = 0; q < count; q += kLanes)
            store(grad_affinity + at + s * n.positions + q, load(gradients + s * kStretch + q),
                  static_cast<int>(std::min<int64_t>(count - q, kLanes)));
      }
      if (grad_values != nullptr)
        add_product({softmax.rows, kStretch, 1}, grad_rows, wide,
                    grad_values + i * n.selected * wide, wide, n.selected, wide, count);
    }
  }

  // Turns the gradients of a stretch's probabilities into those of its affinities.
  VSS_INLINE void through_softmax(const Softmax& softmax, float* gradients) const {
    for (int64_t q = 0; q < kStretch; q += kLanes) {
      Floats mean{};
      for (int64_t s = 0; s < n.selected; ++s)
        mean += load(softmax.rows + s * kStretch + q) * load(gradients + s * kStretch + q);
      for (int64_t s = 0; s < n.selected; ++s) {
        float* gradient = gradients + s * kStretch + q;
        store(gradient, load(softmax.rows + s * kStretch + q) * (load(gradient) - mean));
      }
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::attend_selected
