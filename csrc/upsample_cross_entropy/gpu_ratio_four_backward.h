// The backward pass of upsample_cross_entropy on a GPU where the labels have four times the sides
// of the logits; gpu_ratio_four.h has patches and the forward pass, backward.h the general kernel.
//
// A warp owns neighbouring source columns of kClasses classes and walks down their rows. A thread
// computes dz of the 16 labels of its patch, once, and sums them with their weights into the four
// corners. What the upper corners get completes their row together with what the row of patches
// above gave to its lower corners, which the thread has kept; what the right corner gets goes to
// the next thread:
//
//                 column          column + 1
//          row    ├── upper left  ├── upper right  -> the next thread's, then written
//                 │   patch       │
//      row + 1    ├── lower left  ├── lower right     kept for the patch below
//
// So every sum has one order. The warps of a block own the same columns of other classes: they
// share the work of reading labels, a row of patches ahead of the sums.
#pragma once

#include "backward.h"
#include "gpu_ratio_four.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

#if VSS_GPU_CODE

// Four values that are loaded and stored at once.
template <typename T>
struct alignas(4 * sizeof(T)) FourOf {
  T at[kRatio];
};

// What the losses of a patch say about their gradients: dloss/dz_k = factor (2^(z_k - log_sum) -
// [k = label]). The factor may be the same for all labels, and is left out then.
struct PatchGradients {
  FourOf<float> log_sum[kRatio];  // in base 2; infinite where there is no loss
  FourOf<int> label[kRatio];
  FourOf<float> factor[kRatio];
};

template <typename T, bool kUniform>
struct LossPatchesBackward {
  LossGeometry g;
  Strides grad_strides;                  // as of LossBackwardGeometry
  const float *grad, *scale, *log_sums;  // too
  const T* logits;
  T* grad_logits;
  int band = 0;  // rows of logits that a block owns

  static constexpr int kClasses = kPatchClasses;
  static constexpr int kClassesAtOnce = 2;  // whose loads overlap
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * Block::kWarp;
  // The first thread's patch is there for the second's column, the last one loads only.
  static constexpr int kColumns = Block::kWarp - 2;
  // Two rows of patches: what the losses of their labels say.
  static constexpr int kRowFloats = (kUniform ? 2 : 3) * kRatio * kRatio * Block::kWarp;
  static constexpr int kScratchFloats = 2 * kRowFloats;

  VSS_INLINE int columns() const { return static_cast<int>(g.horizontal.size); }
  VSS_INLINE int rows() const { return static_cast<int>(g.vertical.size); }
  VSS_INLINE int tiles() const { return cdiv(columns(), kColumns); }
  VSS_INLINE int bands() const { return cdiv(rows(), band); }
  VSS_INLINE int class_groups() const { return cdiv(g.classes, kWarps * kClasses); }
  VSS_INLINE int64_t blocks() const { return g.batch * class_groups() * bands() * tiles(); }

