"""The usual parameters by their usual names: each changes what it stands for, and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import scenarios
from desim_fl import report
from desim_fl.cli import app
from desim_fl.cli_parameters import NAMES
from desim_fl.errors import ScenarioError
from desim_fl.report import trips
from desim_fl.run import execute
from desim_fl.scenario import load

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
EMBEDDED = ['data={name="fashion_mnist_6k"}']
BASE = """
[data]
name = "blobs"
[clients]
count = 8
partition = "dirichlet"
alpha = 1.0
wait_s = { law = "uniform", low = 0.0, high = 1.0 }
[training]
epochs = 4
batch_size = 16
delay_aware = { gamma_0 = 0.1, alpha_lr = 0.5 }
[strategy]
name = "STRATEGY"
[run]
"""
ASYNC = BASE.replace("STRATEGY", "fedasync") + "concurrency = 3\nmax_updates = 30\n"
BARRIER = BASE.replace('name = "STRATEGY"', 'name = "fedavg"\nclients_per_round = 3') + "max_versions = 10\n"


def flat(document, prefix=""):
    """Keys of a resolved scenario with their values, tables opened."""
    found = {}
    for key, value in document.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def changed(tmp_path, text, parameters):
    """What parameters of the command line change in the resolved scenario."""
    path = scenarios.write(tmp_path, text)
    before, after = flat(load(path).resolved()), flat(load(path, parameters=parameters).resolved())
    return {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"num_clients": 9}, {"clients.count": 9}),
        ({"num_rounds": 7}, {"run.max_updates": 21}),
        ({"local_epochs": 5}, {"training.epochs": 5}),
        ({"clients_per_round": 4}, {"run.concurrency": 4}),
        ({"num_rounds": 7, "clients_per_round": 4}, {"run.max_updates": 28, "run.concurrency": 4}),
        ({"batch_size": 8}, {"training.batch_size": 8}),
        ({"alpha": 0.2}, {"clients.alpha": 0.2}),
        ({"gamma_0": 0.3}, {"training.delay_aware.gamma_0": 0.3}),
        ({"alpha_lr": 0.1}, {"training.delay_aware.alpha_lr": 0.1}),
        ({"delay_t": 5.0}, {"clients.wait_s.high": 5.0}),
        ({"early_stopping": 2}, {"training.patience": 2}),
    ],
)
def test_a_parameter_changes_what_it_stands_for_and_nothing_else(tmp_path, parameters, expected):
    """In an asynchronous run; values are worked out by hand."""
    assert changed(tmp_path, ASYNC, parameters) == expected


SMALL = (
    ASYNC.replace('name = "blobs"', 'name = "blobs"\nexamples = 400\ntest_examples = 100')
    .replace("max_updates = 30", "max_updates = 18\neval_every_versions = 6")
    .replace("count = 8", "count = 8\nmin_samples = 20\nseconds_per_step = SECONDS")
    + '[executor]\nname = "inline"\nreuse = false\n'
)
# What each parameter changes of a run, apart from the timeline where the clients need no time but that of the delay;
# everything else there is stays as it was, job by job (client and its count), as far as both runs have the job.
ALONE = {
    "num_clients": (10, {"partition", "sent", "arrived", "examples", "steps", "loss", "model"}),
    "num_rounds": (4, {"updates", "model"}),
    "local_epochs": (3, {"steps", "loss", "model"}),
    "clients_per_round": (4, {"sent", "arrived", "flying", "loss", "model"}),
    "batch_size": (10, {"steps", "loss", "model"}),
    "alpha": (0.1, {"partition", "examples", "steps", "loss", "model"}),
    "gamma_0": (0.2, {"rate", "loss", "model"}),
    "alpha_lr": (2.0, {"rate", "loss", "model"}),
    "delay_t": (3.0, {"wait", "rate", "loss", "model"}),  # who comes when stays: all of it takes three times as long
    "early_stopping": (3, set()),  # as many epochs as there are, less one: it cannot fire
}


def facts(folder):
    """Everything that a parameter may change, from the tables of a run; of jobs by (client, how many it had before)."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = pl.read_parquet(folder / "events" / "*.parquet").sort("seq")
    jobs = trips.trips(rows).with_columns(nth=pl.int_range(pl.len()).over("client", order_by="job"))
    came = rows.filter(pl.col("kind") == "arrive").select("job", "steps", "examples")
    jobs = jobs.join(came, on="job", how="left").sort("job")
    key = jobs.select("client", "nth").rows()
    times = {"wait": jobs["started"] - jobs["downloaded"], "compute": jobs["computed"] - jobs["started"]}
    columns = {"rate": jobs["lr"], **times, **{name: jobs[name] for name in ("steps", "examples", "loss")}}
    start = pl.read_parquet(folder / "metrics.parquet").filter(pl.col("version") == 0)
    return {
        "partition": manifest["partition_sha256"],
        "model": manifest["model_sha256"],
        "updates": manifest["summary"]["updates"],
        "flying": rows.filter(pl.col("version") == 0, pl.col("ticks") == 0, pl.col("kind") == "dispatch").height,
        "sent": jobs["client"].to_list(),
        "arrived": jobs.filter(pl.col("ended").is_not_null()).sort("ended")["client"].to_list(),
        "first model": start.select("loss", "accuracy").rows(),
        "bytes": sorted(set(rows["bytes"].drop_nulls())),
        "stopped early": "stopped early" in set(rows["reason"]),
        **{
            name: {job: value for job, value in zip(key, column, strict=True) if value is not None}
            for name, column in columns.items()
        },
    }


