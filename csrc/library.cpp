// The extension: every schema of the native operators, which of their implementations run on this
// machine, and the Python module. Shapes, dtypes and meaning of the operators stand in the Python
// function of the same name; fakes in its op.py, its gradient in autograd.cpp.
//
// Each operator's host.cpp is compiled once for every machine (machine/target.h) and defines
// vss::MACHINE::OPERATOR::implement(). Of the CPU's instruction sets one is chosen while the
// library is loaded: the best that this CPU has, or the one that VSS_KERNELS_ISA names. (A name
// that is unknown, or needs another CPU, is refused by vss_kernels/_runtime/native.py.)
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>
#if defined(VSS_HAS_AVX2) || defined(VSS_HAS_AVX512)
#include <cpuid.h>
#endif

#include "autograd.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

// setup.py defines VSS_HAS_<MACHINE> for every machine that it compiles for.
#define VSS_EVERY_OPERATOR(f, machine)                                             \
  f(machine, aggregate_affinity) f(machine, depthwise_gelu) f(machine, focal_pool) \
      f(machine, fuse_pyramid) f(machine, upsample_argmax) f(machine, upsample_cross_entropy)

// On a GPU the others are written in Triton.
#define VSS_EVERY_CPU_OPERATOR(f, machine)                                                 \
  VSS_EVERY_OPERATOR(f, machine)                                                           \
  f(machine, add_norm) f(machine, attend_selected) f(machine, focal_attention)             \
      f(machine, halved_pyramid) f(machine, masked_affinity) f(machine, reduced_attention) \
          f(machine, resized_rows) f(machine, select_tokens)

#define VSS_DECLARE(machine, op)           \
  namespace vss::machine::op {             \
  void implement(torch::Library& library); \
  }
#define VSS_IMPLEMENT(machine, op) vss::machine::op::implement(library);

#if defined(VSS_HAS_BASELINE)
VSS_EVERY_CPU_OPERATOR(VSS_DECLARE, baseline)
#endif
#if defined(VSS_HAS_AVX2)
VSS_EVERY_CPU_OPERATOR(VSS_DECLARE, avx2)
#endif
#if defined(VSS_HAS_AVX512)
VSS_EVERY_CPU_OPERATOR(VSS_DECLARE, avx512)
#endif
#if defined(VSS_HAS_RACE_CHECK)
VSS_EVERY_OPERATOR(VSS_DECLARE, race_check)
#endif
#if defined(VSS_HAS_CUDA)
VSS_EVERY_OPERATOR(VSS_DECLARE, cuda)
#endif

namespace {

struct InstructionSet {
  const char* name;
  bool runs_here;
  void (*implement)(torch::Library&);
};

#define VSS_INSTRUCTION_SET(name, runs_here)                                                      \
  {                                                                                               \
    #name, runs_here, [](torch::Library& library) { VSS_EVERY_CPU_OPERATOR(VSS_IMPLEMENT, name) } \
  }

#if defined(VSS_HAS_AVX2) || defined(VSS_HAS_AVX512)
// Whether the CPU has F16C, a name that the question clang 14 answers does not know.
bool converts_float16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// What this build holds, the best last.
const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = {
#if defined(VSS_HAS_BASELINE)
      VSS_INSTRUCTION_SET(baseline, true),
#endif
#if defined(VSS_HAS_AVX2)
      VSS_INSTRUCTION_SET(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                    converts_float16()),
#endif
#if defined(VSS_HAS_AVX512)
      VSS_INSTRUCTION_SET(avx512, __builtin_cpu_supports("avx512f") &&
                                      __builtin_cpu_supports("avx512bw") &&
                                      __builtin_cpu_supports("avx512dq") &&
                                      __builtin_cpu_supports("avx512vl") && converts_float16()),
#endif
#if defined(VSS_HAS_RACE_CHECK)
      {"race_check", true,
       [](torch::Library& library) { VSS_EVERY_OPERATOR(VSS_IMPLEMENT, race_check) }},
#endif
  };
  return sets;
}

const InstructionSet* chosen() {
  const char* variable = std::getenv("VSS_KERNELS_ISA");
  const std::string_view wanted = variable == nullptr ? "" : variable;
  const InstructionSet* best = nullptr;
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.runs_here) continue;
    best = &set;
    if (wanted == set.name) break;
  }
  return best;
}

std::vector<std::string> runnable() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets())
    if (set.runs_here) names.emplace_back(set.name);
  return names;
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["flags"] = VSS_BUILD_FLAGS;
  info["cuda"] = std::string(VSS_BUILD_CUDA);
  info["cuda_arch_list"] = VSS_BUILD_ARCH_LIST;
#if defined(_OPENMP)
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = 0;
#endif
  info["threads"] = at::get_num_threads();
  info["isa"] = chosen() == nullptr ? "" : chosen()->name;
  info["isas"] = runnable();
  return info;
}

}  // namespace

