"""How long the training that a plan leaves out would take in real time: an estimate, from counted steps and stated speeds.

The steps are those of the plan's own timeline, the multiply-adds of a step follow from the model and the images, and the speed is
what a core of the machine below did. Another machine, or neighbours on it, may be a few times slower or faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from desim_fl import closed_form
from desim_fl.build import model_args
from desim_fl.executors import choice
from desim_fl.learning import operations

if TYPE_CHECKING:
    from desim_fl.build import Built
    from desim_fl.run import Session


class Speed(NamedTuple):
    """What one core does: milliseconds of every step, whatever is in it, and thousands of millions of multiply-adds a second."""

    step_ms: float
    gmacs: float


MACHINE = "a 2-core x86-64 machine"  # torch 2.14.1, one thread a job
SPEEDS = {
    "mlp": Speed(0.15, 40.0),
    "cnn": Speed(0.3, 14.0),
    "cnn_gap": Speed(0.5, 34.0),
    "lenet5": Speed(0.5, 12.0),
    "resnet20": Speed(4.0, 34.0),
}  # from the processor time of steps of 16 to 64 images; wide convolutions keep a core busier than narrow ones


class Effort(NamedTuple):
    """Training that a timeline asks for; ``None`` where it is not known.

    ``steps`` and ``samples`` are those of updates that arrived, ``operations`` the multiply-adds of training and of
    evaluations. ``core_s`` are real seconds of one core, ``real_s`` those of the run with its executor.
    """

    steps: int
    samples: int
    operations: int | None
    core_s: float | None
    workers: int | None
    real_s: float | None
    unknown: str | None = None


def effort(session: Session) -> Effort | None:
    """Estimate the training that a session's timeline asks for; ``None`` where no network is trained."""
    built = session.built
    if built.known is None or built.scenario.model.name in closed_form.MODELS:
        return None
    steps, samples = _work(session)
    model = built.scenario.model
    counted = operations.of(model.name, model_args(built.scenario), built.known.shape, built.known.classes)
    unknown = _unknown(built)
    if counted is None or unknown is not None:
        return Effort(
            steps, samples, None, None, None, None, unknown or f"how fast {model.name} is cannot be told beforehand"
        )
    workers = _workers(built)
    work = counted.training * samples + counted.forward * _scored(session)
    core_s = _core_s(model.name, steps, work)
    return Effort(steps, samples, work, core_s, workers, _real_s(built, core_s, steps, workers))


def _unknown(built: Built) -> str | None:
    """Why nothing can be said, whatever the model is."""
    asked = built.scenario.executor
    if asked.device != "cpu":
        return f"how fast {asked.device} is cannot be told beforehand"
    if asked.address is not None and asked.workers is None:
        return "how many workers the cluster has cannot be told beforehand"
    return None


def _work(session: Session) -> tuple[int, int]:
    """Steps of all updates that arrived, and the samples in them."""
    columns, built = session.engine.usage.columns(), session.built
    epochs = built.world.assignment.steps_per_epoch
    parts = zip(columns["steps"].tolist(), built.population.sizes, epochs, strict=True)
    return int(columns["steps"].sum()), sum(round(steps * size / epoch) for steps, size, epoch in parts if epoch)


def _scored(session: Session) -> int:
    """Samples in all evaluations: of version 0, of every so manieth or after every so long, and at the end."""
    built, engine = session.built, session.engine
    every = built.world.evaluations
    spans = ((engine.model.version, every.every_versions), (session.ticks, every.every_ticks))
    times = sum(-(-length // step) + 1 for length, step in spans if step) or 1
    held = 0 if built.validation is None else len(built.validation)
    return times * (held + (0 if built.known is None else len(built.known.test)))


def _core_s(name: str, steps: int, work: int) -> float:
    speed = SPEEDS[name]
    return steps * speed.step_ms / 1e3 + work / (speed.gmacs * 1e9)


def _workers(built: Built) -> int:
    """How many jobs are trained at once."""
    asked, flying = built.scenario.executor, built.world.concurrency
    number = asked.workers or max(1, choice.cores() // asked.threads_per_job)
    return 1 if asked.name == "inline" else max(1, min(number, flying))


def _real_s(built: Built, core_s: float, steps: int, workers: int) -> float:
    """Real seconds with the executor that is asked for; with ``auto``, of the one that is expected to end first."""
    ways = choice.expected(choice.Cost(core_s / steps if steps else 0.0, core_s), workers)
    name = built.scenario.executor.name
    if name == "auto":
        return min(ways.values())
    return ways.get(name, ways["pool"])