def differing(before, after):
    """Names of facts that differ: of jobs, where one that both runs had is another; of lists, where neither begins the other."""

    def same(one, other):
        if isinstance(one, dict):
            return all(one[job] == other[job] for job in one.keys() & other.keys())
        if isinstance(one, list) and one and not isinstance(one[0], tuple):
            return all(mine == its for mine, its in zip(one, other, strict=False))
        return one == other

    return {name for name, value in before.items() if not same(value, after[name])}


def no_page(folder):
    """In place of a report, which nobody reads here, and which takes longer than the run."""
    (folder / "report.html").write_text("page")
    return folder / "report.html"


def small(tmp_path, name, seconds, parameters):
    """Facts of one small run with real training."""
    path = scenarios.write(tmp_path, SMALL.replace("SECONDS", seconds))
    execute(load(path, parameters=parameters), tmp_path / name)
    return facts(tmp_path / name)


def test_every_parameter_changes_the_run_where_it_should_and_nothing_else(tmp_path, monkeypatch):
    """All ten on real runs: facts that each changes, named beforehand, and no other; with compute time, steps decide it too."""
    monkeypatch.setattr(report, "write", no_page)
    assert tuple(ALONE) == NAMES
    base = small(tmp_path, "base", "0.0", {})
    for name, (value, expected) in ALONE.items():
        after = small(tmp_path, name, "0.0", {name: value})
        assert differing(base, after) == expected, name
    timed = small(tmp_path, "timed", "0.25", {})
    for name, value in (("local_epochs", 3), ("batch_size", 10), ("early_stopping", 1)):
        after = small(tmp_path, f"timed {name}", "0.25", {name: value, **({"gamma_0": 2.0} if value == 1 else {})})
        assert {"steps", "compute"} <= differing(timed, after), name
        assert after["compute"] == {job: steps * 250_000 for job, steps in after["steps"].items()}
        assert after["stopped early"] == (name == "early_stopping")


def test_in_a_barrier_run_rounds_are_versions(tmp_path):
    """Rounds and clients a round keep their meaning where there are rounds."""
    assert changed(tmp_path, BARRIER, {"num_rounds": 7}) == {"run.max_versions": 7}
    assert changed(tmp_path, BARRIER, {"clients_per_round": 2}) == {"strategy.clients_per_round": 2}


