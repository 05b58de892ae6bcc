// upsample_argmax: the most likely class of every output pixel, after one or two bilinear resizes.
//
// Two resizes in a row are one linear map, and along one dimension an output position reads at most
// four source positions. So a block resizes the few source rows of its output rows horizontally,
// class by class, combines them for each output row, and keeps the best class so far; neither the
// logits at the output's size nor those in between exist.
#pragma once

#include "../machine/machine.h"
#include "../math/exponential.h"
#include "../math/upsampled_rows.h"
#include "whole_tile.h"

namespace vss::inline VSS_MACHINE::upsample_argmax {

constexpr int kMaxTaps = 4;
constexpr int kRows =
    4;  // output rows that a work item keeps in registers; the usual ratio of the sizes

// The source positions that one output position reads, with the weight of each.
struct Taps {
  int64_t index[kMaxTaps];
  float weight[kMaxTaps];
};

// One dimension of one resize or of two in a row.
struct Path {
  Resize first, second;  // a single resize is `first`
  bool two;
  int taps;  // how many positions an output position reads

  Path() = default;
  Path(int64_t size, int64_t through, int64_t resized, bool align_corners) {
    two = through != size && through != resized;
    first = Resize(size, two ? through : resized, align_corners);
    second = Resize(through, resized, align_corners);
    // Where the first resize enlarges, the four positions lie within three neighbours, and output
    // positions with the same first one share them. Very long rows have steps so close to one that
    // rounding might skip a neighbour.
    constexpr int64_t kExactSteps = 1024;
    taps = !two ? 2 : through > size && size <= kExactSteps ? 3 : 4;
  }

  VSS_INLINE int64_t size() const { return first.size; }
  VSS_INLINE int64_t resized() const { return two ? second.resized : first.resized; }

  VSS_INLINE int64_t first_source(int64_t position) const {
    return first.tap(two ? second.tap(position).first : position).first;
  }

  // A position at or before the first that reads source position `index`.
  VSS_INLINE int64_t reader_begin(int64_t index) const {
    const int64_t begin = first.reader_begin(index);
    return two ? second.reader_begin(begin) : begin;
  }

