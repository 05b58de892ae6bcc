// Products and transposes of small dense matrices on the CPU.
//
// `Lanes` is one AVX-512 register, two of AVX2 or four of SSE, as the instruction set allows for which
// VSS_CPU_BLOCK compiles the caller.
#pragma once

#include "exponential.h"
#include "hints.h"
#include "lanes.h"

namespace vss {

constexpr int kLaneCount = 16;
using Lanes = LanesOf<kLaneCount>::Type;

constexpr int64_t whole_lanes(int64_t n) { return (n + kLaneCount - 1) / kLaneCount * kLaneCount; }

// Replaces each lane by its exponential, and by zero below -87: denormal results would slow down
// everything that is computed from them.
VSS_HOST_DEVICE void exponentiate(Lanes& x) {
  using Index = LanesOf<kLaneCount>::Index;
  constexpr float kSmallest = -87.0f, kLargest = 88.0f;
  const Index vanishes = x < kSmallest;
  x = vanishes ? Lanes{} + kSmallest : x;
  x = x > kLargest ? Lanes{} + kLargest : x;
  exponentiate_in_range<Index>(x);
  x = vanishes ? Lanes{} : x;
}

// One step of a transpose: exchanges the blocks of kStep lanes off the diagonal of two rows.
template <int kStep>
VSS_HOST_DEVICE void exchange(Lanes& a, Lanes& b) {
  constexpr auto first = [](int i) { return i & kStep ? kLaneCount + i - kStep : i; };
  constexpr auto second = [](int i) { return i & kStep ? kLaneCount + i : i + kStep; };
#define VSS_ALL_LANES(f)                                                                    \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
      f(15)
  const Lanes upper = __builtin_shufflevector(a, b, VSS_ALL_LANES(first));
  b = __builtin_shufflevector(a, b, VSS_ALL_LANES(second));
  a = upper;
#undef VSS_ALL_LANES
}

template <int kStep>
VSS_HOST_DEVICE void exchange_rows(Lanes (&rows)[kLaneCount]) {
  for (int i = 0; i < kLaneCount; ++i)
    if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep]);
}

// Transposes a square of kLaneCount rows and columns.
VSS_HOST_DEVICE void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  Lanes rows[kLaneCount];
  for (int i = 0; i < kLaneCount; ++i) load(from + i * from_row, rows[i]);
  exchange_rows<1>(rows);
  exchange_rows<2>(rows);
  exchange_rows<4>(rows);
  exchange_rows<8>(rows);
  for (int i = 0; i < kLaneCount; ++i) store(to + i * to_row, rows[i]);
}

// The left factor of a product, with the distances between its rows and columns in floats, so
// that a transpose is just another view.
struct Left {
  const float* data;
  int64_t row, column;
};

template <int kRows, int kVectors, bool kAdd>
VSS_HOST_DEVICE void multiply_tile(const Left& a, const float* b, int64_t b_row, float* c,
                                   int64_t c_row, int64_t depth) {
  Lanes sum[kRows][kVectors];
  VSS_UNROLL for (int r = 0; r < kRows; ++r) {
    VSS_UNROLL for (int v = 0; v < kVectors; ++v) {
      if constexpr (kAdd)
        load(c + r * c_row + v * kLaneCount, sum[r][v]);
      else
        sum[r][v] = Lanes{};
    }
  }
  const int64_t row = a.row, column = a.column;
  const float* left = a.data;
  for (int64_t k = 0; k < depth; ++k, left += column, b += b_row) {
    Lanes right[kVectors];
    VSS_UNROLL for (int v = 0; v < kVectors; ++v) load(b + v * kLaneCount, right[v]);
    VSS_UNROLL for (int r = 0; r < kRows; ++r) {
      VSS_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] += left[r * row] * right[v];
    }
  }
  VSS_UNROLL for (int r = 0; r < kRows; ++r) {
    VSS_UNROLL for (int v = 0; v < kVectors; ++v)
      store(c + r * c_row + v * kLaneCount, sum[r][v]);
  }
}

constexpr int kTileRows = 7;
constexpr int kTileVectors = 2;

template <int kRows, bool kAdd>
VSS_HOST_DEVICE void multiply_rows(const Left& a, const float* b, int64_t b_row, float* c,
                                   int64_t c_row, int64_t columns, int64_t depth) {
  constexpr int64_t kStep = kTileVectors * kLaneCount;
  int64_t n = 0;
  for (; n + kStep <= columns; n += kStep)
    multiply_tile<kRows, kTileVectors, kAdd>(a, b + n, b_row, c + n, c_row, depth);
  for (; n < columns; n += kLaneCount)
    multiply_tile<kRows, 1, kAdd>(a, b + n, b_row, c + n, c_row, depth);
}

// c[m, n] = sum over k of a[m, k] * b[k, n], added to what c holds if kAdd. The columns, and so
// the rows of b and c, are whole numbers of lanes.
template <bool kAdd>
VSS_HOST_DEVICE void multiply_here(const Left& a, const float* b, int64_t b_row, float* c,
                                   int64_t c_row, int64_t rows, int64_t columns, int64_t depth) {
  int64_t m = 0;
  const auto left = [&] { return Left{a.data + m * a.row, a.row, a.column}; };
  for (; m + kTileRows <= rows; m += kTileRows)
    multiply_rows<kTileRows, kAdd>(left(), b, b_row, c + m * c_row, c_row, columns, depth);
  for (; m < rows; ++m)
    multiply_rows<1, kAdd>(left(), b, b_row, c + m * c_row, c_row, columns, depth);
}

// Functions of their own, so that the blocks that call them several times stay small.
VSS_CPU_BLOCK static __attribute__((noinline)) void multiply(const Left& a, const float* b,
                                                             int64_t b_row, float* c, int64_t c_row,
                                                             int64_t rows, int64_t columns,
                                                             int64_t depth) {
  multiply_here<false>(a, b, b_row, c, c_row, rows, columns, depth);
}
VSS_CPU_BLOCK static __attribute__((noinline)) void add_product(const Left& a, const float* b,
                                                                int64_t b_row, float* c,
                                                                int64_t c_row, int64_t rows,
                                                                int64_t columns, int64_t depth) {
  multiply_here<true>(a, b, b_row, c, c_row, rows, columns, depth);
}

}  // namespace vss
