// A pyramid's fused map at half its size, on a CPU in inference: the first level times a matrix,
// the other levels resized to it, their sum, ReLU, and the mean of every two by two pixels.
//
// Neither the product of the first level nor the fused map, the two largest maps of a head, exist
// in memory. A block owns one row of the result and as many neighbouring channels as sums of two by
// two pixels fit into registers. It resizes the other levels vertically, once for the two rows that
// it needs, into scratch; the horizontal resize starts the sums, and the product adds to them.
#pragma once

#include "../machine/machine.h"
#include "../math/resize.h"
#include "../math/simd.h"

namespace vss::inline VSS_MACHINE::halved_pyramid {

constexpr int kMaxOthers = 7;
constexpr int kSide = 2;
constexpr int kPixels = kSide * kSide;  // of the fused map, for one of the result

// As many as registers hold sums of, beside the factors: of 32 on AVX-512 and ARM64, else of 16.
#if defined(VSS_AVX512) || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kPanel = kVectors * kLanes;  // channels

// A level that is resized to the first.
struct Level {
  int64_t rows, columns;
  const Tap* row_taps;     // of every row of the fused map
  const Tap* column_taps;  // and of every column
};

struct Pyramid {
  int64_t batch, rows, columns, channels;  // of the result
  int64_t depth;                           // channels of the first level
  int others;                              // levels beside the first
  Level levels[kMaxOthers];

  int64_t panels() const { return cdiv<int64_t>(channels, kPanel); }
  int64_t blocks() const { return batch * rows * panels(); }
  // Floats of a level's two rows, resized vertically.
  int64_t row_floats(int level) const { return kSide * levels[level].columns * kPanel; }
  int64_t scratch() const {
    int64_t floats = kPixels * whole_lanes(depth);
    for (int level = 0; level < others; ++level) floats += row_floats(level);
    return floats;
  }
};

// Packs one panel of the matrix as (depth + 1, kPanel): its columns, then the bias; zeros behind
// the channels.
template <typename T>
struct PackPanel {
  Pyramid p;
  const T *weight, *bias;  // (channels, depth) and (channels,)
  float* packed;           // (panels, depth + 1, kPanel), zeros before

  void operator()(const Block&, int64_t panel) const {
    float* to = packed + panel * (p.depth + 1) * kPanel;
    for (int64_t c = 0; c < std::min<int64_t>(kPanel, p.channels - panel * kPanel); ++c) {
      const int64_t channel = panel * kPanel + c;
      for (int64_t k = 0; k < p.depth; ++k)
        to[k * kPanel + c] = static_cast<float>(weight[channel * p.depth + k]);
      to[p.depth * kPanel + c] = static_cast<float>(bias[channel]);
    }
  }
};

// One row of the result, in the channels of one panel.
template <typename T>
struct FuseRow {
  Pyramid p;
  const T* first;               // (batch, 2 * rows, 2 * columns, depth)
  const T* others[kMaxOthers];  // (batch, rows, columns, channels) each
  const float* packed;          // see PackPanel
  T* out;                       // (batch, rows, columns, channels)

