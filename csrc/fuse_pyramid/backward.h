// The gradient of a level of fuse_pyramid: the transpose of its resize, gathered per cell.
//
// A cell's gradient sums what the output positions that read the cell pass on to it. One dimension
// after the other: a block first sums whole rows of the incoming gradient into rows of the level,
// then columns into cells. Each cell has one owner, so there are no atomics.
//
// Output positions whose first tap is cell k are a run; the runs lie one after the other. With w
// the weight of an output position's second tap, cell k receives 1 - w of run k and w of run k - 1.
#pragma once

#include "kernel.h"

namespace vss::inline VSS_MACHINE::fuse_pyramid {

struct PyramidBackward {
  int64_t planes, rows, columns;  // of the incoming gradient
  int levels;
  Resize vertical[kMaxLevels], horizontal[kMaxLevels];
  int64_t bands;  // blocks that share a plane
  int64_t chunk;  // rows of a level that are in scratch at a time

  VSS_INLINE int64_t blocks() const { return planes * bands; }
  int64_t scratch_floats() const { return 2 * (rows + columns + 1) + chunk * columns; }
};

// The runs of one dimension, in scratch: the weight of every output position's second tap, then
// where each run begins. The last cell has no second tap, so that all of its own run is its.
class Runs {
 public:
  VSS_INLINE Runs(const Resize& resize, float* scratch)
      : resize_(resize), weights_(scratch), begins_(scratch + resize.resized) {}

  // Call sync() afterwards.
  VSS_DEVICE void tabulate(const Block& block) const {
    block.for_each(resize_.resized, [&](int64_t i) VSS_LAMBDA {
      const Tap tap = resize_.tap(i);
      weights_[i] = tap.second > tap.first ? tap.weight : 0.0f;
      const int64_t before = i > 0 ? resize_.tap(i - 1).first : -1;
      for (int64_t cell = before + 1; cell <= tap.first; ++cell) set_begin(cell, i);
      if (i == resize_.resized - 1)
        for (int64_t cell = tap.first + 1; cell <= resize_.size; ++cell) set_begin(cell, i + 1);
    });
  }

  // Calls add(position, weight) for every output position that reads `cell`, in order.
  template <typename F>
  VSS_INLINE void for_outputs(int64_t cell, const F& add) const {
    const int32_t begin = run_begin(cell), end = run_begin(cell + 1);
    for (int32_t i = cell > 0 ? run_begin(cell - 1) : begin; i < begin; ++i) add(i, weights_[i]);
    for (int32_t i = begin; i < end; ++i) add(i, 1.0f - weights_[i]);
  }

 private:
  VSS_INLINE void set_begin(int64_t cell, int64_t begin) const {
    begins_[cell] = std::bit_cast<float>(static_cast<int32_t>(begin));
  }
  VSS_INLINE int32_t run_begin(int64_t cell) const { return position(begins_[cell]); }

  const Resize& resize_;
  float *weights_, *begins_;
};

// One band of one plane, of all levels: the incoming gradient comes from memory once.
template <typename T>
struct FuseBackward {
  PyramidBackward p;
  const T* grad;
  T* grad_levels[kMaxLevels];

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int64_t plane = index / p.bands, band = index % p.bands;
    const T* incoming = grad + plane * p.rows * p.columns;
    const int columns = static_cast<int>(p.columns);
    const int groups = cdiv(columns, kLanes);
    for (int l = 0; l < p.levels; ++l) {
      const Resize& vertical = p.vertical[l];
      const Resize& horizontal = p.horizontal[l];
      const int cells = static_cast<int>(horizontal.size);
      const Runs row_runs(vertical, block.scratch());
      const Runs column_runs(horizontal, block.scratch() + 2 * p.rows + 1);
      float* row_sums = block.scratch() + 2 * (p.rows + p.columns + 1);  // [chunk, columns]
      row_runs.tabulate(block);
      column_runs.tabulate(block);
      block.sync();

      const int64_t end = vertical.size * (band + 1) / p.bands;
      for (int64_t begin = vertical.size * band / p.bands; begin < end; begin += p.chunk) {
        const int rows = static_cast<int>(end - begin < p.chunk ? end - begin : p.chunk);
        block.for_each(rows * groups, [&](int64_t item) VSS_LAMBDA {
          const int row = static_cast<int>(item) / groups;
          run_group(static_cast<int>(item) % groups, columns, [&](int x, int count) VSS_LAMBDA {
            Floats total{};
            row_runs.for_outputs(begin + row, [&](int32_t y, float weight) VSS_LAMBDA {
              total += weight * load(incoming + y * p.columns + x, count);
            });
            store(row_sums + row * p.columns + x, total, count);
          });
        });
        block.sync();
        T* result = grad_levels[l] + (plane * vertical.size + begin) * horizontal.size;
        block.for_each(rows * cells, [&](int64_t cell) VSS_LAMBDA {
          const float* from = row_sums + static_cast<int>(cell) / cells * p.columns;
          float total = 0;
          column_runs.for_outputs(static_cast<int>(cell) % cells,
                                  [&](int32_t x, float weight)
                                      VSS_LAMBDA { total += weight * from[x]; });
          result[cell] = static_cast<T>(total);
        });
        block.sync();
      }
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::fuse_pyramid
