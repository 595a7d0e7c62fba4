"""QuAFL and FAVAS: a server that asks, by the clock, whoever it draws for what they have done by then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Alarm, Model, Reply, Send, Stop, Work
from desim_fl.draws import Purpose, word
from desim_fl.strategies.buffer import everybody, learners
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View

CONTACT = "contact"


class Report(NamedTuple):
    """What a client has done: where it began, where it is (``None`` = not finite), how many steps, its own record."""

    client: int
    base: Params
    params: Params
    steps: int
    record: Record


class Record(NamedTuple):
    """A client's contacts so far, kept by the engine while it computes: how many, in how many it had done something, and steps in all of them together."""

    contacts: int = 0
    active: int = 0
    steps: int = 0

    def plus(self, steps: int) -> Record:
        """One contact more."""
        return Record(self.contacts + 1, self.active + (steps > 0), self.steps + steps)


class Contact(NamedTuple):
    """Contacts begun, the jobs that are to report, and the reports of this contact."""

    number: int = 0
    asked: tuple[int, ...] = ()
    reports: tuple[Report, ...] = ()


def drawn(seed: int, number: int, clients: int, count: int) -> tuple[int, ...]:
    """Return ``count`` distinct clients of a contact, each with the same chance: the first cards of a shuffled pack."""
    moved: dict[int, int] = {}
    chosen = []
    for place in range(count):
        other = place + (word(seed, Purpose.CONTACT, 0, number, place) * (clients - place) >> 32)
        chosen.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Polled:
    """The part that QuAFL and FAVAS share. All clients that have samples compute, at most one job's steps each.

    Every ``interval_s`` after its last step the server draws ``contacted`` clients. Who is computing reports the whole steps done by
    then, perhaps none; who is through has waited, with its result known to the server from its natural arrival (its upload
    takes place then); who cannot be reached (its job was lost) is passed over. When all reports are in, the server makes
    its step, and the contacted clients go on.
    """

    contacted: int = 5
    interval_s: float = 10.0
    seed: int = 0
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.contacted >= 1, "contacted", self.contacted, "must be at least 1")
        require(self.interval_s > 0, "interval_s", self.interval_s, "must be greater than 0")

    def start(self, view: View) -> tuple[Contact, Reply]:
        """Send everybody out and set the clock."""
        sends = tuple(send._replace(work=self.work(view)) for send in everybody(view))
        return Contact(), Reply(sends=sends, alarms=self._next())

    def _next(self) -> tuple[Alarm, ...]:
        return (Alarm(CONTACT, self.interval_s),)

    def alarm(self, state: Contact, view: View, name: str) -> tuple[Contact, Reply]:
        """Draw clients and ask them for what they have done."""
        if name != CONTACT:
            return state, Reply(sends=())
        able = [client for client, size in enumerate(view.sizes) if size]
        places = drawn(self.seed, state.number, len(able), min(self.contacted, len(able)))
        chosen = [able[place] for place in places]
        jobs = {out.client: job for job, out in view.flying.items()}
        ready = [view.cache(client) for client in chosen if client not in jobs]
        asked = tuple(jobs[client] for client in chosen if client in jobs)
        reports = tuple(report for report in ready if isinstance(report, Report))
        state = Contact(state.number + 1, asked, reports)
        if asked:
            return state, Reply(stops=tuple(Stop(job, how="now") for job in asked), sends=())
        return self._step(state, view)

    def arrive(self, state: Contact, view: View, update: Update) -> tuple[Contact, Reply]:
        """Take the report in; one that nobody asked for waits until somebody does."""
        job = update.job
        params = update.outcome.params if update.finite else None
        report = Report(job.client, job.params, params, update.outcome.steps, update.cache or Record())
        if job.id not in state.asked:
            return state, Reply(keep=((job.client, report),), sends=(), weight=update.counts)
        asked = tuple(other for other in state.asked if other != job.id)
        state = Contact(state.number, asked, (*state.reports, report))
        state, reply = (state, Reply(sends=())) if asked else self._step(state, view)
        return state, reply._replace(weight=update.counts)

    def lose(self, state: Contact, view: View, loss: Loss) -> tuple[Contact, Reply]:
        """Let the client begin again where it began; the contact goes on without it."""
        job = loss.job
        start = Model(job.version, job.params, job.buffers)
        sends = (Send(clients=(job.client,), start=start, work=self.work(view)),)
        if job.id not in state.asked:
            return state, Reply(sends=sends)
        asked = tuple(other for other in state.asked if other != job.id)
        state, reply = Contact(state.number, asked, state.reports), Reply(sends=())
        if not asked:
            state, reply = self._step(state, view)
        return state, reply._replace(sends=(*sends, *(reply.sends or ())))

    def _step(self, state: Contact, view: View) -> tuple[Contact, Reply]:
        """Make the server's step, and let the contacted clients go on."""
        if not state.reports:
            return state, Reply(sends=(), alarms=self._next(), abandon=True)
        counted = [report._replace(record=report.record.plus(report.steps)) for report in state.reports]
        finite = [report for report in counted if report.params is not None]
        x, s = view.params, len(finite)
        for report in finite:
            x = x + self.seen(report)
        x = x / (s + 1) if finite else view.params
        version, buffers, work = view.version + 1, view.model.buffers, self.work(view)
        sends = tuple(
            Send(
                clients=(report.client,),
                start=Model(version, self.onward(report, view.params, x, s), buffers),
                work=work,
            )
            for report in counted
        )
        reply = Reply(
            params=x,
            shares=None if finite else (),
            sends=sends,
            keep=tuple((report.client, report.record) for report in counted),
            alarms=self._next(),
            scale=1.0 / (s + 1),
        )
        return Contact(state.number), reply

    def work(self, view: View) -> Work | None:  # noqa: ARG002
        """What clients are asked to do, where it is not what the scenario says."""
        return None

    def seen(self, report: Report) -> Params:
        """What the server takes a client's model for."""
        raise NotImplementedError

    def onward(self, report: Report, before: Params, after: Params, count: int) -> Params:
        """Where a contacted client goes on, the server having moved from ``before`` to ``after``."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Quafl(Polled):
    """``x <- (x + sum x_i) / (s + 1)`` over s drawn clients, each of which goes on from ``(x_before + s x_i) / (s + 1)``.

    Zakerinia, Talaei, Nadiradze, Alistarh, "Communication-Efficient Federated Learning With Data and Client Heterogeneity"
    (QuAFL), AISTATS 2024, as in the authors' code, without its quantiser. See :class:`Polled` for who is asked when;
    ``interval_s`` is the code's ``sit + swt``. ``scale_rate = True`` makes the clients' rate (s+1)/s times the scenario's
    (``lr``), as the code does, s being the clients that are contacted. A non-finite model is left out, s being the number of the
    others; where that client began stands for its x_i.
    """

    scale_rate: bool = False
    lr: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        Polled.__post_init__(self)
        require(not self.scale_rate or (self.lr or 0.0) > 0, "lr", self.lr, "must be above 0 with scale_rate")

    def work(self, view: View) -> Work | None:
        """The scenario's, at another rate if it is to be scaled."""
        if not self.scale_rate or self.lr is None:
            return None
        contacted = min(self.contacted, learners(view))
        return Work(lr=self.lr * (contacted + 1) / contacted)

    def seen(self, report: Report) -> Params:
        """The model itself."""
        return report.params

    def onward(self, report: Report, before: Params, after: Params, count: int) -> Params:  # noqa: ARG002
        """Mostly its own model, a little of the server's."""
        own = report.base if report.params is None else report.params
        return (before + count * own) / (count + 1)


