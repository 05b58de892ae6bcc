// What the CPU and the CUDA launcher of upsample_argmax share: checks, geometry, results.
#pragma once

#include <tuple>
#include <vector>

#include "argmax.h"
#include "arguments.h"

namespace vss::upsample {

struct ArgmaxCall {
  at::Tensor logits, classes, confidence;  // the last one empty where it is not wanted
  ArgmaxGeometry geometry;
  ArgmaxResult result;
};

// `through` equal to `size` means a single resize.
inline ArgmaxCall argmax_call(const at::Tensor& logits, at::IntArrayRef size,
                              at::IntArrayRef through, bool confidence) {
  constexpr const char* kOp = "upsample_argmax";
  TORCH_CHECK_VALUE(size.size() == 2 && size[0] > 0 && size[1] > 0, kOp,
                    ": size must be two positive sizes, got ", size);
  TORCH_CHECK_VALUE(through.size() == 2 && through[0] > 0 && through[1] > 0, kOp,
                    ": through must be two positive sizes, got ", through);
  ArgmaxCall call;
  call.logits = checked_logits(kOp, logits);
  ArgmaxGeometry& g = call.geometry;
  g.batch = logits.size(0);
  g.classes = static_cast<int>(logits.size(1));
  g.vertical = Path(logits.size(2), through[0], size[0]);
  g.horizontal = Path(logits.size(3), through[1], size[1]);
  g.strides = map_strides(call.logits);
  g.tile = size[1];

  const bool narrow = g.classes <= 256;
  const std::vector<int64_t> shape = {g.batch, size[0], size[1]};
  call.classes = at::empty(shape, logits.options().dtype(narrow ? at::kByte : at::kLong));
  call.confidence = at::empty(confidence ? shape : std::vector<int64_t>{0},
                              logits.options().dtype(at::kFloat));
  call.result.narrow = narrow ? call.classes.mutable_data_ptr<uint8_t>() : nullptr;
  call.result.wide = narrow ? nullptr : call.classes.mutable_data_ptr<int64_t>();
  call.result.confidence = confidence ? call.confidence.mutable_data_ptr<float>() : nullptr;
  return call;
}

}  // namespace vss::upsample
