// Every schema of the native operators. Shapes, dtypes and meaning stand in the Python function of the
// same name; fakes and autograd formulas in its op.py.
#include <torch/library.h>

TORCH_LIBRARY(vss_kernels, m) {
  m.def("focal_pool(Tensor x, Tensor weight, Tensor bias, SymInt[] cells) -> Tensor");
  m.def(
      "focal_pool_backward(Tensor grad, Tensor x, Tensor weight, bool[3] needs) "
      "-> (Tensor, Tensor, Tensor)");
  // What focal_attention runs on the CPU; the table lists each window's tokens, -1 for padding.
  m.def(
      "focal_attend(Tensor query, Tensor key_value, Tensor bias, Tensor table) "
      "-> (Tensor out, Tensor log_sum_exp)");
  m.def(
      "focal_attend_backward(Tensor grad, Tensor query, Tensor key_value, Tensor bias, Tensor table, "
      "Tensor log_sum_exp) -> (Tensor grad_query, Tensor grad_key_value, Tensor grad_bias)");
  // `parameters` packs weight, bias, norm weight and norm bias of every layer; `layers` holds the
  // lengths of the five chains, then (kernel, channels in, channels out) of every layer.
  m.def(
      "aggregate_affinity(Tensor coarse, Tensor middle, Tensor fine, Tensor parameters, "
      "int[] layers) -> (Tensor, Tensor statistics)");
  m.def(
      "aggregate_affinity_backward(Tensor grad, Tensor coarse, Tensor middle, Tensor fine, "
      "Tensor parameters, Tensor statistics, int[] layers, bool[4] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor labels, Tensor? class_weights, "
      "int ignore_index, str reduction, float label_smoothing) "
      "-> (Tensor loss, Tensor log_sums, Tensor scale)");
  m.def(
      "upsample_cross_entropy_backward(Tensor grad, Tensor scale, Tensor log_sums, Tensor logits, "
      "Tensor labels, Tensor? class_weights, int ignore_index, float label_smoothing) -> Tensor");
  m.def(
      "upsample_argmax(Tensor logits, SymInt[] size, SymInt[] through, bool confidence) "
      "-> (Tensor classes, Tensor confidence)");
  m.def("fuse_pyramid(Tensor[] levels) -> Tensor");
  // Gradients of the levels whose rows and columns `sizes` lists one after the other.
  m.def("fuse_pyramid_backward(Tensor grad, SymInt[] sizes) -> Tensor[]");
}
