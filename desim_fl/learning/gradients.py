"""ASO-Fed's local rule: each step is balanced by gradients of earlier steps, which a client keeps from job to job.

Chen, Ning, Slawski, Rangwala, "Asynchronous Online Federated Learning for Edge Devices with Non-IID Data", IEEE BigData
2020, as a re-implementation has it: with g the gradient of the client's loss, proximal term included,

    zeta = g - g_pre + h;  y <- y - lr zeta;  h <- beta h + (1 - beta) g_pre;  g_pre <- g

from g_pre = h = 0 at a client's very first step, whose zeta is g. A job without a step, or with an end that is not finite,
leaves both as they were. In messages: ``Outcome.memory["gradients"] = {"history": h, "previous": g_pre}``. Nothing here needs
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from desim_fl.core import Job, Outcome, Params

GRADIENTS = "gradients"


class Past(NamedTuple):
    """h and g_pre."""

    history: Params
    previous: Params

    def told(self) -> dict[str, Params]:
        """As it stands in a client's memory."""
        return self._asdict()


def balanced(past: Past | None, gradient: Params, beta: float) -> tuple[Params, Past]:
    """``(zeta, past)`` of a step; ``None`` = there was none before it. Elementwise, on anything that adds and multiplies."""
    if past is None:
        return gradient, Past(0.0 * gradient, gradient)
    history, previous = past
    return gradient - previous + history, Past(beta * history + (1.0 - beta) * previous, gradient)


def remembered(job: Job) -> Past | None:
    """What the client kept of its earlier jobs."""
    kept = job.memory.get(GRADIENTS) if isinstance(job.memory, dict) else None
    return None if kept is None else Past(**kept)


def kept(outcome: Outcome, job: Job, past: dict[str, Any] | None) -> Outcome:
    """The outcome with what its client keeps: ``past``, or what it had where nothing sound was added."""
    if outcome.bad or not outcome.steps or past is None:
        return outcome._replace(memory=job.memory)
    return outcome._replace(memory={**(outcome.memory or {}), GRADIENTS: past})