def test_the_table_says_the_same_as_the_keys(tmp_path):
    """A scenario with [parameters] is equal to the one that spells them out, hash and written form included."""
    short = """
[data]
name = "blobs"
[parameters]
num_clients = 8
num_rounds = 10
clients_per_round = 3
local_epochs = 4
batch_size = 16
alpha = 1.0
gamma_0 = 0.1
alpha_lr = 0.5
delay_t = 1.0
[strategy]
name = "fedasync"
"""
    named = [load(scenarios.write(tmp_path, text)) for text in (ASYNC, short)]
    assert named[0] == named[1]
    assert named[0].sha256() == named[1].sha256()
    path = scenarios.write(tmp_path, short)
    assert load(path, parameters={"num_rounds": 2}).run.max_updates == 6
    assert (
        load(path, parameters={"clients_per_round": 2}).run.max_updates == 20
    )  # the rounds of the file, with two in flight


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("num_clients = 0", r"small.toml:2: \[parameters\] num_clients must be at least 1, not 0"),
        ("num_client = 5", r"small.toml:2: \[parameters\] has no key \"num_client\"; did you mean \"num_clients\""),
        ("batch_size = 16", r"small.toml:2: \[parameters\] batch_size stands for a key that is given as well"),
        ("num_rounds = 3", r"small.toml:2: \[parameters\] num_rounds stands for a key that is given as well"),
    ],
)
def test_a_mistake_in_the_table_is_told_where_it_stands(tmp_path, line, why):
    """Ranges, misspellings and keys that are given twice are named with file and line."""
    with pytest.raises(ScenarioError, match=why):
        load(scenarios.write(tmp_path, f"[parameters]\n{line}\n{ASYNC}"))


def test_what_a_parameter_breaks_elsewhere_is_told_at_the_parameter(tmp_path):
    """A rule between keys names the line of the parameter, or the option."""
    text = BARRIER.replace("clients_per_round = 3\n", "").replace(
        "[data]", "[parameters]\nclients_per_round = 9\n[data]", 1
    )
    with pytest.raises(
        ScenarioError, match=r"small.toml:3: \[strategy\] clients_per_round = 9 is more than the 8 clients"
    ):
        load(scenarios.write(tmp_path, text))
    with pytest.raises(ScenarioError, match=r"--clients-per-round 9: \[strategy\] clients_per_round = 9"):
        load(scenarios.write(tmp_path, BARRIER), parameters={"clients_per_round": 9})


def test_the_options_go_by_hyphens_and_underscores(tmp_path):
    """``run`` and ``plan`` take each parameter either way; a mistake names the option."""
    path = str(scenarios.write(tmp_path, ASYNC))
    hyphens = "--num-clients 9 --num-rounds 7 --local-epochs 5 --clients-per-round 4 --batch-size 8 --alpha 0.2 --gamma-0 0.3 --alpha-lr 0.1 --delay-t 5 --early-stopping 2".split()  # noqa: SIM905  # fmt: skip
    underscores = [word.replace("-", "_").replace("__", "--") if word.startswith("--") else word for word in hyphens]
    shown = [
        CliRunner().invoke(app, [*command, path, *words, "--print-config"])
        for command, words in ((["run"], hyphens), (["plan"], underscores))
    ]
    assert shown[0].exit_code == shown[1].exit_code == 0, shown[0].output
    assert shown[0].output == shown[1].output
    assert "max_updates = 28" in shown[0].output
    wrong = CliRunner().invoke(app, ["plan", path, "--alpha", "-1"])
    assert "--alpha -1.0" in str(wrong.exception)


@pytest.mark.parametrize(("name", "rounds", "flying"), [("mnist_async", 1000, 5), ("cifar10_async", 200, 6)])
def test_the_published_defaults_are_scenarios(name, rounds, flying):
    """Both tables of defaults, key by key; as many updates as the rounds would have."""
    scenario = load(SCENARIOS / f"{name}.toml", EMBEDDED)
    assert (scenario.clients.count, scenario.clients.alpha, scenario.training.epochs) == (10, 0.5, 10)
    assert (scenario.run.concurrency, scenario.run.max_updates) == (flying, rounds * flying)
    assert (scenario.training.batch_size, scenario.training.patience) == (64, 10)
    rule = scenario.training.delay_aware
    assert (rule.gamma_0, rule.alpha_lr, scenario.clients.wait_s.high) == (1e-3, 0.01, 2.0)