TORCH_LIBRARY(vss_kernels, m) {
  m.def("focal_pool(Tensor x, Tensor weight, Tensor bias, SymInt[] cells) -> Tensor");
  m.def(
      "focal_pool_backward(Tensor grad, Tensor x, Tensor weight, bool[3] needs) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("depthwise_gelu(Tensor x, Tensor weight, Tensor bias) -> Tensor");
  m.def(
      "depthwise_gelu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, bool[4] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // What vss_kernels.nn.attend_few_keys runs on the CPU.
  m.def("reduced_attention_cpu(Tensor query, Tensor key_value) -> Tensor");
  // What vss_kernels.nn.add_norm runs on the CPU. Without a branch there is no sum.
  m.def(
      "add_norm_cpu(Tensor x, Tensor weight, Tensor bias, Tensor? branch, float epsilon, "
      "ScalarType dtype) -> (Tensor total, Tensor out)");
  // What vss_kernels.nn.fuse_halved runs on the CPU.
  m.def("halved_pyramid_cpu(Tensor first, Tensor weight, Tensor bias, Tensor[] others) -> Tensor");
  // What vss_kernels.nn.resize_pixel_logits runs on the CPU; the result is (N, H, K, W).
  m.def("resized_rows_cpu(Tensor rows, SymInt height, SymInt width) -> Tensor");
  // What select_tokens, masked_affinity and attend_selected run on the CPU.
  m.def("select_tokens_cpu(Tensor target, Tensor reference, int num_selected, int top) -> Tensor");
  m.def("masked_affinity_cpu(Tensor target, Tensor reference, Tensor index) -> Tensor");
  m.def(
      "masked_affinity_cpu_backward(Tensor grad, Tensor target, Tensor reference, Tensor index, "
      "bool[2] needs) -> (Tensor grad_target, Tensor grad_reference)");
  m.def(
      "attend_selected_cpu(Tensor affinity, Tensor value, Tensor index) "
      "-> (Tensor out, Tensor statistics)");
  m.def(
      "attend_selected_cpu_backward(Tensor grad, Tensor affinity, Tensor statistics, Tensor value, "
      "Tensor index, bool[2] needs) -> (Tensor grad_affinity, Tensor grad_value)");
  // What focal_attention runs on the CPU; the table lists each window's tokens, -1 for padding.
  m.def(
      "focal_attend(Tensor query, Tensor key_value, Tensor bias, Tensor table) "
      "-> (Tensor out, Tensor statistics)");
  m.def(
      "focal_attend_backward(Tensor grad, Tensor query, Tensor key_value, Tensor bias, Tensor "
      "table, "
      "Tensor statistics) -> (Tensor grad_query, Tensor grad_key_value, Tensor grad_bias)");
  // `parameters` are weight, bias, norm weight and norm bias of every layer, or one vector that
  // packs them all, as the backward operator takes them; `layers` holds the lengths of the five
  // chains, then (kernel, channels in, channels out) of every layer.
  m.def(
      "aggregate_affinity(Tensor coarse, Tensor middle, Tensor fine, Tensor[] parameters, "
      "int[] layers) -> (Tensor, Tensor statistics, Tensor packed)");
  m.def(
      "aggregate_affinity_backward(Tensor grad, Tensor coarse, Tensor middle, Tensor fine, "
      "Tensor packed, Tensor statistics, int[] layers, bool[4] needs) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor labels, Tensor? class_weights, "
      "int ignore_index, str reduction, float label_smoothing, bool align_corners) "
      "-> (Tensor loss, Tensor log_sums, Tensor scale)");
  m.def(
      "upsample_cross_entropy_backward(Tensor grad, Tensor scale, Tensor log_sums, Tensor logits, "
      "Tensor labels, Tensor? class_weights, int ignore_index, float label_smoothing, "
      "bool align_corners) -> Tensor");
  m.def(
      "upsample_argmax(Tensor logits, SymInt[] size, SymInt[] through, bool confidence, "
      "bool align_corners) "
      "-> (Tensor classes, Tensor confidence)");
  m.def("fuse_pyramid(Tensor[] levels, bool align_corners) -> Tensor");
  // Gradients of the levels whose rows and columns `sizes` lists one after the other.
  m.def("fuse_pyramid_backward(Tensor grad, SymInt[] sizes, bool align_corners) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(vss_kernels, CPU, library) {
  if (chosen() != nullptr) chosen()->implement(library);
}

#if defined(VSS_HAS_CUDA)
TORCH_LIBRARY_IMPL(vss_kernels, CUDA, library){VSS_EVERY_OPERATOR(VSS_IMPLEMENT, cuda)}
#endif

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of vss_kernels.";
  // Counted up where a schema or what Python leaves to C++ changes; native.py has the same number.
  m.attr("interface") = 4;
  m.def("build_info", &build_info,
        "Versions, CUDA architectures, flags and OpenMP of this build, and its instruction sets.");
  m.def("differentiate", &vss::differentiate_python_operator,
        "Gives an operator that Python registered the gradient that <name>_backward computes.");
}
