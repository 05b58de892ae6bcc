// upsample_argmax on every machine: checks, geometry and launches of the kernel in kernel.h.
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::upsample_argmax {
namespace {

struct ArgmaxCall {
  at::Tensor logits, classes, confidence;  // the last one empty where it is not wanted
  ArgmaxGeometry geometry;
  ArgmaxResult result;
};

// `through` equal to `size` means a single resize.
ArgmaxCall argmax_call(const at::Tensor& logits, at::IntArrayRef size, at::IntArrayRef through,
                       bool confidence, bool align_corners) {
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
  g.vertical = Path(logits.size(2), through[0], size[0], align_corners);
  g.horizontal = Path(logits.size(3), through[1], size[1], align_corners);
  g.strides = strides_of(call.logits);
  constexpr int64_t kTileColumns = 192;  // 480 columns make three even tiles
  g.tile = kGpu ? tile_width(size[1], kTileColumns, 32) : size[1];

  const bool narrow = g.classes <= 256;
  const std::vector<int64_t> shape = {g.batch, size[0], size[1]};
  call.classes = at::empty(shape, logits.options().dtype(narrow ? at::kByte : at::kLong));
  call.confidence =
      at::empty(confidence ? shape : std::vector<int64_t>{0}, logits.options().dtype(at::kFloat));
  call.result.narrow = narrow ? call.classes.mutable_data_ptr<uint8_t>() : nullptr;
  call.result.wide = narrow ? nullptr : call.classes.mutable_data_ptr<int64_t>();
  call.result.confidence = confidence ? call.confidence.mutable_data_ptr<float>() : nullptr;
  return call;
}

std::tuple<at::Tensor, at::Tensor> argmax(const at::Tensor& logits, at::IntArrayRef size,
                                          at::IntArrayRef through, bool confidence,
                                          bool align_corners) {
  constexpr int kThreads = 192;
  const c10::DeviceGuard guard(logits.device());
  const ArgmaxCall call = argmax_call(logits, size, through, confidence, align_corners);
  const ArgmaxGeometry& g = call.geometry;
  const Launch launch = {.op = "upsample_argmax", .blocks = g.blocks(), .threads = g.tile};
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_argmax", [&] {
    const auto* map = call.logits.const_data_ptr<scalar_t>();
    if (confidence) {
      run_blocks<kThreads>(launch, ArgmaxTile<true, scalar_t>{g, map, call.result});
    } else {
      run_blocks<kThreads>(launch, ArgmaxTile<false, scalar_t>{g, map, call.result});
    }
  });
  return {call.classes, call.confidence};
}

}  // namespace

void implement(torch::Library& m) { m.impl("upsample_argmax", TORCH_FN(argmax)); }

}  // namespace vss::inline VSS_MACHINE::upsample_argmax
