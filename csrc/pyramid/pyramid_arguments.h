// What the CPU and the CUDA launcher of fuse_pyramid share: checks, geometry and results.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "../common/checks.h"
#include "pyramid_backward.h"

namespace vss::pyramid {

inline bool is_adjacent(const at::Tensor& level, int64_t axis) {
  return level.stride(axis) == 1 || level.size(axis) == 1;
}

struct PyramidInputs {
  std::vector<at::Tensor> levels;
  Pyramid geometry;
  bool turned;  // neighbouring channels are adjacent in memory, not neighbouring columns

  template <typename T>
  Sources<T> sources() const {
    Sources<T> result = {};
    result.first = levels[0].const_data_ptr<T>();
    for (size_t i = 1; i < levels.size(); ++i)
      result.others[i - 1] = levels[i].const_data_ptr<T>();
    return result;
  }
};

inline Strides strides_of(const at::Tensor& level) {
  return {level.stride(0), level.stride(1), level.stride(2), level.stride(3)};
}

// The first level decides which program runs. Levels of another layout are copied into that one: only
// the smaller ones, unless neither columns nor channels of the first are adjacent.
inline PyramidInputs pyramid_inputs(at::TensorList levels) {
  constexpr const char* op = "fuse_pyramid";
  TORCH_CHECK_VALUE(!levels.empty() && levels.size() <= kMaxLevels, op, ": levels must hold 1 to ",
                    kMaxLevels, " maps, got ", levels.size());
  const at::Tensor& first = levels[0];
  check_dims(op, "levels[0]", first, 4);
  TORCH_CHECK_VALUE(first.size(2) > 0 && first.size(3) > 0, op,
                    ": a level must have at least one row and one column, got ", first.sizes());
  PyramidInputs in = {};
  in.turned = !is_adjacent(first, 3) && is_adjacent(first, 1);
  Pyramid& p = in.geometry;
  p.batch = first.size(0);
  p.channels = first.size(1);
  p.rows = first.size(2);
  p.columns = first.size(3);
  p.others = static_cast<int>(levels.size()) - 1;
  for (const at::Tensor& level : levels) {
    check_dims(op, "a level", level, 4);
    check_like(op, "a level", level, "levels[0]", first);
    TORCH_CHECK_VALUE(level.size(0) == p.batch && level.size(1) == p.channels, op,
                      ": all levels must have the batch and channels of the first, got ",
                      level.sizes());
    TORCH_CHECK_VALUE(level.size(2) > 0 && level.size(2) <= p.rows && level.size(3) > 0 &&
                          level.size(3) <= p.columns,
                      op, ": a level must not be empty or larger than the first, got ",
                      level.sizes());
    in.levels.push_back(in.turned ? is_adjacent(level, 1)
                                        ? level
                                        : level.contiguous(at::MemoryFormat::ChannelsLast)
                        : is_adjacent(level, 3) ? level
                                                : level.contiguous());
  }
  p.first = strides_of(in.levels[0]);
  for (int i = 0; i < p.others; ++i) {
    const at::Tensor& level = in.levels[i + 1];
    p.levels[i] = {Resize(level.size(2), p.rows), Resize(level.size(3), p.columns),
                   strides_of(level)};
  }
  return in;
}

// Tiles of equal width, none wider than `limit` and all of whole lanes.
inline int tile_size(int64_t size, int64_t limit, int64_t lanes) {
  const int64_t tiles = ceil_div(std::max<int64_t>(size, 1), limit);
  return static_cast<int>(ceil_div(ceil_div(std::max<int64_t>(size, 1), tiles), lanes) * lanes);
}

inline at::Tensor fused_output(const PyramidInputs& in) {
  return at::empty(in.levels[0].sizes(), in.levels[0].options());
}

struct PyramidBackwardCall {
  at::Tensor grad;
  PyramidBackward geometry;
  std::vector<at::Tensor> grad_levels;

  template <typename T>
  std::vector<T*> results() const {
    std::vector<T*> pointers;
    for (const at::Tensor& level : grad_levels) pointers.push_back(level.mutable_data_ptr<T>());
    return pointers;
  }
};

// `sizes` holds rows and columns of every level whose gradient is wanted. A block takes a band of about
// `band_rows` rows of the incoming gradient.
inline PyramidBackwardCall backward_call(const at::Tensor& grad, at::IntArrayRef sizes,
                                         int64_t band_rows) {
  constexpr const char* op = "fuse_pyramid_backward";
  constexpr int64_t kChunkFloats = 4096;  // of a level's rows in scratch: 16 KiB
  check_dims(op, "grad", grad, 4);
  TORCH_CHECK_VALUE(sizes.size() % 2 == 0 && sizes.size() <= 2 * kMaxLevels, op,
                    ": sizes must hold rows and columns of at most ", kMaxLevels, " levels");
  PyramidBackwardCall call = {grad.contiguous(), {}, {}};
  PyramidBackward& p = call.geometry;
  p.planes = grad.size(0) * grad.size(1);
  p.rows = grad.size(2);
  p.columns = grad.size(3);
  p.levels = static_cast<int>(sizes.size() / 2);
  p.bands = std::max<int64_t>(ceil_div(p.rows, band_rows), 1);
  p.chunk = std::clamp<int64_t>(kChunkFloats / std::max<int64_t>(p.columns, 1), 1, band_rows);
  for (int i = 0; i < p.levels; ++i) {
    const int64_t rows = sizes[2 * i], columns = sizes[2 * i + 1];
    TORCH_CHECK_VALUE(rows > 0 && rows <= p.rows && columns > 0 && columns <= p.columns, op,
                      ": a level must not be empty or larger than grad, got ", rows, " x ",
                      columns);
    p.vertical[i] = Resize(rows, p.rows);
    p.horizontal[i] = Resize(columns, p.columns);
    call.grad_levels.push_back(
        at::empty({grad.size(0), grad.size(1), rows, columns}, grad.options()));
  }
  return call;
}

}  // namespace vss::pyramid
