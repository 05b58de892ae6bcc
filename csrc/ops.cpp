// Every schema of the native operators. Shapes, dtypes and meaning stand in the Python function of the
// same name; fakes and autograd formulas in its op.py.
#include <torch/library.h>

TORCH_LIBRARY(vss_kernels, m) {
  m.def("focal_pool(Tensor x, Tensor weight, Tensor bias, SymInt[] cells) -> Tensor");
  m.def(
      "focal_pool_backward(Tensor grad, Tensor x, Tensor weight, bool[3] needs) "
      "-> (Tensor, Tensor, Tensor)");
}
