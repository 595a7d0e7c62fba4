"""Shared links in whole runs: closed forms, identities with links of one's own, what a run directory says of them."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from worlds import FloatExecutor, Plain, S, ScriptedTrips, play

import scenarios
from desim_fl.core import Alarm, Reply, Send, Stop
from desim_fl.errors import ScenarioError
from desim_fl.link_usage import SCHEMA, faults
from desim_fl.network import Links, SharedWays, Way, bits_a_second, regions
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.verify import verify
from desim_fl.world import StopRules

ROOT = Path(__file__).resolve().parent.parent
EQUAL = """
[data]
name = "quadratic"
[clients]
count = 4
seconds_per_step = 1.0
[network]
server_ingress_mbps = 0.000064
[strategy]
name = "fedbuff"
buffer_size = 4
[run]
concurrency = 4
max_versions = 3
dispatch = "after_aggregation"
"""  # 8 bytes on 64 bit/s: a second for one alone
SHARED = """server_ingress_mbps = 0.0004
server_egress_mbps = 0.0007
region_shares = [2.0, 1.0]
region_up_mbps = [0.0001, 0.001]
"""


def planned(folder, text: str, *overrides: str) -> dict:
    """The manifest of a plan that writes nothing."""
    return execute(load(scenarios.write(folder, text), overrides), None, timing_only=True)


# ---- closed forms


def test_equal_jobs_upload_together(tmp_path):
    """Four jobs compute 1 s and share an upload of 4 s: a version every 5 s, the link in use 80% of the time, and then full."""
    summary = planned(tmp_path, EQUAL)["summary"]
    assert summary["virtual_time_s"] == 15.0
    assert summary["leg_s"] == {"download": 0.0, "wait": 0.0, "compute": 12.0, "upload": 48.0}
    expected = {"bytes": 96, "utilisation": 0.8, "busy": 0.8, "full": 0.8}
    assert summary["links"] == {"ingress": pytest.approx(expected)}


def test_a_cap_of_ones_own_binds(tmp_path):
    """With an own link of a quarter of the server's nobody waits for anybody: the link is used, but full all the same."""
    summary = planned(tmp_path, EQUAL, "network.up_mbps=0.000008")["summary"]
    assert summary["virtual_time_s"] == 3 * (1 + 8)
    assert summary["links"]["ingress"] == {
        "bytes": 96, "utilisation": pytest.approx(4 / 9), "busy": pytest.approx(8 / 9), "full": 0.0
    }  # fmt: skip


def test_a_region_is_slower_than_the_server(tmp_path):
    """All four in one region of half the server's rate: uploads take 8 s; the region is full, the server's link is not."""
    manifest = execute(
        load(scenarios.write(tmp_path, EQUAL), ["network.region_shares=[1.0]", "network.region_up_mbps=[0.000032]"]),
        tmp_path / "run", timing_only=True,
    )  # fmt: skip
    assert manifest["summary"]["virtual_time_s"] == 27.0
    assert manifest["summary"]["links"]["ingress"]["full"] == 0.0


def test_delays_grow_with_the_scale(tmp_path):
    """Ten times the delays: ten times the time, as many bytes, the same shares of time."""
    plain, scaled = planned(tmp_path, EQUAL)["summary"], planned(tmp_path, EQUAL, "run.delay_scale=10")["summary"]
    assert scaled["virtual_time_s"] == 10 * plain["virtual_time_s"]
    assert scaled["links"] == {"ingress": pytest.approx(plain["links"]["ingress"])}


@pytest.mark.parametrize("scale", ["1", "0.5", "7"])
def test_a_link_that_nobody_feels_changes_nothing(tmp_path, scale):
    """With a server far faster than all clients together every row of the timeline is that of links of one's own."""
    own = ["network.down_mbps=0.00123", "network.up_mbps=0.000456"]
    alike = [f"run.delay_scale={scale}" if scale != "0.5" else "run.seed=2"]
    wide = ["network.server_ingress_mbps=1000.0", "network.server_egress_mbps=1000.0"]
    private = planned(tmp_path, scenarios.QUADRATIC, *own, *alike)
    shared = planned(tmp_path, scenarios.QUADRATIC, *own, *alike, *wide)
    if scale == "7":  # ends round up after the scale, not before it
        times = [one["summary"]["virtual_time_s"] for one in (private, shared)]
        assert times[0] == pytest.approx(times[1], abs=1e-3)
    else:
        assert shared["timeline_sha256"] == private["timeline_sha256"]


