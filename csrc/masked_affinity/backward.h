// Gradients of masked_affinity on a CPU.
//
// With kept rows v[s, c], target tokens t[q, c] and the gradient g[s, q] of the result, the
// target's gradient is the sum over s of g[s, q] v[s, c], and the rows' the sum over q of g[s, q]
// t[q, c]. The latter is kept apart for each part of a frame's positions; the parts are added up in
// their order.
#pragma once

#include "kernel.h"

namespace vss::inline VSS_MACHINE::masked_affinity {

// As many parts as let several threads work on one frame; their number depends on sizes alone.
constexpr int64_t kMostParts = 8;

inline int64_t parts_of(const Sizes& n) { return std::min(n.stretches(), kMostParts); }

// Copies a stretch of one frame's maps: (selected, kStretch), zeros behind what there is.
template <typename T>
VSS_INLINE void copy_maps(const Sizes& n, const T* maps, int64_t count, float* to) {
  for (int64_t s = 0; s < n.selected; ++s, to += kStretch) {
    widen(maps + s * n.positions, count, to);
    std::fill_n(to + whole_lanes(count), kStretch - whole_lanes(count), 0.0f);
  }
}

// One stretch of one clip's target: a sum over the kept tokens of all frames.
template <typename T>
struct TargetGradient {
  Sizes n;
  const T* grad;      // (batch, frames, selected, positions)
  const float* rows;  // (batch, frames, selected, wide_channels)
  T* grad_target;     // (batch, positions, channels)

  static int64_t scratch(const Sizes& n) { return (n.selected + n.wide_channels()) * kStretch; }

  void operator()(const Block& block, int64_t i) const {
    const int64_t b = i / n.stretches(), first = i % n.stretches() * kStretch;
    const int64_t count = std::min(n.positions - first, kStretch), wide = n.wide_channels();
    float* maps = block.scratch();
    float* sums = maps + n.selected * kStretch;  // (kStretch, wide)
    std::fill_n(sums, kStretch * wide, 0.0f);
    for (int64_t frame = b * n.frames; frame < (b + 1) * n.frames; ++frame) {
      copy_maps(n, grad + frame * n.selected * n.positions + first, count, maps);
      add_product({maps, 1, kStretch}, rows + frame * n.selected * wide, wide, sums, wide, count,
                  wide, n.selected);
    }
    T* to = grad_target + (b * n.positions + first) * n.channels;
    for (int64_t q = 0; q < count; ++q)
      for (int64_t c = 0; c < n.channels; c += kLanes)
        store(to + q * n.channels + c, load(sums + q * wide + c),
              static_cast<int>(std::min<int64_t>(n.channels - c, kLanes)));
  }
};

// What one part of the target's positions gives to the kept rows of one frame.
template <typename T>
struct RowGradient {
  Sizes n;
  const T* grad;    // (batch, frames, selected, positions)
  const T* target;  // (batch, positions, channels)
  float* parts;     // (batch, frames, parts, selected, wide_channels), zeros before

  static int64_t scratch(const Sizes& n) { return (n.selected + n.wide_channels()) * kStretch; }

  void operator()(const Block& block, int64_t i) const {
    const int64_t frame = i / parts_of(n), part = i % parts_of(n), b = frame / n.frames;
    const int64_t begin = n.stretches() * part / parts_of(n);
    const int64_t end = n.stretches() * (part + 1) / parts_of(n), wide = n.wide_channels();
    float* maps = block.scratch();
    float* tokens = maps + n.selected * kStretch;  // (kStretch, wide)
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t first = stretch * kStretch, count = std::min(n.positions - first, kStretch);
      copy_maps(n, grad + frame * n.selected * n.positions + first, count, maps);
      copy_tokens(n, target + (b * n.positions + first) * n.channels, count, tokens);
      add_product({maps, kStretch, 1}, tokens, wide, parts + i * n.selected * wide, wide,
                  n.selected, wide, count);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::masked_affinity
