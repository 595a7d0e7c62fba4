"""Plays generated worlds and checks the laws in each: ``PYTHONPATH=.:tests python tests/playing.py [worlds] [first seed]``.

Every world is played to its stop, and then: as a plan (law 1); with an executor that trains whenever it likes (law 2);
stopped after random instants and resumed, from bytes (law 4); and audited from its rows (law 5). Every tenth is also
played as a run directory, killed in the middle of a write, resumed, compared file by file and verified; every
hundredth trains a small network with each executor in turn. What a world may hold, and what must come about: ``generated.py``.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
import tomllib
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import tomli_w
from generated import BASE, EXECUTORS, LEARNING, PATIENCE, QUIET, RARE, TABLES, WITHOUT, Kill, Seen
from test_resume import BESIDE, assert_equal_runs

from desim_fl import checkpoint, durable, eventlog, replay, report, rundir
from desim_fl import run as running
from desim_fl.build import Built, build
from desim_fl.checkpointing import asleep
from desim_fl.continuation import ResumableEngine
from desim_fl.core import Promise
from desim_fl.errors import DesimError, RefusedError, RunError, ScenarioError
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.executors.inline import InlineExecutor
from desim_fl.laws import Audit, Row
from desim_fl.scenario import load, overrides
from desim_fl.strategies import TABLE as STRATEGIES
from desim_fl.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desim_fl.core import Job, Model, Outcome
    from desim_fl.scenario import Scenario

KILLS = 2  # instants after which a world is stopped and resumed
DIRECTORY_EVERY, LEARNING_EVERY = 10, 100


# ---- a world


@dataclass(frozen=True)
class Generated:
    """One line of each table: their names, the scenario, and what no key can say."""

    seed: int
    lines: dict[str, str]
    scenario: Scenario
    changes: tuple[Callable[[Any, random.Random], Any], ...]

    def built(self, scenario: Scenario | None = None, **options: Any) -> Built:
        """Wire it, with the options of ``build``."""
        made = build(scenario or self.scenario, **options)
        world = made.world
        for change in self.changes:
            world = change(world, random.Random(self.seed))
        return replace(made, world=world)

    def with_keys(self, *keys: str) -> Generated:
        """The same with other keys."""
        return replace(self, scenario=scenario_of([*keys_of(self.scenario), *keys]))


def keys_of(scenario: Scenario) -> list[str]:
    """A scenario as keys: its document whole."""
    return [scenario.to_toml()]


def scenario_of(keys: list[str]) -> Scenario:
    """A scenario of the base, or of a whole document, with keys; a key without a value is taken out."""
    text, *rest = keys if "\n" in keys[0] else [BASE, *keys]
    document = {"name": "generated", **tomllib.loads(text)}
    for key in rest:
        if "=" in key:
            overrides.put(document, *overrides.parse(key))
        else:
            table, _, name = key.partition(".")
            if name:
                document[table].pop(name, None)
            else:
                document.pop(key, None)
    with tempfile.NamedTemporaryFile("wb", suffix=".toml") as file:
        tomli_w.dump(document, file)
        file.flush()
        return load(Path(file.name))


def generate(seed: int, *learning: Any) -> Generated | None:
    """The world of a seed; ``None`` where the scenario's rules refuse the combination, also without what many refuse."""
    lines = {
        table: name
        for table, entries in TABLES.items()
        for name in [random.Random(f"{seed} {table}").choice(list(entries))]
    }
    if seed % 3 == 0:
        lines |= QUIET
    elif (lines["speed"], lines["stop"]) == ("no time at all", "time alone"):
        lines["stop"] = "time"  # else shared links, where a transfer takes a tick, make millions of jobs of it
    return _made(seed, lines, *learning) or _made(seed, lines | WITHOUT, *learning)