def test_halving_the_rates_doubles_the_transfers(tmp_path):
    """Half of every rate: each upload takes twice as long, to a tick for each."""
    text = scenarios.QUADRATIC.replace("[model]", SHARED + "[model]").replace("latency_s = 0.05", "latency_s = 0.0")
    text = text.replace("seconds_per_step = 0.5", "seconds_per_step = 0.0").replace('wait_s = { law = "uniform", low = 0.0, high = 2.0 }', "")  # fmt: skip
    halves = [
        "network.down_mbps=0.0005", "network.up_mbps={law='pareto',alpha=2.0,scale=0.00025}",
        "network.server_ingress_mbps=0.0002", "network.server_egress_mbps=0.00035", "network.region_up_mbps=[0.00005,0.0005]",
    ]  # fmt: skip
    whole, half = planned(tmp_path, text)["summary"], planned(tmp_path, text, *halves)["summary"]
    assert half["virtual_time_s"] == pytest.approx(2 * whole["virtual_time_s"], rel=0.02)  # rates keep three digits


# ---- jobs that end otherwise, by hand


class Breaking(Plain):
    """Sends to both clients, and ends the job of client 1 after a second."""

    def __init__(self, how: str) -> None:
        object.__setattr__(self, "how", how)

    def start(self, view):
        return None, Reply(sends=(Send(clients=(0, 1)),), alarms=(Alarm("now", 1.0),))

    def arrive(self, state, view, update):
        return state, Reply(params=view.params, sends=())

    def alarm(self, state, view, name):
        return state, Reply(stops=(Stop(1, self.how),), sends=())


def broken(how: str, **trips):
    """100 bytes down on a link of 400 bit/s shared by two, uploads unlimited; client 1's job is ended at 1 s."""
    return play(
        ScriptedTrips(contended=True, **trips), strategy=Breaking(how), stops=StopRules(max_ticks=20 * S), steps=4,
        shared=SharedWays(egress=Way(400)), concurrency=2,
    )  # fmt: skip


def test_a_cancelled_download_makes_room_at_once():
    """Alone after 1 s, with 600 bits to come: client 0 has its model at 2.5 s instead of 4, and arrives 2 s later."""
    played = broken("cancel", compute=[2.0, 2.0])
    assert played.rows("cancel", "downloaded", "arrive") == [
        (1.0, "cancel", 1, 1, 0, 0), (2.5, "downloaded", 0, 0, 0, -1), (4.5, "arrive", 0, 0, 0, 0)
    ]  # fmt: skip
    assert played.engine.usage.accounts[1].legs == (S, 0, 0, 0)


def test_a_job_told_to_report_while_it_downloads_does_one_step():
    """Both have their models at 4 s; client 1 then reports after one of its four steps, 0.5 s later."""
    played = broken("step", compute=[2.0, 2.0])
    assert played.rows("computed", "arrive") == [
        (4.5, "computed", 1, 1, 0, -1), (4.5, "arrive", 1, 1, 0, 0), (6.0, "computed", 0, 0, 1, -1), (6.0, "arrive", 0, 0, 1, 1)
    ]  # fmt: skip


def test_a_job_told_to_report_while_it_computes_ends_at_its_boundary():
    """Downloads take 0.4 s here, so client 1 computes from 0.4 s on; told at 1 s, it reports at its second step, at 1.4 s."""
    played = play(
        ScriptedTrips(contended=True, compute=[2.0, 2.0]), strategy=Breaking("step"), stops=StopRules(max_ticks=20 * S), steps=4,
        shared=SharedWays(egress=Way(4000)), concurrency=2,
    )  # fmt: skip
    assert [row[:3] for row in played.rows("computed", "arrive")] == [
        (1.4, "computed", 1), (1.4, "arrive", 1), (2.4, "computed", 0), (2.4, "arrive", 0)
    ]  # fmt: skip


def test_due_is_when_a_job_would_arrive_alone():
    """Executors are told 2 s of download alone, and 2 s of computing; the arrivals are later."""
    played = broken("step", compute=[2.0, 2.0])
    assert isinstance(played.executor, FloatExecutor)
    assert [due for _, due in played.executor.submitted] == [4 * S, 4 * S]


# ---- facts


def test_rates_on_a_shared_link_have_three_digits():
    """123,456 bit/s are 123,000, and the least is one bit a second; regions follow their shares and the seed."""
    assert [bits_a_second(mbps) for mbps in (0.123456, 0.9995, 1e-6, 12.35)] == [123_000, 1_000_000, 1, 12_400_000]
    assert list(Links(1, [0.0], [0.123456]).sharing(down=True, up=False).down_mbps or ()) == [0.123]
    drawn = regions([2.0, 1.0, 1.0], 5, range(10_000))
    assert [int((drawn == region).sum()) for region in range(3)] == pytest.approx([5000, 2500, 2500], abs=150)
    assert list(regions([2.0, 1.0, 1.0], 5, range(50, 60))) == list(drawn[50:60])
    assert regions([1.0, 1.0], 0, range(12)).tolist() == [1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0]  # slot 6 of a client


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["network.server_ingress_mbps=0"], "must be at least 1e-06, not 0"),
        (["network.region_shares=[1.0, 2.0]"], "needs the key region_down_mbps or region_up_mbps"),
        (["network.region_up_mbps=[1.0, 2.0]"], "region_up_mbps needs the key region_shares"),
        (
            ["network.region_shares=[1.0]", "network.region_up_mbps=[1.0, 2.0]"],
            "has 2 entries, but region_shares has 1",
        ),
        (
            ["network.region_shares=[1.0, 0.0]", "network.region_up_mbps=[1.0, 2.0]"],
            "region_shares[1] must be greater than 0",
        ),
    ],
)
def test_bad_links_are_refused_by_key(tmp_path, keys, said):
    """An error that names the key and says what is wrong."""
    with pytest.raises(ScenarioError) as caught:
        load(scenarios.write(tmp_path, EQUAL), keys)
    assert "[network]" in str(caught.value)
    assert said in str(caught.value)


