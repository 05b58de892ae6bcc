// The gradient of focal_pool: what a backward pass needs, and which of its results are wanted.
#include "../autograd.h"

namespace vss::focal_pool {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

constexpr size_t kTensors = 3;  // x, weight, bias

at::Tensor run(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
               c10::SymIntArrayRef cells) {
  static const auto op = find_operator<at::Tensor(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymIntArrayRef)>("focal_pool");
  return call_unrecorded(op, x, weight, bias, cells);
}

Gradients run_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                       std::array<bool, kTensors> needs) {
  static const auto op =
      find_operator<Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                              std::array<bool, kTensors>)>("focal_pool_backward");
  return op.call(grad, x, weight, needs);
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, c10::SymIntArrayRef cells) {
    ctx->save_for_backward({x, weight});
    ctx->set_materialize_grads(false);
    return run(x, weight, bias, cells);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(kTensors + 1);  // the last stands for `cells`
    if (!grads[0].defined()) return result;
    const variable_list saved = ctx->get_saved_variables();
    const std::array<bool, kTensors> needs = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                              ctx->needs_input_grad(2)};
    const auto [x, weight, bias] = run_backward(grads[0], saved[0], saved[1], needs);
    if (needs[0]) result[0] = x;
    if (needs[1]) result[1] = weight;
    if (needs[2]) result[2] = bias;
    return result;
  }
};

at::Tensor pool(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                c10::SymIntArrayRef cells) {
  if (!is_recorded(x) && !is_recorded(weight) && !is_recorded(bias))
    return run(x, weight, bias, cells);
  return Gradient::apply(x, weight, bias, cells);
}

}  // namespace

TORCH_LIBRARY_IMPL(vss_kernels, Autograd, library) {
  library.impl("focal_pool", TORCH_FN(pool));
  forbid_second_derivative(library, "focal_pool");
}

}  // namespace vss::focal_pool
