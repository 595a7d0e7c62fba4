"""What a person at a terminal sees: a progress bar while a run plays, and a few lines at its end."""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter  # for jobs a real second; never enters virtual time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from desim_fl.effort import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from desim_fl.effort import Effort
    from desim_fl.run import Session

_EVERY_S = 0.1


def duration_text(seconds: float) -> str:
    """Virtual seconds in the unit a person would choose."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.3g} s"


def bytes_text(count: int) -> str:
    """Bytes in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def share_done(session: Session) -> float:
    """How far a run is, from 0 to 1, by the stop rule that is nearest; 1 once one of them has stopped it."""
    if session.engine.why is not None:
        return 1.0
    stops, engine = session.built.world.stops, session.engine
    reached = (
        (engine.now, stops.max_ticks),
        (engine.model.version, stops.max_versions),
        (engine.ledger.arrived, stops.max_updates),
    )
    return min(1.0, max((value / limit for value, limit in reached if limit), default=0.0))


@contextmanager
def progress_bar(name: str, *, quiet: bool) -> Iterator[Callable[[Session], None] | None]:
    """Show virtual time, version, updates, accuracy and jobs a second on stderr; nothing if ``quiet``."""
    if quiet:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=1.0, state="starting")
        began, shown = perf_counter(), 0.0
        seen: list[Session] = []

        def show(session: Session) -> None:
            bar.update(task, completed=share_done(session), state=_state(session, perf_counter() - began))

        def watch(session: Session) -> None:
            nonlocal shown
            seen[:] = [session]
            if perf_counter() - shown >= _EVERY_S:
                shown = perf_counter()
                show(session)

        yield watch
        for session in seen:  # its last arrival may have been long before its stop
            show(session)
        bar.update(task, completed=1.0)  # also where nothing ever arrived


def _state(session: Session, seconds: float) -> str:
    engine = session.engine
    accuracy, loss = session.last_score()
    score = f"accuracy {accuracy:.1%}" if accuracy is not None else f"loss {loss:.4g}" if loss is not None else ""
    return (
        f"t {duration_text(engine.now / 1e6)}  version {engine.model.version}  updates {engine.ledger.arrived}  "
        f"{score}  {engine.ledger.arrived / max(seconds, 1e-9):.0f} jobs/s"
    )


def say_result(folder: Path, manifest: dict[str, Any]) -> None:
    """Print the outcome of a run and where its report lies."""
    facts = manifest["summary"]
    score = [f"{name} {facts[name]:.4g}" for name in ("accuracy", "loss") if facts[name] is not None]
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{', '.join(score) or 'not scored'} after {duration_text(facts['virtual_time_s'])} of virtual time: "
        f"{facts['updates']} updates received, {facts['versions']} versions, {facts['wall_s']:.1f} s of real time",
        markup=False,
    )
    console.print(f"report: {folder / 'report.html'}", markup=False)


def say_plan(folder: Path | None, manifest: dict[str, Any], training: Effort | None = None) -> None:
    """Print the summary of a timeline, and what its training would take."""
    facts = manifest["summary"]
    staleness, spread, legs = facts["staleness"], facts["updates_a_client"], facts["leg_s"]
    rows = {
        "virtual time": f"{duration_text(facts['virtual_time_s'])} ({facts['virtual_time_s']} s)",
        "versions, updates received": f"{facts['versions']}, {facts['updates']}",
        "rejected, lost, in flight": f"{facts['rejected']}, {facts['lost']}, {facts['in_flight']}",
        "staleness": ", ".join(f"{name} {_number(staleness[name])}" for name in ("mean", "p50", "p99", "max")),
        "updates a client": ", ".join(f"{name} {_number(value)}" for name, value in spread.items()),
        "updates a virtual second": _number(facts["updates_a_second"]),
        "utilisation of clients": "-" if facts["utilisation"] is None else f"{facts['utilisation']:.1%}",
        "jobs in flight (time average)": _number(facts["mean_in_flight"]),
        "client time by leg": ", ".join(f"{leg} {duration_text(seconds)}" for leg, seconds in legs.items()),
        "bytes down, up": f"{bytes_text(facts['bytes_down'])}, {bytes_text(facts['bytes_up'])}",
        **_links(facts),
        **_charges(facts),
        "stopped by": facts["stop"],
        **({} if training is None else {"training it, in real time": _training(training)}),
        "timeline_sha256": manifest["timeline_sha256"],
    }
    if manifest["assumed_full_work"]:
        rows["assumed"] = "full work: no trained value was read, so that this need not be the timeline of a run"
    console, width = Console(highlight=False, soft_wrap=True), max(map(len, rows)) + 2
    for name, value in rows.items():
        console.print(f"{name:{width}}{value}", markup=False)
    if folder is not None:
        console.print(f"report: {folder / 'report.html'}", markup=False)


