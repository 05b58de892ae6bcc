// The CPU launchers of the focal operators.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "../common/parallel.h"
#include "attention_arguments.h"
#include "pool_arguments.h"

namespace vss::focal {
namespace {

constexpr int64_t kGrain = 8;  // see parallel_blocks

template <typename T>
VSS_CPU_BLOCK void run_pool_cells(const CpuBlock& block, const PoolGeometry& g, const T* x,
                                  const T* weight, const T* bias, T* out, int64_t begin,
                                  int64_t end) {
  for (int64_t i = begin; i < end; ++i) pool_cell(block, g, x, weight, bias, out, i);
}

template <typename T>
VSS_CPU_BLOCK void run_pool_strips_backward(const CpuBlock& block, const PoolGeometry& g,
                                            const T* grad, const T* weight, T* grad_x,
                                            int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) pool_strip_backward(block, g, grad, weight, grad_x, i);
}

template <typename T>
VSS_CPU_BLOCK void run_pool_weight_backward(const CpuBlock& block, const PoolGeometry& g,
                                            const T* grad, const T* x, float* parts, int64_t begin,
                                            int64_t end) {
  for (int64_t i = begin; i < end; ++i) pool_weight_backward(block, g, grad, x, parts, i);
}

at::Tensor pool(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& bias,
                at::IntArrayRef cells) {
  const PoolInputs in = pool_inputs(x_any, weight_any, bias, cells);
  at::Tensor out = pool_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_pool", [&] {
    const auto* x = in.x.const_data_ptr<scalar_t>();
    const auto* weight = in.weight.const_data_ptr<scalar_t>();
    const auto* offset = bias.const_data_ptr<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    parallel_blocks(in.geometry.cells(), kGrain, patch_capacity(in.geometry),
                    [&](const CpuBlock& block, int64_t begin, int64_t end) {
                      run_pool_cells(block, in.geometry, x, weight, offset, result, begin, end);
                    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pool_backward(const at::Tensor& grad_any,
                                                             const at::Tensor& x_any,
                                                             const at::Tensor& weight_any,
                                                             std::array<bool, 3> needs) {
  const PoolBackwardInputs in = pool_backward_inputs(grad_any, x_any, weight_any, needs);
  const PoolGeometry& g = in.geometry;
  VSS_DISPATCH_FLOATING(in.x.scalar_type(), "focal_pool_backward", [&] {
    const auto* grad = in.grad.const_data_ptr<scalar_t>();
    if (in.grad_x.numel() > 0) {
      const auto* weight = in.weight.const_data_ptr<scalar_t>();
      auto* result = in.grad_x.mutable_data_ptr<scalar_t>();
      parallel_blocks(g.strips(), kGrain, strip_capacity(g),
                      [&](const CpuBlock& block, int64_t begin, int64_t end) {
                        run_pool_strips_backward(block, g, grad, weight, result, begin, end);
                      });
    }
    if (in.parts.numel() > 0) {
      const auto* x = in.x.const_data_ptr<scalar_t>();
      auto* parts = in.parts.mutable_data_ptr<float>();
      parallel_blocks(g.cells(), kGrain, patch_capacity(g),
                      [&](const CpuBlock& block, int64_t begin, int64_t end) {
                        run_pool_weight_backward(block, g, grad, x, parts, begin, end);
                      });
    }
  });
  return pool_gradients(in);
}

template <typename T>
VSS_CPU_BLOCK void run_attend_windows(const AttentionInputs& in, float* scratch, T* out,
                                      float* log_sum_exp, int64_t begin, int64_t end) {
  const AttentionGeometry& g = in.geometry;
  const ForwardScratch memory(g, scratch);
  for (int64_t i = begin; i < end; ++i) {  // windows fastest: they share a head's bias
    const int64_t window = i % g.windows, head = i / g.windows % g.heads;
    const int64_t b = i / (g.windows * g.heads);
    const float* bias = in.bias.const_data_ptr<float>() + head * g.positions * g.wide_keys();
    T* first = out + (b * g.windows * g.positions * g.heads + head) * g.dim;
    attend_window(g, window_of<T>(in, b, head, window), bias, memory, first,
                  log_sum_exp + i * g.positions);
  }
}

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key_value,
                                          const at::Tensor& bias, const at::Tensor& table) {
  const AttentionInputs in = attention_inputs("focal_attend", query, key_value, bias, table);
  const AttentionGeometry& g = in.geometry;
  at::Tensor out = at::empty(query.sizes(), query.options());
  at::Tensor log_sum_exp = log_sum_exp_for(in);
  if (out.numel() == 0) return {out, log_sum_exp};
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_attend", [&] {
    auto* result = out.mutable_data_ptr<scalar_t>();
    auto* sums = log_sum_exp.mutable_data_ptr<float>();
    at::parallel_for(0, g.batch * g.heads * g.windows, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(ForwardScratch::size(g));  // its zeros fill up the lanes
      run_attend_windows(in, scratch.data(), result, sums, begin, end);
    });
  });
  return {out, log_sum_exp};
}

