"""From a scenario to a wired world: the one place that knows every room."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import allotment, circumstances, closed_form, fleet, footprint, preferences, strategies
from desim_fl import data as holdings
from desim_fl.algebra import Null
from desim_fl.assignment import Assignment, Stragglers
from desim_fl.core import Model
from desim_fl.delays import logarithmic
from desim_fl.energy import NOTHING, Tariff
from desim_fl.executors.null import NullExecutor
from desim_fl.learning.batches import steps_per_epoch
from desim_fl.learning.sizes import FIRST_LAYERS, model_facts
from desim_fl.strategies.delay_aware import drawn_delay_lr, weigh_by_staleness
from desim_fl.strategies.optimized import Optimized
from desim_fl.strategies.optimizers import ServerOptimizer
from desim_fl.strategies.schedules import SCHEDULES
from desim_fl.strategies.tiers import tier_name
from desim_fl.ticks import to_ticks
from desim_fl.world import Evaluations, Monitor, StopRules, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from desim_fl import datasets
    from desim_fl.core import Executor, Selector, Strategy
    from desim_fl.datasets import Labels
    from desim_fl.learning.task import Task
    from desim_fl.population import Population
    from desim_fl.scenario import Scenario
    from desim_fl.timing import DrawnTrips
    from desim_fl.traces import Trace

FLOAT_BYTES = 8


@dataclass(frozen=True, slots=True)
class Built:
    """A scenario made into parts; ``task`` is ``None`` where nothing is trained, ``known`` where there is no data set."""

    scenario: Scenario
    world: World
    population: Population
    trips: DrawnTrips
    validation: NDArray[np.int64] | None
    data_sha256: str | None
    task: Task | None
    executor_reason: str
    tariff: Tariff = NOTHING
    trace: Trace | None = None
    known: Labels | None = None
    held: tuple[NDArray[np.int64], ...] = ()  # what each client keeps back from training


class Told(NamedTuple):
    """Who tells what training gave, made from the clients' sizes; and the size of the model, where that is known."""

    executor: Callable[[Sequence[int]], Executor]
    model_bytes: int | None = None


class Early(NamedTuple):
    """What ends jobs or the run early: the patience of local training, and what a run watches."""

    patience: int | None = None
    monitor: Monitor | None = None


NEVER = Early()


def build(
    scenario: Scenario,
    *,
    timing_only: bool = False,
    assume_full_work: bool = False,
    stored: allotment.Stored | None = None,
    told: Told | None = None,
) -> Built:
    """Wire a world; with ``timing_only`` no torch is imported and nothing is trained; ``stored`` is a partition to keep.

    With ``told`` nothing is trained either, but the timeline may read what that executor tells.

    Raises ``ScenarioError`` for what the scenario alone could not show (too few samples, a missing module, ...).
    """
    trains = not timing_only and told is None
    footprint.require(scenario, timing_only=not trains)
    people, validation, known, held = allotment.allotted(scenario, stored)
    size_bytes = _model_bytes(scenario, *((known.shape, known.classes) if known is not None else ((), 0)), told)
    if trains:
        footprint.require_model(size_bytes, scenario)
    assignment = _assignment(scenario, people)
    trips = fleet.trips(scenario, people, size_bytes, assignment)
    presence, trace = circumstances.availability(scenario, people)
    full_work = timing_only and assume_full_work
    early = NEVER if full_work else _early(scenario, assignment)
    task, sha256 = _task(scenario, people, validation, early.patience) if trains else (None, None)
    executor, reason = _executor(scenario, task, people, assignment, early, told)
    world = World(
        strategy=_strategy(scenario, known),
        selector=_selector(scenario, people, trips),
        trips=trips,
        executor=executor,
        assignment=assignment,
        sizes=people.sizes,
        model=Model(0, Null) if task is None else task.initial(),
        average=(lambda base, _: base) if task is None else task.average,
        stops=_stops(scenario),
        concurrency=_concurrency(scenario),
        dispatch=_dispatch(scenario),
        groups=_tiers(scenario, trips, assignment),
        evaluations=_evaluations(scenario),
        non_finite=scenario.run.non_finite,
        timing_only=timing_only,
        patience=early.patience,
        monitor=early.monitor,
        shared=fleet.shared(scenario, people, trips.links),
        availability=presence,
        perils=circumstances.perils(scenario, people),
        assume_full_work=full_work,
        **fleet.server_side(scenario),
    )
    tariff = fleet.tariff(scenario, trips.devices)
    return Built(scenario, world, people, trips, validation, sha256, task, reason, tariff, trace, known, held)


