"""Every method of rounds, tiers and caches in whole runs: plan, executors, resume, verification, refusals."""

from __future__ import annotations

import math
import random

import polars as pl
import pytest
from test_resume import check_resumes
from worlds import Played

import scenarios
from desim_fl.build import build
from desim_fl.continuation import ResumableEngine
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.scenario import load
from desim_fl.scenario.synchronous import SYNCHRONOUS
from desim_fl.strategies.optimized import Optimized
from desim_fl.verify import verify

CLIENTS = (
    'count = 4\nstraggler_share = 0.3\ndevice_factor = { law = "lognormal", median = 1.0, sigma = 0.8 }\n'
    'jitter_factor = { law = "exponential", mean = 1.0 }'
)
METHODS = {
    "fedavg": 'clients_per_round = 2\npartial_work = "drop"\nweights = "uniform"',
    "fedprox": "clients_per_round = 2\nmu = 0.3\nover_selection = 1.5",
    "fedavgm": "clients_per_round = 2\nbeta = 0.5",
    "fedadagrad": "clients_per_round = 2",
    "fedadam": "clients_per_round = 2\nbias_correction = true",
    "fedyogi": 'clients_per_round = 2\nserver_lr_schedule = { name = "cosine", over_versions = 30, floor = 0.1 }',
    "fednova": 'clients_per_round = 2\nserver_optimizer = { name = "momentum", beta1 = 0.5 }',
    "scaffold": "clients_per_round = 2\nover_selection = 1.5\ncancel_stragglers = false",
    "semi_async": 'clients_per_version = 2\nstaleness = "polynomial"',
    "safa": "fraction = 0.5\nlag_tolerance = 2\nround_limit_s = 30.0",
    "fedat": "clients_per_round = 1\ntiers = 2\nmu = 0.1\nuniform_at_first = true",
    "tifl": "clients_per_round = 1\ntiers = 2\nchances = [0.7, 0.3]",
    "fedbuff": 'buffer_size = 2\nserver_optimizer = { name = "adam", lr = 0.1, bias_correction = true }',
    "fedasync": 'mixing = "delta"\nserver_lr_schedule = { name = "step", every_versions = 10, factor = 0.5 }',
}


