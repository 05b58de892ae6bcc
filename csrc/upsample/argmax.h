// upsample_argmax: the most likely class of every output pixel, after one or two bilinear resizes.
//
// Two resizes in a row are one linear map, and along one dimension an output position reads at most
// four source positions. So a block resizes the few source rows of its output rows horizontally,
// class by class, combines them for each output row, and keeps the best class so far; neither the
// logits at the output's size nor those in between exist.
#pragma once

#include <cmath>
#include <limits>

#include "maps.h"

namespace vss::upsample {

constexpr int kMaxTaps = 4;

// The source positions that one output position reads, with the share of each.
struct Taps {
  int64_t index[kMaxTaps];
  float share[kMaxTaps];
};

// One dimension of one resize or of two in a row.
struct Path {
  Resize first, second;  // a single resize is `first`
  bool two;
  int taps;  // how many positions an output position reads

  Path() = default;
  Path(int64_t size, int64_t through, int64_t resized) {
    two = through != size && through != resized;
    first = Resize(size, two ? through : resized);
    second = Resize(through, resized);
    // Where the first resize enlarges, the four positions lie within three neighbours, and output
    // positions with the same first one share them. Very long rows have steps so close to one that
    // rounding might skip a neighbour.
    constexpr int64_t kExactSteps = 1024;
    taps = !two ? 2 : through > size && size <= kExactSteps ? 3 : 4;
  }

  VSS_HOST_DEVICE int64_t size() const { return first.size; }
  VSS_HOST_DEVICE int64_t resized() const { return two ? second.resized : first.resized; }

  VSS_HOST_DEVICE int64_t first_source(int64_t position) const {
    return first.tap(two ? second.tap(position).first : position).first;
  }

  // A position at or before the first that reads source position `index`.
  VSS_HOST_DEVICE int64_t reader_begin(int64_t index) const {
    const int64_t begin = first.reader_begin(index);
    return two ? second.reader_begin(begin) : begin;
  }

  VSS_HOST_DEVICE Taps at(int64_t position) const {
    Taps taps = {};
    if (!two) {
      const Tap tap = first.tap(position);
      taps.index[0] = tap.first;
      taps.index[1] = tap.second;
      taps.share[0] = 1.0f - tap.share;
      taps.share[1] = tap.share;
      return taps;
    }
    const Tap between = second.tap(position);
    const Tap a = first.tap(between.first), b = first.tap(between.second);
    const int64_t read[kMaxTaps] = {a.first, a.second, b.first, b.second};
    const float share[kMaxTaps] = {
        (1.0f - between.share) * (1.0f - a.share), (1.0f - between.share) * a.share,
        between.share * (1.0f - b.share), between.share * b.share};
    VSS_UNROLL
    for (int i = 0; i < kMaxTaps; ++i) {
      if (this->taps == kMaxTaps) {
        taps.index[i] = read[i];
        taps.share[i] = share[i];
        continue;
      }
      const int64_t neighbour = a.first + i;
      taps.index[i] = neighbour < first.size ? neighbour : first.size - 1;
      VSS_UNROLL
      for (int j = 0; j < kMaxTaps; ++j) taps.share[i] += read[j] == neighbour ? share[j] : 0.0f;
    }
    return taps;
  }
};

struct ArgmaxGeometry {
  int64_t batch;
  int classes;
  Path vertical, horizontal;
  Strides strides;  // of the logits
  int64_t tile;     // columns that a block takes

  // Rows share their source rows only where three neighbours hold them.
  VSS_HOST_DEVICE bool rows_share() const {
    return vertical.taps < kMaxTaps && vertical.resized() > vertical.size();
  }
  VSS_HOST_DEVICE int64_t groups() const {
    return rows_share() ? vertical.size() : vertical.resized();
  }
  VSS_HOST_DEVICE int64_t tiles() const { return ceil_div(horizontal.resized(), tile); }
  VSS_HOST_DEVICE int64_t blocks() const { return batch * groups() * tiles(); }
};

// Where the result goes: one byte a class if there are few, and the probability if it is wanted.
struct ArgmaxResult {
  uint8_t* narrow;
  int64_t* wide;
  float* confidence;

  VSS_HOST_DEVICE void write(int64_t pixel, int label) const {
    if (narrow != nullptr) {
      narrow[pixel] = static_cast<uint8_t>(label);
    } else {
      wide[pixel] = label;
    }
  }
};

// kRows rows of kLanes columns: the best class so far, its logit, and the sum of exp(z - best).
template <int kLanes, bool kConfidence>
struct Winners {
  float best[kRows][kLanes], total[kRows][kLanes];
  int label[kRows][kLanes];

  VSS_HOST_DEVICE Winners() {
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      for (int lane = 0; lane < kLanes; ++lane) {
        best[r][lane] = std::numeric_limits<float>::lowest();
        total[r][lane] = 0.0f;
        label[r][lane] = 0;
      }
    }
  }

