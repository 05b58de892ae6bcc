// What the CPU and the CUDA launchers of the upsampling operators share about the logits.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <limits>

#include "../common/checks.h"
#include "maps.h"

namespace vss::upsample {

// Kernels index a row of logits with 32 bits; a layout with longer steps is copied once.
inline at::Tensor checked_logits(const char* op, const at::Tensor& logits) {
  check_dims(op, "logits", logits, 4);
  TORCH_CHECK_VALUE(logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0, op,
                    ": logits must have at least one class, row and column, got ", logits.sizes());
  TORCH_CHECK_VALUE(logits.size(1) <= std::numeric_limits<int>::max() / 2, op,
                    ": too many classes, ", logits.size(1));
  const bool narrow =
      logits.size(3) * logits.stride(3) <= std::numeric_limits<int32_t>::max();
  return narrow ? logits : logits.contiguous();
}

inline Strides map_strides(const at::Tensor& map) {
  return {map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

inline Strides pixel_strides(const at::Tensor& pixels) {
  return {pixels.stride(0), 0, pixels.stride(1), pixels.stride(2)};
}

// The width of equal tiles, none wider than `limit`, in whole lanes.
inline int64_t tile_width(int64_t columns, int64_t limit, int64_t lanes) {
  const int64_t tiles = ceil_div(columns, limit);
  return ceil_div(ceil_div(columns, tiles), lanes) * lanes;
}

}  // namespace vss::upsample
