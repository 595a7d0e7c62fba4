"""What happened, in words and headline numbers, all computed from the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.report import path_charts
from desim_fl.report.formats import count, duration, joules, many, number, percent, size

if TYPE_CHECKING:
    from desim_fl.report.facts import Evaluation, Facts
    from desim_fl.report.path_charts import Told

_MANY = 10  # clients from which on a tenth of them is somebody
_FLAT = 0.005  # a change of accuracy below half a percentage point
_NAMED = 3  # reasons of losses that are told one by one
_STOPS = {
    "max_updates": "when the set number of updates had come",
    "max_versions": "at the set number of versions",
    "max_time": "at the set virtual time",
    "target_accuracy": "when its target accuracy was reached",
    "patience": "when its patience was spent",
}


class Notice(NamedTuple):
    """Something the reader must not miss; ``kind`` is "alarm" or "hint"."""

    kind: str
    text: str


class Card(NamedTuple):
    """A headline number: ``exact`` is the machine-readable value, ``note`` what to know with it."""

    label: str
    shown: str
    note: str = ""
    exact: str = ""
    real: bool = False


def notices(facts: Facts) -> list[Notice]:
    """Failure, interruption, divergence and the absence of training, in that order."""
    found = []
    reached = f"after {duration(facts.end_s)} of virtual time, at version {count(facts.versions)}"
    if facts.status == "failed":
        found.append(Notice("alarm", f"This run failed {reached}: {facts.error or 'no reason was recorded'}"))
    elif facts.status == "interrupted":
        why = f" ({facts.error})" if facts.error else ""
        found.append(Notice("alarm", f"This run was interrupted {reached}{why}. What follows is the part until then."))
    elif facts.status != "finished":
        found.append(
            Notice(
                "alarm",
                f"This run did not finish; its status is \N{LEFT DOUBLE QUOTATION MARK}{facts.status}\N{RIGHT DOUBLE QUOTATION MARK}.",
            )
        )
    if facts.diverged:
        at = facts.diverged
        found.append(
            Notice(
                "alarm",
                f"Training diverged at version {at.version}: from there on ({duration(at.time_s)} of virtual time, "
                f"{many(at.updates, 'update')} received) the {at.split} loss is not a finite number.",
            )
        )
    if facts.received and facts.not_finite * 2 >= facts.received:
        every = "Every update was" if facts.not_finite == facts.received else (
            f"{count(facts.not_finite)} of {many(facts.received, 'update')} were"
        )  # fmt: skip
        found.append(Notice("alarm", f"{every} not finite (training diverged on the clients) and weighed nothing."))
    if facts.planned:
        found.append(
            Notice("hint", "This is a plan: the timeline was played without training, so nothing was learned.")
        )
    elif facts.versions == 0 and facts.received:
        found.append(Notice("hint", "The server never published, so the model is still the initial one."))
    return found


def paragraph(facts: Facts, told: Told | None = None) -> str:
    """Return a short paragraph: who did what, what was learned, where time went, how stale and how evenly spread updates were, what went wrong."""
    path = "" if told is None else path_charts.sentence(told)
    parts = [_course(facts), _learned(facts), path, _staleness(facts), _links(facts), _spread(facts), _trouble(facts)]
    return " ".join(part for part in parts if part)


def _course(facts: Facts) -> str:
    part = "" if facts.busy == facts.clients else f"{count(facts.busy)} of "
    who = f"{part}{many(facts.clients, 'client')}"
    method = f" under {facts.strategy}" if facts.strategy else ""
    one = (facts.busy if part else facts.clients) == 1
    verb = ("was simulated" if one else "were simulated") if facts.planned else "trained"
    real = f" ({duration(facts.wall_s)} of real time)" if facts.wall_s is not None else ""
    end = ""
    if facts.stop and facts.status == "finished" and " " not in facts.stop:
        end = f"; the run ended {_STOPS.get(facts.stop, f'by its rule {facts.stop}')}"
    return (
        f"{who} {verb}{method} for {duration(facts.end_s)} of virtual time{real}. The server received "
        f"{many(facts.received, 'update')} and published {many(facts.versions, 'new version')} of the model{end}."
    )


def _learned(facts: Facts) -> str:
    first, last = facts.first, facts.last
    if first is None or last is None:
        return ""
    if last.accuracy is not None and first.accuracy is not None:
        return _accuracy(first, last, facts.best)
    if last.loss is None or first.loss is None:
        return ""
    if not math.isfinite(last.loss):
        return f"Test loss began at {number(first.loss)} and ended as no finite number."
    change = "fell" if last.loss < first.loss else "rose" if last.loss > first.loss else "did not move"
    return f"Test loss {change} from {number(first.loss)} to {number(last.loss)}."


def _accuracy(first: Evaluation, last: Evaluation, best: Evaluation | None) -> str:
    before, after = first.accuracy or 0.0, last.accuracy or 0.0
    if first.version == last.version:
        return f"Test accuracy was {percent(after)} at version {count(last.version)}."
    change = "stayed near" if abs(after - before) < _FLAT else "rose from" if after > before else "fell from"
    text = f"Test accuracy {change} {percent(before)} to {percent(after)}" if "from" in change else (
        f"Test accuracy {'stayed near' if after != before else 'ended where it began, at'} {percent(after)}"
    )  # fmt: skip
    if best is not None and best.accuracy is not None and best.accuracy > after:
        return f"{text}; the best was {percent(best.accuracy)}, at version {count(best.version)}."
    return f"{text}." if after == before else f"{text}, its best."


def _staleness(facts: Facts) -> str:
    if facts.staleness_mean is None:
        return ""
    if not facts.staleness_max:
        return "No update was stale."
    return (
        f"On average the model had moved on by {number(facts.staleness_mean, 3)} versions when an update arrived, "
        f"by {count(facts.staleness_max)} at most."
    )


def _links(facts: Facts) -> str:
    return " ".join(f"{clause}." for clause in facts.full_links)


def _spread(facts: Facts) -> str:
    if facts.even is None or facts.clients < _MANY:
        return ""
    return (
        f"The busiest tenth of the clients sent {percent(round(facts.even.busiest, 3))} of the updates "
        f"(Gini coefficient {number(facts.even.gini, 2)}; 0 would be equal turns)."
    )


def _lost(facts: Facts) -> str:
    """Return why jobs were lost, in brackets; where reasons are many, those that took most."""
    named = [f"{reason}: {count(jobs)}" for reason, jobs in facts.reasons[:_NAMED]]
    rest = sum(jobs for _, jobs in facts.reasons[_NAMED:])
    few = [*named, *([f"other reasons: {count(rest)}"] if rest else [])]
    return f" ({', '.join(few)})" if few else ""


def _trouble(facts: Facts) -> str:
    counts = (
        (facts.rejected, "rejected"),
        (facts.not_finite, "trained to numbers that are not finite and weighed nothing"),
        (facts.lost, f"lost{_lost(facts)}"),
        (facts.cancelled, "cancelled"),
    )
    named = [f"{count(value)} {'was' if value == 1 else 'were'} {what}" for value, what in counts if value]
    if not named:
        return ""
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    return f"Of {many(facts.jobs, 'job')} sent out, {listed}."


def cards(facts: Facts) -> list[Card]:
    """Return the headline numbers."""
    mean, most = facts.staleness_mean, facts.staleness_max
    share = f"{percent(round(facts.applied / facts.received, 3))} of those received" if facts.received else ""
    return [
        *_scores(facts.last),
        Card("Virtual time", duration(facts.end_s), f"{facts.end_s:,.6g} s", repr(facts.end_s)),
        Card("Versions published", count(facts.versions), "", str(facts.versions)),
        Card("Updates received", count(facts.received), f"from {many(facts.active, 'client')}", str(facts.received)),
        Card("Updates applied", count(facts.applied), share, str(facts.applied)),
        Card("Rejected", count(facts.rejected), _also(facts.not_finite, "not finite"), str(facts.rejected)),
        Card("Lost", count(facts.lost), _also(facts.cancelled, "cancelled"), str(facts.lost)),
        Card("Mean staleness", number(mean, 3), f"versions, at most {count(most)}" if most is not None else ""),
        Card("Still in flight", count(facts.in_flight), "when the run ended", str(facts.in_flight)),
        Card(
            "Traffic",
            size(facts.bytes_down + facts.bytes_up),
            f"{size(facts.bytes_down)} down, {size(facts.bytes_up)} up",
        ),
        *_charges(facts),
        Card("Real time", duration(facts.wall_s), "on the computer that ran it", real=True),
    ]


def _charges(facts: Facts) -> list[Card]:
    """Return what the clients' energy and money came to, where the scenario states power or prices."""
    found = []
    if facts.energy is not None:
        parts = ", ".join(f"{joules(facts.energy[use])} {use}" for use in ("compute", "send", "receive", "idle"))
        found.append(Card("Energy of the clients", joules(facts.energy["total"]), parts, repr(facts.energy["total"])))
    if facts.cost is not None:
        parts = f"{number(facts.cost['time'], 4)} for time, {number(facts.cost['traffic'], 4)} for traffic"
        found.append(Card("Cost", number(facts.cost["total"], 4), parts, repr(facts.cost["total"])))
    return found


def _also(value: int, what: str) -> str:
    return f"and {count(value)} {what}" if value else ""


def _scores(last: Evaluation | None) -> list[Card]:
    if last is None:
        return [Card("Test accuracy", number(None), "no evaluation"), Card("Test loss", number(None), "no evaluation")]
    where = f"version {count(last.version)}, {many(last.examples, 'test sample')}"
    loss = Card("Test loss", number(last.loss), where, repr(last.loss))
    if last.accuracy is None:
        return [loss]
    return [Card("Test accuracy", percent(last.accuracy), where, repr(last.accuracy)), loss]
