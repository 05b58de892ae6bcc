"""patch: fused operators inside other people's models, found by structure and swapped in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vss_kernels.patch.affinity import AFFINITY
from vss_kernels.patch.fusion_heads import FUSION_HEADS
from vss_kernels.patch.inner_fusion import INNER_FUSION
from vss_kernels.patch.kinds import kinds_of, reason_against, swap_in, swap_out
from vss_kernels.patch.losses import LOSSES
from vss_kernels.patch.window_attention import WINDOW_ATTENTION

__all__ = ["PatchError", "PatchReport", "PatchedPart", "patch", "unpatch"]

_KINDS = (AFFINITY, WINDOW_ATTENTION, *FUSION_HEADS, INNER_FUSION, *LOSSES)
OPERATORS = tuple(dict.fromkeys(kind.operator for kind in _KINDS))
"""The names that ``patch`` takes."""


class PatchError(ValueError):
    """Under ``strict``, something was not replaced; the message says what and why.

    Example:
        >>> try:
        ...     vss_kernels.patch(torch.nn.Linear(2, 2))
        ... except vss_kernels.PatchError as error:
        ...     print(error)
        vss_kernels.patch: found nothing to replace
        The model was left as it is; strict=False replaces what can be.
    """


@dataclass(frozen=True)
class PatchedPart:
    """A part of a model that operators can compute, or all but can.

    Attributes:
        path: Its name in the model, empty for the model itself.
        operator: Public name of the operator.
        what: What it is.
        reason: Why it was not replaced; ``None`` if it was.

    Example:
        >>> print(vss_kernels.PatchedPart("head", "fuse_pyramid", "fusion head", "it has hooks"))
        not replaced  head: fusion head [fuse_pyramid]: it has hooks
    """

    path: str
    operator: str
    what: str
    reason: str | None = None

    def __str__(self) -> str:
        line = f"{self.path or '(the model)'}: {self.what} [{self.operator}]"
        return (
            f"replaced      {line}"
            if self.reason is None
            else f"not replaced  {line}: {self.reason}"
        )


@dataclass(frozen=True)
class PatchReport:
    """What ``patch`` did.

    Attributes:
        replaced: Parts that operators compute now.
        refused: Parts that look like one, but are not replaced, each with its reason.

    Example:
        >>> report = vss_kernels.patch(torch.nn.Linear(2, 2), strict=False)
        vss_kernels.patch: found nothing to replace
        >>> report.replaced, report.refused
        ((), ())
    """

    replaced: tuple[PatchedPart, ...]
    refused: tuple[PatchedPart, ...]

    def __str__(self) -> str:
        parts = [*self.replaced, *self.refused]
        if not parts:
            return "vss_kernels.patch: found nothing to replace"
        return "\n  ".join(
            [
                f"vss_kernels.patch: replaced {len(self.replaced)} of {len(parts)} parts",
                *map(str, parts),
            ]
        )


def patch(
    model: nn.Module,
    operators: Iterable[str] | None = None,
    strict: bool = True,
    verbose: bool = True,
) -> PatchReport:
    """Lets operators compute the parts of a model that they know, in place.

    Parts are found by structure (names of submodules, shapes of parameters, signature), never by
    importing a library; before it is replaced, a part with a computation of its own is tried
    against its replacement on random input. A replaced part keeps its identity, parameters, state
    keys and hooks, takes the same arguments, and gives the same answers and gradients up to
    rounding. What the operators cannot take (unequal grids, masks of one's own, a traced loss) the
    original goes on computing, call by call. Copies and pickles of a patched model are patched.
    Where dropout follows a replaced part, one seed may drop other elements than before.

    Known are the affinity module of MRCFA and the window attention of CFFM in the released layout;
    the all-MLP fusion in the heads of both, and fusion heads as in transformers,
    segmentation_models_pytorch and mmsegmentation; and bilinear upsampling of logits before a
    cross-entropy or argmax, in the same three. There the upsampled logits of a model are a tensor
    that is computed only when something other than the loss or an argmax needs it.

    Args:
        model: The model; patch it before ``torch.compile``.
        operators: Public names of operators to use: ``"aggregate_affinity"`` (with select_tokens
            and masked_affinity), ``"focal_attention"``, ``"fuse_pyramid"``,
            ``"upsample_cross_entropy"`` (with upsample_argmax); None means all.
        strict: Whether it is an error if a known part cannot be replaced, if a named operator finds
            none, or if nothing is replaced. The model then stays as it is.
        verbose: Whether to print the report.

    Returns:
        What was replaced, and what not for which reason.

    Raises:
        PatchError: See ``strict``.
        ValueError: An operator name is unknown.

    Example:
        >>> head = torch.nn.Sequential(
        ...     torch.nn.Conv2d(8, 5, 1), torch.nn.Upsample(scale_factor=4, mode="bilinear")
        ... )
        >>> report = vss_kernels.patch(head)
        vss_kernels.patch: replaced 1 of 1 parts
          replaced      (the model): upsampling at the end of a head [upsample_cross_entropy]
        >>> logits = head(torch.randn(1, 8, 16, 16))  # not computed at 64 x 64 yet
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.randint(5, (1, 64, 64)))
        >>> vss_kernels.unpatch(head)
        1
    """
    wanted = OPERATORS if operators is None else tuple(operators)
    for name in wanted:
        if name not in OPERATORS:
            raise ValueError(
                f"patch: unknown operator {name!r}; choose from {', '.join(OPERATORS)}"
            )
    parts, swaps = [], []
    for path, module in model.named_modules():
        present = kinds_of(module)
        for kind in _KINDS:
            if kind.operator not in wanted or not (kind.name in present or kind.looks_like(module)):
                continue
            reason = None
            if kind.name not in present:
                reason = reason_against(module, kind)
                if reason is None:
                    swaps.append((module, kind))
            parts.append(PatchedPart(path, kind.operator, kind.what, reason))
    report = PatchReport(
        tuple(part for part in parts if part.reason is None),
        tuple(part for part in parts if part.reason is not None),
    )
    if strict:
        _demand(report, wanted if operators is not None else ())
    for module, kind in swaps:
        swap_in(module, kind)
    if verbose:
        print(report)
    return report


def _demand(report: PatchReport, named: Iterable[str]) -> None:
    found = {part.operator for part in report.replaced}
    missing = [name for name in named if name not in found]
    if report.refused or missing or not report.replaced:
        problem = f"; found nothing for {', '.join(missing)}" if missing else ""
        raise PatchError(
            f"{report}{problem}\nThe model was left as it is; strict=False replaces what can be."
        )


def unpatch(model: nn.Module) -> int:
    """Undoes :func:`patch`: every part computes again what its own class computes.

    Args:
        model: The model.

    Returns:
        How many modules were given their own class again.

    Example:
        >>> vss_kernels.unpatch(torch.nn.Linear(2, 2))
        0
    """
    patched = [module for module in model.modules() if kinds_of(module)]
    for module in patched:
        swap_out(module)
    return len(patched)