# ---- the run directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run with everything shared."""
    folder = tmp_path_factory.mktemp("links")
    text = scenarios.QUADRATIC.replace("[model]", SHARED + "[model]")
    return scenarios.played(folder, text)


def test_a_run_is_its_plan_and_verifies(directory, tmp_path):
    """Training changes nothing, and playing it again gives the same tables, links included."""
    path, manifest = directory
    plan = planned(tmp_path, (path / "scenario.toml").read_text())
    assert plan["timeline_sha256"] == manifest["timeline_sha256"]
    assert plan["summary"]["links"] == manifest["summary"]["links"]
    assert verify(path, rerun=True) == []


def test_the_table_links_adds_up(directory):
    """Regions that have a link carry, with those that have none, what the server's carries; the bytes are those of the jobs."""
    path, manifest = directory
    links = pl.read_parquet(path / "links.parquet")
    assert dict(links.schema) == SCHEMA
    totals = {
        key: size
        for *key, size in links.group_by("link", "region").agg(pl.col("bytes").sum()).rows()
        for key in [tuple(key)]
    }
    assert totals["ingress", 0] + totals["ingress", 1] == pytest.approx(totals["ingress", -1], abs=1)
    assert ("egress", 0) not in totals
    assert totals["ingress", -1] >= manifest["summary"]["bytes_up"]
    assert len(links.filter(pl.col("region") == -1)) <= 2 * 256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pl.col("bytes") * 2, "more bytes than the capacity allows"),
        (pl.lit(0, pl.Int64).alias("bytes"), "by the event log it is"),
        (pl.col("busy_s") + 1e6, "more busy time than there is"),
        (pl.col("full_s") + 1e6, "more time at capacity than busy"),
        (pl.col("from_s") + 1.0, "without gaps"),
        (pl.col("busy_s") * 0.5 + pl.col("full_s") * 0.5, "the manifest says links"),
    ],
)
def test_verify_sees_a_changed_table(directory, tmp_path, change, said):
    """Whatever is changed in the table links, verify names it."""
    path, _ = directory
    table = pl.read_parquet(path / "links.parquet")
    try:
        table.with_columns(change).write_parquet(path / "links.parquet")
        assert any(said in problem for problem in verify(path)), verify(path)
    finally:
        table.write_parquet(path / "links.parquet")


@pytest.mark.parametrize(("over", "wrong"), [(1, 0), (2, 2)])
def test_spans_are_right_to_a_microsecond(over, wrong):
    """Totals are rounded down to whole microseconds, so a span may have one more at capacity than busy, or busy than there are."""
    full = ("egress", -1, 2.031616, 2.064384, 0.0014, 2, 0.012325, (12_325 + over) / 1e6)
    busy = ("egress", -1, 0.0, 2.031616, 0.0014, 2, (2_031_616 + over) / 1e6, 0.0)
    table = pl.DataFrame([busy, full], schema=SCHEMA, orient="row")
    assert len(list(faults(table, pl.DataFrame(), (), 2_064_384))) == wrong


def test_runs_without_shared_links_say_nothing_of_them(tmp_path):
    """No table, no line in the summary."""
    path, manifest = scenarios.played(tmp_path, scenarios.QUADRATIC, "run.max_updates=5", timing_only=True)
    assert not (path / "links.parquet").exists()
    assert "links" not in manifest["summary"]


def test_the_documented_table_is_what_plan_says():
    """Each row of docs/links.md is a plan of the scenario shipped with it."""
    text = (ROOT / "desim_fl" / "docs" / "links.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+)% \| ([\d.]+)% \| (\d+), (\d+) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 4
    for mbps, *said in rows[-2:]:
        scenario = load(ROOT / "scenarios" / "saturated_server.toml", [f"network.server_ingress_mbps={mbps}"])
        summary = execute(scenario, None, timing_only=True)["summary"]
        use, staleness = summary["links"]["ingress"], summary["staleness"]
        found = [f"{summary['updates_a_second']:.2f}", f"{use['utilisation']:.1%}"[:-1], f"{use['full']:.1%}"[:-1]]
        assert [*found, str(staleness["p99"]), str(staleness["max"])] == said
