"""SCAFFOLD's messages between server and client, whatever the parameters are; nothing here needs torch.

Karimireddy et al., ICML 2020, algorithm 1, option II: the server broadcasts c, the client keeps c_i, and each local step
adds ``c - c_i`` to the gradient. After K steps ``c_i+ = c_i - c + (x - y) / (K lr)`` (with a rate that decays, K lr is the
sum of the rates), and the client returns ``c_i+ - c_i``. K is the number of steps really done; only trainable
parameters have variates, never buffers. A job without steps, whose rates
are all 0, or with a value that is not finite, leaves c_i as it is.

In messages: ``Job.extra = {"control": c}``, ``Outcome.memory["control"] = c_i+``, and ``Outcome.extra = {"control": c_i+ -
c_i}``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from desim_fl.learning import batches

if TYPE_CHECKING:
    from desim_fl.core import Job, Outcome, Work

CONTROL = "control"


def shift(job: Job) -> Any:
    """``c - c_i`` of a job that carries a control variate; ``None`` for any other."""
    control = sent(job)
    if control is None:
        return None
    own = kept(job)
    return control if own is None else control - own


def sent(job: Job) -> Any:
    """The server's control variate that came with a job; ``None`` if there is none."""
    return job.extra.get(CONTROL) if isinstance(job.extra, dict) else None


def kept(job: Job) -> Any:
    """The client's own control variate from last time; ``None`` stands for 0."""
    return job.memory.get(CONTROL) if isinstance(job.memory, dict) else None


def renewed(job: Job, end: Any, path: float) -> tuple[Any, Any]:
    """``(c_i+, c_i+ - c_i)`` of a job that ended at ``end`` after steps whose rates add up to ``path`` (more than 0)."""
    control, own = sent(job), kept(job)
    change = (job.params - end) / path - control
    return (change if own is None else own + change), change


def path(work: Work, examples: int, batch_size: int, steps: int) -> float:
    """Sum of the learning rates of the first ``steps`` steps of a job."""
    epoch_steps = batches.steps_per_epoch(examples, batch_size)
    return math.fsum(batches.rate(work.lr, work.decay, step // epoch_steps) for step in range(steps))


def answered(outcome: Outcome, job: Job, path: float) -> Outcome:
    """The outcome with what a job under control variates keeps and returns; any other job's as it is."""
    if sent(job) is None:
        return outcome
    if outcome.bad or not path:
        return outcome._replace(memory=job.memory)
    own, change = renewed(job, outcome.params, path)
    return outcome._replace(memory={**(outcome.memory or {}), CONTROL: own}, extra={CONTROL: change})
