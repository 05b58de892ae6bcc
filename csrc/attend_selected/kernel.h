// attend_selected on a CPU: softmax over the kept tokens of a reference frame, applied to their
// values.
//
// The values of the kept tokens are gathered once, as panels of as many channels as a tile of the
// product holds in registers (math/small_matrix.h). Then a block owns a stretch of target positions
// of one frame: their column of the affinity becomes probabilities in scratch, which fit the cache
// together with the panels, and is multiplied from there. Sums are float whatever the dtype.
#pragma once

#include "../machine/machine.h"
#include "../math/exponential.h"
#include "../math/small_matrix.h"
#include "../math/token_rows.h"

namespace vss::inline VSS_MACHINE::attend_selected {

constexpr int kPanel = kTileVectors * kLanes;     // channels
constexpr int64_t kStretch = kTileRows * kLanes;  // target positions

struct Sizes {
  int64_t matrices;  // clips times frames
  int64_t selected, positions, tokens, channels;

  int64_t panels() const { return cdiv<int64_t>(channels, kPanel); }
  int64_t wide_channels() const { return panels() * kPanel; }
  int64_t stretches() const { return cdiv(positions, kStretch); }
};

// Gathers one panel of one frame: (selected, kPanel), zeros behind the channels.
template <typename T>
struct GatherPanel {
  Sizes n;
  const T* value;        // (matrices, tokens, channels)
  const int64_t* index;  // (matrices, selected)
  float* panels;         // (matrices, panels, selected, kPanel)

  void operator()(const Block&, int64_t i) const {
    const int64_t matrix = i / n.panels(), first = i % n.panels() * kPanel;
    const int64_t count = std::min<int64_t>(n.channels - first, kPanel);
    float* to = panels + i * n.selected * kPanel;
    for (int64_t s = 0; s < n.selected; ++s, to += kPanel) {
      const int64_t token = matrix * n.tokens + index[matrix * n.selected + s];
      widen(value + token * n.channels + first, count, to);
      for (int64_t c = whole_lanes(count); c < kPanel; ++c) to[c] = 0.0f;
    }
  }
};

// The probabilities of a stretch, (selected, kStretch), and what they are computed with again.
struct Softmax {
  float* rows;
  float* largest;  // (kStretch)
  float* inverse;  // (kStretch), one over the sums of the exponentials

  static int64_t size(int64_t selected) { return (selected + 2) * kStretch; }
  Softmax(float* memory, int64_t selected)
      : rows(memory), largest(memory + selected * kStretch), inverse(largest + kStretch) {}

  // Reads a stretch of the affinity and leaves exponentials relative to the largest.
  template <typename T>
  VSS_INLINE void exponentiate(const T* affinity, int64_t selected, int64_t positions,
                               int64_t count) const {
    for (int64_t s = 0; s < selected; ++s) {
      widen(affinity + s * positions, count, rows + s * kStretch);
      for (int64_t q = whole_lanes(count); q < kStretch; q += kLanes)
        store(rows + s * kStretch + q, Floats{});
    }
    for (int64_t q = 0; q < kStretch; q += kLanes) {
      Floats best = load(rows + q);
      for (int64_t s = 1; s < selected; ++s) {
        const Floats next = load(rows + s * kStretch + q);
        best = next > best ? next : best;
      }
      Floats sum{};
      for (int64_t s = 0; s < selected; ++s) {
        float* at = rows + s * kStretch + q;
        const Floats exponential = exponential_or_zero(load(at) - best);
        store(at, exponential);
        sum += exponential;
      }
      store(largest + q, best);
      store(inverse + q, 1.0f / sum);
    }
  }

  // Reads a stretch of the affinity and leaves its probabilities, from the forward's statistics.
  template <typename T>
  VSS_INLINE void repeat(const T* affinity, const float* statistics, int64_t selected,
                         int64_t positions, int64_t count) const {
    std::fill_n(largest, 2 * kStretch, 0.0f);
    std::copy_n(statistics, count, largest);
    std::copy_n(statistics + positions, count, inverse);
    for (int64_t s = 0; s < selected; ++s) {
      float* row = rows + s * kStretch;
      for (int64_t q = 0; q < kStretch; q += kLanes) {
        const int64_t left = std::clamp<int64_t>(count - q, 0, kLanes);
        const Floats x =
            left > 0 ? load(affinity + s * positions + q, static_cast<int>(left)) : Floats{};
        store(row + q, exponential_or_zero(x - load(largest + q)) * load(inverse + q));
      }
    }
  }
};

// One stretch of one frame.
template <typename T>
struct AttendStretch {
  Sizes n;
  const T* affinity;    // (matrices, selected, positions)
  const float* panels;  // see GatherPanel
  T* out;               // (matrices, positions, channels)
  float* statistics;    // (matrices, 2, positions)

  static int64_t scratch(const Sizes& n) { return Softmax::size(n.selected) + kTileRows * kPanel; }

  void operator()(const Block& block, int64_t i) const {
    const int64_t matrix = i / n.stretches(), first = i % n.stretches() * kStretch;
    const int64_t count = std::min(n.positions - first, kStretch);
    const Softmax softmax(block.scratch(), n.selected);
    softmax.exponentiate(affinity + matrix * n.selected * n.positions + first, n.selected,
                         n.positions, count);
    float* kept = statistics + 2 * matrix * n.positions + first;
    std::copy_n(softmax.largest, count, kept);
    std::copy_n(softmax.inverse, count, kept + n.positions);

    float* tile = block.scratch() + Softmax::size(n.selected);
    for (int64_t panel = 0; panel < n.panels(); ++panel) {
      const float* values = panels + (matrix * n.panels() + panel) * n.selected * kPanel;
      const int64_t channels = std::min<int64_t>(n.channels - panel * kPanel, kPanel);
      for (int64_t q = 0; q < count; q += kTileRows) {
        // The last rows may lie behind the stretch's end: they are multiplied, and left out.
        multiply_tile<kTileRows, kTileVectors, false>({softmax.rows + q, 1, kStretch}, values,
                                                      kPanel, tile, kPanel, n.selected);
        const int64_t rows = std::min<int64_t>(count - q, kTileRows);
        T* to = out + (matrix * n.positions + first + q) * n.channels + panel * kPanel;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < channels; c += kLanes)
            store(to + r * n.channels + c, load(tile + r * kPanel + c) * softmax.inverse[q + r],
                  static_cast<int>(std::min<int64_t>(channels - c, kLanes)));
      }
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::attend_selected
