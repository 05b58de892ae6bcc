// masked_affinity on a CPU: products of the kept reference tokens with all target tokens.
//
// The kept tokens are gathered once. A block owns a stretch of the target's positions: it turns
// their tokens into columns, in scratch, and multiplies the rows of all frames by them, tile by
// tile in registers (math/small_matrix.h).
#pragma once

#include "../machine/machine.h"
#include "../math/small_matrix.h"
#include "../math/token_rows.h"

namespace vss::inline VSS_MACHINE::masked_affinity {

constexpr int kPanel = kTileVectors * kLanes;
constexpr int64_t kStretch = 4 * kPanel;  // target positions: a few cache lines of every map

struct Sizes {
  int64_t batch, frames, selected, positions, tokens, channels;

  int64_t wide_channels() const { return whole_lanes(channels); }
  int64_t stretches() const { return cdiv(positions, kStretch); }
};

// Copies target tokens, as (kStretch, wide_channels) with zeros behind what there is.
template <typename T>
VSS_INLINE void copy_tokens(const Sizes& n, const T* target, int64_t count, float* rows) {
  const int64_t wide = n.wide_channels();
  for (int64_t q = 0; q < count; ++q) widen(target + q * n.channels, n.channels, rows + q * wide);
  std::fill_n(rows + count * wide, (kStretch - count) * wide, 0.0f);
}

// One stretch of the target's positions of one clip, in the maps of all kept tokens.
template <typename T>
struct StretchAffinity {
  Sizes n;
  const T* target;    // (batch, positions, channels)
  const float* rows;  // (batch, frames, selected, wide_channels)
  T* out;             // (batch, frames, selected, positions)

  static int64_t scratch(const Sizes& n) {
    return 2 * kStretch * n.wide_channels() + kTileRows * kPanel;
  }

  void operator()(const Block& block, int64_t i) const {
    const int64_t b = i / n.stretches(), first = i % n.stretches() * kStretch;
    const int64_t count = std::min(n.positions - first, kStretch), wide = n.wide_channels();
    float* copied = block.scratch();           // (kStretch, wide)
    float* panels = copied + kStretch * wide;  // (panels of the stretch, wide, kPanel)
    float* tile = panels + kStretch * wide;    // (kTileRows, kPanel)
    copy_tokens(n, target + (b * n.positions + first) * n.channels, count, copied);
    for (int64_t q = 0; q < kStretch; q += kLanes)
      for (int64_t c = 0; c < wide; c += kLanes)
        transpose(copied + q * wide + c, wide,
                  panels + (q / kPanel * wide + c) * kPanel + q % kPanel, kPanel);
    const int64_t height = n.frames * n.selected;
    const float* from = rows + b * height * wide;
    T* to = out + b * height * n.positions + first;
    int64_t row = 0;
    for (; row + kTileRows <= height; row += kTileRows)
      write<kTileRows>(from + row * wide, panels, count, tile, to + row * n.positions);
    for (; row < height; ++row)
      write<1>(from + row * wide, panels, count, tile, to + row * n.positions);
  }

  // Some rows of the stretch.
  template <int kRows>
  VSS_INLINE void write(const float* from, const float* panels, int64_t count, float* tile,
                        T* to) const {
    const int64_t wide = n.wide_channels();
    for (int64_t q = 0; q < count; q += kPanel, panels += wide * kPanel) {
      multiply_tile<kRows, kTileVectors, false>({from, wide, 1}, panels, kPanel, tile, kPanel,
                                                n.channels);
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t lane = 0; lane < std::min<int64_t>(kPanel, count - q); lane += kLanes)
          store(to + r * n.positions + q + lane, load(tile + r * kPanel + lane),
                static_cast<int>(std::min<int64_t>(count - q - lane, kLanes)));
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::masked_affinity
