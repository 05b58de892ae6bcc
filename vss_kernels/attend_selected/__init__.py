"""attend_selected: softmax over the kept reference tokens, applied to their values."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.autocast import cast_inputs
from vss_kernels._runtime.checks import check_index, check_same_kind, check_shape, check_tensor
from vss_kernels.attend_selected.op import operator

__all__ = ["attend_selected"]


def attend_selected(affinity: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """Retrieves values of the kept reference tokens for every target token, per reference.

    For each reference frame the affinities are normalised by a softmax over its S kept tokens, and
    weigh the values of those tokens (MRCFA, Sun et al., ECCV 2022).

    Args:
        affinity: Refined affinities of shape (B, R, S, Q), float32, float16, bfloat16 or float64,
            any strides.
        value: Values of all reference tokens, shape (B, R, N, E), same dtype as ``affinity``.
        index: int64 positions of the kept tokens, shape (B, R, S), each in [0, N), in any order.

    Returns:
        Tensor of shape (B, R, Q, E), contiguous, dtype of ``value``. The softmax and the sums are
        computed in float32 (float64 for float64).

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, the devices differ, or ``index`` leaves [0, N) (checked
            on the CPU, and on a GPU under ``VSS_KERNELS_DEBUG=1``).

    Example:
        >>> affinity = torch.zeros(1, 1, 2, 3)  # two kept tokens matter alike to three positions
        >>> value = torch.tensor([[[[1.0], [5.0], [3.0]]]])
        >>> vss_kernels.attend_selected(affinity, value, torch.tensor([[[0, 2]]]))
        tensor([[[[2.],
                  [2.],
                  [2.]]]])
    """
    name = "attend_selected"
    check_tensor(name, "affinity", affinity, "B,R,S,Q")
    check_tensor(name, "value", value, "B,R,N,E")
    affinity, value = cast_inputs(affinity, value)
    check_same_kind(name, affinity=affinity, value=value)
    batch, frames, selected, _ = affinity.shape
    check_shape(name, "value", value, (batch, frames, None, None))
    check_index(name, index, value)
    check_shape(name, "index", index, (batch, frames, selected))
    return operator(affinity, value, index)