def _made(seed: int, lines: dict[str, str], *learning: Any) -> Generated | None:
    """The world of these lines."""
    chance = random.Random(seed)
    items = [item for table, name in lines.items() for item in TABLES[table][name]]
    chosen = [chance.choice(item) if isinstance(item, list) else item for item in items]
    keys = [item for item in chosen if isinstance(item, str)]
    changes = tuple(item for item in chosen if callable(item))
    if learning:
        picked = [chance.choice(item) if isinstance(item, list) else item for item in learning]
        more = [key for item in picked for key in (item if isinstance(item, tuple) else (item,))]
        keys = [*(key for key in keys if not key.startswith("data.")), *more]
    try:
        found = Generated(seed, lines, scenario_of([f"run.seed={seed}", *keys]), changes)
        found.built(timing_only=not any(change.__name__ in {"choosy", "loudest"} for change in changes))
    except ScenarioError as error:
        if isinstance(error, RefusedError) and "reads trained values" in str(error):
            return found
        return None
    return found


# ---- an executor that trains whenever it likes


class Whenever(InlineExecutor):
    """Trains jobs ahead of need, in any order, and scores versions late: what the protocol allows, at random."""

    def __init__(self, inner: InlineExecutor, chance: random.Random) -> None:
        super().__init__(inner.task, inner.name)
        self._chance = chance
        self._held: dict[int, Job] = {}
        self._ahead: dict[int, tuple[int, Outcome]] = {}
        self._unscored: list[Late] = []

    def submit(self, job: Job, due: int) -> None:
        """Perhaps train some of those that wait."""
        super().submit(job, due)
        self._held[job.id] = job
        self._some()

    def _some(self) -> None:
        for number in self._chance.sample(sorted(self._held), self._chance.randint(0, len(self._held))):
            job = self._held.pop(number)
            with suppress(ZeroDivisionError, OverflowError):
                self._ahead[number] = (job.work.steps or 0, self.task.train(job, job.work.steps or 0))
        for late in self._unscored:
            late.settle()

    def collect(self, job: Job, steps: int) -> Outcome:
        """Take what was trained ahead, unless the job was cut short."""
        self._held.pop(job.id, None)
        self._some()
        planned, outcome = self._ahead.pop(job.id, (None, None))
        if planned != steps or outcome is None:
            return super().collect(job, steps)
        self._waiting.pop(job.id)
        return outcome

    def release(self, job: Job) -> None:
        """Forget it."""
        self._held.pop(job.id, None)
        self._ahead.pop(job.id, None)
        super().release(job)

    def evaluate(self, model: Model) -> Promise:
        """Score now, or at some later time, or when asked."""
        late = Late(InlineExecutor(self.task, self.name).evaluate, model, self._chance)
        self._unscored.append(late)
        return Promise(late.get, late.ready)


class Late:
    """Scores that are computed at some time."""

    def __init__(self, score: Callable[[Model], Promise], model: Model, chance: random.Random) -> None:
        self._score, self._model, self._chance = score, model, chance
        self._scores: Any = None

    def settle(self) -> None:
        """Perhaps compute them."""
        if self._scores is None and self._chance.random() < 0.3:
            self._scores = self._score(self._model)()

    def ready(self) -> bool:
        """Whether they are known."""
        return self._scores is not None

    def get(self) -> Any:
        """Return them."""
        self._scores = self._score(self._model)() if self._scores is None else self._scores
        return self._scores


# ---- playing