def _early(scenario: Scenario, assignment: Assignment) -> Early:
    """What may end jobs and the run early."""
    return Early(_patience(scenario, assignment), _monitor(scenario))


def varied(built: Built, scenario: Scenario, updates: int) -> World:
    """Return a built world with the strategy and concurrency of another scenario, to play without training to ``updates``.

    Data, clients, links and draws stay what they are.
    """
    run = scenario.run
    limits = (run.max_updates, updates)
    stops = _stops(scenario)._replace(
        max_updates=min(limit for limit in limits if limit is not None), target_accuracy=None
    )
    return replace(
        built.world,
        strategy=_strategy(scenario, built.known),
        concurrency=_concurrency(scenario),
        executor=NullExecutor(built.population.sizes),
        model=Model(0, Null),
        average=lambda base, _: base,
        stops=stops,
        evaluations=Evaluations(),
        timing_only=True,
        assume_full_work=True,
        patience=None,
        monitor=None,
    )


# ---- data and clients


def _options(table: Any, *without: str) -> dict[str, Any]:
    """Return the entries of a scenario table that are set, as keyword arguments."""
    return {key: value for key, value in table.model_dump(exclude_none=True).items() if key not in {"name", *without}}


# ---- virtual time


def _model_bytes(scenario: Scenario, shape: Sequence[int], classes: int, told: Told | None) -> int:
    if told is not None and told.model_bytes is not None:
        return told.model_bytes
    if scenario.model.name in closed_form.MODELS:
        return FLOAT_BYTES * closed_form.numbers(scenario, shape, classes)
    return model_facts(scenario.model.name, model_args(scenario), shape, classes).total_bytes


def model_args(scenario: Scenario) -> dict[str, Any]:
    """Return the arguments that a scenario gives its model."""
    args = _options(scenario.model)
    return args.get("args", {}) if ":" in scenario.model.name else args


def _assignment(scenario: Scenario, people: Population) -> Assignment:
    training = scenario.training
    epoch_steps = [steps_per_epoch(size, training.batch_size) for size in people.sizes]
    rule, table = training.delay_aware, training.lr_schedule
    share, in_steps = scenario.clients.straggler_share, training.steps is not None
    return Assignment(
        epoch_steps,
        training.epochs,
        training.steps,
        training.lr if rule is None else _first_rate(scenario, rule),
        "constant" if rule is None else "inverse_sqrt_epoch",
        partial(drawn_delay_lr, rule.gamma_0, rule.alpha_lr) if rule is not None and rule.meaning == "drawn" else None,
        schedule=None if table is None else SCHEDULES[table.name](**table.parameters()),
        stragglers=Stragglers(scenario.run.seed, people.keys, share, in_steps) if share else None,
        pace=None if training.delay_step is None else logarithmic,
    )


def _first_rate(scenario: Scenario, rule: Any) -> float:
    """The rate of the first epoch where no drawn wait changes it."""
    wait = scenario.clients.wait_s
    if rule.meaning != "maximum" or wait is None:
        return rule.gamma_0
    return drawn_delay_lr(rule.gamma_0, rule.alpha_lr, wait.most or 0.0)


# ---- server


