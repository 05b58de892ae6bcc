// The backward pass of upsample_cross_entropy; kernel.h has the formulas.
//
//      source rows        output rows        kept for every output column, for
//      each class
//   y0 ──────────────┬──  row               upper += (1 - t) dz      complete:
//   gather into cells of y0
//                    │    row   dz, once
//   y0 + 1 ──────────┴──  row               lower += t dz            carried to
//   the next pair of rows
#pragma once

#if VSS_GPU_CODE
#include "pixel_sums.h"
#else
#include "register_sums.h"
#endif

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// The gradients of one tile of one band of kBackwardClasses classes.
template <typename T>
struct LossTileBackward {
  LossBackwardGeometry g;
  const T* logits;
  T* grad_logits;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const LossGeometry& loss = g.loss;
    const int64_t tile = index % g.tiles();
    const int64_t band = index / g.tiles() % g.bands();
    const int64_t class_group = index / (g.tiles() * g.bands()) % g.class_groups();
    const int64_t n = index / (g.tiles() * g.bands() * g.class_groups());
    const int k = static_cast<int>(class_group) * kBackwardClasses;
    const int count = loss.classes - k < kBackwardClasses ? loss.classes - k : kBackwardClasses;
    const int64_t cell_begin = tile * g.tile;
    const int64_t cell_end =
        cell_begin + g.tile < loss.horizontal.size ? cell_begin + g.tile : loss.horizontal.size;
    const int cells = static_cast<int>(cell_end - cell_begin);
    const Range xs = positions_reading(loss.horizontal, cell_begin, cell_end - 1);
    const int64_t lane_groups = cdiv<int64_t>(xs.size(), kLanes);
    const TileScratch scratch(g, block.scratch());
    block.for_each(lane_groups, [&](int64_t i) VSS_LAMBDA {
      SourceColumns(loss.horizontal, xs.begin + i * kLanes, xs.end, loss.strides.column)
          .save(scratch.table + i * SourceColumns::kStored);
      for (int c = 0; c < kBackwardClasses; ++c)
        store(scratch.carried + c * g.reach + i * kLanes, Floats{});
    });
    block.for_each(cells, [&](int64_t i) VSS_LAMBDA {
      const Range fan = positions_reading(loss.horizontal, cell_begin + i, cell_begin + i);
      for (int64_t j = 0; j < fan.size(); ++j)
        scratch.weights[i * g.fan_out + j] =
            loss.horizontal.tap(fan.begin + j).weight_of(cell_begin + i);
      scratch.firsts[i] = static_cast<float>(fan.begin - xs.begin);
      scratch.fans[i] = static_cast<float>(fan.size());
    });
    block.sync();

    const int64_t y_begin = band * g.band;
    const int64_t y_end =
        y_begin + g.band < loss.vertical.size ? y_begin + g.band : loss.vertical.size;
    // The pair of rows above the band gives to its first row.
    const int64_t y_first = y_begin > 0 ? y_begin - 1 : 0;
    Range rows = {0, loss.vertical.reader_begin(y_first)};
    const Resize& vertical = loss.vertical;
    while (rows.end < vertical.resized && vertical.tap(rows.end).first < y_first) ++rows.end;
    for (int64_t y = y_first; y < y_end; ++y) {
      rows.begin = rows.end;
      while (rows.end < vertical.resized && vertical.tap(rows.end).first == y) ++rows.end;
      const bool last = y == vertical.size - 1;  // then both taps are this row

      block.for_each(lane_groups, [&](int64_t i) VSS_LAMBDA {
        give_rows(g, scratch, logits + n * loss.strides.batch, n, k, count, rows, i,
                  xs.begin + i * kLanes, xs.end, last);
      });
      if (y < y_begin) continue;
      block.sync();
      const int64_t row = (n * loss.classes + k) * loss.vertical.size + y;
      gather_cells(block, g, scratch, count, cells,
                   grad_logits + row * loss.horizontal.size + cell_begin,
                   loss.vertical.size * loss.horizontal.size);
      block.sync();
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
