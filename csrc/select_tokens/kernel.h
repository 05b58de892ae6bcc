// select_tokens on a CPU: scores of the reference tokens, and the choice of the best of a frame.
//
// A block owns a panel of one frame's tokens, which lie in the lanes of a few registers. Their
// products with all target positions are made a few positions at a time and go straight into the
// list of the largest that each lane keeps, so no matrix of affinities is stored.
#pragma once

#include "../machine/machine.h"
#include "../math/small_matrix.h"
#include "../math/token_rows.h"

namespace vss::inline VSS_MACHINE::select_tokens {

constexpr int kPanel = kTileVectors * kLanes;  // tokens

struct Sizes {
  int64_t frames;  // of one clip
  int64_t positions, tokens, channels, selected, top;

  int64_t wide_channels() const { return whole_lanes(channels); }
  int64_t panels() const { return cdiv<int64_t>(tokens, kPanel); }
};

// The largest values that came so far in each lane, the largest first.
struct Largest {
  float* best;  // (top, kLanes)
  int64_t top;

  VSS_INLINE void clear() const { std::fill_n(best, top * kLanes, -INFINITY); }

  VSS_INLINE void take(Floats x) const {
    for (int64_t place = 0; place < top; ++place) {
      const Floats held = load(best + place * kLanes);
      const Ints larger = x > held;
      store(best + place * kLanes, larger ? x : held);
      x = larger ? held : x;
    }
  }

  VSS_INLINE Floats sum() const {
    Floats total{};
    for (int64_t place = 0; place < top; ++place) total += load(best + place * kLanes);
    return total;
  }
};

// The scores of one panel of one frame. A score that is NaN becomes the lowest.
template <typename T>
struct ScorePanel {
  Sizes n;
  const float* target;  // (batch, positions, wide_channels)
  const T* reference;   // (batch, frames, tokens, channels)
  float* scores;        // (batch, frames, tokens)

  static int64_t scratch(const Sizes& n) {
    return 2 * n.wide_channels() * kPanel + kTileRows * kPanel + (n.top + 1) * kPanel;
  }

  void operator()(const Block& block, int64_t i) const {
    const int64_t frame = i / n.panels(), first = i % n.panels() * kPanel;
    const int64_t count = std::min<int64_t>(n.tokens - first, kPanel), wide = n.wide_channels();
    float* copied = block.scratch();          // (kPanel, wide)
    float* columns = copied + kPanel * wide;  // (wide, kPanel)
    float* tile = columns + kPanel * wide;    // (kTileRows, kPanel)
    float* best = tile + kTileRows * kPanel;  // (kTileVectors, top, kLanes)
    float* unknown = best + n.top * kPanel;   // (kPanel), NaN where a product was
    const T* from = reference + (frame * n.tokens + first) * n.channels;
    for (int64_t token = 0; token < count; ++token)
      widen(from + token * n.channels, n.channels, copied + token * wide);
    std::fill_n(copied + count * wide, (kPanel - count) * wide, 0.0f);
    for (int64_t token = 0; token < kPanel; token += kLanes)
      for (int64_t c = 0; c < wide; c += kLanes)
        transpose(copied + token * wide + c, wide, columns + c * kPanel + token, kPanel);
    for (int v = 0; v < kTileVectors; ++v) Largest{best + v * n.top * kLanes, n.top}.clear();
    std::fill_n(unknown, kPanel, 0.0f);

    const float* row = target + frame / n.frames * n.positions * wide;
    int64_t q = 0;
    for (; q + kTileRows <= n.positions; q += kTileRows)
      take<kTileRows>(row + q * wide, columns, tile, best, unknown);
    for (; q < n.positions; ++q) take<1>(row + q * wide, columns, tile, best, unknown);

    for (int v = 0; v < kTileVectors; ++v) {
      const Floats sum =
          Largest{best + v * n.top * kLanes, n.top}.sum() + load(unknown + v * kLanes);
      const int64_t left = std::clamp<int64_t>(count - v * kLanes, 0, kLanes);
      if (left > 0)
        store(scores + frame * n.tokens + first + v * kLanes,
              sum == sum ? sum : broadcast(-INFINITY), static_cast<int>(left));
    }
  }

  // Multiplies some positions by the panel and keeps what is among the largest.
  template <int kRows>
  VSS_INLINE void take(const float* rows, const float* columns, float* tile, float* best,
                       float* unknown) const {
    multiply_tile<kRows, kTileVectors, false>({rows, n.wide_channels(), 1}, columns, kPanel, tile,
                                              kPanel, n.channels);
    for (int v = 0; v < kTileVectors; ++v) {
      const Largest largest{best + v * n.top * kLanes, n.top};
      Floats seen = load(unknown + v * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const Floats x = load(tile + r * kPanel + v * kLanes);
        seen = x == x ? seen : x;
        largest.take(x);
      }
      store(unknown + v * kLanes, seen);
    }
  }
};

// The positions of the best tokens of one frame, ascending; of equal scores the first.
struct ChooseBest {
  Sizes n;
  const float* scores;  // (batch, frames, tokens)
  int64_t* index;       // (batch, frames, selected)

  static int64_t scratch(const Sizes& n) { return 2 * n.tokens; }  // int64 in the room of floats

  void operator()(const Block& block, int64_t frame) const {
    const float* score = scores + frame * n.tokens;
    int64_t* order = reinterpret_cast<int64_t*>(block.scratch());
    for (int64_t token = 0; token < n.tokens; ++token) order[token] = token;
    std::nth_element(order, order + n.selected - 1, order + n.tokens, [&](int64_t a, int64_t b) {
      return score[a] != score[b] ? score[a] > score[b] : a < b;
    });
    std::sort(order, order + n.selected);
    std::copy_n(order, n.selected, index + frame * n.selected);
  }
};

}  // namespace vss::inline VSS_MACHINE::select_tokens
