// The gradient of aggregate_affinity: what a backward pass needs, and how the gradient of the
// packed parameters is handed back to the single ones.
#include "../autograd.h"

#include <ATen/ops/split_with_sizes.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

namespace vss::aggregate_affinity {
namespace {

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

constexpr size_t kMaps = 3;  // coarse, middle, fine

Results run(const at::Tensor& coarse, const at::Tensor& middle, const at::Tensor& fine,
            at::TensorList parameters, at::IntArrayRef layers) {
  static const auto op =
      find_operator<Results(const at::Tensor&, const at::Tensor&, const at::Tensor&, at::TensorList,
                            at::IntArrayRef)>("aggregate_affinity");
  return call_unrecorded(op, coarse, middle, fine, parameters, layers);
}

Gradients run_backward(const at::Tensor& grad, const variable_list& saved, at::IntArrayRef layers,
                       std::array<bool, kMaps + 1> needs) {
  static const auto op = find_operator<Gradients(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
      const at::Tensor&, at::IntArrayRef, std::array<bool, kMaps + 1>)>(
      "aggregate_affinity_backward");
  return op.call(grad, saved[0], saved[1], saved[2], saved[3], saved[4], layers, needs);
}

// Sizes of tensors of any shapes in one list: how many dimensions, then the sizes, of each.
std::vector<c10::SymInt> write_sizes(at::TensorList tensors) {
  std::vector<c10::SymInt> sizes;
  sizes.reserve(3 * tensors.size());
  for (const at::Tensor& tensor : tensors) {
    sizes.emplace_back(tensor.dim());
    for (const c10::SymInt& size : tensor.sym_sizes()) sizes.push_back(size);
  }
  return sizes;
}

// Whether a tensor is numbers in memory, and nothing follows which operators it goes through.
bool is_plain(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet kPlain =
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::AutocastCPU,
                           c10::DispatchKey::AutocastCUDA}) |
      c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  const bool others =
      (tensor.key_set() - kPlain).highestFunctionalityKey() != c10::DispatchKey::Undefined;
  return (tensor.is_cpu() || tensor.is_cuda()) && !others && tensor.is_contiguous() &&
         !c10::GradMode::is_enabled() && !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

// Tensors in the memory of a packed vector, one for each that write_sizes() was given. The gradient
// of a model's layers is dozens of them: where that is possible, they are made without a call each.
variable_list unpack(const at::Tensor& packed, const std::vector<c10::SymInt>& written) {
  std::vector<c10::SymIntArrayRef> shapes;
  std::vector<c10::SymInt> lengths;
  for (size_t begin = 0; begin < written.size();) {
    const size_t dims = written[begin].expect_int();
    shapes.emplace_back(written.data() + begin + 1, dims);
    c10::SymInt length = 1;
    for (const c10::SymInt& size : shapes.back()) length *= size;
    lengths.push_back(length);
    begin += 1 + dims;
  }
  variable_list tensors;
  if (!is_plain(packed)) {
    tensors = at::split_with_sizes_symint(packed, lengths);
    for (size_t i = 0; i < tensors.size(); ++i)
      if (shapes[i].size() != 1) tensors[i] = tensors[i].view_symint(shapes[i]);
    return tensors;
  }
  tensors.reserve(shapes.size());
  int64_t offset = packed.storage_offset();
  for (size_t i = 0; i < shapes.size(); ++i) {
    tensors.push_back(at::detail::make_tensor<c10::TensorImpl>(c10::Storage(packed.storage()),
                                                               packed.key_set(), packed.dtype()));
    c10::TensorImpl* impl = tensors.back().unsafeGetTensorImpl();
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(shapes[i]));
    offset += lengths[i].expect_int();
  }
  return tensors;
}

class Gradient : public torch::autograd::Function<Gradient> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& coarse,
                               const at::Tensor& middle, const at::Tensor& fine,
                               at::TensorList parameters, at::IntArrayRef layers) {
    const auto [result, statistics, packed] = run(coarse, middle, fine, parameters, layers);
    ctx->saved_data["layers"] = layers;
    ctx->saved_data["sizes"] = c10::SymIntArrayRef(write_sizes(parameters));
    ctx->save_for_backward({coarse, middle, fine, packed, statistics});
    ctx->mark_non_differentiable({statistics, packed});
    ctx->set_materialize_grads(false);
    return {result, statistics, packed};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const std::vector<c10::SymInt> sizes = ctx->saved_data["sizes"].toSymIntVector();
    const std::vector<int64_t> layers = ctx->saved_data["layers"].toIntVector();
    size_t count = 0;
    for (size_t i = 0; i < sizes.size(); i += 1 + sizes[i].expect_int()) ++count;
    variable_list result(kMaps + count + 1);  // the last stands for `layers`
    if (!grads[0].defined()) return result;
    std::array<bool, kMaps + 1> needs{};
    for (size_t i = 0; i < kMaps; ++i) needs[i] = ctx->needs_input_grad(i);
    for (size_t i = kMaps; i < kMaps + count; ++i) needs[kMaps] |= ctx->needs_input_grad(i);
    const auto [coarse, middle, fine, packed] =
        run_backward(grads[0], ctx->get_saved_variables(), layers, needs);
    if (needs[0]) result[0] = coarse;
    if (needs[1]) result[1] = middle;
    if (needs[2]) result[2] = fine;
    if (needs[kMaps]) {
      const variable_list parameters = unpack(packed, sizes);
      std::copy(parameters.begin(), parameters.end(), result.begin() + kMaps);
    }
    return result;
  }
};

Results aggregate(const at::Tensor& coarse, const at::Tensor& middle, const at::Tensor& fine,
                  at::TensorList parameters, at::IntArrayRef layers) {
  const bool recorded =
      is_recorded(coarse) || is_recorded(middle) || is_recorded(fine) || is_recorded(parameters);
  if (!recorded) return run(coarse, middle, fine, parameters, layers);
  const variable_list results = Gradient::apply(coarse, middle, fine, parameters, layers);
  return {results[0], results[1], results[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(vss_kernels, Autograd, library) {
  library.impl("aggregate_affinity", TORCH_FN(aggregate));
  forbid_second_derivative(library, "aggregate_affinity");
}

}  // namespace vss::aggregate_affinity