@dataclass(frozen=True, slots=True)
class Favas(Polled):
    """``x <- (x + sum (b_i + (x_i - b_i) / alpha_i)) / (s + 1)`` over s drawn clients, b_i where each began; they go on from x.

    Leconte, Minh Nguyen, Moulines, "FAVANO: Federated AVeraging with Asynchronous NOdes", 2023 (the formula is recalled,
    not checked against the paper's text). ``alpha_i`` corrects for how much client i gets done: ``scaling = "expected"``
    is E[E_i], E_i being its steps between two contacts (at most one job's), and ``"realized"`` is P(E_i > 0) E_i. Neither
    expectation is known to a server, so both are taken over the client's own contacts so far, this one included. A client
    that has done nothing is taken for its b_i. A non-finite model is left out, s being the number of the others.
    """

    scaling: str = "expected"

    def __post_init__(self) -> None:
        Polled.__post_init__(self)
        one_of("scaling", self.scaling, ("expected", "realized"))

    def seen(self, report: Report) -> Params:
        """The client's progress, scaled to what one step would be."""
        record = report.record
        if not report.steps:
            return report.params
        share = record.active / record.contacts
        alpha = record.steps / record.contacts if self.scaling == "expected" else share * report.steps
        return report.base + (report.params - report.base) / alpha

    def onward(self, report: Report, before: Params, after: Params, count: int) -> Params:  # noqa: ARG002
        """The server's new model."""
        return after
