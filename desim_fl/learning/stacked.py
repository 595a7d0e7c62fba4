"""Parameters and buffers of several jobs as one set of tensors with a first dimension more: one row a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from desim_fl.learning.corrections import Correction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from desim_fl.learning.ragged import Course
    from desim_fl.learning.vectors import Buffers, ModuleState


class Member(NamedTuple):
    """A job as it is trained beside others: what it starts from (never changed), and what it trains on.

    ``shift`` is what a control variate adds to each gradient, as a flat vector; either all jobs of a stack have one or none.
    """

    params: Tensor
    buffers: Mapping[str, Tensor]
    course: Course
    shift: Tensor | None = None


class Stack:
    """The state of some jobs while they train; it shares no memory with them.

    ``parameters`` are the trainable ones that get gradients, ``states`` everything else that a forward pass reads or
    changes: unused and frozen parameters, buffers, and the module's own scratch buffers at their initial values.
    Raises ``RuntimeError`` where the jobs' buffers differ in shape.
    """

    def __init__(self, state: ModuleState, unused: frozenset[str], members: Sequence[Member]) -> None:
        self._state, self._members = state, members
        parts = [state.split(member.params) for member in members]
        whole = {name: torch.stack([part[name] for part in parts]) for name in state.names}
        self._whole = whole
        self.parameters = {name: value for name, value in whole.items() if name not in unused}
        self.states = {name: value for name, value in whole.items() if name in unused}
        self._kept = [site.name for site in state.sites] + list(state.frozen)
        for name in self._kept:
            self.states[name] = torch.stack([member.buffers[name] for member in members])
        for site, initial in state.scratch:
            self.states[site.name] = torch.stack([initial] * len(members))

    def correction(self, mu: float) -> Correction | None:
        """What local rules add to the gradients of ``parameters``; to be asked before the first step."""
        shifts = [self._state.split(member.shift) for member in self._members if member.shift is not None]
        if not mu and not shifts:
            return None
        anchors = [value.clone() for value in self.parameters.values()] if mu else None
        added = [torch.stack([shift[name] for shift in shifts]) for name in self.parameters] if shifts else None
        return Correction(mu, anchors, added)

    def held(self, rows: slice | Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return rows of parameters and of states: views where they are a slice, else copies."""
        return [value[rows] for value in self.parameters.values()], [value[rows] for value in self.states.values()]

    @torch.no_grad()
    def keep(self, rows: slice | Tensor, states: Sequence[Tensor]) -> None:
        """Write back what became of states; ``RuntimeError`` if an entry changed its shape or type."""
        changed: list[tuple[Tensor, Tensor]] = []
        for (name, value), new in zip(self.states.items(), states, strict=True):
            if new.shape[1:] != value.shape[1:] or new.dtype != value.dtype:
                raise RuntimeError(f"the buffer {name} changes its shape or type in training")
            if new.data_ptr() != value.data_ptr():  # else it was changed in place
                changed.append((value, new.clone()))  # a model may bind one buffer to what another one was
        for value, new in changed:
            value[rows] = new

    def suspect(self) -> list[bool]:
        """Tell of each job whether it may hold something that is not finite: a sum that is finite says it does not."""
        values = [*self._whole.values(), *(self.states[name] for name in self._kept)]
        sums = [
            value.flatten(1).sum(1) if value.ndim > 1 else value for value in values if value.dtype.is_floating_point
        ]
        return (~torch.isfinite(torch.stack([each.float() for each in sums])).all(0)).tolist()

    def taken(self, row: int) -> tuple[Tensor, Buffers]:
        """Return one job's parameters as a flat vector, and its buffers; copies."""
        vector = torch.cat([value[row].reshape(-1) for value in self._whole.values()])
        return vector, {name: self.states[name][row].clone() for name in self._kept}
