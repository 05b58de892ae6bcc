#include "autograd.h"

#include <torch/csrc/autograd/functions/utils.h>

namespace vss {
namespace {

class SecondDerivative : public torch::autograd::Node {
 public:
  explicit SecondDerivative(std::string op) : op_(std::move(op)) {}

  variable_list apply(variable_list&&) override {
    TORCH_CHECK(false, "vss_kernels.", op_,
                ": the fused kernel has no second derivative; compute it with "
                "vss_kernels.backend(\"eager\", \"",
                op_, "\")");
  }

 private:
  std::string op_;
};

// The tensors among the last `count` values of a stack, also those in lists.
variable_list tensors_of(const torch::jit::Stack& stack, size_t count) {
  variable_list tensors;
  for (const c10::IValue& value : torch::jit::last(stack, count)) {
    if (value.isTensor()) {
      tensors.push_back(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) tensors.push_back(tensor);
    }
  }
  return tensors;
}

// The name of the forward operator, without the namespace.
std::string forward_name(const c10::OperatorHandle& op) {
  constexpr std::string_view kNamespace = "vss_kernels::", kSuffix = "_backward";
  const std::string& name = op.schema().name();
  return name.substr(kNamespace.size(), name.size() - kNamespace.size() - kSuffix.size());
}

void call_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::shared_ptr<SecondDerivative> node;
  if (c10::GradMode::is_enabled()) {
    const variable_list arguments = tensors_of(*stack, op.schema().arguments().size());
    if (is_recorded(arguments)) {
      node = std::make_shared<SecondDerivative>(forward_name(op));
      node->set_next_edges(torch::autograd::collect_next_edges(arguments));
    }
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.callBoxed(stack);
  }
  if (node == nullptr) return;
  for (const at::Tensor& result : tensors_of(*stack, op.schema().returns().size()))
    torch::autograd::set_history(result, node);
}

}  // namespace

void forbid_second_derivative(torch::Library& library, const std::string& name) {
  library.impl((name + "_backward").c_str(),
               torch::CppFunction::makeFromBoxedFunction<&call_backward>());
}

}  // namespace vss