  void operator()(const Block& block, int64_t index) const {
    // Blocks that share rows of the levels follow each other.
    const int64_t channel = index % p.panels() * kPanel;
    const int64_t y = index / p.panels() % p.rows;
    const int64_t n = index / p.panels() / p.rows;
    const int count = static_cast<int>(std::min<int64_t>(kPanel, p.channels - channel));
    float* widened = block.scratch();                        // (kPixels, whole_lanes(depth))
    float* rows = widened + kPixels * whole_lanes(p.depth);  // of each level (2, columns, kPanel)
    resize_rows(n, y, channel, count, rows);
    const float* weights = packed + index % p.panels() * (p.depth + 1) * kPanel;
    const int64_t width = kSide * p.columns;  // of the fused map
    const T* pixels = first + (n * p.rows + y) * kSide * width * p.depth;
    T* to = out + ((n * p.rows + y) * p.columns) * p.channels + channel;
    for (int64_t x = 0; x < p.columns; ++x, pixels += kSide * p.depth, to += p.channels) {
      Floats sum[kPixels][kVectors];
      start(weights + p.depth * kPanel, rows, x, sum);
      if constexpr (std::is_same_v<T, float>) {
        multiply(pixels, width * p.depth, p.depth, weights, sum);
      } else {
        const int64_t pitch = whole_lanes(p.depth);
        for (int pixel = 0; pixel < kPixels; ++pixel) {
          const T* from = pixels + (pixel / kSide * width + pixel % kSide) * p.depth;
          for (int64_t k = 0; k < p.depth; k += kLanes)
            store(widened + pixel * pitch + k,
                  load(from + k, static_cast<int>(std::min<int64_t>(kLanes, p.depth - k))));
        }
        multiply(widened, kSide * pitch, pitch, weights, sum);
      }
      VSS_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        Floats total{};
        VSS_UNROLL
        for (int pixel = 0; pixel < kPixels; ++pixel)
          total += sum[pixel][v] < 0.0f ? Floats{} : sum[pixel][v];  // NaN stays
        if (v * kLanes < count)
          store(to + v * kLanes, total * (1.0f / kPixels), std::min(kLanes, count - v * kLanes));
      }
    }
  }

  // Resizes the levels to the two rows of the fused map that row `y` of the result is made of.
  VSS_INLINE void resize_rows(int64_t n, int64_t y, int64_t channel, int count, float* rows) const {
    for (int l = 0; l < p.others; ++l) {
      const Level& level = p.levels[l];
      const int64_t pitch = level.columns * p.channels;
      const T* map = others[l] + n * level.rows * pitch + channel;
      for (int i = 0; i < kSide; ++i) {
        const Tap tap = level.row_taps[kSide * y + i];
        const T *above = map + tap.first * pitch, *below = map + tap.second * pitch;
        for (int64_t x = 0; x < level.columns; ++x, rows += kPanel) {
          VSS_UNROLL
          for (int v = 0; v < kVectors; ++v) {
            const int64_t at = x * p.channels + v * kLanes;
            const int lanes = std::clamp(count - v * kLanes, 0, kLanes);
            store(rows + v * kLanes, (1.0f - tap.weight) * load(above + at, lanes) +
                                         tap.weight * load(below + at, lanes));
          }
        }
      }
    }
  }

  // Starts the sums with the bias and the levels, resized horizontally.
  VSS_INLINE void start(const float* bias, const float* rows, int64_t x,
                        Floats (&sum)[kPixels][kVectors]) const {
    VSS_UNROLL
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      VSS_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[pixel][v] = load(bias + v * kLanes);
    }
    for (int l = 0; l < p.others; ++l) {
      const Level& level = p.levels[l];
      VSS_UNROLL
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const Tap tap = level.column_taps[kSide * x + pixel % kSide];
        const float* row = rows + pixel / kSide * level.columns * kPanel;
        VSS_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          sum[pixel][v] += (1.0f - tap.weight) * load(row + tap.first * kPanel + v * kLanes);
          sum[pixel][v] += tap.weight * load(row + tap.second * kPanel + v * kLanes);
        }
      }
      rows += p.row_floats(l);
    }
  }

  // Adds the product of two by two pixels, `row` and `column` floats apart.
  VSS_INLINE void multiply(const float* left, int64_t row, int64_t column, const float* weights,
                           Floats (&sum)[kPixels][kVectors]) const {
    for (int64_t k = 0; k < p.depth; ++k, ++left, weights += kPanel) {
      Floats right[kVectors];
      VSS_UNROLL
      for (int v = 0; v < kVectors; ++v) right[v] = load(weights + v * kLanes);
      VSS_UNROLL
      for (int pixel = 0; pixel < kPixels; ++pixel) {
        const float value = left[pixel / kSide * row + pixel % kSide * column];
        VSS_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[pixel][v] += value * right[v];
      }
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::halved_pyramid
