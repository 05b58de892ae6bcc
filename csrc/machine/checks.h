// Argument checks of the native operators. The Python functions check first and say more; these
// keep a direct call of torch.ops.vss_kernels.* from reading out of bounds.
#pragma once

namespace vss::inline VSS_MACHINE {

inline void check_dims(const char* op, const char* name, const at::Tensor& tensor, int64_t dims) {
  TORCH_CHECK_VALUE(tensor.dim() == dims, op, ": ", name, " must have ", dims,
                    " dimensions, got shape ", tensor.sizes());
}

inline void check_like(const char* op, const char* name, const at::Tensor& tensor,
                       const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(tensor.device() == other.device(), op, ": ", name, " is on ", tensor.device(),
                    " but ", other_name, " is on ", other.device());
  TORCH_CHECK_TYPE(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " is ",
                   tensor.scalar_type(), " but ", other_name, " is ", other.scalar_type());
}

}  // namespace vss::inline VSS_MACHINE

// Runs the body with `scalar_t` as float, at::Half or at::BFloat16.
#define VSS_DISPATCH_FLOATING(DTYPE, OP, ...)                                    \
  AT_DISPATCH_SWITCH(DTYPE, OP,                                                  \
                     AT_DISPATCH_CASE(at::kFloat, __VA_ARGS__) AT_DISPATCH_CASE( \
                         at::kHalf, __VA_ARGS__) AT_DISPATCH_CASE(at::kBFloat16, __VA_ARGS__))
