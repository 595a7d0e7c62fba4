"""Speed of timing-only runs, measured on the user's machine beside bare SimPy in the same process.

Bare SimPy is what anyone would write first: one new process a job, three timeouts each, so many jobs in flight, no
log, no strategy. A plan plays the same number of jobs with the real strategies and writes its event log. Sides take
turns, and all times are CPU seconds of this process, threads included, so that a busy machine disturbs the ratios little.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import simpy

from desim_fl import bench
from desim_fl.bench import Figure
from desim_fl.build import build
from desim_fl.run import Session
from desim_fl.scenario import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MANY, FEW, LONG = 1_000_000, 1_000, 1_000_000
_WARM_UP = 2_000  # jobs played before anything is timed: imports, caches


class Case(NamedTuple):
    """One kind of timing-only run."""

    strategy: str
    concurrency: int
    clients: int = FEW
    delay_scale: float = 1.0

    @property
    def name(self) -> str:
        """What it is, in words."""
        scale = "" if self.delay_scale == 1.0 else f", delays x {self.delay_scale:,.0f}"
        return f"{self.strategy}, {self.concurrency:,} in flight, {self.clients:,} clients{scale}"


CASES = (
    Case("fedasync", 100),
    Case("fedasync", 1_000),
    Case("fedbuff", 100),
    Case("fedbuff", 1_000),
    Case("fedbuff", 100, clients=MANY),
    Case("fedbuff", 100, delay_scale=LONG),
)


def bare_simpy(jobs: int, in_flight: int) -> float:
    """Play ``jobs`` jobs of three timeouts, each a new process; returns CPU seconds."""
    env, left = simpy.Environment(), jobs

    def job(number: int) -> Iterator[simpy.Event]:
        nonlocal left
        yield env.timeout(1 + number % 7 * 0.1)
        yield env.timeout(2 + number % 5 * 0.3)
        yield env.timeout(1)
        left -= 1
        if left > 0:
            env.process(job(number + 1))  # pyright: ignore[reportArgumentType]

    for number in range(in_flight):
        env.process(job(number))  # pyright: ignore[reportArgumentType]
    began = process_time()
    while left > 0:
        env.step()
    return process_time() - began


def scenario(case: Case, jobs: int) -> Scenario:
    """Return the scenario of a case: lognormal devices and jitter, a latency and a link of 1 Mbit/s each way."""
    spread = {"law": "lognormal", "median": 1.0, "sigma": 0.5}
    devices = {"count": case.clients, "seconds_per_step": 1.0, "device_factor": spread}
    tables = {
        "data": {"name": "quadratic"},
        "clients": {**devices, "jitter_factor": {**spread, "sigma": 0.3}},
        "network": {"latency_s": 0.1, "down_mbps": 1.0, "up_mbps": 1.0},
        "strategy": {"name": case.strategy},
        "run": {"concurrency": case.concurrency, "max_updates": jobs, "delay_scale": case.delay_scale},
    }
    return Scenario.model_validate(tables)


def planned(case: Case, jobs: int) -> float:
    """Play a case to its end and write its event log; returns CPU seconds, those of building the world left out."""
    built = build(scenario(case, jobs), timing_only=True)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(built, Path(folder))
        gc.collect()
        began = process_time()
        session.play()
        return process_time() - began


def sides(cases: Sequence[Case]) -> dict[str, Callable[[int], float]]:
    """What is compared, by name: bare SimPy with each number of jobs in flight, then the cases."""
    numbers = sorted({case.concurrency for case in cases})
    bare = {bare_name(number): partial(_bare, number) for number in numbers}
    return {**bare, **{case.name: partial(planned, case) for case in cases}}


def bare_name(in_flight: int) -> str:
    """Name of the baseline with that many jobs in flight."""
    return f"bare SimPy, {in_flight:,} in flight"


def _bare(in_flight: int, jobs: int) -> float:
    return bare_simpy(jobs, in_flight)


def plan(jobs: int, repeats: int, cases: Sequence[Case] = CASES) -> list[Figure]:
    """Measure every side ``repeats`` times, in turns, ``jobs`` jobs each time (a warm-up apart)."""
    running = sides(cases)
    for play in running.values():
        play(min(jobs, _WARM_UP))
    rates: dict[str, list[float]] = {side: [] for side in running}
    for _ in range(repeats):
        for side, play in running.items():
            rates[side].append(jobs / play(jobs))
    return [Figure(side, tuple(values)) for side, values in rates.items()]


def ratios(figures: Sequence[Figure], cases: Sequence[Case] = CASES) -> dict[str, Figure]:
    """Of each case: its jobs a second over those of bare SimPy with as many in flight, turn by turn."""
    rates = {figure.side: figure.rates for figure in figures}
    found = {}
    for case in cases:
        pairs = zip(rates[case.name], rates[bare_name(case.concurrency)], strict=True)
        found[case.name] = Figure(case.name, tuple(mine / bare for mine, bare in pairs))
    return found


def costs(figures: Sequence[Figure]) -> dict[str, Figure]:
    """Cost a job of a large population, and of long delays, over that of the plain FedBuff case, turn by turn."""
    rates = {figure.side: figure.rates for figure in figures}
    plain, many, long = Case("fedbuff", 100), Case("fedbuff", 100, clients=MANY), Case("fedbuff", 100, delay_scale=LONG)
    found = {}
    for what, case in ((f"{MANY:,} clients over {FEW:,}", many), (f"delays x {LONG:,} over x 1", long)):
        pairs = zip(rates[plain.name], rates[case.name], strict=True)
        found[what] = Figure(what, tuple(usual / mine for usual, mine in pairs))
    return found


def peak_megabytes(jobs: int) -> float:
    """Peak memory of a process of its own that plays the case with the most clients."""
    code = (
        "from desim_fl import bench, bench_plan as b; "
        f"b.planned(b.Case('fedbuff', 100, clients=b.MANY), {jobs}); "
        "print(bench.peak_megabytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  (this very module)
    return float(done.stdout)


def table(jobs: int, figures: Sequence[Figure], megabytes: float) -> str:
    """Figures as lines of text, each case with its ratio to bare SimPy."""
    found = ratios(figures)
    lines = [f"plan: jobs a CPU second, {jobs:,} jobs a turn, n = {len(figures[0].rates)}, {machine()}"]
    for figure in figures:
        line = f"  {figure.side:46} {figure.mean:9,.0f} (sd {figure.sd:,.0f})"
        if figure.side in found:
            ratio = found[figure.side]
            line += f"  x {ratio.mean:.3f} (sd {ratio.sd:.3f}) of bare SimPy"
        lines.append(line)
    lines += [f"  cost a job, {what}: {cost.mean:.2f} (sd {cost.sd:.2f})" for what, cost in costs(figures).items()]
    return "\n".join([*lines, f"  peak memory with {MANY:,} clients: {megabytes:.0f} MB"])


def result(jobs: int, figures: Sequence[Figure], megabytes: float) -> dict[str, Any]:
    """Return the same as a JSON object."""

    def listed(found: Sequence[Figure]) -> list[dict[str, Any]]:
        return [{"side": each.side, "rates": each.rates, "mean": each.mean, "sd": each.sd} for each in found]

    return {
        "machine": machine(),
        "jobs": jobs,
        "jobs_per_cpu_second": listed(figures),
        "over_bare_simpy": listed(list(ratios(figures).values())),
        "cost": listed(list(costs(figures).values())),
        "peak_megabytes": megabytes,
    }


def machine() -> str:
    """The machine in a few words."""
    return f"{bench.machine()}, simpy {simpy.__version__}"
