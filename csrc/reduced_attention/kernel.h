// Attention with few keys on a CPU, as in an encoder that reduces the map its keys come from.
//
// A head's keys and values are packed once into panels of as many columns as a tile of a product
// holds in registers (math/small_matrix.h). A block owns some queries of one head and takes as many
// at a time as such a tile has rows: their logits with all keys stay in the fastest cache, so the
// softmax is done before the second product and nothing is rescaled.
#pragma once

#include "../machine/machine.h"
#include "../math/small_matrix.h"
#include "../math/softmax_rows.h"

namespace vss::inline VSS_MACHINE::reduced_attention {

constexpr int kPanel = kTileVectors * kLanes;
constexpr int64_t kQueries = 8 * kTileRows;  // of a block

struct Sizes {
  int64_t batch, queries, keys, heads, dim;

  int64_t key_panels() const { return cdiv<int64_t>(keys, kPanel); }
  int64_t dim_panels() const { return cdiv<int64_t>(dim, kPanel); }
  int64_t blocks_of_head() const { return cdiv(queries, kQueries); }
  int64_t packed() const { return 2 * key_panels() * dim_panels() * kPanel * kPanel; }
};

// Packs one head's keys as (key_panels, dim, kPanel) and its values as (dim_panels, keys, kPanel).
template <typename T>
struct PackHead {
  Sizes n;
  const T* key_value;  // (batch, keys, 2, heads, dim)
  float* packed;       // (batch, heads, packed()), zeros before

  void operator()(const Block&, int64_t i) const {
    const int64_t b = i / n.heads, head = i % n.heads;
    float* keys = packed + i * n.packed();
    float* values = keys + n.packed() / 2;
    for (int64_t k = 0; k < n.keys; ++k) {
      const T* key = key_value + (((b * n.keys + k) * 2) * n.heads + head) * n.dim;
      const T* value = key + n.heads * n.dim;
      for (int64_t c = 0; c < n.dim; ++c) {
        keys[(k / kPanel * n.dim + c) * kPanel + k % kPanel] = static_cast<float>(key[c]);
        values[(c / kPanel * n.keys + k) * kPanel + c % kPanel] = static_cast<float>(value[c]);
      }
    }
  }
};

template <typename T>
struct AttendQueries {
  Sizes n;
  const T* query;       // (batch, queries, heads, dim)
  const float* packed;  // see PackHead
  T* out;               // as the query

  static int64_t scratch(const Sizes& n) {
    return kTileRows * (n.key_panels() + n.dim_panels() + 1) * kPanel;
  }

  void operator()(const Block& block, int64_t i) const {
    const int64_t head = i / n.blocks_of_head();  // of the whole batch
    const int64_t first = i % n.blocks_of_head() * kQueries;
    const int64_t last = std::min(n.queries, first + kQueries);
    int64_t q = first;
    for (; q + kTileRows <= last; q += kTileRows) attend<kTileRows>(block, head, q);
    for (; q < last; ++q) attend<1>(block, head, q);
  }

  template <int kRows>
  VSS_INLINE void attend(const Block& block, int64_t head, int64_t q) const {
    const int64_t width = n.key_panels() * kPanel, depth = n.dim_panels() * kPanel;
    const int64_t token = n.heads * n.dim;
    const int64_t at = ((head / n.heads * n.queries + q) * n.heads + head % n.heads) * n.dim;
    const float* keys = packed + head * n.packed();
    const float* values = keys + n.packed() / 2;
    float* logits = block.scratch();           // (kRows, width)
    float* rows = logits + kTileRows * width;  // (kRows, depth)
    float* tile = rows + kTileRows * depth;    // (kRows, kPanel)
    const float scale = 1.0f / std::sqrt(static_cast<float>(n.dim));
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < n.dim; ++c)
        rows[r * depth + c] = static_cast<float>(query[at + r * token + c]) * scale;
    for (int64_t panel = 0; panel < n.key_panels(); ++panel)
      multiply_tile<kRows, kTileVectors, false>({rows, depth, 1}, keys + panel * n.dim * kPanel,
                                                kPanel, logits + panel * kPanel, width, n.dim);
    float inverse[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      float* row = logits + r * width;
      std::fill_n(row + n.keys, width - n.keys, -INFINITY);
      inverse[r] = 1.0f / exponentiate_row(row, width, largest_of_row(row, width));
    }
    for (int64_t panel = 0; panel < n.dim_panels(); ++panel) {
      multiply_tile<kRows, kTileVectors, false>(
          {logits, width, 1}, values + panel * n.keys * kPanel, kPanel, tile, kPanel, n.keys);
      const int64_t channels = std::min<int64_t>(n.dim - panel * kPanel, kPanel);
      for (int64_t r = 0; r < kRows; ++r)
        for (int64_t c = 0; c < channels; ++c)
          out[at + r * token + panel * kPanel + c] =
              static_cast<T>(tile[r * kPanel + c] * inverse[r]);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::reduced_attention