@dataclass
class Play:
    """An engine that is played on a world, and what it says."""

    built: Built
    asleep: bool = False
    sink: MemorySink = field(default_factory=MemorySink)
    evaluations: list[Any] = field(default_factory=list)
    sha256: str = ""
    error: str | None = None

    def __post_init__(self) -> None:
        world = asleep(self.built.world) if self.asleep else self.built.world
        self.engine = ResumableEngine(world, EventLog(self.sink, 40), self.record)
        self.from_tick = -1

    def record(self, evaluation: Any) -> None:
        """Keep an evaluation that was not kept before."""
        if evaluation.ticks > self.from_tick:
            self.evaluations.append(evaluation)

    def run(self, watch: Any = None, held: Any = None) -> Play:
        """Play to the stop, or to the error."""
        try:
            self.sha256 = self.engine.run(watch) if held is None else self.engine.resume(held, watch)
        except RunError as error:  # then a session closes the accounts, and so does this
            self.error = f"{type(error).__name__}: {error}"
            self.engine.usage.close(self.engine.flights.values(), self.engine.now)
            self.sha256 = self.engine.log.finish(self.engine.now)
            self.engine.settle()
        return self

    def everything(self) -> str:
        """All that the laws speak of, as text (a value may be NaN)."""
        engine = self.engine
        notes = {name: self.sink.notes(name) for name in BESIDE}
        usage = (engine.usage.total(), sorted(engine.usage.staleness.items()), engine.usage.arrivals)
        model = None if self.built.world.timing_only else engine.model
        return repr((self.error, self.sha256, self.sink.tuples(), notes, model, engine.ledger, usage, engine.why, self.evaluations))  # fmt: skip


class Stored(NamedTuple):
    """A checkpoint of a world, as bytes."""

    content: bytes
    kill: Kill


def kills_of(play: Play, chance: random.Random, share: float) -> tuple[list[Stored], Any]:
    """A list that fills with checkpoints at random instants, and the watcher that fills it."""
    found: list[Stored] = []

    def watch(engine: Any) -> None:
        if engine.why is not None or not engine.between_instants or chance.random() > share:
            return
        engine.settle()
        held = engine.held()
        kill = Kill(
            engine.now, engine.ledger.buffered, tuple(flying.job.version for flying in engine.flights.values()),
            engine.model.version, engine._desk.open_places, len(engine._alarms), len(engine._caches),
            len(held.read.known) + len(held.decided.order),
            max((len(road.link) for road in engine.roads), default=0),
        )  # fmt: skip
        found.append(Stored(checkpoint.encoded((held, tuple(play.evaluations))), kill))

    return found, watch


def check(world: Generated) -> Seen:
    """Play a world in every way and compare; returns what came about."""
    chance = random.Random(~world.seed)
    whole = Play(world.built()).run()
    wild = Play(replaced(world.built(), chance))
    stored, watch = kills_of(wild, chance, 0.3)
    assert wild.run(watch).everything() == whole.everything(), "law 2: another executor, another result"
    check_plan(world, whole)
    check_rows(world, whole)
    seen = seen_of(whole)
    for kept in chance.sample(stored, min(KILLS, len(stored))):
        held, evaluations = checkpoint.decoded(kept.content)
        again = Play(world.built(), asleep=True)
        again.evaluations, again.from_tick = list(evaluations), held.tick
        assert again.run(held=held).everything() == whole.everything(), f"law 4: killed after tick {held.tick}"
        seen.kills.append(kept.kill)
    return seen


def replaced(built: Built, chance: random.Random) -> Built:
    """The same world with the executor that trains whenever it likes."""
    executor: Any = built.world.executor
    return replace(built, world=replace(built.world, executor=Whenever(executor, chance)))


def check_plan(world: Generated, whole: Play) -> None:
    """Law 1: the plan has the timeline of the run, or is refused because it depends on training."""
    reads = whole.built.world.strategy.reads_outcomes or whole.built.world.selector.reads_outcomes
    try:
        plan = Play(world.built(timing_only=True)).run()
    except RefusedError:
        plan = None
    assert (plan is None) == reads, "law 1: a plan is refused where training decides on the timeline, and there only"
    if plan is None:
        return
    assert (plan.error, plan.sha256) == (whole.error, whole.sha256), "law 1: the plan has another timeline"
    assert plan.engine.ledger == whole.engine.ledger, "law 1: the plan counts otherwise"


