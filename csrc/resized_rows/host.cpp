// resized_rows on a CPU, for inference: checks and the launch of the kernel in kernel.h.
#include "../machine/machine.h"

#include "kernel.h"

namespace vss::inline VSS_MACHINE::resized_rows {
namespace {

at::Tensor resize(const at::Tensor& rows_any, int64_t height, int64_t width) {
  constexpr const char* op = "resized_rows_cpu";
  check_dims(op, "rows", rows_any, 4);
  TORCH_CHECK_VALUE(rows_any.size(1) > 0 && rows_any.size(2) > 0 && height > 0 && width > 0, op,
                    ": there must be at least one row and one column, got ", rows_any.sizes(),
                    " to be resized to ", height, " x ", width);
  const at::Tensor rows = rows_any.contiguous();
  const Geometry g = {rows.size(0), rows.size(3), Resize(rows.size(1), height),
                      Resize(rows.size(2), width)};
  const at::Tensor out = at::empty({g.batch, height, g.classes, width}, rows.options());
  if (out.numel() == 0) return out;
  std::vector<float> columns(g.groups() * SourceColumns::kStored);
  for (int64_t group = 0; group < g.groups(); ++group)
    SourceColumns(g.horizontal, group * kLanes, width, 1)
        .save(columns.data() + group * SourceColumns::kStored);
  VSS_DISPATCH_FLOATING(rows.scalar_type(), op, [&] {
    run_blocks({.op = op, .blocks = g.blocks(), .scratch_floats = g.scratch()},
               ResizeRow<scalar_t>{g, rows.const_data_ptr<scalar_t>(), columns.data(),
                                   out.mutable_data_ptr<scalar_t>()});
  });
  return out;
}

}  // namespace

void implement(torch::Library& m) { m.impl("resized_rows_cpu", TORCH_FN(resize)); }

}  // namespace vss::inline VSS_MACHINE::resized_rows
