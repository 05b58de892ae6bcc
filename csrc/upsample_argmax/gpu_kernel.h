// upsample_argmax on a GPU where it enlarges: the algorithm of kernel.h for four rows of a column.
//
// A thread takes kRows output rows of one column, which read kSources neighbouring source rows and
// kColumns neighbouring source columns. What they read has a fixed place, and a weight that may be
// zero, so that nothing is decided in the loop over the classes and several of them come from
// memory at a time. With finite logits a weight of zero changes nothing, and no comparison meets
// NaN: a column whose logits are not all finite is computed once more, by the definition.
#pragma once

#include "../math/hat.h"
#include "kernel.h"

#if VSS_GPU_CODE

namespace vss::inline VSS_MACHINE::upsample_argmax {

constexpr int kColumns = 3;
constexpr int kTile = 96;  // columns of a block: 480 and 853 fill it

// How the output rows are divided among threads: rows [kRows * group - lead, ... + kRows) read at
// most `sources` neighbouring source rows.
struct RowGroups {
  int lead, sources;  // zero sources: no bound is known

  explicit RowGroups(const Path& path) : lead(0), sources(0) {
    // With a ratio of exactly kRows a group lies between the centres of two source rows.
    if (!path.two && path.first.offset > 0.0f && path.resized() == kRows * path.size()) {
      lead = kRows / 2;
      sources = 2;
      return;
    }
    // From the first row of a group to its last, the position in between, then the source position,
    // moves on by so much, and by one more where it crosses a whole number; rounding adds little.
    constexpr float kSlack = 1e-3f;
    float steps = static_cast<float>(kRows - 1) * (path.two ? path.second : path.first).scale;
    int moved = static_cast<int>(std::ceil(steps + kSlack));
    if (path.two)
      moved = static_cast<int>(std::ceil(static_cast<float>(moved) * path.first.scale + kSlack));
    if (path.taps + moved <= kMaxTaps) sources = kMaxTaps;
  }

  int64_t count(int64_t rows) const { return cdiv<int64_t>(rows + lead, kRows); }
};

// A Path as hat functions.
struct HatPath {
  Hat first, second;
  bool two;

  explicit HatPath(const Path& path) : first(path.first), second(path.second), two(path.two) {}

  VSS_DEVICE int first_source(int position) const {
    const int between = two ? static_cast<int>(second.source(position)) : position;
    return static_cast<int>(first.source(between));
  }

  // The weights of neighbouring source positions from `begin` on in one output position.
  template <int kCount>
  VSS_DEVICE void weigh(int position, int begin, float (&weights)[kCount]) const {
    float upper = first.source(position), lower = 0.0f, below = 0.0f;
    if (two) {
      const float source = second.source(position);
      const int between = static_cast<int>(source);
      below = source - static_cast<float>(between);
      upper = first.source(between);
      lower = first.source(between + 1);
    }
    VSS_UNROLL
    for (int n = 0; n < kCount; ++n) {
      weights[n] = Hat::weight(upper, begin + n);
      if (two) weights[n] = (1.0f - below) * weights[n] + below * Hat::weight(lower, begin + n);
    }
  }
};

template <bool kConfidence, typename T, int kSources>
struct GpuArgmaxTile {
  static constexpr int kBatch = 4;  // classes on their way from memory at a time

  ArgmaxGeometry g;
  const T* logits;
  ArgmaxResult result;
  HatPath vertical, horizontal;
  int lead, groups, tiles;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int line = static_cast<int>(index) / tiles, tile = static_cast<int>(index) - line * tiles;
    const int n = line / groups, group = line - n * groups;
    const int left = columns() - tile * kTile;
    for (int i = block.rank(); i < (left < kTile ? left : kTile); i += block.size())
      column(n, group * kRows - lead, tile * kTile + i);
  }

 private:
  struct Best {
    float logit = std::numeric_limits<float>::lowest(), total = 0.0f;
    int label = 0;

    // All logits are finite; see Winners::add.
    VSS_DEVICE void add(int k, float z) {
      const bool wins = z > logit;
      if constexpr (kConfidence) {
        const float shrunk = exponential(wins ? logit - z : z - logit);
        total = wins ? total * shrunk + 1.0f : total + shrunk;
      }
      logit = wins ? z : logit;
      label = wins ? k : label;
    }
  };