def test_the_delay_alone_makes_an_asynchronous_run_five_thirds_as_fast():
    """Without computing, 5 in flight and U(0, 2) delays: a barrier takes E[max] = 2 * 5 / 6 s a round, five arrivals take 1 s.

    With R = 1000 rounds the mean of the maximum has standard deviation 2 * sqrt(5 / 252) / sqrt(R) = 0.0089 s, that of
    5000 waits 0.0082 s over the five: 4 standard deviations of the ratio are 0.08.
    """
    alone = [*EMBEDDED, "clients.seconds_per_step=0"]
    free = execute(load(SCENARIOS / "mnist_async.toml", alone), None, timing_only=True)["summary"]
    barrier = ['strategy={name="fedavg"}', "run.eval_every_versions=5"]
    rounds = execute(load(SCENARIOS / "mnist_async.toml", [*alone, *barrier]), None, timing_only=True)["summary"]
    assert (free["updates"], rounds["updates"]) == (5000, 5000)
    assert rounds["virtual_time_s"] / 1000 == pytest.approx(5 / 3, abs=4 * 0.0089)
    assert free["virtual_time_s"] / 1000 == pytest.approx(1.0, abs=4 * 0.0082)
    assert rounds["virtual_time_s"] / free["virtual_time_s"] == pytest.approx(5 / 3, abs=0.08)


def test_as_coded_clients_never_learn_of_each_other(tmp_path):
    """Each client goes on with its own model: its second job starts where its first ended, whatever the server holds."""
    import torch  # noqa: PLC0415

    from desim_fl.build import build  # noqa: PLC0415
    from desim_fl.core import Job, Work  # noqa: PLC0415

    small = ["data.examples=300", "training.epochs=1", "executor.name=inline"]
    task = build(load(SCENARIOS / "fashion_as_coded.toml", small)).task
    model = task.initial()
    job = Job(0, 0, 0, 0, model.params, model.buffers, Work(1, 0, 0.001))
    first = task.train(job, 2)
    assert not torch.equal(task.begun_from(job)[0], model.params)  # drawn for this client
    assert not torch.equal(task.begun_from(job)[0], task.begun_from(job._replace(client=1))[0])
    again = task.train(job._replace(id=1, nth=1, params=model.params * 0, memory=first.memory), 2)
    other = task.train(job._replace(id=1, nth=1, params=model.params + 1, memory=first.memory), 2)
    assert torch.equal(again.params, other.params)
    assert torch.equal(task.begun_from(job._replace(memory=first.memory))[0], first.params)


def test_an_optimiser_that_begins_anew_every_epoch_is_adam_twice(tmp_path):
    """Two epochs with a new Adam each are one epoch, and one more by a fresh job from where it ended."""
    import torch  # noqa: PLC0415

    from desim_fl.build import build  # noqa: PLC0415
    from desim_fl.core import Work  # noqa: PLC0415
    from desim_fl.learning import local  # noqa: PLC0415

    text = scenarios.BLOBS.replace("lr = 0.1", 'optimizer = "adam"\nlr = 0.01\noptimizer_reset = "epoch"')
    task = build(load(scenarios.write(tmp_path, text), ["executor.name=inline"])).task
    model = task.initial()
    order = [(0, task.parts[0][:20]), (0, task.parts[0][20:40]), (1, task.parts[0][:20])]
    rest = {"work": Work(1, 3, 0.01), "settings": task.optimizer}

    def trained(params, course):
        task.state.load(params, model.buffers)
        local.train(task.steps, task.state, task.training, sequence=course, steps=len(course), **rest)
        return task.state.vector()

    whole = trained(model.params, order)
    assert torch.equal(whole, trained(trained(model.params, order[:2]), order[2:]))
    assert not torch.equal(whole, trained(model.params, [(0, part) for _, part in order]))


def test_the_largest_delay_is_a_constant_rate():
    """As coded: gamma_0 / (1 + alpha_lr * 2) at every job, whatever was drawn."""
    from desim_fl.build import build  # noqa: PLC0415

    built = build(load(SCENARIOS / "fashion_as_coded.toml"), timing_only=True)
    assert built.world.assignment.rate is None
    assert math.isclose(built.world.assignment.lr, 0.001 / 1.02)