def _training(effort: Effort) -> str:
    """What the training would take, or why that is not known."""
    work = f"{effort.steps:,} steps, {effort.samples:,} samples"
    if effort.real_s is None or effort.operations is None:
        return f"not known ({work}): {effort.unknown}"
    where = f"{effort.workers} workers" if effort.workers != 1 else "1 worker"
    counted = f"{work}, {effort.operations:.2g} multiply-adds at the speed of {MACHINE}"
    return f"about {duration_text(effort.real_s)} with {where} (estimate: {counted})"


def _in_use(use: dict[str, Any]) -> str:
    """How much a client's link is in use; several jobs of one client transfer at once."""
    if "transfers_each" in use:
        return f"{_number(use['transfers_each'])} transfers at a time for each"
    return f"{_percent(use['clients_busy'])} of the time"


def say_advice(advice: dict[str, Any]) -> None:
    """Print what a timeline tells, and how half and twice each setting would compare."""
    age, waits, wasted, fair = (advice[name] for name in ("staleness_s", "waits_for_others_s", "wasted", "fairness"))
    rows = {
        "age of a model at its update": ", ".join(f"{name} {_number(value)} s" for name, value in age.items()),
        "updates wait for others": ", ".join(f"{name} {_number(value)} s" for name, value in waits.items()),
        "links of clients in use": ", ".join(
            f"{way} {_in_use(use)} ({_number(use['mean_mbps'])} Mbit/s in all)" for way, use in advice["links"].items()
        ),
        "work that counts for nothing": f"{duration_text(wasted['client_s'])}, {_percent(wasted['share'])} of all",
        "evenness of updates (Jain, 1 = even)": _number(fair["jain"]),
    }
    for name, kind in (fair["classes"] or {}).items():
        shares = f"{_percent(kind['share_of_updates'])} of updates, {_percent(kind['share_of_clients'])} of clients"
        rows[f"class {name}"] = shares
    console, width = Console(highlight=False, soft_wrap=True), max(map(len, rows)) + 2
    for name, value in rows.items():
        console.print(f"{name:{width}}{value}", markup=False)
    if advice["what_if"]:
        console.print("half and twice each setting, without training, the first updates:", markup=False)
    for found in advice["what_if"]:
        changed = ", ".join(f"{key} = {value:g}" for key, value in found["changed"].items()) or "as it is"
        console.print(f"  {changed:32}{_variant(found)}", markup=False)


def _variant(found: dict[str, Any]) -> str:
    if "error" in found:
        return f"cannot be played: {found['error']}"
    stale = found["staleness"]
    return (
        f"{_number(found['updates_a_second'])} updates/s, {_number(found['versions_a_second'])} versions/s, staleness "
        f"{_number(stale['mean'])} (p99 {_number(stale['p99'])}), waits {_number(found['waits_for_others_s'])} s, "
        f"{_percent(found['wasted_share'])} wasted"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _links(facts: dict[str, Any]) -> dict[str, str]:
    """How busy the links are that transfers share; nothing where there is none."""

    def shown(share: float | None) -> str:
        return "-" if share is None else f"{share:.1%}"

    return {
        f"server {name}": f"used {shown(use['utilisation'])}, busy {shown(use['busy'])} of the time, full {shown(use['full'])}"
        for name, use in facts.get("links", {}).items()
    }


def _charges(facts: dict[str, Any]) -> dict[str, str]:
    """Energy and cost of the clients, where the scenario states power or prices."""
    parts = {"energy of the clients": (facts["energy_j"], " J"), "cost": (facts["cost"], "")}
    return {
        name: ", ".join(f"{use} {_number(value)}{unit}" for use, value in found.items())
        for name, (found, unit) in parts.items()
        if found is not None
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
