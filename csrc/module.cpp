// The Python module of the extension: importing it registers the operators; build_info() says how
// it was built.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
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
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of vss_kernels.";
  m.def("build_info", &build_info, "Versions, CUDA architectures, flags and OpenMP of this build.");
}
