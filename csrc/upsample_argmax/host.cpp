// upsample_argmax on every machine: checks, geometry and launches of the kernel in kernel.h.
#include "../machine/machine.h"

#include "gpu_kernel.h"
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

#if VSS_GPU_CODE

template <bool kConfidence, typename T, int kSources>
void launch_groups(const ArgmaxCall& call, const RowGroups& rows, int64_t blocks) {
  const ArgmaxGeometry& g = call.geometry;
  run_blocks<kTile>(
      {.op = "upsample_argmax", .blocks = blocks, .threads = kTile},
      GpuArgmaxTile<kConfidence, T, kSources>{
          g, call.logits.const_data_ptr<T>(), call.result, HatPath(g.vertical),
          HatPath(g.horizontal), rows.lead, static_cast<int>(rows.count(g.vertical.resized())),
          static_cast<int>(cdiv<int64_t>(g.horizontal.resized(), kTile))});
}

template <bool kConfidence, typename T>
void launch_groups(const ArgmaxCall& call, const RowGroups& rows, int64_t blocks) {
  if (rows.sources == 2) {
    launch_groups<kConfidence, T, 2>(call, rows, blocks);
  } else {
    launch_groups<kConfidence, T, kMaxTaps>(call, rows, blocks);
  }
}

// Runs the kernel of gpu_kernel.h; false where it does not take these sizes.
bool run_groups(const ArgmaxCall& call) {
  const ArgmaxGeometry& g = call.geometry;
  const RowGroups rows(g.vertical);
  const int64_t blocks =
      g.batch * rows.count(g.vertical.resized()) * cdiv<int64_t>(g.horizontal.resized(), kTile);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 2;
  if (rows.sources == 0 || g.vertical.size() < rows.sources || g.horizontal.size() < kColumns ||
      g.horizontal.taps > kColumns || g.strides.column != 1 || blocks > kMost ||
      g.vertical.resized() > kMost || g.horizontal.resized() > kMost)
    return false;
  VSS_DISPATCH_FLOATING(call.logits.scalar_type(), "upsample_argmax", [&] {
    if (call.result.confidence != nullptr) {
      launch_groups<true, scalar_t>(call, rows, blocks);
    } else {
      launch_groups<false, scalar_t>(call, rows, blocks);
    }
  });
  return true;
}

#endif

std::tuple<at::Tensor, at::Tensor> argmax(const at::Tensor& logits, at::IntArrayRef size,
                                          at::IntArrayRef through, bool confidence,
                                          bool align_corners) {
  constexpr int kThreads = 192;
  const c10::DeviceGuard guard(logits.device());
  const ArgmaxCall call = argmax_call(logits, size, through, confidence, align_corners);
#if VSS_GPU_CODE
  if (run_groups(call)) return {call.classes, call.confidence};
#endif
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
