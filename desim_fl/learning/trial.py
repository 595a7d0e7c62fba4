"""Whether and how a model can be batched: a few steps of made-up jobs, batched and one by one, must agree.

Everything happens on copies: neither the task's module nor any client's state takes part.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from desim_fl.core import Work
from desim_fl.learning import batches, corrections, local, randomness
from desim_fl.learning.batched import TOLERANCE, Batched, Ended, Traits
from desim_fl.learning.classification import ClassificationTask
from desim_fl.learning.ragged import Course
from desim_fl.learning.stacked import Member
from desim_fl.learning.steps import Steps, batch_loss
from desim_fl.learning.vectors import ModuleState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


_LR = 1e-3
_STEADY = 1e-6  # of a tensor's length: what rounding alone may move it
_BESIDE = 1e-5  # of how far all tensors moved together
_SCALES = (1.0, 1.01, 0.99)  # of version 0's parameters, so that the jobs start from different ones


# Up to here batches of jobs beat one job a process on a CPU: measured with one hidden layer of 32 to 1,024 units, see
# docs/executors.md.
GAINING_PARAMETERS = 130_000


def gains(module: nn.Module) -> bool:
    """Whether a network is of the kind that is faster in batches on a CPU: small, with parameters in dense layers only."""
    holders = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    count = sum(value.numel() for value in module.parameters())
    return bool(holders) and all(type(part) is nn.Linear for part in holders) and count <= GAINING_PARAMETERS


class Verdict(NamedTuple):
    """How to batch a model (``None`` = not at all), and why so."""

    traits: Traits | None
    why: str


def examine(task: ClassificationTask) -> Verdict:
    """Find out how the jobs of a task can be batched."""
    if task.draws_random:
        return Verdict(None, "the model draws random numbers")
    if type(task).batch_loss is not ClassificationTask.batch_loss:
        return Verdict(None, "the task has a loss of its own")
    if task.optimizer.each_epoch or task.own_start or task.patience is not None:
        return Verdict(
            None, "jobs may stop early, optimisers begin anew every epoch, or clients go on with their own models"
        )
    if task.optimizer.gradient_decay is not None:
        return Verdict(None, "clients remember gradients from job to job")
    sizes = sorted({size for part in task.parts for size in batches.plan(len(part), task.batch_size)})
    if not sizes:
        return Verdict(None, "no client has a sample")
    with randomness.pinned(task.threads), randomness.repeatable(task.device), torch.enable_grad():
        return _tried(task, _members(task, sizes[0], sizes[-1]))


def _tried(task: ClassificationTask, members: Sequence[Member]) -> Verdict:
    unused, alone = _unused(task, members[-1]), [_alone(task, member) for member in members]
    why = ""
    for padded in (True, False):
        traits = Traits(padded, unused)
        try:
            found = Batched(task, traits).trained(members)
        except Exception as error:  # noqa: BLE001  (a model may refuse vmap in any way)
            why = f"vmap cannot run the model ({_line(error)})"
            continue
        far = next(filter(None, (_apart(task.state, *each) for each in zip(members, alone, found, strict=True))), "")
        if not far:
            return Verdict(traits, "" if padded else "batches of one size at a time")
        why = f"vmap gives another result than one job at a time ({far})"
    return Verdict(None, why)


def _line(error: Exception) -> str:
    """An error in a few words."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:100]}{'...' if len(text) > 100 else ''}"  # noqa: PLR2004


def _members(task: ClassificationTask, smallest: int, largest: int) -> list[Member]:
    """Three jobs of three, two and one steps, with the largest and the smallest batches that any client has.

    A size between them takes part too: a single sample, filled up with itself, would not show that samples are mixed.
    """
    samples = max(task.parts, key=len)
    few, some, many = (np.resize(samples, size) for size in (smallest, -(-largest // 2), largest))
    initial = task.initial()
    courses = ([many, some, few], [few, many], [some])
    return [
        Member(initial.params * scale, initial.buffers, Course(course, [_LR] * len(course)))
        for scale, course in zip(_SCALES, courses, strict=True)
    ]


def _fresh(task: ClassificationTask, member: Member) -> tuple[torch.nn.Module, ModuleState]:
    """A module of one's own, in the state that a member starts from."""
    module = copy.deepcopy(task.module)
    state = ModuleState(module)
    state.load(member.params, member.buffers)
    for mine, (_, initial) in zip(state.scratch, task.state.scratch, strict=True):
        mine[0].bind(initial.clone())
    return module, state


def _unused(task: ClassificationTask, member: Member) -> frozenset[str]:
    """Names of the parameters that get no gradient, and which the optimiser therefore leaves alone."""
    module, state = _fresh(task, member)
    loss = batch_loss(module.train(), task.training.chosen(member.course.batches[0]))
    gradients = torch.autograd.grad(loss, state.parameters, allow_unused=True)
    return frozenset(name for name, gradient in zip(state.names, gradients, strict=True) if gradient is None)


def _alone(task: ClassificationTask, member: Member) -> Ended:
    """Train a member as the definition says."""
    module, state = _fresh(task, member)
    course = member.course
    done = local.train(
        Steps(module), state, task.training, sequence=[(0, batch) for batch in course.batches], steps=len(course.batches),
        work=Work(1, len(course.batches), _LR), settings=task.optimizer,
        correction=corrections.correction(state, task.optimizer.proximal_mu, member.params, member.shift),
    )  # fmt: skip
    return Ended(done, state.vector(), state.buffers(), None)


def _apart(state: ModuleState, member: Member, alone: Ended, found: Ended) -> str:
    """Name what of a batched result is too far from the right one; empty if nothing is."""
    far = deviations(state, member.params, alone.params, found.params)
    far |= {
        f"the buffer {name}": deviation(member.buffers[name], value, found.buffers[name])
        for name, value in alone.buffers.items()
    }
    right, mine = (torch.tensor(end.done.loss or 0.0) for end in (alone, found))
    far["the loss"] = deviation(torch.zeros(()), right, mine)
    return next((name for name, times in far.items() if times > 1), "")


def deviation(base: Tensor, right: Tensor, found: Tensor, beside: float = 0.0, tolerance: float = TOLERANCE) -> float:
    """Say how far a batched tensor is from the right one, as a multiple of what is tolerated (NaN counts as infinite).

    Tolerated is ``tolerance`` times how far it moved from ``base``, plus what rounding may do to a tensor of its
    length, or to one beside others that moved by ``beside``. Entries that are not floats must be equal.
    """
    if right.shape != found.shape or not right.dtype.is_floating_point:
        return 0.0 if torch.equal(right, found) else math.inf
    start, end, mine = (value.double() for value in (base, right, found))
    allowed = tolerance * (end - start).norm() + _STEADY * end.norm() + _BESIDE * beside
    times = float((mine - end).norm() / allowed.clamp_min(torch.finfo(torch.float32).tiny))
    return math.inf if math.isnan(times) else times


def deviations(
    state: ModuleState, base: Tensor, right: Tensor, found: Tensor, tolerance: float = TOLERANCE
) -> dict[str, float]:
    """The deviation of each parameter in flat vectors, by name."""
    start, end, mine = (state.split(vector) for vector in (base, right, found))
    moved = float((right - base).norm())
    return {name: deviation(start[name], end[name], mine[name], moved, tolerance) for name in end}