def _strategy(scenario: Scenario, known: Labels | None) -> Strategy:
    table: Any = scenario.strategy
    stepped = ("server_optimizer", "server_lr_schedule", *(("server_lr",) if table.server_optimizer else ()))
    options = _options(table, *stepped)
    if ":" in table.name:
        options = options["args"]
    elif table.draws:
        options["seed"] = scenario.run.seed
    strategy = strategies.build(table.name, {**options, **table.lent(scenario.training)})
    if getattr(table, "feature_learning", False) and known is not None:
        layer = FIRST_LAYERS[scenario.model.name](known.shape, known.classes, **model_args(scenario))
        strategy = replace(strategy, first_layer=layer)  # pyright: ignore[reportArgumentType, reportCallIssue]
    rule = scenario.training.delay_aware
    if rule is not None and rule.meaning == "staleness":
        strategy = weigh_by_staleness(strategy, rule.alpha_lr, combine=rule.combine)
    return _optimized(strategy, table.server_optimizer, table.server_lr_schedule)


def _optimized(strategy: Strategy, asked: Any, schedule: Any) -> Strategy:
    """The strategy with an optimiser of the server, or with the rate's schedule on the one that it has."""
    if asked is None and schedule is None:
        return strategy
    optimizer = ServerOptimizer() if asked is None else ServerOptimizer(asked.name, **_options(asked, *asked.idle()))
    course = SCHEDULES["constant"]() if schedule is None else SCHEDULES[schedule.name](**schedule.parameters())
    if asked is None and isinstance(strategy, Optimized):
        return replace(strategy, schedule=course)
    return Optimized(strategy, optimizer, course)


def _selector(scenario: Scenario, people: Population, trips: DrawnTrips) -> Selector:
    run = scenario.run
    if run.selector is not None:
        return preferences.foreign(run.selector, run.selector_args)
    typical = fleet.typical_s(trips, trips.usual_steps or ()) if run.selection in {"fastest", "oort"} else np.zeros(0)
    return preferences.build(
        run.selection,
        seed=run.seed,
        keys=people.keys,
        traits=preferences.Traits(people.sizes, typical),
        order=run.order or (),
        **run.selection_options(),
    )


def _concurrency(scenario: Scenario) -> int:
    table: Any = scenario.strategy
    asked = scenario.run.concurrency
    if scenario.run.arrivals is not None:
        return scenario.clients.count  # no bound of its own
    return getattr(table, "flying", None) or table.places(scenario.clients.count, asked) or asked


def _dispatch(scenario: Scenario) -> str:
    return "after_aggregation" if scenario.strategy.name == "semi_async" else scenario.run.dispatch


