"""Devices: units of work, classes with shares, pauses between epochs, published profiles, energy and cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import polars as pl
import pytest
from worlds import Plain, S, ScriptedTrips, play

import scenarios
from desim_fl import rundir
from desim_fl.build import build
from desim_fl.core import Reply, Stop
from desim_fl.devices import JOB, SAMPLE, STEP, Devices, Samples, assigned
from desim_fl.errors import ScenarioError
from desim_fl.learning.batches import plan as batches
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.scenario.devices import PROFILES
from desim_fl.verify import verify
from desim_fl.world import StopRules

PLAIN = """
[data]
name = "quadratic"
examples_per_client = 40
[clients]
count = {count}
{clients}
[training]
batch_size = 16
epochs = 2
[strategy]
name = "fedasync"
[run]
max_updates = {updates}
"""


def scenario(tmp_path, clients="", count=4, updates=20, *overrides):
    """A quadratic world of clients with 40 examples: two epochs of three steps."""
    text = PLAIN.format(count=count, clients=clients, updates=updates)
    return load(scenarios.write(tmp_path, text), overrides)


def trip(loaded, client=0, nth=0):
    """One trip as the engine asks for it."""
    built = build(loaded, timing_only=True)
    return built.trips.trip(client, nth, built.world.assignment.usual[client])


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 32, 40])
def test_samples_of_steps_are_those_of_the_batches(batch):
    """Whatever the batch size, so many steps see as many samples as the batches of training hold."""
    sizes = (1, 2, 3, 8, 33, 64, 65)
    counted = Samples(sizes, [len(batches(n, batch)) for n in sizes], batch)
    for client, n in enumerate(sizes):
        seen = [0, *accumulate(batches(n, batch) * 3)]
        assert [int(counted.of(client, steps)) for steps in range(len(seen))] == seen


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ("seconds_per_step = 0.5", 3.0),
        ("seconds_per_sample = 0.5", 40.0),
        ("seconds_per_job = 0.5", 0.5),
        ("flops_per_sample = 1e9\ndevice_flops = 4e9", 20.0),
        ("seconds_per_sample = 0.5\ndevice_factor = 2\njitter_factor = 3", 240.0),
    ],
)
def test_a_unit_of_work_is_a_step_a_sample_a_job_or_flops(tmp_path, keys, seconds):
    """Two epochs over 40 examples in batches of 16 are 6 steps and 80 samples; factors multiply."""
    assert trip(scenario(tmp_path, keys)).compute == seconds * S


def test_work_without_steps_takes_no_time_in_any_unit():
    """A client without examples computes nothing, per job too."""
    for unit in (STEP, SAMPLE, JOB):
        devices = Devices((2.0,), 0.5, unit, Samples((0,), (0,), 16))
        assert devices.compute_s(0, 0) == devices.computes_s(np.array([0]), np.array([0]))[0] == 0.0


CLASSES = """
jitter_factor = { law = "exponential", mean = 2.0 }
flops_per_sample = 1e9
wait_s = 1.0
[[clients.classes]]
name = "fast"
share = 3
seconds_per_job = 1.0
jitter_factor = { law = "uniform", low = 1.0, high = 2.0 }
[[clients.classes]]
name = "slow"
share = 1
seconds_per_sample = 0.25
epoch_idle_s = { law = "zipf", exponent = 1.7, cap = 60 }
wait_s = { law = "exponential", mean = 1.0 }
[[clients.classes]]
name = "gpu"
share = 1
device_flops = { law = "uniform", low = 1e9, high = 2e9 }
device_factor = 1.5
[network]
down_mbps = 0.01
"""


def test_trips_of_classes_drawn_together_equal_single_ones(tmp_path):
    """In every class, with pauses, waits and FLOPs: trips drawn ahead in blocks are bit for bit those drawn alone."""
    loaded = scenario(tmp_path, CLASSES, 40, 20, "run.delay_scale=1.5")
    built, alone = (build(loaded, timing_only=True) for _ in range(2))
    work = built.world.assignment.usual
    for nth in (*range(5), 40):
        for client in range(40):
            assert built.trips.trip(client, nth, work[client]) == alone.trips._trip(client, nth, work[client].steps)
    assert len(set(alone.trips.devices.classes.tolist())) == 3


def test_a_class_goes_before_what_holds_for_all(tmp_path):
    """Fast devices take U(1, 2) a job; a slow one takes 0.25 s a sample times what is drawn for all; both wait as told."""
    built = build(scenario(tmp_path, CLASSES, 300), timing_only=True)
    works = built.world.assignment.usual
    trips = [built.trips._trip(client, 0, works[client].steps) for client in range(300)]
    classes = built.trips.devices.classes
    fast, gpu = ([trips[client] for client in range(300) if classes[client] == number] for number in (0, 2))
    assert all(S <= each.compute <= 2 * S and each.wait == S for each in fast)
    assert np.std([each.compute for each in fast]) > 0.2 * S
    assert np.mean([each.compute for each in gpu]) == pytest.approx(80 / 1.5 * 1.5 * 2 * S, rel=0.5)
    assert len({each.wait for each in (trips[client] for client in range(300) if classes[client] == 1)}) > 30


def test_a_class_without_a_unit_takes_that_of_all(tmp_path):
    """Steps of half a second hold for the class that says nothing; the other one takes 7 s a job."""
    names = "seconds_per_step = 0.5\n" + "".join(
        f'[[clients.classes]]\nname = "{name}"\nshare = 1\n{more}'
        for name, more in (("a", ""), ("b", "seconds_per_job = 7.0\n"))
    )
    built = build(scenario(tmp_path, names, 20), timing_only=True)
    works, kinds = built.world.assignment.usual, built.trips.devices.classes
    found = {(int(kinds[client]), built.trips.trip(client, 0, works[client]).compute) for client in range(20)}
    assert found == {(0, 3 * S), (1, 7 * S)}


def test_classes_follow_their_shares():
    """Drawn: within five standard deviations of 0.638, 0.285, 0.078 over 20,000 clients; exact: 10, 4 and 2 of 16."""
    shares = (0.638, 0.285, 0.078)
    drawn = np.bincount(assigned(shares, 3, range(20_000), exact=False)) / 20_000
    for share, found in zip(shares, drawn, strict=True):
        p = share / sum(shares)
        assert abs(found - p) < 5 * (p * (1 - p) / 20_000) ** 0.5
    assert np.bincount(assigned((5, 2, 1), 3, range(16), exact=True)).tolist() == [10, 4, 2]
    assert np.bincount(assigned((1, 1, 1), 0, range(5), exact=True), minlength=3).sum() == 5


@pytest.mark.parametrize("exact", [False, True])
def test_a_class_belongs_to_the_key_of_a_client(exact):
    """Clients under other numbers keep the class of their key; drawn classes do not change when others join."""
    keys = list(range(50))
    first, turned = assigned((2, 1), 9, keys, exact=exact), assigned((2, 1), 9, keys[::-1], exact=exact)
    assert (first == turned[::-1]).all()
    if not exact:
        assert (assigned((2, 1), 9, keys[:20], exact=False) == first[:20]).all()


# ---- pauses between epochs


def test_pauses_lengthen_the_compute_leg_epoch_by_epoch(tmp_path):
    """PORT: each epoch draws its own pause; the compute leg is that of the steps plus their sum; scales multiply it."""
    pauses = 'epoch_idle_s = { law = "zipf", exponent = 1.7, cap = 60 }'
    loaded = scenario(tmp_path, f"seconds_per_step = 0.5\n{pauses}", 4, 20, "training.epochs=9")
    found = build(loaded, timing_only=True).trips.pauses(1, 0, 27)
    assert len(found) == 9
    assert len(set(found)) > 1
    assert all(pause % S == 0 and S <= pause <= 60 * S for pause in found)
    assert trip(loaded, 1).compute == 27 * S // 2 + sum(found)
    scaled = scenario(tmp_path, f"seconds_per_step = 0.5\n{pauses}", 4, 20, "training.epochs=9", "run.delay_scale=3")
    assert trip(scaled, 1).compute == 3 * trip(loaded, 1).compute
    fewer = build(loaded, timing_only=True).trips.pauses(1, 0, 7)
    assert fewer == found[:3]


class PausedTrips(ScriptedTrips):
    """Each epoch of client 1 is followed by pauses of 10, 20 and 40 s."""

    def trip(self, client, nth, work):
        plain = super().trip(client, nth, work)
        return plain._replace(compute=plain.compute + sum(self.pauses(client, nth, work.steps)))

    def pauses(self, client, nth, steps):
        del nth, steps
        return (10 * S, 20 * S, 40 * S) if client else ()


@dataclass(frozen=True)
class Hurry(Plain):
    """Whenever client 0 arrives, the job of client 1 is to report at its next boundary."""

    hows: tuple[str, ...] = ("epoch",)

    def start(self, view):
        return self.hows, Reply()

    def arrive(self, state, view, update):
        others = [job for job, flight in view.flying.items() if flight.client == 1]
        if update.job.client == 1 or not state:
            return state, Reply()
        return state[1:], Reply(stops=tuple(Stop(job, state[0]) for job in others))


@pytest.mark.parametrize(
    ("hows", "asked_at", "when", "steps"),
    [
        (("epoch",), [11.0], 12.0, 2),
        (("epoch",), [13.0], 34.0, 4),
        (("epoch",), [12.0], 12.0, 2),
        (("epoch",), [40.0], 76.0, 6),
        (("step",), [0.5], 1.0, 1),
        (("step",), [1.5], 2.0, 2),
        (("step",), [5.0], 13.0, 3),
        (("step",), [13.5], 14.0, 4),
        (("epoch", "step"), [12.5, 0.2], 13.0, 3),
        (("epoch", "epoch"), [5.0, 5.0], 12.0, 2),
    ],
)
def test_a_job_that_is_hurried_knows_its_epochs(hows, asked_at, when, steps):
    """Three epochs of two 1 s steps, paused 10, 20, 40 s: epochs end at 12, 34, 76 s, steps at 1, 2, 13, 14, 35, 36 s."""
    trips = PausedTrips([[*asked_at, 1000.0], 6.0])
    done = play(trips, strategy=Hurry(hows=hows), concurrency=2, steps=2, epochs=3, stops=StopRules(max_ticks=100 * S))
    rows = zip(done.sink.tuples(), done.sink.notes("steps"), strict=True)
    tick, found = next((tick, steps) for (tick, kind, client, *_), steps in rows if (kind, client) == ("arrive", 1))
    assert (tick, found) == (when * S, steps)


# ---- profiles and rules


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_play_and_are_written_out_in_full(tmp_path, name):
    """Each profile plays; the resolved file says what it stands for and loads as an equal scenario."""
    loaded = scenario(tmp_path, f'profile = "{name}"', 30, 40)
    assert execute(loaded, None, timing_only=True)["summary"]["updates"] == 40
    resolved = loaded.resolved()
    for section, keys in PROFILES[name].items():
        assert keys.keys() <= resolved[section].keys()
    again = load(scenarios.write(tmp_path, loaded.to_toml(), "again.toml"))
    assert again == loaded
    assert again.sha256() == loaded.sha256()


@pytest.mark.parametrize(("name", "mean"), [("fadas_mild", 2.60), ("fadas_large", 7.15)])
def test_fadas_takes_its_published_mean_time(tmp_path, name, mean):
    """Over 4,000 clients the mean compute time of a job is 2.60 s (mild) or 7.15 s (large), within 4 standard errors."""
    built = build(scenario(tmp_path, f'profile = "{name}"', 4000), timing_only=True)
    times = [built.trips.trip(client, 0, built.world.assignment.usual[client]).compute / S for client in range(4000)]
    assert abs(np.mean(times) - mean) < 4 * np.std(times) / 4000**0.5


def test_keys_given_beside_a_profile_go_before_it(tmp_path):
    """A profile's link is replaced by the file's; another unit of work replaces the profile's."""
    loaded = scenario(tmp_path, 'profile = "safa"\nseconds_per_job = 7\ndevice_factor = 1\n[network]\ndown_mbps = 9')
    assert (loaded.network.down_mbps.value, loaded.network.up_mbps.value) == (9, 1.4)
    assert trip(loaded).compute == 7 * S


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("seconds_per_step = 1\nseconds_per_job = 1", r"small.toml:8: \[clients\] seconds_per_job and seconds_per_step must not both"),
        ("device_flops = 1e9", r"device_flops needs the key flops_per_sample"),
        ("flops_per_sample = 1e9", r"flops_per_sample needs the key device_flops"),
        ('class_shares = "exact"', r"class_shares must not be given without"),
        ('profile = "fadas"', r'profile must be one of .*"fadas_mild"'),
        ('[[clients.classes]]\nname = "a"\nshare = 0', r"small.toml:9: \[clients.classes\] share must be greater than 0"),
        ('[[clients.classes]]\nname = "a"\nshare = 1\n[[clients.classes]]\nname = "a"\nshare = 1', r"small.toml:11: .*also the name"),
        ('[[clients.classes]]\nname = "a"\nshare = 1\njiter_factor = 2', r'small.toml:10: \[clients.classes\] has no key "jiter_factor"; did you mean "jitter_factor"'),
        ('[[clients.classes]]\nname = "a"\nshare = 1\nwait_s = { law = "weibull", shape = 0.01, scale = 1 }', r"small.toml:10: .*shape must be at least 0.05"),
        ('[[clients.classes]]\nname = "a"\nshare = 1\nwait_s = 1\n[[clients.classes]]\nname = "b"\nshare = 1', r"small.toml:10: .*wait_s must be given for every class"),
        ('[[clients.classes]]\nname = "a"\nshare = 1\nup_mbps = 1\n[[clients.classes]]\nname = "b"\nshare = 1', r"up_mbps must be given for every class, or in \[network\]"),
        ('jitter_factor = 2\n[[clients.classes]]\nname = "a"\nshare = 1\njitter_factor = 1', r"small.toml:7: \[clients\] jitter_factor has no effect"),
        ('seconds_per_step = 2\n[[clients.classes]]\nname = "a"\nshare = 1\nseconds_per_job = 1', r"seconds_per_step has no effect"),
        ('[[clients.classes]]\nname = "a"\nshare = 1\nseconds_per_job = 1\nseconds_per_step = 1', r"must not both be given"),
        ("classes = []", r"classes must have at least 1 entries"),
        ("classes = [3]", r"classes\[0\] must be a table"),
        ('wait_s = { law = "quantiles", values = [2, 1] }', r"values must not fall"),
        ('wait_s = { law = "quantiles", values = [1, 2], probabilities = [0, 0.5] }', r"probabilities must rise from 0 to 1"),
        ('wait_s = { law = "discrete", values = [1, 2], weights = [0, 0] }', r"weights are all 0"),
        ('device_factor = { law = "gaussian", mean = 1, sd = 1 }', r"min = 0 is too small: a factor must be above 0"),
        ('wait_s = { law = "log_cauchy", median = 2, sigma = 1, cap = 1 }', r"cap = 1 is below the median"),
        ('wait_s = { law = "frechet", shape = 1, scale = 1 }', r"needs the key cap"),
        ('wait_s = { law = "erlang", stages = 257, mean = 1 }', r"stages must be at most 256"),
        ('wait_s = { law = "lognormal_moments", mean = 1e-6, sd = 2 }', r"more than a million times the mean"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(tmp_path, keys, message):
    """Units that exclude each other, classes without effect, laws that are none: file, line, key and the way out."""
    with pytest.raises(ScenarioError, match=message):
        scenario(tmp_path, keys)


def test_the_table_of_clients_names_class_and_speed(tmp_path):
    """Class, factor and seconds of the unit that holds for each client; what does not hold is empty; verify agrees."""
    execute(scenario(tmp_path, CLASSES, 20), tmp_path / "run", timing_only=True)
    table = pl.read_parquet(tmp_path / "run" / "clients.parquet")
    assert set(table["device_class"]) == {"fast", "slow", "gpu"}
    for name, column in (("fast", "seconds_per_job"), ("slow", "seconds_per_sample"), ("gpu", "seconds_per_sample")):
        assert table.filter(device_class=name)[column].null_count() == 0
        assert table.filter(device_class=name)["seconds_per_step"].null_count() == len(table.filter(device_class=name))
    assert table.filter(device_class="slow")["seconds_per_sample"].unique().to_list() == [0.25]
    gpu = table.filter(device_class="gpu")[
        "seconds_per_sample"
    ]  # 1e9 FLOPs at 1e9 to 2e9 a second, times a factor of 1.5
    assert all(0.75 <= seconds <= 1.5 for seconds in gpu)
    assert gpu.n_unique() == len(gpu) > 1
    assert verify(tmp_path / "run") == []


# ---- energy and cost

POWER = """
watts_compute = 5.0
watts_send = 2.0
watts_receive = 1.0
watts_idle = 0.5
price_per_hour = 3.6
price_per_gb = 1e7
seconds_per_job = 4.0
wait_s = 1.0
[network]
latency_s = 2.0
"""


def test_energy_is_power_times_time_worked_by_hand(tmp_path):
    """Two clients, one at work for 2 + 1 + 4 + 2 s three times over: every joule and every price on paper."""
    loaded = scenario(tmp_path, POWER, 2, 3, "run.concurrency=1", "run.selection=order", "run.order=[0]")
    manifest = execute(loaded, tmp_path / "run", timing_only=True)
    joules = {"receive": 6.0, "compute": 60.0, "send": 12.0, "idle": 0.5 * (3 + 27)}
    assert manifest["summary"]["energy_j"] == {**joules, "total": 93.0}
    assert manifest["summary"]["cost"] == pytest.approx({"time": 0.027, "traffic": 0.48, "total": 0.507})
    table = pl.read_parquet(tmp_path / "run" / "clients.parquet")
    assert table["energy_j"].to_list() == [6 + 60 + 12 + 0.5 * 3, 0.5 * 27]
    assert table["cost"].to_list() == pytest.approx([0.507, 0.0])
    whole = pl.read_parquet(tmp_path / "run" / "classes.parquet").row(0, named=True)
    assert (whole["clients"], whole["active"]) == (2, 1)
    assert {use: whole[f"energy_{use}_j"] for use in joules} == joules
    assert (whole["cost_time"], whole["cost_traffic"]) == pytest.approx((0.027, 0.48))
    assert verify(tmp_path / "run") == []
    assert "Energy of the clients" in (tmp_path / "run" / "report.html").read_text()


def test_watts_of_a_class_go_first_and_unstated_ones_are_nothing(tmp_path):
    """Each class at its own power; jobs still running at the end count for what they did; verify recounts it all."""
    classes = CLASSES.replace('name = "fast"', 'name = "fast"\nwatts_compute = 7.0').replace(
        "[network]", "[network]\nlatency_s = 0.5"
    )
    keys = "watts_compute = 2.0\nwatts_idle = 0.1\n" + classes
    execute(scenario(tmp_path, keys, 30, 50), tmp_path / "run", timing_only=True)
    table = pl.read_parquet(tmp_path / "run" / "clients.parquet")
    total = rundir.read_manifest(tmp_path / "run")["summary"]["virtual_time_s"]
    watts = pl.when(pl.col("device_class") == "fast").then(7.0).otherwise(2.0)
    idle = total - table["busy_s"] + table["wait_s"]
    expected = table.select(e=watts * pl.col("compute_s"))["e"] + 0.1 * idle
    assert table["energy_j"].to_list() == pytest.approx(expected.to_list(), rel=1e-12)
    assert table["cost"].null_count() == 30
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize(("column", "told"), [("energy_j", "energy_j = "), ("cost", "cost = ")])
def test_verify_recounts_energy_and_cost(tmp_path, column, told):
    """A joule or a coin more in the table, or in the manifest, is found."""
    execute(scenario(tmp_path, POWER, 4, 10), tmp_path / "run", timing_only=True)
    path = tmp_path / "run" / "clients.parquet"
    sound = pl.read_parquet(path)
    sound.with_columns(pl.col(column) + (pl.col("client") == 2) * 1e-3).write_parquet(path)
    assert any(told in fault and "client 2" in fault for fault in verify(tmp_path / "run"))
    sound.write_parquet(path, compression="zstd")
    manifest = rundir.read_manifest(tmp_path / "run")
    manifest["summary"][column]["total"] += 1e-3
    rundir.write_manifest(tmp_path / "run", manifest)
    assert any(f"the manifest says {told}" in fault for fault in verify(tmp_path / "run"))


def test_what_states_no_power_has_no_energy(tmp_path):
    """Without watts and prices the columns are empty and the summary says so."""
    manifest = execute(scenario(tmp_path), tmp_path / "run", timing_only=True)
    assert manifest["summary"]["energy_j"] is manifest["summary"]["cost"] is None
    assert pl.read_parquet(tmp_path / "run" / "clients.parquet")["energy_j"].null_count() == 4


PACES = """
class_shares = "exact"
watts_idle = 1.0
[[clients.classes]]
name = "fast"
share = 1
seconds_per_job = 1.0
watts_compute = 5.0
price_per_hour = 3600.0
[[clients.classes]]
name = "slow"
share = 1
seconds_per_job = 4.0
watts_compute = 2.0
"""


@pytest.mark.parametrize(
    ("overrides", "lost", "paid", "slow"),
    [
        (["strategy.max_staleness=2"], ("slow", "rejected", "stale", 1, 1, 4.0), 4.5, {"compute_s": 4.5, "energy_compute_j": 9.0, "rejected": 1, "wasted_s": 4.0}),
        (["failures.timeout_s=3"], ("slow", "lost", "timeout", 1, 1, 3.0), 4.5, {"compute_s": 3.5, "late_s": 1.0, "energy_idle_j": 1.0, "lost": 1, "wasted_s": 3.0}),
        (["strategy={name='fedavg',clients_per_round=2,deadline_s=2.0,cancel_stragglers=true}"], ("slow", "cancelled", None, 2, 1, 4.0), 2.5, {"compute_s": 4.5, "cancelled": 2, "dispatches": 3, "arrivals": 0}),
    ],
)  # fmt: skip
def test_classes_and_losses_worked_by_hand(tmp_path, overrides, lost, paid, slow):
    """One fast device, which is paid, and a slow one for 4.5 s: what that lost, why, at what energy; verify tells of a change."""
    text = PLAIN.format(count=2, clients=PACES, updates=0).replace("max_updates = 0", "max_time_s = 4.5")
    places = [] if "fedavg" in overrides[0] else ["run.concurrency=2"]
    loaded = load(scenarios.write(tmp_path, text), [*places, *overrides])
    execute(loaded, tmp_path / "run", timing_only=True)
    assert pl.read_parquet(tmp_path / "run" / "losses.parquet").rows() == [lost]
    table = pl.read_parquet(tmp_path / "run" / "classes.parquet")
    assert table["device_class"].to_list() == ["fast", "slow"]
    row = table.row(1, named=True)
    assert {name: row[name] for name in slow} == slow
    assert table["cost_time"].to_list() == [paid, 0.0]
    assert verify(tmp_path / "run") == []
    for name, column in (
        ("classes", "wasted_s"),
        ("losses", "jobs"),
        ("classes", "energy_idle_j"),
        ("classes", "arrivals"),
    ):
        path = tmp_path / "run" / f"{name}.parquet"
        sound = path.read_bytes()
        pl.read_parquet(path).with_columns(pl.col(column) + 1).write_parquet(path)
        assert any(name in fault for fault in verify(tmp_path / "run"))
        path.write_bytes(sound)


def test_losses_of_worlds_without_classes_have_no_name(tmp_path):
    """Without classes there is one row with an empty name; four in step, of which two a second are too stale, lose 10 of 20 updates."""
    columns = ("device_class", "clients", "active", "arrivals", "rejected", "energy_compute_j", "cost_time")
    for name, bound, rows in (
        ("run", [], []),
        ("bounded", ["strategy.max_staleness=1"], [(None, "rejected", "stale", 10)]),
    ):
        execute(
            scenario(tmp_path, "seconds_per_job = 1.0", 4, 20, "run.concurrency=4", *bound),
            tmp_path / name,
            timing_only=True,
        )
        table = pl.read_parquet(tmp_path / name / "classes.parquet")
        lost = pl.read_parquet(tmp_path / name / "losses.parquet")
        assert table.select(columns).rows() == [(None, 4, 4, 20, sum(row[3] for row in rows), None, None)]
        assert lost.select("device_class", "fate", "reason", "jobs").rows() == rows
