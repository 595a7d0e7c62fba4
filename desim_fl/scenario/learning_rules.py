"""Rules between the keys that say what is learned and how; each looks at finished tables and yields what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.scenario.data import Blobs, LeastSquares, Quadratic
from desim_fl.scenario.models import BY_DATA, Cnn, CnnGap, LeNet5, Logistic, ResNet20
from desim_fl.scenario.schedules import SCHEDULE_KEYS
from desim_fl.scenario.table import Loc, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario.schedules import LrSchedule
    from desim_fl.scenario.server import Run
    from desim_fl.scenario.table import Table
    from desim_fl.scenario.training import Training
    from desim_fl.scenario.world import Clients

CLOSED_FORM = (*BY_DATA.values(), "logistic")


def model_fits_data(data: Table, model: Table) -> Iterator[Problem]:
    """Models for images need images, and some models belong to one kind of data."""
    kind, name = getattr(data, "name", ""), getattr(model, "name", "")
    doubts = (("data", "name"), ("model", "name"))
    for theirs, mine in BY_DATA.items():
        if (name == mine) != (kind == theirs):
            text = f'name = "{name}" does not go with data {kind}: "{mine}" and data {theirs} belong together'
            yield Problem(("model", "name"), text, doubts)
            return
    if isinstance(model, (Cnn, CnnGap, LeNet5, ResNet20)) and isinstance(data, Blobs):
        yield Problem(("model", "name"), f'name = "{name}" needs images, and data {kind} has none; use "mlp"', doubts)


def groups(model: Table) -> Iterator[Problem]:
    """Groups belong to group normalisation."""
    if isinstance(model, ResNet20) and model.norm != "group" and model.given("groups"):
        text = f'groups must not be given with norm = "{model.norm}"; it belongs to "group"'
        yield Problem(("model", "groups"), text, (("model", "norm"),))


def local_training(training: Training) -> Iterator[Problem]:
    """Keys of local training that exclude each other."""
    if training.steps is not None and training.given("epochs"):
        yield Problem(("training", "steps"), "steps and epochs must not both be given", (("training", "epochs"),))
    if training.delay_aware is not None and training.given("lr"):
        text = "lr must not be given with delay_aware, whose gamma_0 is the rate"
        yield Problem(("training", "lr"), text, (("training", "delay_aware"),))
    if training.optimizer != "sgd" and training.given("momentum"):
        text = f'momentum must not be given with optimizer = "{training.optimizer}"; it belongs to "sgd"'
        yield Problem(("training", "momentum"), text, (("training", "optimizer"),))
    if training.gradient_decay is not None:
        for key, plain in (("optimizer", "sgd"), ("momentum", 0.0)):
            if getattr(training, key) != plain:
                text = (
                    f"{key} = {getattr(training, key)} does not go with gradient_decay, whose formula is for plain sgd"
                )
                yield Problem(("training", key), text, (("training", "gradient_decay"),))


def schedule_problems(loc: Loc, schedule: LrSchedule | None) -> Iterator[Problem]:
    """What is wrong with a learning-rate schedule at a place: parameters of another one."""
    for key in () if schedule is None else schedule.given(*SCHEDULE_KEYS):
        if schedule is not None and schedule.name not in SCHEDULE_KEYS[key]:
            owners = " or ".join(f'"{owner}"' for owner in SCHEDULE_KEYS[key])
            text = f'{key} must not be given with name = "{schedule.name}"; it belongs to {owners}'
            yield Problem((*loc, key), text, ((*loc, "name"),))


def stragglers(clients: Clients, training: Training) -> Iterator[Problem]:
    """Stragglers do a part of something that has parts."""
    if not clients.straggler_share:
        return
    key = "epochs" if training.steps is None else "steps"
    if getattr(training, key) == 1:
        text = f"straggler_share needs [training] {key} of at least 2: there is no part of one to do"
        yield Problem(("clients", "straggler_share"), text, (("training", key),))


def own_task(model: Table, training: Training) -> Iterator[Problem]:
    """A task of one's own takes the place of the usual one."""
    if training.task is None and training.given("task_args"):
        yield Problem(("training", "task_args"), "task_args must not be given without task", (("training", "task"),))
    name = getattr(model, "name", "")
    if training.task is not None and name in CLOSED_FORM:
        text = f'task does not go with model "{name}", which has a loss of its own'
        yield Problem(("training", "task"), text, (("model", "name"),))


def delay_aware(clients: Clients, training: Training) -> Iterator[Problem]:
    """What the delay of the delay-aware rate is must be known."""
    delay = training.delay_aware
    if delay is None or delay.meaning == "staleness":
        return
    place, doubts = ("training", "delay_aware", "meaning"), (("clients", "wait_s"), ("training", "delay_aware"))
    if clients.wait_s is None:
        text = f'meaning = "{delay.meaning}" needs the key wait_s in [clients], the wait that is drawn'
        yield Problem(place, text, doubts)
    elif delay.meaning == "maximum" and clients.wait_s.most is None:
        yield Problem(
            place, 'meaning = "maximum" needs a wait_s with a largest value: uniform, or a law with a cap', doubts
        )
    if delay.combine:
        text = f'combine must not be true with meaning = "{delay.meaning}", which leaves the staleness weight as it is'
        yield Problem(("training", "delay_aware", "combine"), text)


def plain_descent(data: Table, training: Training) -> Iterator[Problem]:
    """Quadratic functions know plain gradient descent alone."""
    if not isinstance(data, Quadratic):
        return
    wanted = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    for key, value in wanted.items():
        if getattr(training, key) != value:
            yield Problem(
                ("training", key), f"{key} = {getattr(training, key)} does not go with quadratic data, only plain sgd"
            )


def closed_form(data: Table, model: Table, training: Training) -> Iterator[Problem]:
    """Models in closed form know gradient descent alone."""
    if (isinstance(data, LeastSquares) or isinstance(model, Logistic)) and training.optimizer != "sgd":
        text = f'optimizer = "{training.optimizer}" does not go with model {getattr(model, "name", "")}, only "sgd"'
        yield Problem(("training", "optimizer"), text, (("model", "name"),))


def patience(data: Table, model: Table, training: Training, run: Run) -> Iterator[Problem]:
    """Patience needs something to watch."""
    name = getattr(model, "name", "")
    if training.patience is not None and name in CLOSED_FORM:
        text = f'patience does not go with model "{name}", which trains without looking at its loss'
        yield Problem(("training", "patience"), text, (("model", "name"),))
    place = ("run", "patience")
    if run.patience is None:
        if run.given("monitor"):
            yield Problem(("run", "monitor"), "monitor must not be given without patience", (place,))
        return
    if not getattr(data, "validation_share", 0.0):
        text = "patience needs [data] validation_share: test data only report, they decide nothing"
        yield Problem(place, text, (("data", "validation_share"), ("data", "name")))
    if run.eval_every_versions is None and run.eval_every_s is None:
        text = "patience needs eval_every_versions or eval_every_s: it counts evaluations"
        yield Problem(place, text, (("run", "eval_every_versions"), ("run", "eval_every_s")))