def world(name: str, text: str = scenarios.QUADRATIC) -> str:
    """The small scenario under a method."""
    head, _, _ = text.partition("[strategy]")
    tail = text.partition("[run]")[2]
    kept = tail if name in {"semi_async", "fedbuff", "fedasync"} else tail.replace("concurrency = 3\n", "")
    return f'{head}[strategy]\nname = "{name}"\n{METHODS[name]}\n[run]{kept}'.replace(
        "count = 4", CLIENTS.partition("\ndevice")[0]
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_sound_and_plan_knows_its_timeline(name, tmp_path):
    """It trains to the stop, obeys the laws, versions are published, and plan gives the same rows."""
    folder, manifest = scenarios.played(tmp_path, world(name))
    plan = scenarios.played(tmp_path, world(name), out="plan", timing_only=True)[1]
    assert plan["timeline_sha256"] == manifest["timeline_sha256"]
    assert manifest["summary"]["versions"] > 5
    assert manifest["summary"]["updates"] == 60
    assert verify(folder) == []
    assert pl.read_parquet(folder / "metrics.parquet")["loss"][-1] < 20


def test_the_table_is_covered():
    """Each method of the room is played here."""
    assert set(SYNCHRONOUS) <= set(METHODS)


def network_world(name: str) -> str:
    """The clouds with a small network under a method, two epochs a job."""
    text = scenarios.BLOBS.replace("batch_size = 32", "batch_size = 32\nepochs = 2").replace("count = 6", "count = 4")
    return world(name, text).replace(
        "concurrency = 3\n", "concurrency = 3\n" if name in {"fedasync", "fedbuff"} else ""
    )


@pytest.mark.parametrize("name", ["scaffold", "safa"])
def test_a_network_is_trained_alike_by_threads_and_kept_outcomes(name, tmp_path, monkeypatch):
    """Model and events of the inline run, with threads, and from outcomes that were kept before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [
        scenarios.played(tmp_path, network_world(name), *overrides, out=f"run{number}")[0]
        for number, overrides in enumerate(
            (
                ['executor.name="inline"', "executor.reuse=true"],
                ['executor.name="inline"', "executor.reuse=true"],
                ['executor.name="threads"', "executor.workers=2"],
            )
        )
    ]
    models = [(folder / "model.safetensors").read_bytes() for folder in runs]
    assert models[0] == models[1] == models[2]
    events = [
        pl.concat([pl.read_parquet(path) for path in sorted((folder / "events").glob("*.parquet"))]) for folder in runs
    ]
    assert events[0].equals(events[1])
    assert events[0].equals(events[2])


@pytest.mark.parametrize("name", METHODS)
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not(name, tmp_path):
    """Checkpoints at several instants, read back from bytes: rows, model and accounts are those of the whole run."""

    def make() -> Played:
        built = build(load(scenarios.write(tmp_path, world(name))))
        sink, evaluations = MemorySink(), []
        engine = ResumableEngine(built.world, EventLog(sink), evaluations.append)
        return Played(engine, sink, "", built.world.executor, evaluations)  # pyright: ignore[reportArgumentType]

    assert check_resumes(make, random.Random(name).choice) >= 2


def test_tiers_that_adapt_read_losses_and_resume(tmp_path):
    """The run is sound and goes on from any instant; plan refuses it by name, and plays it on the assumption of full work."""
    text = world("tifl").replace("chances = [0.7, 0.3]", "adaptive = true\ninterval = 3\ncredits = [20, 15]")
    scenario = load(scenarios.write(tmp_path, text))
    with pytest.raises(RefusedError, match="strategy TiFL reads trained values"):
        build(scenario, timing_only=True)
    assumed = scenarios.in_memory(scenario, timing_only=True, assume_full_work=True)
    assert (assumed.engine.model.version, scenarios.in_memory(scenario).engine.model.version) == (60, 60)

    def make() -> Played:
        built = build(load(scenarios.write(tmp_path, text)))
        sink, evaluations = MemorySink(), []
        engine = ResumableEngine(built.world, EventLog(sink), evaluations.append)
        return Played(engine, sink, "", built.world.executor, evaluations)  # pyright: ignore[reportArgumentType]

    assert check_resumes(make, random.Random(3).choice) >= 2


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        (
            "fedavg",
            ['strategy.server_optimizer={name="adam"}', "strategy.server_lr=0.5"],
            "server_lr must not be given",
        ),
        ("fedavg", ['strategy.server_optimizer={name="sgd",eps=0.1}'], 'eps must not be given with name = "sgd"'),
        ("fedavg", ['strategy.server_optimizer={name="adm"}'], 'did you mean "adam"'),
        ("fedavg", ["strategy.server_optimizer={lr=1.0}"], 'needs the key "name"'),
        (
            "fedavg",
            ['strategy.server_optimizer={name="adam",initial_v=1.0,bias_correction=true}'],
            "initial_v must be 0 with bias_correction",
        ),
        ("fedadam", ["strategy.initial_v=1.0"], "initial_v must be 0 with bias_correction"),
        ("fedadam", ['strategy.server_optimizer={name="adam"}'], "fedadam is an optimiser of the server itself"),
        ("fedasync", ['strategy.server_optimizer={name="adam"}', 'strategy.mixing="model"'], "publishes no delta"),
        ("safa", ['strategy.server_optimizer={name="adam"}'], "averages the cached models of all clients"),
        ("safa", ['strategy.server_lr_schedule={name="cosine"}'], "server_lr_schedule does not go with strategy safa"),
        ("fedat", ['strategy.server_optimizer={name="adam"}'], "averages the models of its tiers"),
        ("semi_async", ['strategy.server_optimizer={name="adam"}'], 'use mixing = "delta"'),
        ("semi_async", ['run.dispatch="immediate"'], "dispatch must not be given with strategy semi_async"),
        (
            "fedprox",
            ["training.proximal_mu=0.5"],
            "proximal_mu must not be given with strategy fedprox, whose mu it is",
        ),
        ("fedavg", ["clients.straggler_share=0.0"], "partial_work has no effect without straggler_share"),
        ("fedat", ["strategy.tiers=3"], "tiers = 3 of 4 clients have 1 each"),
        ("fedat", ["strategy.tiers=5"], "tiers = 5 of 4 clients have 0 each"),
        ("tifl", ["strategy.chances=[0.5, 0.6]"], "chances must add up to 1"),
        ("tifl", ["strategy.chances=[1.0]"], "chances has 1 entries, but tiers = 2"),
        ("tifl", ["strategy.interval=3"], "interval must not be given; it belongs to adaptive = true"),
        ("tifl", ["strategy.adaptive=true"], "chances must not be given; it belongs to adaptive = false"),
        ("safa", ["run.concurrency=3"], "concurrency must not be given with strategy safa; all clients train"),
        ("fedavg", ["strategy.clients_per_round=5"], "more than the 4 clients"),
        ("fedat", ['run.selection="order"', "run.order=[0, 1]"], 'selection = "order" does not go with strategy fedat'),
    ],
)
def test_nonsense_combinations_are_refused_with_the_reason(name, overrides, said, tmp_path):
    """What does not go together names the key, the place and why."""
    if name == "fedat" and "strategy.tiers=3" in overrides:
        overrides = [*overrides, "strategy.clients_per_round=2"]
    with pytest.raises(ScenarioError, match=said.replace("(", r"\(")):
        load(scenarios.write(tmp_path, world(name)), overrides)


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("scaffold", "training.momentum=0.9", "momentum must be 0 with strategy scaffold"),
        ("scaffold", 'training.optimizer="adam"', 'optimizer must be "sgd" with strategy scaffold'),
        ("fednova", 'training.optimizer="adam"', 'optimizer must be "sgd" with strategy fednova'),
        ("scaffold", "training.gradient_decay=0.5", "gradient_decay must not be given with strategy scaffold"),
        ("fednova", "training.gradient_decay=0.5", "gradient_decay must not be given with strategy fednova"),
    ],
)
def test_local_training_that_a_method_cannot_use_is_refused(name, override, said, tmp_path):
    """SCAFFOLD's and FedNova's formulas are for plain steps: anything else names the key."""
    with pytest.raises(ScenarioError, match=said):
        load(scenarios.write(tmp_path, network_world(name)), [override])


@pytest.mark.parametrize("override", ["training.momentum=0.9", 'training.optimizer="adam"'])
def test_balanced_gradients_are_for_plain_sgd(override, tmp_path):
    """Momentum and Adam beside gradient_decay are refused with the reason."""
    with pytest.raises(ScenarioError, match="does not go with gradient_decay, whose formula is for plain sgd"):
        load(scenarios.write(tmp_path, network_world("fedasync")), ["training.gradient_decay=0.5", override])


def test_aso_fed_whole(tmp_path):
    """Server rule, proximal term, balanced gradients and dynamic step: the clients remember across jobs, resumed or not, and it gets there."""
    text = scenarios.QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "asofed"')
    rule = ["training.proximal_mu=0.2", "training.gradient_decay=0.3", 'training.delay_step="logarithmic"']
    whole, plain = (scenarios.in_memory(load(scenarios.write(tmp_path, text), more)) for more in (rule, rule[:1]))
    assert whole.sha256 == plain.sha256
    assert whole.losses[-1] != plain.losses[-1]
    assert whole.losses[-1] < whole.losses[0] / 3

    def make() -> Played:
        built = build(load(scenarios.write(tmp_path, text), rule))
        sink, evaluations = MemorySink(), []
        engine = ResumableEngine(built.world, EventLog(sink), evaluations.append)
        return Played(engine, sink, "", built.world.executor, evaluations)  # pyright: ignore[reportArgumentType]

    assert check_resumes(make, random.Random(5).choice) >= 2


def rates(folder) -> list[tuple[float, float]]:
    """The rate of each job, and what it should be by the rows before its dispatch: 0.1 times max(1, log of the mean delay)."""
    left, delays, found = {}, {}, []
    for kind, ticks, client, job, lr in (
        pl.read_parquet(folder / "events" / "*.parquet")
        .sort("seq")
        .select("kind", "ticks", "client", "job", "lr")
        .rows()
    ):
        if kind == "dispatch":
            past = delays.get(client, [])
            found.append((lr, 0.1 * max(1.0, math.log(sum(past) / len(past)) if past else 0.0)))
            left[job] = ticks
        elif kind == "arrive":
            delays.setdefault(client, []).append((ticks - left[job]) / 1e6)
    return found


def test_the_dynamic_step_by_hand(tmp_path):
    """20 s a job: the first has the rate 0.1, all others 0.1 log 20; 2 s a job: always 0.1. Elsewhere every row of the log agrees, lost jobs and queues included."""
    text = """[data]\nname = "quadratic"\n[clients]\ncount = 1\nseconds_per_job = 20.0\n[training]\nlr = 0.1\nsteps = 1
delay_step = "logarithmic"\n[strategy]\nname = "asofed"\n[run]\nconcurrency = 1\nmax_updates = 4\n"""
    slow = rates(scenarios.played(tmp_path, text, out="slow", timing_only=True)[0])
    assert [rate for rate, _ in slow] == pytest.approx([0.1, *[0.1 * 2.995732273553991] * 3], rel=1e-12)
    fast = rates(scenarios.played(tmp_path, text, "run.delay_scale=0.1", out="fast", timing_only=True)[0])
    assert [rate for rate, _ in fast] == [0.1] * 4
    settings = [
        "clients.seconds_per_step=4", 'training.delay_step="logarithmic"', "failures.crash_compute=0.2", "failures.max_retries=1",
        "failures.duplicate=0.3", "run.client_queue=2",
    ]  # fmt: skip
    mixed = rates(scenarios.played(tmp_path, scenarios.QUADRATIC, *settings, out="mixed", timing_only=True)[0])
    assert [rate for rate, _ in mixed] == pytest.approx([due for _, due in mixed], rel=1e-12)
    assert len({rate for rate, _ in mixed}) > 40
    with pytest.raises(ScenarioError, match="delay_step must not be given with strategy fednova"):
        load(scenarios.write(tmp_path, network_world("fednova")), settings[1:2])


def test_a_scenario_makes_the_combination_it_names(tmp_path):
    """FedBuff under Adam, FedNova told of local momentum, TiFL of the seed, tiers by speed."""
    buffered = build(load(scenarios.write(tmp_path, world("fedbuff"))))
    strategy = buffered.world.strategy
    assert isinstance(strategy, Optimized)
    assert (strategy.optimizer.name, strategy.optimizer.lr, strategy.optimizer.bias_correction) == ("adam", 0.1, True)
    nova = load(scenarios.write(tmp_path, network_world("fednova")), ["training.momentum=0.25"])
    assert build(nova, timing_only=True).world.strategy.inner.momentum == 0.25  # pyright: ignore[reportAttributeAccessIssue]
    tifl = build(load(scenarios.write(tmp_path, world("tifl"))), timing_only=True)
    assert tifl.world.strategy.seed == 7  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(sum(tifl.world.groups.values(), ())) == [0, 1, 2, 3]
    lengths = {
        tier: [tifl.trips.usual(client, tifl.world.assignment.usual[client].steps or 0) for client in members]
        for tier, members in tifl.world.groups.items()
    }
    assert max(lengths["tier 0"]) <= min(lengths["tier 1"])
    assert "server_lr" not in load(scenarios.write(tmp_path, world("fedbuff"))).resolved()["strategy"]


def test_the_proximal_term_of_a_method_reaches_the_clients(tmp_path):
    """FedProx with mu = 0 is FedAvg bit for bit in whole runs; another mu is not; [training] says it for any method; CASES LT-01."""
    base = ['strategy.partial_work="keep"', "strategy.over_selection=1.0"]
    params = {}
    for name, extra in (
        ("fedavg", ['strategy.weights="examples"']),
        ("fedprox", ["strategy.mu=0.0"]),
        ("fedprox", ["strategy.mu=0.5"]),
        ("fedavg", ['strategy.weights="examples"', "training.proximal_mu=0.5"]),
    ):
        key = f"{name} {extra[-1]}"
        folder, manifest = scenarios.played(tmp_path, world(name), *base, *extra, out=key.replace("/", ""))
        params[key] = (manifest["timeline_sha256"], (folder / "model.safetensors").read_bytes())
    plain, zero, half, told = params.values()
    assert plain == zero
    assert half == told
    assert plain[0] == half[0]
    assert plain[1] != half[1]


@pytest.mark.parametrize("name", METHODS)
def test_identity_9_scaled_durations_leave_every_model_bit_identical(name, tmp_path):
    """Every duration three times as long: the same model, three times the virtual time (windows in seconds apart)."""
    text = world(name).replace("round_limit_s = 30.0", "round_limit_s = 1000000000.0")
    one, three = (
        scenarios.played(tmp_path, text, f"run.delay_scale={scale}", out=f"x{scale:g}") for scale in (1.0, 3.0)
    )
    assert (one[0] / "model.safetensors").read_bytes() == (three[0] / "model.safetensors").read_bytes()
    assert three[1]["summary"]["virtual_time_s"] == pytest.approx(3 * one[1]["summary"]["virtual_time_s"], rel=1e-12)


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fednova", "safa", "fedprox", "semi_async"])
def test_identity_10_permuted_clients_leave_the_trajectory(name, tmp_path):
    """Clients that change places with their data, speed and streams give the same scores at every version."""
    turned = (
        world(name)
        .replace("curvature = [1.0, 2.0, 0.5, 1.5]", "curvature = [1.5, 0.5, 2.0, 1.0]")
        .replace("optimum = [1.0, -1.0, 3.0, 0.5]", "optimum = [0.5, 3.0, -1.0, 1.0]")
        .replace("examples_per_client = [40, 10, 70, 33]", "examples_per_client = [33, 70, 10, 40]")
    )
    curves = []
    for number, (text, keys, order) in enumerate(
        ((world(name), [0, 1, 2, 3], [0, 1, 2, 3]), (turned, [3, 2, 1, 0], [3, 2, 1, 0]))
    ):
        folder, _ = scenarios.played(
            tmp_path, text, f"clients.keys={keys}", 'run.selection="order"', f"run.order={order}", out=f"p{number}"
        )
        curves.append(pl.read_parquet(folder / "metrics.parquet")["loss"].to_list())
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)
    assert len(curves[0]) > 3
