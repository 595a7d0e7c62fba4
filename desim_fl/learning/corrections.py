"""Local rules: what a method adds to the gradient of each local step, beside the client's own loss.

**Proximal term** (FedProx: Li et al., MLSys 2020; FedAsync's rho: Xie et al., 2019): the client minimises
``f_i(y) + mu / 2 * ||y - x||^2``, x being the parameters that the job started from, so that ``mu (y - x)`` is added.

**Control variates** (SCAFFOLD): ``c - c_i`` is added; see :mod:`desim_fl.learning.controls`.

**Balanced gradients** (ASO-Fed): earlier gradients take part, after the others; see :mod:`desim_fl.learning.gradients`.

A correction is made from gradients that are there, however they were computed, so recorded, plain and batched steps
serve all rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from desim_fl.learning import gradients as earlier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from desim_fl.core import Job
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


class Balance:
    """Balanced gradients of one job: what they are after each step is in ``pasts``, parameter by parameter."""

    def __init__(self, state: ModuleState, beta: float, job: Job, inner: Correction | None) -> None:
        self.beta, self.inner = beta, inner
        past = earlier.remembered(job)
        self.pasts: list[earlier.Past | None] = [None] * len(state.parameters)
        if past is not None:
            parts = zip(*(state.split(each).values() for each in past), strict=True)
            self.pasts = [earlier.Past(*part) for part in parts]

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return balanced gradients, and remember these."""
        found = list(gradients if self.inner is None else self.inner(gradients, parameters))
        for place, gradient in enumerate(found):
            if gradient is not None:
                found[place], self.pasts[place] = earlier.balanced(self.pasts[place], gradient, self.beta)
        return found

    def told(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Flat, as a client keeps it; a parameter without gradients has zeros."""
        pasts = [
            earlier.Past(torch.zeros_like(value), torch.zeros_like(value)) if past is None else past
            for past, value in zip(self.pasts, parameters, strict=True)
        ]
        flat = (torch.cat([part.detach().reshape(-1) for part in parts]) for parts in zip(*pasts, strict=True))
        return earlier.Past(*flat).told()
