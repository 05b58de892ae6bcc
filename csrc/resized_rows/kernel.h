// Logits of pixels, resized bilinearly and turned into rows of adjacent columns on a CPU, in
// inference.
//
// A linear layer leaves a pixel's classes side by side; what makes labels of logits reads columns
// side by side. A block owns one row of the result: it resizes the two source rows that it is made
// of vertically, classes in the lanes, turns the row into columns in the lanes, and resizes it
// horizontally. The result lies row by row, each with all its classes, so that whoever goes over
// the classes of a pixel stays within a few pages of memory.
#pragma once

#include "../machine/machine.h"
#include "../math/small_matrix.h"
#include "../math/upsampled_rows.h"

namespace vss::inline VSS_MACHINE::resized_rows {

struct Geometry {
  int64_t batch, classes;
  Resize vertical, horizontal;

  int64_t blocks() const { return batch * vertical.resized; }
  int64_t wide_classes() const { return whole_lanes(classes); }
  int64_t wide_columns() const { return whole_lanes(horizontal.size); }
  int64_t groups() const { return cdiv<int64_t>(horizontal.resized, kLanes); }
  int64_t scratch() const { return 2 * wide_classes() * wide_columns(); }
};

template <typename T>
struct ResizeRow {
  Geometry g;
  const T* rows;         // (batch, height, width, classes)
  const float* columns;  // what each group of columns reads: (groups, SourceColumns::kStored)
  T* out;                // (batch, resized height, classes, resized width)

  void operator()(const Block& block, int64_t index) const {
    const int64_t width = g.horizontal.size, resized = g.horizontal.resized;
    const int64_t wide_classes = g.wide_classes(), wide_columns = g.wide_columns();
    float* pixels = block.scratch();                       // (wide_columns, wide_classes)
    float* planes = pixels + wide_columns * wide_classes;  // (wide_classes, wide_columns)
    const Tap tap = g.vertical.tap(index % g.vertical.resized);
    const T* map = rows + index / g.vertical.resized * g.vertical.size * width * g.classes;
    const T *above = map + tap.first * width * g.classes,
            *below = map + tap.second * width * g.classes;
    for (int64_t x = 0; x < width; ++x)
      for (int64_t k = 0; k < g.classes; k += kLanes) {
        const int64_t at = x * g.classes + k;
        const int count = static_cast<int>(std::min<int64_t>(kLanes, g.classes - k));
        store(pixels + x * wide_classes + k,
              (1.0f - tap.weight) * load(above + at, count) + tap.weight * load(below + at, count));
      }
    for (int64_t x = 0; x < wide_columns; x += kLanes)
      for (int64_t k = 0; k < wide_classes; k += kLanes)
        transpose(pixels + x * wide_classes + k, wide_classes, planes + k * wide_columns + x,
                  wide_columns);
    T* to = out + index * g.classes * resized;
    for (int64_t group = 0; group < g.groups(); ++group) {
      const WindowedColumns read(SourceColumns(columns + group * SourceColumns::kStored), width);
      const int count = static_cast<int>(std::min<int64_t>(kLanes, resized - group * kLanes));
      for (int64_t k = 0; k < g.classes; ++k)
        store(to + k * resized + group * kLanes, read.read(planes + k * wide_columns), count);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::resized_rows
