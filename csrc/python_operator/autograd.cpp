// Gradients of operators whose kernels are launched from Python. Each is one call of a backward
// operator, so that a list of what that one takes says all; Python hands it over once
// (vss_kernels/_runtime/registration.py), and no call passes through Python for its gradient.
#include "../autograd.h"

#include <deque>

namespace vss {
namespace {

using torch::jit::Stack;

// What an argument of the backward operator is.
enum class Source {
  kInput,   // an argument of the operator, at a position
  kResult,  // a result of the operator, at a position
  kGrad,    // the gradient of the first result, the only one that has one
  kNeeds,   // whether the gradient of each of the first inputs is wanted
};

Source source_of(const std::string& name) {
  if (name == "input") return Source::kInput;
  if (name == "result") return Source::kResult;
  if (name == "grad") return Source::kGrad;
  TORCH_CHECK_VALUE(name == "needs", "no argument of a backward operator is a ", name);
  return Source::kNeeds;
}

struct Formula {
  c10::OperatorHandle backward;  // returns the gradients of the first inputs
  std::vector<std::pair<Source, size_t>> arguments;
  size_t tensors;    // the first inputs; the others are plain values
  size_t gradients;  // how many of these have one
};

// They are never removed, and stay where they are.
std::deque<Formula>& formulas() {
  static auto* all = new std::deque<Formula>;
  return *all;
}

// A call of the operator, but for its tensors.
struct Call {
  const c10::OperatorHandle& op;
  const std::vector<c10::IValue>& plain;
  size_t formula;
};

// Undefined for an optional tensor that is not there.
at::Tensor tensor_of(const c10::IValue& value) {
  return value.isTensor() ? value.toTensor() : at::Tensor();
}

variable_list pop_tensors(Stack& stack, size_t count) {
  variable_list tensors;
  tensors.reserve(count);
  for (const c10::IValue& value : torch::jit::last(stack, count))
    tensors.push_back(tensor_of(value));
  torch::jit::drop(stack, count);
  return tensors;
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, const Call& call) {
    Stack stack(tensors.begin(), tensors.end());
    stack.insert(stack.end(), call.plain.begin(), call.plain.end());
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      call.op.callBoxed(stack);
    }
    variable_list results = pop_tensors(stack, stack.size());

    const Formula& formula = formulas()[call.formula];
    variable_list saved;
    std::vector<c10::IValue> plain;
    for (const auto& [source, position] : formula.arguments) {
      if (source == Source::kResult) {
        saved.push_back(results[position]);
      } else if (source == Source::kInput && position < tensors.size()) {
        saved.push_back(tensors[position]);
      } else if (source == Source::kInput) {
        plain.push_back(call.plain[position - tensors.size()]);
      }
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["formula"] = static_cast<int64_t>(call.formula);
    ctx->saved_data["plain"] = c10::ivalue::Tuple::create(std::move(plain));
    ctx->mark_non_differentiable(variable_list(results.begin() + 1, results.end()));
    ctx->set_materialize_grads(false);
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Formula& formula = formulas()[ctx->saved_data["formula"].toInt()];
    variable_list result(formula.tensors + 1);  // the last stands for the call
    if (!grads[0].defined()) return result;
    c10::List<bool> needs;
    for (size_t i = 0; i < formula.gradients; ++i) needs.push_back(ctx->needs_input_grad(i));

    const variable_list saved = ctx->get_saved_variables();
    const auto plain = ctx->saved_data["plain"].toTuple();
    auto next_saved = saved.begin();
    auto next_plain = plain->elements().begin();
    Stack stack;
    stack.reserve(formula.arguments.size());
    for (const auto& [source, position] : formula.arguments) {
      if (source == Source::kGrad) {
        stack.emplace_back(grads[0]);
      } else if (source == Source::kNeeds) {
        stack.emplace_back(needs);
      } else if (source == Source::kResult || position < formula.tensors) {
        stack.emplace_back(*next_saved++);
      } else {
        stack.emplace_back(*next_plain++);
      }
    }
    formula.backward.callBoxed(stack);
    variable_list gradients = pop_tensors(stack, formula.gradients);
    for (size_t i = 0; i < formula.gradients; ++i)
      if (needs[i]) result[i] = std::move(gradients[i]);
    return result;
  }
};

class Recorded : public c10::OperatorKernel {
 public:
  explicit Recorded(size_t formula) : formula_(formula) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) const {
    const size_t count = formulas()[formula_].tensors;
    const size_t arguments = op.schema().arguments().size();
    bool recorded = false;
    for (size_t i = 0; i < count; ++i)
      recorded = recorded || is_recorded(tensor_of(torch::jit::peek(*stack, i, arguments)));
    if (!recorded) {
      const at::AutoDispatchBelowADInplaceOrView guard;
      op.callBoxed(stack);
      return;
    }
    const std::vector<c10::IValue> plain = torch::jit::pop(*stack, arguments - count);
    const variable_list tensors = pop_tensors(*stack, count);
    variable_list results = Gradient::apply(at::TensorList(tensors), Call{op, plain, formula_});
    for (at::Tensor& result : results) stack->emplace_back(std::move(result));
  }

 private:
  size_t formula_;
};

}  // namespace

void differentiate_python_operator(const std::string& name,
                                   const std::vector<std::pair<std::string, size_t>>& sources) {
  // Never destroyed, or the process would take registrations back when the dispatcher is gone.
  static auto* library = new torch::Library(torch::Library::IMPL, "vss_kernels",
                                            c10::DispatchKey::Autograd, __FILE__, __LINE__);
  const auto find = [](const std::string& op) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("vss_kernels::" + op).c_str(), "");
  };
  Formula formula{find(name + "_backward"), {}, 0, 0};
  for (const auto& [source, position] : sources)
    formula.arguments.emplace_back(source_of(source), position);
  for (const c10::Argument& argument : find(name).schema().arguments())
    formula.tensors += argument.type()->kind() == c10::TypeKind::TensorType;
  formula.gradients = formula.backward.schema().returns().size();
  formulas().push_back(std::move(formula));
  library->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(
                                  std::make_unique<Recorded>(formulas().size() - 1)));
  forbid_second_derivative(*library, name);
}

}  // namespace vss
