"""When a run keeps a checkpoint, what else it keeps in it, and what must be the same to go on from it."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import replace
from pathlib import Path
from time import monotonic  # decides when to write, and nothing that the run computes
from typing import TYPE_CHECKING, NamedTuple

from desim_fl import checkpoint, durable
from desim_fl.algebra import Null
from desim_fl.core import Model
from desim_fl.errors import CheckpointError
from desim_fl.executors.resuming import ResumingExecutor

if TYPE_CHECKING:
    from desim_fl.build import Built
    from desim_fl.continuation import Held, ResumableEngine
    from desim_fl.evaluation import Evaluation
    from desim_fl.scenario import Scenario
    from desim_fl.world import World

FOLDER = "checkpoints"
_USUAL_S = 60.0
_PACKAGE = Path(__file__).resolve().parent


class Saved(NamedTuple):
    """The content of a checkpoint: whose it is, the engine's trained values, and the evaluations so far."""

    identity: dict[str, str]
    held: Held
    evaluations: tuple[Evaluation, ...]


def identity(built: Built, versions: dict[str, str]) -> dict[str, str]:
    """What must be the same for a resumed run to be the one that stopped."""
    scenario = built.scenario
    facts = {
        "scenario": scenario.sha256(),
        "partition": built.population.sha256(),
        "data": str(built.data_sha256),
        "trace": str(None if built.trace is None else built.trace.sha256),
        "desim-fl's code": code_sha256(),
        **{name: version for name, version in versions.items() if name in {"numpy", "simpy", "torch", "torchvision"}},
        "machine": platform.machine(),
    }
    if built.task is not None and hasattr(built.task, "module"):
        from desim_fl.learning import identity as learning  # noqa: PLC0415  (needs torch)

        device = getattr(built.task, "device")  # noqa: B009  (only tasks with a network have one)
        facts |= {f"torch: {name}": value for name, value in learning.machine(device).items()}
    return facts | _own_code(scenario)


def _own_code(scenario: Scenario) -> dict[str, str]:
    """Hash the modules that a scenario names as "module:attribute"."""
    from desim_fl.learning.facts import source_file  # noqa: PLC0415  (only such scenarios need it)

    named = (scenario.strategy, scenario.model, scenario.data)
    names = {table.name.partition(":")[0] for table in named if ":" in table.name}
    names |= {name.partition(":")[0] for name in (scenario.training.task, scenario.run.selector) if name}
    files = {name: source_file(name) for name in sorted(names)}
    return {
        f"module {name}": hashlib.sha256(Path(file).read_bytes()).hexdigest() for name, file in files.items() if file
    }


def code_sha256() -> str:
    """Hash of this package's source."""
    state = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        state.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


class Keeper:
    """Keeps checkpoints of one run while it goes on; ``refused`` says why there are none, if there can be none."""

    def __init__(self, built: Built, folder: Path, facts: dict[str, str]) -> None:
        self.folder, self._facts = folder / FOLDER, facts
        durable.sweep(self.folder)
        self.refused = _refusal(built)
        self.count = 0
        self._rules = built.scenario.checkpoint
        alone = self._rules.every_versions is None and self._rules.every_s is None
        self._wall_s = self._rules.every_wall_s or (_USUAL_S if alone else None)
        self._last_wall, self._last_version, self._last_tick = monotonic(), 0, 0

    def look(self, engine: ResumableEngine, evaluations: list[Evaluation]) -> None:
        """Keep a checkpoint if one is due and the instant is over."""
        if self.refused is None and engine.why is None and self._due(engine) and engine.between_instants:
            self.keep(engine, evaluations)

    def _due(self, engine: ResumableEngine) -> bool:
        rules = self._rules
        return (
            (rules.every_versions is not None and engine.model.version - self._last_version >= rules.every_versions)
            or (rules.every_s is not None and engine.now - self._last_tick >= rules.every_s * 1e6)
            or (self._wall_s is not None and monotonic() - self._last_wall >= self._wall_s)
        )

    def keep(self, engine: ResumableEngine, evaluations: list[Evaluation]) -> None:
        """Keep one now; a state that cannot be kept ends the trying, and says why."""
        if self.refused is not None or engine.why is not None:
            return
        engine.settle()
        try:
            checkpoint.store(self.folder, engine.now, Saved(self._facts, engine.held(), tuple(evaluations)))
            self.count += 1
        except CheckpointError as error:
            self.refused = str(error)
        self._last_wall, self._last_version, self._last_tick = monotonic(), engine.model.version, engine.now


def _refusal(built: Built) -> str | None:
    """Say why a run cannot be played again on parameters that are not trained."""
    if built.task is None:
        return "nothing is trained: it is played again from the start"
    return None


def asleep(world: World) -> World:
    """The same world without trained values, whose executor sleeps until its timeline has been played again."""
    return replace(world, executor=ResumingExecutor(world.executor, world.sizes), model=Model(0, Null))


def latest(folder: Path, facts: dict[str, str], device: str) -> tuple[Saved | None, list[str]]:
    """Return the newest whole checkpoint of a run directory, and what is wrong with newer ones.

    Raises ``CheckpointError`` naming what differs, if it was written by another run, code, torch or machine.
    """
    found, faults = checkpoint.latest(folder / FOLDER, device)
    if found is None:
        return None, faults
    if not isinstance(found, Saved):
        raise CheckpointError(f"{folder / FOLDER} holds no checkpoint of a run")
    changed = [
        f"{name} was {found.identity.get(name)}, is {facts.get(name)}"
        for name in sorted(found.identity.keys() | facts.keys())
        if found.identity.get(name) != facts.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} cannot be resumed with the same result: {'; '.join(changed)}. Go back to what it was, or run "
            f"{folder / 'scenario.toml'} anew"
        )
    return found, faults
