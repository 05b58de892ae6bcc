"""masked_affinity: how much each kept reference token matters to each target token."""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.checks import check_index, check_tokens
from vss_kernels.masked_affinity.op import operator

__all__ = ["masked_affinity"]


def masked_affinity(target: Tensor, reference: Tensor, index: Tensor) -> Tensor:
    """Affinity (plain dot product) of the kept reference tokens with every target token.

    Each kept token's row over the target grid is one map, stored as the refinement reads it.
    The scores are raw: no scaling, no softmax (MRCFA, Sun et al., ECCV 2022).

    Args:
        target: Target tokens of shape (B, Q, C), float32, float16, bfloat16 or
            float64, any strides.
        reference: Reference tokens of shape (B, R, N, C), same dtype as ``target``.
        index: int64 positions of the kept tokens, shape (B, R, S), each in [0, N), in any order.

    Returns:
        Tensor of shape (B, R, S, Q), contiguous, dtype of ``target``, accumulated in float32
        (float64 for float64).

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, the devices differ, or ``index`` leaves [0, N) (checked
            on the CPU, and on a GPU under ``VSS_KERNELS_DEBUG=1``).

    Example:
        >>> target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # (B, Q, C)
        >>> reference = torch.tensor([[[[0.0, 9.0], [3.0, 0.0], [1.0, 2.0]]]])  # (B, R, N, C)
        >>> vss_kernels.masked_affinity(target, reference, torch.tensor([[[0, 2]]]))
        tensor([[[[0., 9.],
                  [1., 2.]]]])
    """
    name = "masked_affinity"
    target, reference = check_tokens(name, target, reference)
    check_index(name, index, reference)
    return operator(target, reference, index)
