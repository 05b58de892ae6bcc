// The gradient of upsample_cross_entropy: only the loss has one, by the logits alone; the other two
// results serve the backward pass.
#include "../autograd.h"

namespace vss::upsample_cross_entropy {
namespace {

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Weights = std::optional<at::Tensor>;

constexpr size_t kArguments = 7;

Results run(const at::Tensor& logits, const at::Tensor& labels, const Weights& class_weights,
            int64_t ignore_index, std::string_view reduction, double smoothing,
            bool align_corners) {
  static const auto op =
      find_operator<Results(const at::Tensor&, const at::Tensor&, const Weights&, int64_t,
                            std::string_view, double, bool)>("upsample_cross_entropy");
  return call_unrecorded(op, logits, labels, class_weights, ignore_index, reduction, smoothing,
                         align_corners);
}

at::Tensor run_backward(const at::Tensor& grad, const variable_list& saved, int64_t ignore_index,
                        double smoothing, bool align_corners) {
  static const auto op = find_operator<at::Tensor(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const Weights&, int64_t, double, bool)>("upsample_cross_entropy_backward");
  const Weights class_weights = saved[4].defined() ? Weights(saved[4]) : std::nullopt;
  return op.call(grad, saved[0], saved[1], saved[2], saved[3], class_weights, ignore_index,
                 smoothing, align_corners);
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& logits,
                               const at::Tensor& labels, const Weights& class_weights,
                               int64_t ignore_index, std::string_view reduction, double smoothing,
                               bool align_corners) {
    const auto [loss, log_sums, scale] =
        run(logits, labels, class_weights, ignore_index, reduction, smoothing, align_corners);
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["smoothing"] = smoothing;
    ctx->saved_data["align_corners"] = align_corners;
    ctx->save_for_backward({scale, log_sums, logits, labels, class_weights.value_or(at::Tensor())});
    ctx->mark_non_differentiable({log_sums, scale});
    ctx->set_materialize_grads(false);
    return {loss, log_sums, scale};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(kArguments);
    if (!grads[0].defined() || !ctx->needs_input_grad(0)) return result;
    result[0] = run_backward(
        grads[0], ctx->get_saved_variables(), ctx->saved_data["ignore_index"].toInt(),
        ctx->saved_data["smoothing"].toDouble(), ctx->saved_data["align_corners"].toBool());
    return result;
  }
};

Results cross_entropy(const at::Tensor& logits, const at::Tensor& labels,
                      const Weights& class_weights, int64_t ignore_index,
                      std::string_view reduction, double smoothing, bool align_corners) {
  // Weights of classes are no parameters: they never have a gradient.
  if (!is_recorded(logits))
    return run(logits, labels, class_weights, ignore_index, reduction, smoothing, align_corners);
  const variable_list results = Gradient::apply(logits, labels, class_weights, ignore_index,
                                                reduction, smoothing, align_corners);
  return {results[0], results[1], results[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(vss_kernels, Autograd, library) {
  library.impl("upsample_cross_entropy", TORCH_FN(cross_entropy));
  forbid_second_derivative(library, "upsample_cross_entropy");
}

}  // namespace vss::upsample_cross_entropy