def _tiers(scenario: Scenario, trips: DrawnTrips, assignment: Assignment) -> dict[str, tuple[int, ...]]:
    """Clients in tiers of equal size by how long their usual trip takes, nothing drawn for the job; fastest first."""
    tiers = getattr(scenario.strategy, "tiers", None)
    if tiers is None:
        return {}
    lengths = [(trips.usual(client, work.steps or 0), client) for client, work in enumerate(assignment.usual)]
    ranked = [client for _, client in sorted(lengths)]
    cuts = [-(-tier * len(ranked) // tiers) for tier in range(tiers + 1)]
    return {tier_name(tier): tuple(ranked[cuts[tier] : cuts[tier + 1]]) for tier in range(tiers)}


def _stops(scenario: Scenario) -> StopRules:
    run = scenario.run
    ticks = None if run.max_time_s is None else to_ticks(run.max_time_s)
    return StopRules(ticks, run.max_versions, run.max_updates, run.target_accuracy)


def _evaluations(scenario: Scenario) -> Evaluations:
    run = scenario.run
    ticks = None if run.eval_every_s is None else max(1, to_ticks(run.eval_every_s))
    return Evaluations(run.eval_every_versions, ticks)


# ---- learning


def _executor(
    scenario: Scenario, task: Task | None, people: Population, assignment: Assignment, early: Early, told: Told | None
) -> tuple[Executor, str]:
    if told is not None:
        return told.executor(people.sizes), "what training gave is told"
    if task is None:
        return NullExecutor(people.sizes), "plan trains nothing"
    from desim_fl.executors.choice import Wish, choose, reusing  # noqa: PLC0415  (plan needs none that trains)

    asked = scenario.executor
    wish = Wish(
        asked.name,
        asked.workers,
        asked.threads_per_job,
        _expected_jobs(scenario),
        asked.address,
        _concurrency(scenario),
        asked.width,
        asked.near,
    )
    steps = [work.steps or 0 for work in assignment.usual]
    executor, reason = choose(task, wish, steps)
    executor = reusing(executor, task, steps, wish=asked.reuse, limit_gb=asked.reuse_limit_gb)
    if early.patience is not None:
        from desim_fl.executors.asking import AskingExecutor  # noqa: PLC0415  (few runs ask)

        executor = AskingExecutor(executor)
    return executor, reason


def _expected_jobs(scenario: Scenario) -> int | None:
    """How many updates a count stop lets in; ``None`` where only time ends the run."""
    run, strategy = scenario.run, scenario.strategy
    a_version = getattr(strategy, "buffer_size", getattr(strategy, "clients_per_round", 1))
    limits = [run.max_updates, None if run.max_versions is None else run.max_versions * a_version]
    return min((limit for limit in limits if limit is not None), default=None)


def _patience(scenario: Scenario, assignment: Assignment) -> int | None:
    """Patience of local training; ``None`` where it cannot end any job before its last epoch."""
    patience = scenario.training.patience
    most = max((work.epochs or 0 for work in assignment.usual), default=0)
    return patience if patience is not None and patience + 1 < most else None


def _monitor(scenario: Scenario) -> Monitor | None:
    run = scenario.run
    return None if run.patience is None else Monitor(run.patience, run.monitor)


def _task(scenario: Scenario, people: Population, validation: Any, patience: int | None) -> tuple[Task, str | None]:
    """Make what trains; the data's sha256 beside it (``None`` where there is no data set)."""
    data = scenario.data
    if scenario.model.name in closed_form.MODELS:
        return closed_form.task(scenario, people, validation, _proximal_mu(scenario))
    whole = holdings.whole(data, scenario.run.seed)
    return _classification(scenario, people, validation, whole, patience), whole.sha256


def _proximal_mu(scenario: Scenario) -> float:
    """Weight of the proximal term: the strategy's own, or else that of local training."""
    mu = scenario.strategy.proximal_mu()
    return (scenario.training.proximal_mu if mu is None else mu) or 0.0


def _classification(
    scenario: Scenario, people: Population, validation: Any, whole: datasets.Dataset, patience: int | None
) -> Task:
    from desim_fl.learning.classification import ClassificationTask  # noqa: PLC0415  (imports torch)
    from desim_fl.learning.models import factory, own_task  # noqa: PLC0415
    from desim_fl.learning.optimizers import OptimizerSettings  # noqa: PLC0415

    training = scenario.training
    settings = OptimizerSettings(
        training.optimizer,
        training.momentum,
        training.weight_decay,
        _proximal_mu(scenario),
        training.optimizer_reset == "epoch",
        training.gradient_decay,
    )
    make = ClassificationTask if training.task is None else partial(own_task, training.task, training.task_args)
    return make(
        seed=scenario.run.seed,
        keys=people.keys,
        model=factory(scenario.model.name, model_args(scenario), whole.shape, whole.classes),
        dataset=whole,
        parts=people.parts,
        validation_indices=validation,
        batch_size=training.batch_size,
        optimizer=settings,
        buffers=training.buffers,
        start=training.start or "server",
        patience=patience,
        device=scenario.executor.device,
        threads=scenario.executor.threads_per_job,
    )