// One clip and head: its windows add to the tokens' gradients one after the other.
template <typename T>
VSS_CPU_BLOCK void run_attend_backward(const AttentionInputs& in, float* scratch, const T* grad,
                                       const float* log_sum_exp, T* grad_query, T* grad_key_value,
                                       float* grad_bias, int64_t b, int64_t head) {
  const AttentionGeometry& g = in.geometry;
  const BackwardScratch memory(g, scratch);
  const float* bias = in.bias.const_data_ptr<float>() + head * g.positions * g.wide_keys();
  const int64_t first = (b * g.windows * g.positions * g.heads + head) * g.dim;
  for (int64_t window = 0; window < g.windows; ++window) {
    const float* sums = log_sum_exp + ((b * g.heads + head) * g.windows + window) * g.positions;
    attend_window_backward(g, window_of<T>(in, b, head, window), bias, sums, grad + first, memory,
                           grad_query + first, grad_bias);
  }
  for (int64_t token = 0; token < g.tokens; ++token) {
    T* key = grad_key_value + ((b * g.tokens + token) * 2 * g.heads + head) * g.dim;
    T* value = key + g.heads * g.dim;
    for (int64_t c = 0; c < g.dim; ++c) {
      key[c] = static_cast<T>(memory.grad_keys[token * g.wide_dim() + c]);
      value[c] = static_cast<T>(memory.grad_values[token * g.wide_dim() + c]);
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(
    const at::Tensor& grad_any, const at::Tensor& query, const at::Tensor& key_value,
    const at::Tensor& bias, const at::Tensor& table, const at::Tensor& log_sum_exp_any) {
  constexpr const char* op = "focal_attend_backward";
  const AttentionInputs in = attention_inputs(op, query, key_value, bias, table);
  const AttentionGeometry& g = in.geometry;
  check_like(op, "grad", grad_any, "query", query);
  TORCH_CHECK_VALUE(grad_any.sizes() == query.sizes(), op, ": grad must match query, got ",
                    grad_any.sizes());
  TORCH_CHECK_VALUE(log_sum_exp_any.scalar_type() == at::kFloat &&
                        log_sum_exp_any.numel() == query.size(0) * query.size(1) * query.size(2),
                    op, ": log_sum_exp must be the forward's");
  const at::Tensor grad = grad_any.contiguous(), log_sum_exp = log_sum_exp_any.contiguous();
  at::Tensor grad_query = at::empty(query.sizes(), query.options());
  at::Tensor grad_key_value = at::empty(key_value.sizes(), query.options());
  const at::Tensor parts =
      at::zeros({g.batch, g.heads, g.positions, g.wide_keys()}, in.bias.options());
  if (grad_key_value.numel() > 0) {
    VSS_DISPATCH_FLOATING(query.scalar_type(), op, [&] {
      const auto* incoming = grad.const_data_ptr<scalar_t>();
      const auto* sums = log_sum_exp.const_data_ptr<float>();
      auto* to_query = grad_query.mutable_data_ptr<scalar_t>();
      auto* to_key_value = grad_key_value.mutable_data_ptr<scalar_t>();
      auto* to_bias = parts.mutable_data_ptr<float>();
      at::parallel_for(0, g.batch * g.heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          std::vector<float> scratch(BackwardScratch::size(g));
          run_attend_backward(in, scratch.data(), incoming, sums, to_query, to_key_value,
                              to_bias + i * g.positions * g.wide_keys(), i / g.heads, i % g.heads);
        }
      });
    });
  }
  return {grad_query, grad_key_value,
          parts.narrow(3, 0, g.keys).sum(0).to(bias.scalar_type()).contiguous()};
}

}  // namespace
}  // namespace vss::focal

TORCH_LIBRARY_IMPL(vss_kernels, CPU, m) {
  m.impl("focal_pool", TORCH_FN(vss::focal::pool));
  m.impl("focal_pool_backward", TORCH_FN(vss::focal::pool_backward));
  m.impl("focal_attend", TORCH_FN(vss::focal::attend));
  m.impl("focal_attend_backward", TORCH_FN(vss::focal::attend_backward));
}