  // Takes in class `k`, given its logits in one row; NaN wins, as in torch.argmax.
  VSS_HOST_DEVICE void add(int r, int k, const float (&logits)[kLanes]) {
    if constexpr (kConfidence) {
      VSS_SIMD
      for (int lane = 0; lane < kLanes; ++lane) {
        const float lead = logits[lane] - best[r][lane];
        const float shrunk = exponential(-std::fabs(lead));
        // The new best becomes the one that all exponentials are relative to. Without a choice
        // between two results, so that the loop vectorises everywhere.
        const float wins = static_cast<float>(lead > 0.0f), stays = 1.0f - wins;
        total[r][lane] = total[r][lane] * (wins * shrunk + stays) + (stays * shrunk + wins);
      }
    }
    VSS_SIMD
    for (int lane = 0; lane < kLanes; ++lane) {
      const float z = logits[lane], before = best[r][lane];
      const bool wins = !(z <= before) & (before == before);
      best[r][lane] = wins ? z : before;
      label[r][lane] = wins ? k : label[r][lane];
    }
  }
};

// kLanes columns from `x` on, in the rows of one group.
template <int kLanes, bool kConfidence, typename T>
VSS_HOST_DEVICE void argmax_columns(const ArgmaxGeometry& g, const T* map, int64_t n,
                                    const Span& rows, int64_t x, int64_t x_end,
                                    const ArgmaxResult& result) {
  // Source positions as offsets, which fit 32 bits.
  int32_t columns[kMaxTaps][kLanes];
  float column_shares[kMaxTaps][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Taps taps = g.horizontal.at(x + lane < x_end ? x + lane : x_end - 1);
    VSS_UNROLL
    for (int t = 0; t < kMaxTaps; ++t) {
      columns[t][lane] = static_cast<int32_t>(taps.index[t] * g.strides.column);
      column_shares[t][lane] = taps.share[t];
    }
  }
  const int width = static_cast<int>(x_end - x < kLanes ? x_end - x : kLanes);
  for (int64_t begin = rows.begin; begin < rows.end; begin += kRows) {
    const int count = static_cast<int>(rows.end - begin < kRows ? rows.end - begin : kRows);
    const Taps sources = g.vertical.at(begin);  // their indices are those of all rows
    float row_shares[kRows][kMaxTaps];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Taps taps = g.vertical.at(begin + (r < count ? r : 0));
      VSS_UNROLL
      for (int t = 0; t < kMaxTaps; ++t) row_shares[r][t] = taps.share[t];
    }

    Winners<kLanes, kConfidence> winners;
    for (int k = 0; k < g.classes; ++k) {
      float resized[kMaxTaps][kLanes];  // the source rows, resized horizontally
      VSS_UNROLL
      for (int s = 0; s < kMaxTaps; ++s) {
        if (s >= 2 && s >= g.vertical.taps) break;
        const T* row = map + k * g.strides.channel + sources.index[s] * g.strides.row;
        VSS_SIMD
        for (int lane = 0; lane < kLanes; ++lane) {
          resized[s][lane] =
              column_shares[0][lane] * static_cast<float>(row[columns[0][lane]]) +
              column_shares[1][lane] * static_cast<float>(row[columns[1][lane]]);
        }
        VSS_UNROLL
        for (int t = 2; t < kMaxTaps; ++t) {
          if (t >= g.horizontal.taps) break;
          VSS_SIMD
          for (int lane = 0; lane < kLanes; ++lane)
            resized[s][lane] += column_shares[t][lane] * static_cast<float>(row[columns[t][lane]]);
        }
      }
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= count) break;
        float z[kLanes];
        VSS_SIMD
        for (int lane = 0; lane < kLanes; ++lane)
          z[lane] = row_shares[r][0] * resized[0][lane] + row_shares[r][1] * resized[1][lane];
        VSS_UNROLL
        for (int s = 2; s < kMaxTaps; ++s) {
          if (s >= g.vertical.taps) break;
          VSS_SIMD
          for (int lane = 0; lane < kLanes; ++lane) z[lane] += row_shares[r][s] * resized[s][lane];
        }
        winners.add(r, k, z);
      }
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) break;
      for (int lane = 0; lane < kLanes; ++lane) {  // a known bound keeps the arrays in registers
        if (lane >= width) break;
        const int64_t pixel =
            (n * g.vertical.resized() + begin + r) * g.horizontal.resized() + x + lane;
        result.write(pixel, winners.label[r][lane]);
        if constexpr (kConfidence) result.confidence[pixel] = 1.0f / winners.total[r][lane];
      }
    }
  }
}

// One tile of one group of rows. No scratch.
template <bool kConfidence, typename T, typename Block>
VSS_HOST_DEVICE void argmax_tile(const Block& block, const ArgmaxGeometry& g, const T* logits,
                                 const ArgmaxResult& result, int64_t index) {
  const int64_t x_begin = index % g.tiles() * g.tile;
  const int64_t x_end =
      x_begin + g.tile < g.horizontal.resized() ? x_begin + g.tile : g.horizontal.resized();
  const int64_t group = index / g.tiles() % g.groups();
  const int64_t n = index / (g.tiles() * g.groups());
  Span rows = {group, group + 1};
  if (g.rows_share()) {
    rows = group_rows(group, g.vertical.resized(), g.vertical.reader_begin(group),
                      [&](int64_t row) VSS_INLINE { return g.vertical.first_source(row); });
  }
  constexpr int kLanes = Block::kLanes;
  block.for_each(ceil_div<int64_t>(x_end - x_begin, kLanes), [&](int64_t i) VSS_INLINE {
    argmax_columns<kLanes, kConfidence>(g, logits + n * g.strides.batch, n, rows,
                                        x_begin + i * kLanes, x_end, result);
  });
}

}  // namespace vss::upsample
