// reduced_attention in bfloat16 by a CPU's matrix units (AMX), through PyTorch's own products of
// small matrices, which are oneDNN's.
//
// As in kernel.h a block owns some queries of one head, whose logits with all keys stay in the
// cache. Sums and the softmax are float32; its exponentials are rounded to bfloat16 for the second
// product, as PyTorch's attention rounds them.
#pragma once

#include "kernel.h"

namespace vss::inline VSS_MACHINE::reduced_attention {

using Narrow = c10::BFloat16;

constexpr int64_t kUnit = 32;           // numbers in a row of a tile
constexpr int64_t kNarrowQueries = 64;  // of a block

inline int64_t narrow_width(const Sizes& n) { return cdiv(n.keys, kUnit) * kUnit; }
inline int64_t narrow_packed(const Sizes& n) { return 2 * narrow_width(n) * n.dim; }
inline int64_t narrow_blocks_of_head(const Sizes& n) { return cdiv(n.queries, kNarrowQueries); }

// Whether this CPU has the units, and a head's channels fill their rows.
inline bool fits_matrix_units(const Sizes& n) {
  return n.dim % kUnit == 0 && at::native::cpublas::could_pack(at::kBFloat16);
}

// Packs one head's keys as (dim / 2, width, 2) and its values as (width / 2, dim, 2): what the
// units take as the right factor of a product holds pairs of its rows side by side.
struct PackNarrowHead {
  Sizes n;
  const Narrow* key_value;  // (batch, keys, 2, heads, dim)
  Narrow* packed;           // (batch, heads, narrow_packed()), zeros before

  void operator()(const Block&, int64_t i) const {
    const int64_t b = i / n.heads, head = i % n.heads, width = narrow_width(n);
    Narrow* keys = packed + i * narrow_packed(n);
    Narrow* values = keys + width * n.dim;
    for (int64_t k = 0; k < n.keys; ++k) {
      const Narrow* key = key_value + (((b * n.keys + k) * 2) * n.heads + head) * n.dim;
      const Narrow* value = key + n.heads * n.dim;
      for (int64_t c = 0; c < n.dim; ++c) {
        keys[(c / 2 * width + k) * 2 + c % 2] = key[c];
        values[(k / 2 * n.dim + c) * 2 + k % 2] = value[c];
      }
    }
  }
};

struct AttendNarrowQueries {
  Sizes n;
  const Narrow* query;   // (batch, queries, heads, dim)
  const Narrow* packed;  // see PackNarrowHead
  Narrow* out;           // as the query

  // Logits, their exponentials, which are half as wide, and a product.
  static int64_t scratch(const Sizes& n) {
    return kNarrowQueries * (narrow_width(n) + narrow_width(n) / 2 + n.dim);
  }

  void operator()(const Block& block, int64_t i) const {
    const int64_t head = i / narrow_blocks_of_head(n);  // of the whole batch
    const int64_t q = i % narrow_blocks_of_head(n) * kNarrowQueries;
    const int64_t rows = std::min(n.queries - q, kNarrowQueries);
    const int64_t width = narrow_width(n), token = n.heads * n.dim;
    const int64_t at = ((head / n.heads * n.queries + q) * n.heads + head % n.heads) * n.dim;
    const Narrow* keys = packed + head * narrow_packed(n);
    const Narrow* values = keys + width * n.dim;
    float* logits = block.scratch();                // (kNarrowQueries, width)
    float* tile = logits + kNarrowQueries * width;  // (kNarrowQueries, dim)
    Narrow* exponentials = reinterpret_cast<Narrow*>(tile + kNarrowQueries * n.dim);
    at::native::cpublas::brgemm(rows, width, n.dim, token, width, width, false, query + at, keys,
                                logits);
    float inverse[kNarrowQueries];
    for (int64_t r = 0; r < rows; ++r)
      inverse[r] = 1.0f / exponentiate(logits + r * width, exponentials + r * width, width);
    at::native::cpublas::brgemm(rows, n.dim, width, width, n.dim, n.dim, false, exponentials,
                                values, tile);
    at::native::cpublas::brgemm_release();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < n.dim; c += kLanes)
        store(out + at + r * token + c, load(tile + r * n.dim + c) * inverse[r]);
  }

  // Writes exp(scale * logit), over that of the largest, and returns the sum.
  VSS_INLINE float exponentiate(float* logits, Narrow* to, int64_t width) const {
    std::fill_n(logits + n.keys, width - n.keys, -INFINITY);
    const float scale = 1.0f / std::sqrt(static_cast<float>(n.dim));
    const float shift = largest_of_row(logits, width) * scale;
    Floats sum{};
    for (int64_t k = 0; k < width; k += kLanes) {
      const Floats exponentials = exponential_or_zero(load(logits + k) * scale - shift);
      store(to + k, exponentials);
      sum += exponentials;
    }
    return sum_of(sum);
  }
};

}  // namespace vss::inline VSS_MACHINE::reduced_attention
