// The headers of the standard library and of the compiler that kernels stand on; see foreign.h.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#if defined(VSS_RACE_CHECK)
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#endif