  VSS_INLINE Taps at(int64_t position) const {
    Taps taps = {};
    if (!two) {
      const Tap tap = first.tap(position);
      taps.index[0] = tap.first;
      taps.index[1] = tap.second;
      taps.weight[0] = 1.0f - tap.weight;
      taps.weight[1] = tap.weight;
      return taps;
    }
    const Tap between = second.tap(position);
    const Tap a = first.tap(between.first), b = first.tap(between.second);
    const int64_t read[kMaxTaps] = {a.first, a.second, b.first, b.second};
    const float weight[kMaxTaps] = {(1.0f - between.weight) * (1.0f - a.weight),
                                    (1.0f - between.weight) * a.weight,
                                    between.weight * (1.0f - b.weight), between.weight * b.weight};
    VSS_UNROLL
    for (int i = 0; i < kMaxTaps; ++i) {
      if (this->taps == kMaxTaps) {
        taps.index[i] = read[i];
        taps.weight[i] = weight[i];
        continue;
      }
      const int64_t neighbour = a.first + i;
      taps.index[i] = neighbour < first.size ? neighbour : first.size - 1;
      VSS_UNROLL
      for (int j = 0; j < kMaxTaps; ++j) taps.weight[i] += read[j] == neighbour ? weight[j] : 0.0f;
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
  VSS_INLINE bool rows_share() const {
    return vertical.taps < kMaxTaps && vertical.resized() > vertical.size();
  }
  VSS_INLINE int64_t groups() const { return rows_share() ? vertical.size() : vertical.resized(); }
  VSS_INLINE int64_t tiles() const { return cdiv(horizontal.resized(), tile); }
  VSS_INLINE int64_t blocks() const { return batch * groups() * tiles(); }
};

// Where the result goes: one byte a class if there are few, and the probability if it is wanted.
struct ArgmaxResult {
  uint8_t* narrow;
  int64_t* wide;
  float* confidence;

  VSS_INLINE void write(int64_t pixel, int label) const {
    if (narrow != nullptr) {
      narrow[pixel] = static_cast<uint8_t>(label);
    } else {
      wide[pixel] = label;
    }
  }
};

// kRows rows of kLanes columns: the best class so far, its logit, and the sum of exp(z - best).
template <bool kConfidence>
struct Winners {
  Floats best[kRows], total[kRows];
  Ints label[kRows];

  VSS_DEVICE Winners() {
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      best[r] = broadcast(std::numeric_limits<float>::lowest());
      total[r] = Floats{};
      label[r] = Ints{};
    }
  }

  // Takes in class `k`, given its logits in one row; NaN wins, as in torch.argmax.
  VSS_DEVICE void add(int r, int k, Floats logits) {
    const Floats before = best[r];
    if constexpr (kConfidence) {
      const Floats lead = logits - before;
      const Floats shrunk = exponential(lead > 0.0f ? -lead : lead);
      // The new best becomes the one that all exponentials are relative to.
      total[r] = lead > 0.0f ? total[r] * shrunk + 1.0f : total[r] + shrunk;
    }
    const Ints labels = Ints{} + k;
    const auto loses = logits <= before;
    const auto is_number = before == before;  // the first NaN stays
    best[r] = loses ? before : is_number ? logits : before;
    label[r] = loses ? label[r] : is_number ? labels : label[r];
  }
};

#if !VSS_GPU_CODE

template <int kVertical, int kHorizontal, typename T>
VSS_INLINE bool find_whole(const ArgmaxGeometry& g, const T* map, const Taps& sources,
                           const Ints (&columns)[kMaxTaps],
                           const Floats (&column_weights)[kMaxTaps], int32_t begin,
                           const float (&row_weights)[kRows][kMaxTaps], Ints (&labels)[kRows]) {
  WholeTile<kRows, kVertical, kHorizontal, T> tile;
  tile.step = g.strides.channel;
  tile.classes = g.classes;
  for (int s = 0; s < kVertical; ++s) {
    tile.rows[s] = map + sources.index[s] * g.strides.row + begin;
    for (int r = 0; r < kRows; ++r) tile.row_weights[r][s] = row_weights[r][s];
  }
  for (int t = 0; t < kHorizontal; ++t) {
    tile.columns[t] = columns[t] - begin;
    tile.column_weights[t] = column_weights[t];
  }
  return tile.find(labels);
}

// Finds the best classes of kRows rows of kLanes columns; false where the general way has to.
template <typename T>
VSS_INLINE bool find_whole(const ArgmaxGeometry& g, const T* map, const Taps& sources,
                           const Ints (&columns)[kMaxTaps],
                           const Floats (&column_weights)[kMaxTaps],
                           const float (&row_weights)[kRows][kMaxTaps], Ints (&labels)[kRows]) {
  const int64_t latest = g.horizontal.size() - kLanes;
  if (g.strides.column != 1 || latest < 0) return false;
  const int32_t begin = static_cast<int32_t>(std::min<int64_t>(lane(columns[0], 0), latest));
  const int taps = g.horizontal.taps;
  if (lane(columns[taps - 1], kLanes - 1) - begin >= kLanes) return false;
  const auto find = [&]<int kVertical, int kHorizontal>() {
    return find_whole<kVertical, kHorizontal>(g, map, sources, columns, column_weights, begin,
                                              row_weights, labels);
  };
  if (g.vertical.taps == 2 && taps == 2) return find.template operator()<2, 2>();
  if (g.vertical.taps == 2 && taps == 3) return find.template operator()<2, 3>();
  if (g.vertical.taps == 3 && taps == 3) return find.template operator()<3, 3>();
  return false;
}

#endif

// kLanes columns from `x` on, in the rows of one group.
template <bool kConfidence, typename T>
VSS_DEVICE void argmax_columns(const ArgmaxGeometry& g, const T* map, int64_t n, const Range& rows,
                               int64_t x, int64_t x_end, const ArgmaxResult& result) {
  // Source positions as offsets, which fit 32 bits.
  Ints columns[kMaxTaps];
  Floats column_weights[kMaxTaps];
  for (int i = 0; i < kLanes; ++i) {
    const Taps taps = g.horizontal.at(x + i < x_end ? x + i : x_end - 1);
    VSS_UNROLL
    for (int t = 0; t < kMaxTaps; ++t) {
      set_lane(columns[t], i, static_cast<int32_t>(taps.index[t] * g.strides.column));
      set_lane(column_weights[t], i, taps.weight[t]);
    }
  }
  const int taps = g.horizontal.taps;
  const RowWindow window(lane(columns[0], 0), lane(columns[taps - 1], kLanes - 1),
                         g.strides.column == 1 ? g.horizontal.size() : 0);
  // One source row, resized horizontally; `read` yields its values at one tap of each lane.
  const auto resize = [&](const auto& read) VSS_LAMBDA {
    Floats total = column_weights[0] * read(columns[0]) + column_weights[1] * read(columns[1]);
    VSS_UNROLL
    for (int t = 2; t < kMaxTaps; ++t) {
      if (t >= taps) break;
      total += column_weights[t] * read(columns[t]);
    }
    return total;
  };
  const int width = static_cast<int>(x_end - x < kLanes ? x_end - x : kLanes);
  for (int64_t begin = rows.begin; begin < rows.end; begin += kRows) {
    const int count = static_cast<int>(rows.end - begin < kRows ? rows.end - begin : kRows);
    const Taps sources = g.vertical.at(begin);  // their indices are those of all rows
    float row_weights[kRows][kMaxTaps];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Taps taps = g.vertical.at(begin + (r < count ? r : 0));
      VSS_UNROLL
      for (int t = 0; t < kMaxTaps; ++t) row_weights[r][t] = taps.weight[t];
    }

    Winners<kConfidence> winners;
    int general_classes = g.classes;
#if !VSS_GPU_CODE
    if (!kConfidence && count == kRows &&
        find_whole(g, map, sources, columns, column_weights, row_weights, winners.label))
      general_classes = 0;
#endif
    for (int k = 0; k < general_classes; ++k) {
      Floats resized[kMaxTaps] = {};  // the source rows, resized horizontally
      VSS_UNROLL
      for (int s = 0; s < kMaxTaps; ++s) {
        if (s >= 2 && s >= g.vertical.taps) break;
        const T* row = map + k * g.strides.channel + sources.index[s] * g.strides.row;
        if (window.fits()) {
          const Floats columns_read = window.load_row(row);
          resized[s] =
              resize([&](Ints column) VSS_LAMBDA { return window.read(columns_read, column); });
        } else {
          resized[s] = resize([&](Ints column) VSS_LAMBDA { return gather(row, column); });
        }
      }
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= count) break;
        Floats z = row_weights[r][0] * resized[0] + row_weights[r][1] * resized[1];
        VSS_UNROLL
        for (int s = 2; s < kMaxTaps; ++s) {
          if (s >= g.vertical.taps) break;
          z += row_weights[r][s] * resized[s];
        }
        winners.add(r, k, z);
      }
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) break;
      for (int i = 0; i < width; ++i) {
        const int64_t pixel =
            (n * g.vertical.resized() + begin + r) * g.horizontal.resized() + x + i;
        result.write(pixel, lane(winners.label[r], i));
        if constexpr (kConfidence) result.confidence[pixel] = 1.0f / lane(winners.total[r], i);
      }
    }
  }
}

// One tile of one group of rows. No scratch.
template <bool kConfidence, typename T>
struct ArgmaxTile {
  ArgmaxGeometry g;
  const T* logits;
  ArgmaxResult result;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int64_t x_begin = index % g.tiles() * g.tile;
    const int64_t x_end =
        x_begin + g.tile < g.horizontal.resized() ? x_begin + g.tile : g.horizontal.resized();
    const int64_t group = index / g.tiles() % g.groups();
    const int64_t n = index / (g.tiles() * g.groups());
    Range rows = {group, group + 1};
    if (g.rows_share()) {
      rows = group_rows(group, g.vertical.resized(), g.vertical.reader_begin(group),
                        [&](int64_t row) VSS_LAMBDA { return g.vertical.first_source(row); });
    }
    block.for_each(cdiv<int64_t>(x_end - x_begin, kLanes), [&](int64_t i) VSS_LAMBDA {
      argmax_columns<kConfidence>(g, logits + n * g.strides.batch, n, rows, x_begin + i * kLanes,
                                  x_end, result);
    });
  }
};

}  // namespace vss::inline VSS_MACHINE::upsample_argmax
