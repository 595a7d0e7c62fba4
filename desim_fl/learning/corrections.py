"""Local rules: what a method adds to the gradient of each local step, beside the client's own loss.

**Proximal term** (FedProx: Li et al., MLSys 2020; FedAsync's rho: Xie et al., 2019): the client minimises
``f_i(y) + mu / 2 * ||y - x||^2``, x being the parameters that the job started from, so that ``mu (y - x)`` is added.

**Control variates** (SCAFFOLD): ``c - c_i`` is added; see :mod:`desim_fl.learning.controls`.

A correction is made from gradients that are there, however they were computed, so recorded, plain and batched steps
serve all rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from desim_fl.learning.vectors import ModuleState


class Correction(NamedTuple):
    """What is added, parameter by parameter: ``mu * (y - anchor)`` and ``shift`` (``None`` = not)."""

    mu: float
    anchors: Sequence[Tensor] | None
    shifts: Sequence[Tensor] | None

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return corrected gradients; where there is no gradient there is nothing to correct."""
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        changes: Any = [gradients[place] for place in places]
        if self.anchors is not None and places:
            pulls = torch._foreach_sub([parameters[at] for at in places], [self.anchors[at] for at in places])  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage]
            changes = torch._foreach_add(changes, pulls, alpha=self.mu)  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage]
        if self.shifts is not None and places:
            changes = torch._foreach_add(changes, [self.shifts[at] for at in places])  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage]
        corrected = list(gradients)
        for place, change in zip(places, changes, strict=True):
            corrected[place] = change
        return corrected

    def first(self, rows: int) -> Correction:
        """Of stacked jobs, the correction of the first ``rows`` ones."""
        cut = [None if each is None else [value[:rows] for value in each] for each in (self.anchors, self.shifts)]
        return Correction(self.mu, *cut)


def correction(state: ModuleState, mu: float, base: Tensor, shift: Tensor | None) -> Correction | None:
    """Make the correction of a job from flat vectors: where it started, and ``c - c_i``; ``None`` = there is none."""
    if not mu and shift is None:
        return None
    anchors = list(state.split(base).values()) if mu else None
    return Correction(mu, anchors, None if shift is None else list(state.split(shift).values()))
