"""focal_attention and CFFM's blocks at the sizes of a CFFM-B1 head: eight heads of 32 channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InductorError
from torch.func import functional_call
from torch.nn.attention.flex_attention import flex_attention

import vss_kernels
from benchmarks.harness import DEVICE, DRY_RUN, MODES, ON_GPU, compiled_for_gpu
from benchmarks.precisions import PRECISIONS, named, products_in
from tests.support.precision import SLACK, error, outputs_and_gradients
from vss_kernels import FocalGeometry
from vss_kernels.focal_attention import attend_tokens
from vss_kernels.focal_attention.geometry import PADDING, PADDING_LOGIT, key_table
from vss_kernels.focal_attention.tables import num_tokens
from vss_kernels.nn import FocalBlock

HEADS, HEAD_DIM = (1, 16) if DRY_RUN else (8, 32)
REFERENCES = 3
# name: (clips, rows and columns of windows): the 1/8 map, padded to whole windows
CASES = {"480x480 B1": (1, (9, 9)), "480x480 B2": (2, (9, 9)), "480x864 B1": (1, (9, 16))}
if DRY_RUN:
    CASES = dict.fromkeys(CASES, (1, (1, 2)))
FUSED = ["eager graph", "triton", "triton graph"] if ON_GPU else ["native"]
FLEX = "compiled flex_attention"
FLEXES = [FLEX, f"{FLEX} graph"] if ON_GPU else [FLEX]
CHOSEN = ["eager", "fused"]
CHOSEN += [f"{name} graph" for name in CHOSEN] if ON_GPU else []


def make_inputs(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    clips, grid = CASES[case]
    geometry = FocalGeometry()
    side = geometry.window
    inputs = (
        torch.randn(clips, grid[0] * side, grid[1] * side, HEADS, HEAD_DIM),
        torch.randn(clips, num_tokens(geometry, grid), 2, HEADS, HEAD_DIM),
        torch.randn(HEADS, side**2, geometry.num_keys),
    )
    return tuple(tensor.to(DEVICE, dtype) for tensor in inputs)  # type: ignore[return-value]


def attend(query: Tensor, key_value: Tensor, bias: Tensor) -> Tensor:
    return attend_tokens(query, key_value, bias, FocalGeometry())


def with_flex_attention(case: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns the same attention by flex_attention; a sample of its batch is a window of a clip.

    flex_attention has no gather, so each window's keys and values are copied together first: two
    tensors of (clips * windows, heads, L, D). Over the token buffer itself it could skip blocks
    of keys, but a window's keys lie scattered over nearly all blocks, and a token with two slots in
    a window, each with a bias of its own, cannot be told to it at all.
    """
    geometry = FocalGeometry()
    clips, (rows, columns) = CASES[case]
    side, windows = geometry.window, rows * columns
    table = key_table(geometry, (rows, columns)).to(DEVICE).long()  # (windows, L)
    inside = table != PADDING
    penalty = torch.where(inside, 0.0, PADDING_LOGIT)
    token = table.clamp(min=0)

    def run(query: Tensor, key_value: Tensor, bias: Tensor) -> Tensor:
        # Gathered one after the other: flex_attention refuses two views of one buffer on a CPU.
        key, value = (
            (part[:, token] * inside[..., None, None].to(part.dtype)).flatten(0, 1).transpose(1, 2)
            for part in key_value.unbind(2)
        )  # (clips*windows, heads, L, D)
        split = query.unflatten(2, (columns, side)).unflatten(1, (rows, side))
        queries = split.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)

        def with_bias(score, b, head, q, k):
            return score + bias[head, q, k] + penalty[b % windows, k]

        out = flex_attention(queries, key, value, score_mod=with_bias)
        out = out.unflatten(0, (clips, rows, columns)).unflatten(4, (side, side))
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(query.shape)

    return run


def check_flex(function, inputs: tuple[Tensor, ...], case: str, mode: str) -> None:
    """Holds flex_attention to the tests' rule; skips by name where it cannot run or misses it."""
    with vss_kernels.backend("eager"):
        exact = outputs_and_gradients(attend, [tensor.double().cpu() for tensor in inputs])
        eager = outputs_and_gradients(attend, inputs)
    call = compiled_for_gpu(function)
    try:
        with torch.set_grad_enabled(mode != "forward"):
            found = (call(*inputs),) if mode == "forward" else outputs_and_gradients(call, inputs)
    except (InductorError, NotImplementedError, RuntimeError) as problem:
        pytest.skip(f"flex_attention cannot run {mode} here: {str(problem).splitlines()[0]}")
    for have, want, plain in zip(found, exact, eager, strict=False):
        allowed = 2 * error(plain, want) + SLACK[have.dtype]
        if error(have, want) > allowed:
            pytest.skip(f"flex_attention's error is {error(have, want):.1e}, above {allowed:.1e}")


@pytest.mark.parametrize("implementation", ["eager", "compiled", *FLEXES, *FUSED])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def bench_focal_attention(case, precision, mode, implementation, measure):
    if not ON_GPU and implementation == "compiled" and mode != "forward":
        pytest.skip("PyTorch 2.11's compiled backward pass corrupts memory on two CPU threads")
    with products_in(precision) as dtype:
        inputs = make_inputs(case, dtype)
        is_flex = implementation.startswith(FLEX)
        if is_flex:
            function = with_flex_attention(case)
            check_flex(function, inputs, case, mode)
        else:
            function = attend
        measure(
            function,
            inputs,
            operator="focal_attention",
            case=named(case, precision),
            mode=mode,
            implementation=implementation,
            check=not is_flex,
            flops=4 * inputs[0].numel() * inputs[2].shape[-1],
        )


@pytest.mark.parametrize("implementation", CHOSEN)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", ["480x480 B2"])
def bench_two_focal_blocks(case, precision, mode, implementation, measure):
    """Two whole blocks as in CFFM-B1's head, with gradients of all weights."""
    clips, side, channels = 2, 7 if DRY_RUN else 60, HEADS * HEAD_DIM
    with products_in(precision) as dtype:
        torch.manual_seed(0)
        blocks = torch.nn.ModuleList([FocalBlock(channels, HEADS) for _ in range(2)])
        blocks.to(DEVICE, dtype)
        names, weights = zip(*blocks.named_parameters(), strict=True)
        frames = torch.randn(clips, REFERENCES + 1, side, side, channels).to(DEVICE, dtype)

        def run(frames: Tensor, *weights: Tensor) -> Tensor:
            named_weights = dict(zip(names, weights, strict=True))
            target, references = frames[:, -1], frames[:, :-1]
            for number, block in enumerate(blocks):
                prefix = f"{number}."
                own = {
                    name.removeprefix(prefix): weight
                    for name, weight in named_weights.items()
                    if name.startswith(prefix)
                }
                target = functional_call(block, own, (target, references))
            return target

        inputs = (frames, *(weight.detach() for weight in weights))
        check_blocks(run, inputs)
        measure(
            run,
            inputs,
            operator="focal_attention+focal_pool",
            case=named(f"two blocks {case}", precision),
            mode=mode,
            implementation=implementation,
            check=False,
        )


def check_blocks(run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Asserts that the chosen operators' result is as near to float64 as eager's."""
    with torch.no_grad(), vss_kernels.backend("eager"):
        plain = run(*inputs)
        exact = run(*(tensor.double() for tensor in inputs)).cpu()
    with torch.no_grad():
        found = run(*inputs)
    assert error(found, exact) <= 2 * error(plain, exact) + SLACK[found.dtype]
