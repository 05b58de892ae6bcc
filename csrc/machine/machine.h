// What an operator's host.cpp and kernels are written on. One include, always the first.
//
// A kernel is a functor over a `Block`, the worker (block.h), and a host.cpp hands it to
// run_blocks() (cpu.h, cuda.h, race_check.h). Both are compiled once for every machine (target.h).
#pragma once

#include "foreign.h"
#include "target.h"
#include "block.h"
#include "checks.h"
#if defined(VSS_RACE_CHECK)
#include "race_check.h"
#elif defined(VSS_CUDA)
#include "cuda.h"
#else
#include "cpu.h"
#endif