def check_rows(world: Generated, whole: Play) -> None:
    """Law 5: the audit of the rows finds nothing, and counts what the engine counted."""
    closed = world.scenario.strategy.name in {"fedasync", "fedbuff"} and not whole.engine._desk.explicit
    closed = closed and not world.scenario.run.poc_probe and world.scenario.run.arrivals is None
    audit = Audit(world.scenario.run.concurrency if closed else None, world.scenario.run.client_queue or 1)
    assert list(audit.problems(Row(seq, *row) for seq, row in enumerate(whole.sink.tuples()))) == []
    ledger = whole.engine.ledger
    totals = audit.totals()
    counted = {"versions": ledger.published, "updates": ledger.arrived}
    counted |= {name: getattr(ledger, name) for name in totals.keys() - counted.keys()}
    assert totals == counted, "law 5: the rows count otherwise than the engine"
    assert ledger.published == whole.engine.model.version


def seen_of(play: Play) -> Seen:
    """What came about in a world."""
    reasons, outcomes = ({text for text in play.sink.notes(name) if text} for name in ("reason", "outcome"))
    return Seen(
        play.sink.tuples(), reasons, outcomes, play.evaluations, why=play.engine.why, error=play.error,
        open_places=play.engine._desk.open_places, trips=play.built.world.trips, shares=bool(play.engine.roads),
        serves=play.engine.server is not None,
    )  # fmt: skip


# ---- run directories, killed in the middle of a write


class Dead(BaseException):
    """What kill -9 is to a process."""


STEPS = ("before", "half", "aside", "renamed")
KINDS = re.compile(r"scenario|partition|manifest|part(?=-)|checkpoint|metrics|clients|wall|model|report")


