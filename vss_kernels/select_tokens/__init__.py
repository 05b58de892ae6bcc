"""select_tokens: which reference tokens matter to the target.

MRCFA (Sun et al., ECCV 2022) calls the choice Selective Token Masking.
"""

from __future__ import annotations

from torch import Tensor

from vss_kernels._runtime.checks import check_integer, check_tokens, note_range
from vss_kernels.select_tokens.op import operator

__all__ = ["select_tokens"]


def select_tokens(target: Tensor, reference: Tensor, num_selected: int, top: int = 5) -> Tensor:
    """Chooses the tokens of each reference frame that the target is most similar to.

    A reference token's score is the sum of its ``top`` largest affinities (plain dot products)
    over the target tokens; the ``num_selected`` best tokens of each frame are kept. Of equal scores
    the token with the lower position wins. A score that is NaN ranks lowest. The choice has no
    gradient. This is the Selective Token Masking of MRCFA (Sun et al., ECCV 2022).

    Args:
        target: Target tokens of shape (B, Q, C), float32, float16, bfloat16 or
            float64, any strides.
        reference: Reference tokens of shape (B, R, N, C), same dtype as ``target``.
        num_selected: Number of tokens S to keep in each frame, 1 to N.
        top: Number of affinities summed into a score, 1 to Q.

    Returns:
        int64 tensor of shape (B, R, S): the positions of the kept tokens, ascending, contiguous.
        Affinities are computed and summed in float32 (float64 for float64).

    Raises:
        TypeError: An argument is no tensor, or the dtypes are unsupported or differ.
        ValueError: A shape does not fit, ``num_selected`` or ``top`` is out of range, or the
            devices differ.

    Example:
        >>> target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])  # two target tokens that look alike
        >>> reference = torch.tensor([[[[0.0, 9.0], [3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]]])
        >>> vss_kernels.select_tokens(target, reference, num_selected=2, top=1)
        tensor([[[1, 3]]])
    """
    name = "select_tokens"
    target, reference = check_tokens(name, target, reference)
    tokens, positions = reference.shape[2], target.shape[1]
    check_integer(name, "num_selected", num_selected)
    check_integer(name, "top", top)
    if not 1 <= num_selected <= tokens:
        raise ValueError(
            f"{name}: num_selected must be between 1 and the {tokens} tokens of a reference "
            f"frame, got {num_selected}"
        )
    if not 1 <= top <= positions:
        raise ValueError(
            f"{name}: top must be between 1 and the {positions} target tokens, got {top}; "
            "lower top for so small a target"
        )
    index = operator(target, reference, num_selected, top)
    note_range(index, 0, tokens)  # what is chosen is used next
    return index
