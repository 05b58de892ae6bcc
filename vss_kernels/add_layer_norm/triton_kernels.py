"""add_layer_norm in Triton: a program normalises several rows at once.

Rows are contiguous, C channels each. In the backward pass a program goes over many tiles of rows
and keeps the sums for the gradients of scale and shift, so that nothing is added up with atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vss_kernels._runtime.triton_tiles import offsets


@triton.jit(do_not_specialize=["rows", "sample_rows"])
def add_layer_norm_kernel(
    p_x,
    p_branch,
    p_factor,
    p_weight,
    p_bias,
    p_sum,
    p_out,
    p_statistics,
    rows,
    C,
    sample_rows,
    eps,
    HAS_BRANCH: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds and normalises BLOCK_R rows; also stores their means and 1 / standard deviations."""
    o_r = offsets(tl.program_id(0), BLOCK_R)
    o_c = tl.arange(0, BLOCK_C)
    in_rows, in_channels = o_r < rows, o_c < C
    inside = in_rows[:, None] & in_channels[None, :]
    at = o_r[:, None] * C + o_c[None, :]
    total = tl.load(p_x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        branch = tl.load(p_branch + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_FACTOR:
            factor = tl.load(p_factor + o_r // sample_rows, mask=in_rows, other=0.0)
            branch = branch * factor.to(tl.float32)[:, None]
        rounded = (total + branch).to(p_sum.dtype.element_ty)
        tl.store(p_sum + at, rounded, mask=inside)
        total = rounded.to(tl.float32)
    mean = tl.sum(total, axis=1) / C
    centred = tl.where(inside, total - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / C + eps)
    weight = tl.load(p_weight + o_c, mask=in_channels, other=0.0).to(tl.float32)
    bias = tl.load(p_bias + o_c, mask=in_channels, other=0.0).to(tl.float32)
    out = centred * inverse[:, None] * weight[None, :] + bias[None, :]
    tl.store(p_out + at, out.to(p_out.dtype.element_ty), mask=inside)
    tl.store(p_statistics + 2 * o_r, mean, mask=in_rows)
    tl.store(p_statistics + 2 * o_r + 1, inverse, mask=in_rows)


@triton.jit(do_not_specialize=["rows", "sample_rows", "programs"])
def add_layer_norm_gradient_kernel(
    p_grad_sum,
    p_grad_out,
    p_sum,
    p_factor,
    p_weight,
    p_statistics,
    p_grad_x,
    p_grad_branch,
    p_parts,
    rows,
    C,
    sample_rows,
    programs,
    HAS_GRAD_SUM: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of x and branch, and each program's share of those of scale and shift."""
    program = tl.program_id(0)
    o_c = tl.arange(0, BLOCK_C)
    in_channels = o_c < C
    weight = tl.load(p_weight + o_c, mask=in_channels, other=0.0).to(tl.float32)
    weight_sums = tl.zeros([BLOCK_C], tl.float32)
    bias_sums = tl.zeros([BLOCK_C], tl.float32)
    for first in range(program * BLOCK_R, rows, programs * BLOCK_R):
        o_r = tl.arange(0, BLOCK_R).to(tl.int64) + first
        in_rows = o_r < rows
        inside = in_rows[:, None] & in_channels[None, :]
        at = o_r[:, None] * C + o_c[None, :]
        mean = tl.load(p_statistics + 2 * o_r, mask=in_rows, other=0.0)
        inverse = tl.load(p_statistics + 2 * o_r + 1, mask=in_rows, other=0.0)
        total = tl.load(p_sum + at, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (total - mean[:, None]) * inverse[:, None], 0.0)
        grad_out = tl.load(p_grad_out + at, mask=inside, other=0.0).to(tl.float32)
        weight_sums += tl.sum(grad_out * normed, axis=0)
        bias_sums += tl.sum(grad_out, axis=0)
        scaled = grad_out * weight[None, :]
        along = tl.sum(scaled * normed, axis=1) / C
        grad = (scaled - tl.sum(scaled, axis=1)[:, None] / C - normed * along[:, None]) * (
            inverse[:, None]
        )
        if HAS_GRAD_SUM:
            grad += tl.load(p_grad_sum + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(p_grad_x + at, grad.to(p_grad_x.dtype.element_ty), mask=inside)
        if HAS_BRANCH:
            if HAS_FACTOR:
                factor = tl.load(p_factor + o_r // sample_rows, mask=in_rows, other=0.0)
                grad = grad * factor.to(tl.float32)[:, None]
            tl.store(p_grad_branch + at, grad.to(p_grad_branch.dtype.element_ty), mask=inside)
    p_part = p_parts + program.to(tl.int64) * 2 * C
    tl.store(p_part + o_c, weight_sums, mask=in_channels)
    tl.store(p_part + C + o_c, bias_sums, mask=in_channels)