class Writes:
    """Takes the place of the one place that writes; dies in one step of one write, and is dead from then on."""

    def __init__(self, target: int | None = None, step: str = "before") -> None:
        self.kinds: list[str] = []
        self._target, self._step, self._dead = target, step, False
        self._write, self._remove = durable.write, durable.remove

    def _turn(self, kind: str) -> bool:
        """Whether it is the turn of the one to die in."""
        if self._dead:
            raise Dead
        self.kinds.append(kind)
        self._dead = len(self.kinds) - 1 == self._target
        return self._dead

    def write(self, path: Path, content: bytes) -> None:
        """Write, or die while writing."""
        match = KINDS.match(path.name)
        if not self._turn(match.group() if match else path.name):
            self._write(path, content)
            return
        aside = path.with_name(path.name + durable.ASIDE)
        if self._step != "before":
            aside.write_bytes(content[: len(content) // 2] if self._step == "half" else content)
        if self._step == "renamed":
            aside.replace(path)
        raise Dead

    def remove(self, path: Path) -> None:
        """Remove, or die before or after."""
        if not self._turn("removal"):
            self._remove(path)
            return
        if self._step in {"aside", "renamed"}:
            path.unlink()
        raise Dead

    @contextmanager
    def at_work(self, world: Generated) -> Iterator[None]:
        """Have every write of a run of this world go through here; the page, which takes long, is a line."""

        def page(folder: Path) -> Path:
            rundir.write_bytes(folder / "report.html", b"page")
            return folder / "report.html"

        with (
            mock.patch.object(durable, "write", self.write),
            mock.patch.object(durable, "remove", self.remove),
            mock.patch.object(report, "write", page),
            mock.patch.object(running, "build", world.built),
            mock.patch.object(eventlog, "_BATCH_ROWS", 15),
            mock.patch.object(EventLog.__init__, "__defaults__", (None, 40)),
        ):
            yield


def check_directory(world: Generated, space: Path) -> set[str]:
    """Kill a run directory at a write, perhaps its resume at another, and compare; returns the kinds of the writes."""
    chance = random.Random(world.seed)
    world = world.with_keys(f"checkpoint.every_versions={chance.choice([1, 2])}")
    whole, killed, record, met = space / "whole", space / "killed", Writes(), set()
    with record.at_work(world), suppress(DesimError):
        running.execute(world.scenario, whole)
    while True:
        kind = chance.choice(sorted(set(record.kinds)))
        places = [place for place, other in enumerate(record.kinds) if other == kind]
        if not _lived(world, killed, Writes(chance.choice(places), chance.choice(STEPS))):
            met.add(kind)
        if chance.random() < 0.6:
            break
    assert _lived(world, killed, Writes()), "it ended in death without a killer"
    assert_equal_runs(whole, killed)
    with mock.patch.object(replay, "build", world.built):
        assert verify(killed) == []
    return met


def _lived(world: Generated, folder: Path, writes: Writes) -> bool:
    """Run or resume; whether it was not killed."""
    try:
        with writes.at_work(world), suppress(RunError):
            if (folder / "scenario.toml").exists():
                running.resume(folder)
            else:
                running.execute(world.scenario, folder)
    except Dead:
        return False
    return True


# ---- real executors


def check_executor(seed: int, name: str) -> bool:
    """Train a small network of this world inline and elsewhere: the same events and, but for vmap, the same bits."""
    world = generate(seed, *LEARNING)
    if world is None or world.lines["work"] in {"one alone", "some have nothing"}:
        return False
    if name == "vmap":  # its values are near only, and what reads them may then go another way
        world = world.with_keys(*PATIENCE)
    inline = Play(world.with_keys("executor.name=inline").built())
    try:
        other = Play(world.with_keys(*EXECUTORS[name]).built())
    except ScenarioError:
        return False
    try:
        inline.run(), other.run()
    finally:
        other.built.world.executor.close()
    mine, theirs = (repr((play.error, play.sink.tuples(), play.engine.why)) for play in (inline, other))
    assert mine == theirs.replace(f"executor {name}", "executor inline"), "law 1: another executor, other events"
    if name != "vmap" and inline.error is None:
        assert inline.evaluations == other.evaluations, "law 2: another executor, other scores"
        assert inline.engine.model.params.equal(other.engine.model.params), "law 2: another executor, other parameters"
    return True


# ---- many


@dataclass
class Campaign:
    """Worlds one after another, and what came about in them."""

    met: Counter = field(default_factory=Counter)
    played: Counter = field(default_factory=Counter)
    refused: int = 0

    def one(self, seed: int) -> None:
        """Play the world of a seed in every way."""
        world = generate(seed)
        if world is None:
            self.refused += 1
            return
        self.played.update(f"{table}: {name}" for table, name in world.lines.items())
        self.played[f"method: {world.scenario.strategy.name}"] += 1
        seen = check(world)
        self.met.update(name for name, holds in RARE.items() if holds(seen))

    def directory(self, seed: int) -> None:
        """Play the world of a seed as a run directory."""
        world = generate(seed)
        if world is None:
            return
        with tempfile.TemporaryDirectory() as space, mock.patch("os.fsync"):
            seen = Seen(writes=check_directory(world, Path(space)))
        self.met.update(name for name, holds in RARE.items() if holds(seen))

    def missing(self) -> list[str]:
        """Situations and lines that never came about."""
        lines = [f"{table}: {name}" for table, entries in TABLES.items() for name in entries]
        lines += [f"method: {name}" for name in STRATEGIES]
        return [name for name in RARE if not self.met[name]] + [name for name in lines if not self.played[name]]


def main(worlds: int = 2000, first: int = 0) -> int:
    """Play so many, tell of each that breaks a law, and what never came about."""
    campaign, broken, began = Campaign(), [], time.monotonic()
    for seed in range(first, first + worlds):
        try:
            campaign.one(seed)
            if seed % DIRECTORY_EVERY == 0:
                campaign.directory(seed)
            if seed % LEARNING_EVERY == 0:
                check_executor(seed, list(EXECUTORS)[seed // LEARNING_EVERY % len(EXECUTORS)])
        except Exception as error:  # noqa: BLE001  (each is to be told, and the others go on)
            broken.append(seed)
            sys.stdout.write(f"seed {seed}: {type(error).__name__}: {str(error)[:2000]}\n")
    told = "\n".join(f"{count:7} {name}" for name, count in campaign.met.most_common())
    sys.stdout.write(
        f"{told}\nworlds {worlds}, refused {campaign.refused}, broken {broken}, never met: {campaign.missing()}"
    )
    sys.stdout.write(f", {time.monotonic() - began:.0f} s\n")
    return 1 if broken or campaign.missing() else 0


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
