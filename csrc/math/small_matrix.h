// Products and transposes of small dense matrices on the CPU, tile by tile in registers.
#pragma once

#include "simd.h"

namespace vss::inline VSS_MACHINE {

// One step of a transpose: exchanges the blocks of kStep lanes off the diagonal of two rows.
template <int kStep>
VSS_INLINE void exchange(Floats& a, Floats& b) {
  [&]<int... kLane>(std::integer_sequence<int, kLane...>) VSS_LAMBDA {
    const Floats upper =
        __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane - kStep : kLane)...);
    b = __builtin_shufflevector(a, b, (kLane & kStep ? kLanes + kLane : kLane + kStep)...);
    a = upper;
  }(std::make_integer_sequence<int, kLanes>{});
}

template <int kStep>
VSS_INLINE void exchange_rows(Floats (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep]);
}

// Transposes a square of kLanes rows and columns.
VSS_INLINE void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  Floats rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * from_row);
  exchange_rows<1>(rows);
  exchange_rows<2>(rows);
  if constexpr (kLanes > 4) exchange_rows<4>(rows);
  if constexpr (kLanes > 8) exchange_rows<8>(rows);
  for (int i = 0; i < kLanes; ++i) store(to + i * to_row, rows[i]);
}

// The left factor of a product, with the distances between its rows and columns in floats, so
// that a transpose is just another view.
struct Left {
  const float* data;
  int64_t row, column;
};

template <int kRows, int kVectors, bool kAdd>
VSS_INLINE void multiply_tile(const Left& a, const float* b, int64_t b_row, float* c, int64_t c_row,
                              int64_t depth) {
  Floats sum[kRows][kVectors];
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    VSS_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kAdd)
        sum[r][v] = load(c + r * c_row + v * kLanes);
      else
        sum[r][v] = Floats{};
    }
  }
  const int64_t row = a.row, column = a.column;
  const float* left = a.data;
  for (int64_t k = 0; k < depth; ++k, left += column, b += b_row) {
    Floats right[kVectors];
    VSS_UNROLL
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + v * kLanes);
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      VSS_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] += left[r * row] * right[v];
    }
  }
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    VSS_UNROLL
    for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * kLanes, sum[r][v]);
  }
}

// As many sums as registers hold beside the factors: of 32 on AVX-512 and ARM64, else of 16.
#if defined(VSS_AVX512) || defined(__aarch64__)
constexpr int kTileRows = 7;
#elif defined(VSS_AVX2)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;

template <int kRows, bool kAdd>
VSS_INLINE void multiply_rows(const Left& a, const float* b, int64_t b_row, float* c, int64_t c_row,
                              int64_t columns, int64_t depth) {
  constexpr int64_t kStep = kTileVectors * kLanes;
  int64_t n = 0;
  for (; n + kStep <= columns; n += kStep)
    multiply_tile<kRows, kTileVectors, kAdd>(a, b + n, b_row, c + n, c_row, depth);
  for (; n < columns; n += kLanes)
    multiply_tile<kRows, 1, kAdd>(a, b + n, b_row, c + n, c_row, depth);
}

// c[m, n] = sum over k of a[m, k] * b[k, n], added to what c holds if kAdd. The columns, and so
// the rows of b and c, are whole numbers of lanes.
template <bool kAdd>
VSS_INLINE void multiply_here(const Left& a, const float* b, int64_t b_row, float* c, int64_t c_row,
                              int64_t rows, int64_t columns, int64_t depth) {
  int64_t m = 0;
  const auto left = [&] { return Left{a.data + m * a.row, a.row, a.column}; };
  for (; m + kTileRows <= rows; m += kTileRows)
    multiply_rows<kTileRows, kAdd>(left(), b, b_row, c + m * c_row, c_row, columns, depth);
  for (; m < rows; ++m)
    multiply_rows<1, kAdd>(left(), b, b_row, c + m * c_row, c_row, columns, depth);
}

// Functions of their own, so that the blocks that call them several times stay small.
[[maybe_unused]] static __attribute__((noinline)) void multiply(const Left& a, const float* b,
                                                                int64_t b_row, float* c,
                                                                int64_t c_row, int64_t rows,
                                                                int64_t columns, int64_t depth) {
  multiply_here<false>(a, b, b_row, c, c_row, rows, columns, depth);
}
[[maybe_unused]] static __attribute__((noinline)) void add_product(const Left& a, const float* b,
                                                                   int64_t b_row, float* c,
                                                                   int64_t c_row, int64_t rows,
                                                                   int64_t columns, int64_t depth) {
  multiply_here<true>(a, b, b_row, c, c_row, rows, columns, depth);
}

}  // namespace vss::inline VSS_MACHINE
