// What the autograd.cpp of every operator stands on. An operator's gradient is the same formula on
// every machine, so it is compiled once and calls the registered operators, whichever machine they
// run on.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace vss {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The registered operator vss_kernels::`name`.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const std::string& name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(("vss_kernels::" + name).c_str(), "")
      .typed<Signature>();
}

// Whether a call with this argument is to be recorded for a backward pass.
inline bool is_recorded(const at::Tensor& tensor) {
  return c10::GradMode::is_enabled() && tensor.defined() && tensor.requires_grad();
}
inline bool is_recorded(at::TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return is_recorded(tensor); });
}

// Calls a registered operator below autograd: what it does is not recorded.
template <typename Operator, typename... Arguments>
auto call_unrecorded(const Operator& op, Arguments&&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(std::forward<Arguments>(arguments)...);
}

// Makes differentiating <name>_backward an error that says what to do. Without this, a second
// derivative would quietly take the backward kernel's result for a constant.
void forbid_second_derivative(torch::Library& library, const std::string& name);

// Gives the operator `name`, which was registered from Python, the gradient that its backward
// operator computes. `sources` says of each argument of <name>_backward what it is and, for an
// input or a result of the operator, at which position: see python_operator/autograd.cpp.
void differentiate_python_operator(const std::string& name,
                                   const std::vector<std::pair<std::string, size_t>>& sources);

}  // namespace vss