  VSS_DEVICE int rows() const { return static_cast<int>(g.vertical.resized()); }
  VSS_DEVICE int columns() const { return static_cast<int>(g.horizontal.resized()); }

  VSS_DEVICE int within(int row) const { return row < 0 ? 0 : row < rows() ? row : rows() - 1; }

  // The first of `count` neighbours that hold what an output position and those after it read.
  VSS_DEVICE static int first_of(const HatPath& path, int position, int64_t size, int count) {
    const int first = path.first_source(position), last = static_cast<int>(size) - count;
    return first < last ? first : last;
  }

  VSS_DEVICE void column(int64_t n, int y, int x) const {
    const int top = first_of(vertical, within(y), g.vertical.size(), kSources);
    const int left = first_of(horizontal, x, g.horizontal.size(), kColumns);
    float column_weights[kColumns], row_weights[kRows][kSources];
    horizontal.weigh(x, left, column_weights);
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) vertical.weigh(within(y + r), top, row_weights[r]);

    const T* map = logits + n * g.strides.batch;
    const T* from = map + top * g.strides.row + left;
    Best best[kRows];
    float finite = 0.0f;  // zero as long as all logits are
    const auto read = [&](const T* from, float (&values)[kSources][kColumns]) VSS_LAMBDA {
      VSS_UNROLL
      for (int s = 0; s < kSources; ++s) {
        VSS_UNROLL
        for (int c = 0; c < kColumns; ++c)
          values[s][c] = static_cast<float>(from[s * g.strides.row + c]);
      }
    };
    const auto take = [&](int k, const float (&values)[kSources][kColumns]) VSS_LAMBDA {
      float resized[kSources];
      VSS_UNROLL
      for (int s = 0; s < kSources; ++s) {
        resized[s] = column_weights[0] * values[s][0];
        VSS_UNROLL
        for (int c = 1; c < kColumns; ++c) resized[s] += column_weights[c] * values[s][c];
        finite += 0.0f * resized[s];
      }
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float z = row_weights[r][0] * resized[0];
        VSS_UNROLL
        for (int s = 1; s < kSources; ++s) z += row_weights[r][s] * resized[s];
        best[r].add(k, z);
      }
    };
    int k = 0;
    for (; k + kBatch <= g.classes; k += kBatch) {
      float values[kBatch][kSources][kColumns];
      VSS_UNROLL
      for (int i = 0; i < kBatch; ++i) read(from + i * g.strides.channel, values[i]);
      VSS_UNROLL
      for (int i = 0; i < kBatch; ++i) take(k + i, values[i]);
      from += kBatch * g.strides.channel;
    }
    for (; k < g.classes; ++k) {
      float values[kSources][kColumns];
      read(from, values);
      take(k, values);
      from += g.strides.channel;
    }

    if (finite != 0.0f) {  // or is NaN
      for (int r = 0; r < kRows; ++r)
        if (within(y + r) == y + r) define(map, n, y + r, x);
      return;
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (within(y + r) != y + r) continue;
      const int64_t pixel = (n * rows() + y + r) * columns() + x;
      result.write(pixel, best[r].label);
      if constexpr (kConfidence) result.confidence[pixel] = 1.0f / best[r].total;
    }
  }

  // One pixel by the definition, whatever its logits are.
  VSS_DEVICE void define(const T* map, int64_t n, int y, int x) const {
    Winners<kConfidence> winners;
    const Taps rows_read = g.vertical.at(y), columns_read = g.horizontal.at(x);
    for (int k = 0; k < g.classes; ++k) {
      float z = 0.0f;
      VSS_UNROLL
      for (int s = 0; s < kMaxTaps; ++s) {
        if (s >= g.vertical.taps) continue;
        const T* row = map + k * g.strides.channel + rows_read.index[s] * g.strides.row;
        float resized = 0.0f;
        VSS_UNROLL
        for (int t = 0; t < kColumns; ++t)
          if (t < g.horizontal.taps)
            resized += columns_read.weight[t] * static_cast<float>(row[columns_read.index[t]]);
        z += rows_read.weight[s] * resized;
      }
      winners.add(0, k, z);
    }
    const int64_t pixel = (n * rows() + y) * columns() + x;
    result.write(pixel, winners.label[0]);
    if constexpr (kConfidence) result.confidence[pixel] = 1.0f / winners.total[0];
  }
};

}  // namespace vss::inline VSS_MACHINE::upsample_argmax

#endif
