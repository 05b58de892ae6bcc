// The gradient of fuse_pyramid: that of the first level is the result's own, which is handed on as
// it comes; those of the others are gathered in one call.
#include "../autograd.h"

namespace vss::fuse_pyramid {
namespace {

at::Tensor run(at::TensorList levels, bool align_corners) {
  static const auto op = find_operator<at::Tensor(at::TensorList, bool)>("fuse_pyramid");
  return call_unrecorded(op, levels, align_corners);
}

variable_list run_backward(const at::Tensor& grad, c10::SymIntArrayRef sizes, bool align_corners) {
  static const auto op = find_operator<variable_list(const at::Tensor&, c10::SymIntArrayRef, bool)>(
      "fuse_pyramid_backward");
  return op.call(grad, sizes, align_corners);
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  static at::Tensor forward(AutogradContext* ctx, at::TensorList levels, bool align_corners) {
    std::vector<c10::SymInt> sizes;  // rows and columns of every level
    for (const at::Tensor& level : levels)
      for (const int64_t dim : {2, 3}) sizes.push_back(level.sym_size(dim));
    ctx->saved_data["sizes"] = c10::SymIntArrayRef(sizes);
    ctx->saved_data["align_corners"] = align_corners;
    ctx->set_materialize_grads(false);
    return run(levels, align_corners);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const std::vector<c10::SymInt> sizes = ctx->saved_data["sizes"].toSymIntVector();
    const size_t levels = sizes.size() / 2;
    variable_list result(levels + 1);  // the last stands for `align_corners`
    if (!grads[0].defined()) return result;
    if (ctx->needs_input_grad(0)) result[0] = grads[0];
    std::vector<size_t> wanted;
    std::vector<c10::SymInt> wanted_sizes;
    for (size_t level = 1; level < levels; ++level) {
      if (!ctx->needs_input_grad(level)) continue;
      wanted.push_back(level);
      wanted_sizes.push_back(sizes[2 * level]);
      wanted_sizes.push_back(sizes[2 * level + 1]);
    }
    if (wanted.empty()) return result;
    const variable_list gathered =
        run_backward(grads[0], wanted_sizes, ctx->saved_data["align_corners"].toBool());
    for (size_t i = 0; i < wanted.size(); ++i) result[wanted[i]] = gathered[i];
    return result;
  }
};

at::Tensor fuse(at::TensorList levels, bool align_corners) {
  if (!is_recorded(levels)) return run(levels, align_corners);
  return Gradient::apply(levels, align_corners);
}

}  // namespace

TORCH_LIBRARY_IMPL(vss_kernels, Autograd, library) {
  library.impl("fuse_pyramid", TORCH_FN(fuse));
  forbid_second_derivative(library, "fuse_pyramid");
}

}  // namespace vss::fuse_pyramid