  LossPatchesBackward(const LossBackwardGeometry& geometry, const T* logits, T* grad_logits)
      : g(geometry.loss),
        grad_strides(geometry.grad_strides),
        grad(geometry.grad),
        scale(geometry.scale),
        log_sums(geometry.log_sums),
        logits(logits),
        grad_logits(grad_logits) {
    // About one wave of a large GPU, but not at any price: each band costs a row more.
    constexpr int64_t kBlocks = 512;
    constexpr int kLowestBand = 4;
    band = rows();
    const int64_t wanted = cdiv<int64_t>(kBlocks, std::max<int64_t>(blocks(), 1));
    band = std::max<int>(cdiv<int64_t>(rows(), wanted), std::min(kLowestBand, rows()));
  }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int of_image = class_groups() * bands() * tiles();
    const int place = static_cast<int>(index % of_image);
    const int64_t n = index / of_image;
    const int lane = block.rank() % Block::kWarp, warps = block.size() / Block::kWarp;
    const int tile = place % tiles(), first_row = place / tiles() % bands() * band;
    const int group = place / tiles() / bands() * kWarps + block.rank() / Block::kWarp;
    for (int warp = 0; warp < kWarps; warp += warps)
      walk_down(block, n, (group + warp) * kClasses, first_row, tile * kColumns - 1 + lane);
  }

 private:
  // What the labels of a patch give to its corners.
  struct Corners {
    float upper_left, upper_right, lower_left, lower_right;
  };

  VSS_DEVICE FourOf<float>* row_scratch(const Block& block, int row) const {
    return reinterpret_cast<FourOf<float>*>(block.scratch() + (row & 1) * kRowFloats) +
           block.rank() % Block::kWarp;
  }

  // Reads what the losses of a row of patches say, as a block.
  VSS_DEVICE void read_pixels(const Block& block, int64_t n, const Patch& patch) const {
    const bool left = patch.column >= 0 && patch.column < g.horizontal.size;
    const bool right = patch.column + 1 < g.horizontal.size;
    FourOf<float>* scratch = row_scratch(block, patch.row);
    for (int r = block.rank() / Block::kWarp; r < kRatio; r += block.size() / Block::kWarp) {
      const int y = patch.y() + r, x = patch.x();
      const bool is_inside = y >= 0 && y < g.vertical.resized;
      const bool exists[2] = {is_inside && left, is_inside && right};
      FourOf<float> log_sum, factor;
      FourOf<int> label;
      read_labels(g.labels, n, y, x, exists, label.at);
      const float* own_log_sums =
          log_sums + g.pixel(n, 0, 0) + (y * static_cast<int>(g.horizontal.resized) + x);
      const int step = static_cast<int>(grad_strides.column);
      const float* own_grads =
          grad + n * grad_strides.batch + (y * static_cast<int>(grad_strides.row) + x * step);
      VSS_UNROLL
      for (int c = 0; c < kRatio; ++c) {
        log_sum.at[c] = exists[c / 2] ? own_log_sums[c] : 0.0f;
        if (label.at[c] == Labels::kIgnored) log_sum.at[c] = std::numeric_limits<float>::infinity();
        if (label.at[c] == Labels::kInvalid)
          log_sum.at[c] = std::numeric_limits<float>::quiet_NaN();
        if constexpr (!kUniform) {
          factor.at[c] = 0.0f;
          if (label.at[c] == Labels::kIgnored) continue;
          factor.at[c] = *scale * own_grads[c * step];
          if (label.at[c] >= 0) factor.at[c] *= g.weight(label.at[c]);
        }
      }
      scratch[r * Block::kWarp] = log_sum;
      reinterpret_cast<FourOf<int>*>(scratch)[(kRatio + r) * Block::kWarp] = label;
      if constexpr (!kUniform) scratch[(2 * kRatio + r) * Block::kWarp] = factor;
    }
  }

  VSS_DEVICE PatchGradients load_pixels(const Block& block, int row) const {
    const FourOf<float>* scratch = row_scratch(block, row);
    PatchGradients pixels;
    VSS_UNROLL
    for (int r = 0; r < kRatio; ++r) {
      pixels.log_sum[r] = scratch[r * Block::kWarp];
      pixels.label[r] = reinterpret_cast<const FourOf<int>*>(scratch)[(kRatio + r) * Block::kWarp];
      if constexpr (!kUniform) pixels.factor[r] = scratch[(2 * kRatio + r) * Block::kWarp];
    }
    return pixels;
  }

  // The sums over a patch for class `k`, of which the exponents are given. `second` are the weights
  // of the lower row for each row of labels.
  VSS_DEVICE static Corners sum_patch(const PatchExponents& z, const float (&second)[kRatio],
                                      const PatchGradients& pixels, int k) {
    float both_left = 0.0f, both_right = 0.0f, lower_left = 0.0f, lower_right = 0.0f;
    VSS_UNROLL
    for (int c = 0; c < kRatio; ++c) {
      float both = 0.0f, lower = 0.0f;
      VSS_UNROLL
      for (int r = 0; r < kRatio; ++r) {
        float dz = power_of_two(z.at(r, c) - pixels.log_sum[r].at[c]);
        if constexpr (!kUniform) dz *= pixels.factor[r].at[c];
        if (pixels.label[r].at[c] == k) dz -= kUniform ? 1.0f : pixels.factor[r].at[c];
        both = r == 0 ? dz : both + dz;
        lower = r == 0 ? second[r] * dz : lower + second[r] * dz;
      }
      both_left = c == 0 ? both : both_left + both;
      both_right = c == 0 ? second_weight(c) * both : both_right + second_weight(c) * both;
      lower_left = c == 0 ? lower : lower_left + lower;
      lower_right = c == 0 ? second_weight(c) * lower : lower_right + second_weight(c) * lower;
    }
    both_left -= both_right;
    lower_left -= lower_right;
    return {both_left - lower_left, both_right - lower_right, lower_left, lower_right};
  }

  // Writes the gradients of a band of one column, from row `begin` on, for the classes from
  // `first_class` on.
  VSS_DEVICE void walk_down(const Block& block, int64_t n, int first_class, int begin,
                            int column) const {
    const int end = begin + band < rows() ? begin + band : rows();
    const int stride = static_cast<int>(g.strides.channel), plane = rows() * columns();
    const int row_stride = static_cast<int>(g.strides.row);
    // The last classes are a whole group too, of which others write the first.
    const bool is_there = first_class < g.classes;
    const int written_before = first_class + kClasses - g.classes;
    if (written_before > 0) first_class = g.classes - kClasses;
    const T* map = logits + n * g.strides.batch + first_class * g.strides.channel +
                   clamped(column, columns()) * g.strides.column;
    T* result = grad_logits + (n * g.classes + first_class) * plane + column;
    const bool is_before = column < 0, is_last = column == columns() - 1;
    const int lane = block.rank() % Block::kWarp;
    const bool writes = lane > 0 && lane < Block::kWarp - 1 && column < columns();
    float factor = kUniform ? *scale * *grad : 1.0f;
    if (*scale > std::numeric_limits<float>::max()) factor = 0.0f;  // the mean of no pixels
    float kept_left[kClasses] = {}, kept_right[kClasses] = {};
    for (int row = begin - 2; row < end; ++row) {
      if (row + 1 < end) read_pixels(block, n, {row + 1, column});
      if (is_there && row > begin - 2) {
        const PatchGradients pixels = load_pixels(block, row);
        const T* upper = map + row_stride * clamped(row, rows());
        const T* lower = map + row_stride * clamped(row + 1, rows());
        T* written = result + columns() * row;
        // Outside, both rows are the same, and it gets everything.
        float second[kRatio];
        VSS_UNROLL
        for (int r = 0; r < kRatio; ++r)
          second[r] = row < 0 ? 1.0f : row == rows() - 1 ? 0.0f : second_weight(r);
        VSS_UNROLL
        for (int first = 0; first < kClasses; first += kClassesAtOnce) {
          float left[kClassesAtOnce][2], right[2 * kClassesAtOnce];
          VSS_UNROLL
          for (int i = 0; i < kClassesAtOnce; ++i, upper += stride, lower += stride) {
            right[2 * i] = left[i][0] = exponent_of(*upper);
            right[2 * i + 1] = left[i][1] = exponent_of(*lower);
          }
          block.template shift<1>(right);
          float complete[kClassesAtOnce], to_the_right[kClassesAtOnce];
          VSS_UNROLL
          for (int i = 0; i < kClassesAtOnce; ++i) {
            const int k = first + i;
            const PatchExponents z({left[i][0], right[2 * i], left[i][1], right[2 * i + 1]});
            const Corners sums = sum_patch(z, second, pixels, first_class + k);
            complete[i] = kept_left[k] + sums.upper_left;
            to_the_right[i] = kept_right[k] + sums.upper_right;
            kept_left[k] = sums.lower_left;
            kept_right[k] = sums.lower_right;
            // Outside, both columns are the same.
            if (is_before) to_the_right[i] += complete[i];
            if (is_last) complete[i] += to_the_right[i];
          }
          block.template shift<-1>(to_the_right);
          VSS_UNROLL
          for (int i = 0; i < kClassesAtOnce; ++i, written += plane) {
            const int k = first + i;
            if (row >= begin && writes && k >= written_before)
              *written = static_cast<T>((complete[i] + to_the_right[i]) * factor);
          }
        }
      }
      block.sync();
    }
  }
};

#endif

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
