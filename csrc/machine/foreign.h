// Every header that is not ours. It comes first in each compilation, so that target.h, which
// follows, chooses an instruction set for our functions only: an inline function of another library
// that is compiled for AVX-512 might be the copy that the linker keeps for everybody.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#if defined(VSS_CUDA)
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "standard.h"
