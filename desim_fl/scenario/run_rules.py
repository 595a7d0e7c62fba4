"""Rules between the keys of [run] that choose clients, open the system, and end the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.scenario.server import SELECTION_KEYS
from desim_fl.scenario.table import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario.server import Run
    from desim_fl.scenario.serving import ServerTable
    from desim_fl.scenario.world import Clients

OPEN_REASON = "an open system sends jobs out at a rate, whatever is in flight"


def selections(run: Run, clients: Clients) -> Iterator[Problem]:
    """Options belong to the selection that is chosen, and must be able to have an effect."""
    if run.selector is not None and run.given("selection"):
        yield Problem(("run", "selector"), "selector and selection must not both be given", (("run", "selection"),))
    if run.selector is None and run.given("selector_args"):
        yield Problem(("run", "selector_args"), "selector_args must not be given without selector")
    for key in run.given(*type(run).model_fields):
        owner = next((name for name, prefix in SELECTION_KEYS.items() if key.startswith(prefix)), run.selection)
        if owner != run.selection:
            text = f'{key} must not be given with selection = "{run.selection}"; it belongs to "{owner}"'
            yield Problem(("run", key), text, (("run", "selection"),))
    if run.selection == "power_of_choice" and run.poc_candidates > clients.count:
        text = f"poc_candidates = {run.poc_candidates} is more than the {clients.count} clients there are"
        doubts = (("run", "selection"), ("clients", "count"))
        yield Problem(("run", "poc_candidates"), text, doubts)
    if not run.poc_probe and run.given("poc_probe_share"):
        text = "poc_probe_share needs poc_probe = true, whose evaluations it is about"
        yield Problem(("run", "poc_probe_share"), text, (("run", "poc_probe"),))
    if run.selection == "oort":
        yield from _oort(run)


def _oort(run: Run) -> Iterator[Problem]:
    doubts = (("run", "oort_preferred_s"), ("run", "oort_pacer_s"))
    if run.oort_preferred_s is None:
        for key in run.given("oort_penalty", "oort_pacer_s"):
            yield Problem(("run", key), f"{key} needs the key oort_preferred_s, which it works on", doubts)
    if run.oort_pacer_s is None and run.given("oort_pacer_window"):
        text = "oort_pacer_window needs the key oort_pacer_s, what a window adds"
        yield Problem(("run", "oort_pacer_window"), text, doubts)


def target(run: Run, data: Any) -> Iterator[Problem]:
    """A target accuracy is measured on a validation part, every so often."""
    if run.target_accuracy is None:
        return
    place, doubts = ("run", "target_accuracy"), (("data", "name"), ("data", "validation_share"))
    if not getattr(data, "validation_share", 0.0):
        yield Problem(
            place, "target_accuracy needs the key validation_share in [data], the part it is measured on", doubts
        )
    if run.eval_every_versions is None and run.eval_every_s is None:
        text = "target_accuracy needs eval_every_versions or eval_every_s, which say when it is looked at"
        yield Problem(place, text, (("run", "eval_every_versions"), ("run", "eval_every_s")))


def open_system(run: Run, strategy: Any) -> Iterator[Problem]:
    """Arrivals have a rate; nothing else says how many jobs are in flight."""
    doubts = (("run", "arrivals"), ("run", "arrival_rate"))
    if run.arrivals is None:
        if run.arrival_rate is not None:
            text = 'arrival_rate needs the key arrivals, "constant" or "poisson"'
            yield Problem(("run", "arrival_rate"), text, doubts)
        return
    if run.arrival_rate is None:
        yield Problem(("run", "arrivals"), f'arrivals = "{run.arrivals}" needs the key arrival_rate', doubts)
    for key in run.given("concurrency", "dispatch"):
        yield Problem(("run", key), f"{key} must not be given with arrivals: {OPEN_REASON}", doubts)
    if "concurrency" in strategy.settles():
        text = f'arrivals do not go with strategy "{strategy.name}", which itself says whom to send out'
        yield Problem(("run", "arrivals"), text, (("strategy", "name"),))


def queues(run: Run, clients: Clients, strategy: Any) -> Iterator[Problem]:
    """Several open jobs a client are for systems whose dispatch is the policy's."""
    if run.client_queue in {None, 1}:
        return
    place = ("run", "client_queue")
    if "concurrency" in strategy.settles():
        text = f'client_queue does not go with strategy "{strategy.name}", which itself says whom to send out'
        yield Problem(place, text, (("strategy", "name"),))
    for table in (clients, *(clients.classes or ())):
        for key in table.given("watts_idle", "price_per_hour"):
            text = (
                f"client_queue does not go with {key}: legs of a client's jobs overlap, so that its time has no parts"
            )
            yield Problem(place, text, (("clients", key), ("clients", "classes")))


def serving(server: ServerTable, run: Run) -> Iterator[Problem]:
    """What is said of the server has an effect."""
    for key in server.given("queue", "batch"):
        if server.aggregation_s is None and not (key == "queue" and server.blocking):
            text = f"{key} has no effect without aggregation_s, the time that updates wait for"
            yield Problem(("server", key), text, (("server", "aggregation_s"),))
    if server.evaluation_s is None and server.blocking:
        text = "blocking needs the key evaluation_s, how long the server is busy"
        yield Problem(("server", "blocking"), text, (("server", "evaluation_s"),))
    if server.evaluation_s is not None:
        yield from _evaluating(server, run)


def _evaluating(server: ServerTable, run: Run) -> Iterator[Problem]:
    place, doubts = ("server", "evaluation_s"), (("run", "eval_every_versions"), ("run", "eval_every_s"))
    if run.eval_every_versions is None and run.eval_every_s is None:
        yield Problem(place, "evaluation_s has no effect without eval_every_versions or eval_every_s in [run]", doubts)
    elif not server.blocking and run.target_accuracy is None:
        text = "evaluation_s has no effect unless blocking = true, or target_accuracy in [run] waits for it"
        yield Problem(place, text, (("server", "blocking"), ("run", "target_accuracy")))
    lasts = (server.evaluation_s or 0.0) * run.delay_scale
    if server.blocking and run.eval_every_s is not None and lasts >= run.eval_every_s:
        text = (
            f"the server never gets to an update: it would be busy with an evaluation for {lasts:g} s (evaluation_s, times "
            f"delay_scale), every {run.eval_every_s:g} s (eval_every_s in [run])"
        )
        yield Problem(place, text, (("run", "eval_every_s"), ("run", "delay_scale")))
