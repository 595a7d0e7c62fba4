"""Several jobs trained at once, each to what :meth:`ClassificationTask.train` gives, within a tolerance.

A batched result agrees with that of the job alone to rounding: about 1e-6 of how far the job moved (Euclidean norm).
Where a unit of a ReLU or of a maximum stands at its kink, rounding decides which side counts, and a tensor may differ
by 1e-3 of its move; no tensor of the trial's jobs may differ by more than ``TOLERANCE`` of it. A result's bits depend
on which jobs were trained together, in which order, and on nothing else: jobs are dealt into hands of at most ``HAND``,
and where a hand is computed changes real time only.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from desim_fl.learning import controls, randomness
from desim_fl.learning.batched_optimizers import BATCHED, Rate
from desim_fl.learning.batches import rate
from desim_fl.learning.kernel import Kernel, Records
from desim_fl.learning.local import Trained
from desim_fl.learning.ragged import Call, Course, dealt, planned
from desim_fl.learning.stacked import Member, Stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from desim_fl.core import Job, Outcome
    from desim_fl.learning.classification import ClassificationTask
    from desim_fl.learning.samples import Samples
    from desim_fl.learning.vectors import Buffers, ModuleState

TOLERANCE = 1e-2
HAND = 8  # jobs: parameters, gradients and inputs of more small networks leave the cache of one core


class Ended(NamedTuple):
    """What became of a member: its steps and loss, its parameters and buffers, the first entry that is not finite."""

    done: Trained
    params: Tensor
    buffers: Buffers
    bad: str | None


class Traits(NamedTuple):
    """What must be known of a model to batch it: whether samples may be filled in, and what gets no gradient."""

    padded: bool
    unused: frozenset[str]


class Hand:
    """Some jobs, stacked, and all that their steps need, on the device."""

    def __init__(self, state: ModuleState, traits: Traits, samples: Samples, members: Sequence[Member]) -> None:
        self.members, self._state = members, state
        self.plan = planned([member.course for member in members], padded=traits.padded)
        self.stack = Stack(state, traits.unused, members)
        device = samples.labels.device
        self._inputs = samples.inputs
        self._indices = torch.from_numpy(self.plan.indices).to(device)
        self._labels = samples.labels[self._indices]
        self._weights = torch.from_numpy(self.plan.weights).to(device)
        self.rates = torch.from_numpy(self.plan.rates).to(device, torch.float32)
        self.losses = torch.zeros(self.plan.rates.shape, device=device)
        named = {call.start: call.rows for step in self.plan.steps for call in step.calls if call.rows is not None}
        self._rows = {start: torch.from_numpy(rows).to(device) for start, rows in named.items()}

    def rows(self, call: Call) -> Any:
        """The rows that a call works on: those named, or the first ones."""
        return self._rows.get(call.start, slice(call.jobs))

    def flat(self, call: Call) -> list[Tensor]:
        """Return what a call is given: parameters, states, inputs, labels and weights of its jobs."""
        parameters, states = self.stack.held(self.rows(call))
        span = slice(call.start, call.start + call.jobs * call.size)
        inputs = self._inputs.index_select(0, self._indices[span])
        return [
            *parameters,
            *states,
            inputs.view(call.jobs, call.size, *inputs.shape[1:]),
            self._labels[span].view(call.jobs, call.size),
            self._weights[span].view(call.jobs, call.size),
        ]

    def ended(self) -> list[Ended]:
        """Take the jobs apart again; what is returned shares no memory."""
        losses, found = self.losses.double().cpu(), []
        for row, (suspect, member) in enumerate(zip(self.stack.suspect(), self.members, strict=True)):
            steps = len(member.course.batches)
            vector, buffers = self.stack.taken(row)
            bad = self._state.first_bad(vector, buffers, member.buffers) if suspect else None
            loss = float(losses[:steps, row].mean()) if steps else None
            found.append(Ended(Trained(steps, loss), vector, buffers, bad))
        return found


class Batched:
    """Trains jobs of a task together; :mod:`trial` finds the model's traits.

    The module of the task itself is never touched. Raises what torch raises where the jobs cannot be batched.
    """

    def __init__(self, task: ClassificationTask, traits: Traits) -> None:
        self.task, self.traits, self.records = task, traits, Records()
        state = task.state
        names = [name for name in state.names if name not in traits.unused]
        beside = [name for name in state.names if name in traits.unused] + [site.name for site in state.sites]
        beside += [*state.frozen, *(site.name for site, _ in state.scratch)]
        self.kernel = Kernel(copy.deepcopy(task.module), names, beside)

    def member(self, job: Job, steps: int) -> Member:
        """Work out what a job trains on; raises what the task raises for a job that it cannot train."""
        sequence = zip(range(steps), self.task.sequence(job, steps), strict=False)
        taken = [entry for _, entry in sequence]
        rates = [rate(job.work.lr, job.work.decay, epoch) for epoch, _ in taken]
        course = Course([batch for _, batch in taken], rates)
        return Member(job.params, self.task.client_buffers(job), course, controls.shift(job))

    def train(self, jobs: Sequence[tuple[Job, int]]) -> list[Outcome]:
        """Train jobs for so many steps each; the outcomes share no memory with each other."""
        members = [self.member(job, steps) for job, steps in jobs]
        return [
            self.task.outcome(job, end.done, end.params, end.buffers, end.bad)
            for (job, _), end in zip(jobs, self.trained(members), strict=True)
        ]

    def trained(self, members: Sequence[Member]) -> list[Ended]:
        """Train members, and return their ends in the same order."""
        task = self.task
        ends: dict[int, Ended] = {}
        with randomness.pinned(task.threads), randomness.repeatable(task.device):
            for numbers in hands_of(task, [len(member.course.batches) for member in members]):
                hand = Hand(task.state, self.traits, task.training, [members[number] for number in numbers])
                self._record(hand)
                self._play(hand)
                ends.update(zip(numbers, hand.ended(), strict=True))
        return [ends[number] for number in range(len(members))]

    def _record(self, hand: Hand) -> None:
        """Record the shapes of a hand that come up often enough."""
        calls = [call for step in hand.plan.steps for call in step.calls]
        first = {(call.jobs, call.size): call for call in reversed(calls)}
        for shape, uses in Counter((call.jobs, call.size) for call in calls).items():
            if self.records.wanted(shape, uses):
                self.records.record(shape, self.kernel, hand.flat(first[shape]))

    def _play(self, hand: Hand) -> None:
        """Do all steps of a hand; its stack then holds the ends."""
        optimizer = BATCHED[self.task.optimizer.name](self.task.optimizer)
        targets = list(hand.stack.parameters.values())
        correction = hand.stack.correction(self.task.optimizer.proximal_mu)
        for number, step in enumerate(hand.plan.steps):
            active = [value[: step.active] for value in targets]
            gradients: Any = self._gradients(hand, number, step.calls, active)
            if correction is not None:
                gradients = correction.first(step.active)(gradients, active)
            each = None if step.rate is not None else hand.rates[number, : step.active]
            optimizer.step(active, gradients, Rate(step.rate, each))

    def _gradients(self, hand: Hand, number: int, calls: Sequence[Call], active: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the gradients of all active jobs, from one call or from several that share them out."""
        if calls[0].rows is None:
            return self._called(hand, number, calls[0])
        whole = [torch.empty_like(value) for value in active]
        for call in calls:
            for value, part in zip(whole, self._called(hand, number, call), strict=True):
                value[hand.rows(call)] = part
        return whole

    def _called(self, hand: Hand, number: int, call: Call) -> Sequence[Tensor]:
        """Make one call; its states and losses go to the hand."""
        how = self.records.found((call.jobs, call.size), self.kernel)
        result = self.kernel.run(how, call.size, hand.flat(call))
        split, rows = len(hand.stack.parameters), hand.rows(call)
        hand.stack.keep(rows, result[split:-1])
        hand.losses[number, rows] = result[-1]
        return result[:split]

    def close(self) -> None:
        """There is nothing to give back."""


def hands_of(task: ClassificationTask, lengths: Sequence[int]) -> list[list[int]]:
    """Deal jobs of so many steps into hands (by number); on an accelerator one hand holds all."""
    return dealt(lengths, HAND if task.device.type == "cpu" else max(1, len(lengths)))


def out_of_memory(error: Exception) -> bool:
    """Whether a group was too large for this machine, which must not decide how it is trained."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)
