// The gradient of depthwise_gelu: of its inputs alone, and of those that want one.
#include "../autograd.h"

namespace vss::depthwise_gelu {
namespace {

// And the result of the forward pass, which is not asked for here.
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

constexpr size_t kTensors = 3;  // x, weight, bias

at::Tensor run(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  static const auto op =
      find_operator<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&)>(
          "depthwise_gelu");
  return call_unrecorded(op, x, weight, bias);
}

Gradients run_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& bias, std::array<bool, kTensors + 1> needs) {
  static const auto op =
      find_operator<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                              const at::Tensor&, std::array<bool, kTensors + 1>)>(
          "depthwise_gelu_backward");
  return op.call(grad, x, weight, bias, needs);
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
    ctx->save_for_backward({x, weight, bias});
    ctx->set_materialize_grads(false);
    return run(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(kTensors);
    if (!grads[0].defined()) return result;
    const variable_list saved = ctx->get_saved_variables();
    const std::array<bool, kTensors + 1> needs = {
        ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2), false};
    const auto [x, weight, bias, result_again] =
        run_backward(grads[0], saved[0], saved[1], saved[2], needs);
    if (needs[0]) result[0] = x;
    if (needs[1]) result[1] = weight;
    if (needs[2]) result[2] = bias;
    return result;
  }
};

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (!is_recorded(x) && !is_recorded(weight) && !is_recorded(bias)) return run(x, weight, bias);
  return Gradient::apply(x, weight, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(vss_kernels, Autograd, library) {
  library.impl("depthwise_gelu", TORCH_FN(convolve));
  forbid_second_derivative(library, "depthwise_gelu");
}

}  // namespace vss::depthwise_gelu
