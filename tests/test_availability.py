"""Windows of availability: every kind beside a naive look at each tick, the roster that follows them, and trace files."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import scenarios
from desim_fl import durations, traces
from desim_fl.attendance import Attendance
from desim_fl.availability import Diurnal, Renewal, ahead, listed, window_at
from desim_fl.elementary import cosine_of_turn
from desim_fl.errors import ScenarioError
from desim_fl.verify import verify

S = 1_000_000
COLUMNS = ("client", "start_s", "end_s")


def online(source, client: int, tick: int) -> bool:
    """Whether a client is online at a tick."""
    return window_at(source, client, tick).start <= tick


@pytest.mark.parametrize("period", [None, 11, 40])
def test_listed_windows_are_those_of_the_list(period):
    """Any list, in any order, overlapping, touching, empty or over the period's end: at every tick what a look at it says."""
    for seed in range(40):
        chance = random.Random(seed)
        rows = [
            (chance.randrange(3), start := chance.randrange(-5, 60), start + chance.choice([0, 1, 4, 20]))
            for _ in range(chance.choice([0, 3, 15]))
        ]
        device, start, end = np.array(rows, np.int64).reshape(-1, 3).T
        source = listed(device, start, end, 3, period)
        shifts = [0] if period is None else [period * turn for turn in range(-30, 31)]
        for client in range(3):
            mine = [(a + shift, b + shift) for owner, a, b in rows if owner == client for shift in shifts]
            for tick in range(90):
                assert online(source, client, tick) == any(a <= tick < b for a, b in mine), (seed, client, tick)


def sources(clients: int):
    """One of each kind that changes often, times in ticks of a microsecond."""
    law = [durations.Exponential(mean / 1e6) for mean in (0.6, 3.0, 9.0)]
    yield Renewal(5, range(clients), law[1], law[2])
    yield Renewal(6, range(clients), law[0], law[0], "on")
    yield Diurnal(7, np.arange(clients), [0] * clients, [client % 3 for client in range(clients)], 3, 0.5, 0.3)
    yield listed(
        np.repeat(np.arange(clients), 4), np.arange(4 * clients) % 29, np.arange(4 * clients) % 29 + 3, clients, 31
    )


@pytest.mark.parametrize("kind", range(4))
def test_one_client_at_a_time_or_many_give_the_same_windows(kind):
    """The scalar form gives the array form's windows, which are apart and have a length."""
    source = list(sources(7))[kind]
    many = source.first(np.arange(7))
    found = [[window_at(source, client, 0)] for client in range(7)]
    for _ in range(40):
        for client in range(7):
            last = found[client][-1]
            assert (last.start, last.end) == (int(many.start[client]), int(many.end[client]))
            found[client].append(source.after(client, last))
            assert last.start < last.end < found[client][-1].start
        many = source.next(np.arange(7), many)


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("ring", [False, True])
def test_the_roster_knows_who_is_idle_and_online(kind, ring):
    """Taking and freeing at random, looking often or seldom: selectable are the idle that are online, in the order of their coming."""
    chance, clients = random.Random(kind), 9
    source, now = list(sources(clients))[kind], [0]
    roster = Attendance(source, clients, lambda: now[0])
    spans = [[] for _ in range(clients)]
    for client in range(clients):
        for window in ahead(source, client, window_at(source, client, 0)):
            spans[client].append(window)
            if window.start > 1500:
                break
    busy: set[int] = set()
    since = dict.fromkeys(range(clients), 0)
    for step in range(150):
        tick = now[0]
        roster.advance(2 * tick)
        there = [
            client
            for client in range(clients)
            if client not in busy
            and any((w.start < tick or not tick) and w.start <= tick < w.end for w in spans[client])
        ]
        assert (roster.selectable, [roster.nth_selectable(rank) for rank in range(len(there))]) == (len(there), there)
        if ring:
            came = {client: max((w.start for w in spans[client] if w.start < tick), default=0) for client in there}
            idle = {client: max(since[client], came[client]) for client in there}
            order = roster.longest_idle(clients)
            assert [idle[client] for client in order] == sorted(idle.values())
        comes = [(w.start, client) for client in range(clients) for w in spans[client] if w.start >= max(tick, 1)]
        assert roster.next_comer(last=False) == min(comes)
        if there and step % 2:
            client = chance.choice(there)
            assert roster.window(client) in spans[client]
            roster.take(client)
            busy.add(client)
        if busy and step % 3 == 0:
            client = chance.choice(sorted(busy))
            busy.discard(client)
            roster.free(client)
            since[client] = tick
        now[0] += chance.choice([0, 1, 3, 15])


def test_a_stationary_renewal_is_stationary():
    """Lognormal times on, uniform times off, 20,000 clients: the share online at 0, and at 30 and 500 s, is the mean's, within 4 sd."""
    on, off = durations.Lognormal(20.0, 0.8), durations.Uniform(5.0, 45.0)
    source, clients = Renewal(3, range(20_000), on, off), np.arange(20_000)
    share = 20 * math.exp(0.32) / (20 * math.exp(0.32) + 25)
    windows = source.first(clients)
    for tick in (0, 30 * S, 500 * S):
        while (windows.end <= tick).any():
            later = source.next(clients, windows)
            windows = type(windows)(
                *(np.where(windows.end <= tick, new, old) for new, old in zip(later, windows, strict=True))
            )
        found = float((windows.start <= tick).mean())
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


def test_days_follow_the_cosine():
    """At each local hour the share online is mean + amplitude cos, and zones shift it; the cosine is the library's to 1e-15."""
    turns = np.linspace(0.0, 0.9999, 1001)
    assert np.abs(cosine_of_turn(turns) - np.cos(2 * np.pi * turns)).max() < 1e-15
    assert [cosine_of_turn(float(turn)) for turn in turns[::50]] == cosine_of_turn(turns)[::50].tolist()
    hour, clients = 3600 * S, np.arange(20_000)
    for zone in (0, 6 * hour):
        source = Diurnal(1, clients, np.full(20_000, zone), np.zeros(20_000, np.int64), hour, 0.5, 0.4, 2 * hour)
        for number in (0, 7, 13, 25):
            chance = 0.5 + 0.4 * math.cos(2 * math.pi * ((number + 0.5) - 2 + zone / hour) / 24)
            found = float(source.online(clients, np.full(20_000, number)).mean())
            assert abs(found - chance) < 4 * math.sqrt(0.25 / 20_000)


# ---- traces


TRACE = "client,start_s,end_s,note\n7,0,4,a\n7,4,9,b\n3,2,2,zero\n3,1,6,c\n7,20,22,d\n"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_trace_plays_by_its_path(tmp_path, kind):
    """A made trace of two devices for four clients, with a window of length 0: played, verified, its hash and notes kept."""
    (tmp_path / "made.csv").write_text(TRACE)
    pl.read_csv(tmp_path / "made.csv").write_parquet(tmp_path / "made.parquet")
    text = scenarios.QUADRATIC.replace("max_updates = 60", "max_time_s = 25")
    text += f'\n[availability]\nname = "trace"\npath = "made.{kind}"\n'
    folder, found = scenarios.played(tmp_path, text)
    assert {key: found["trace"][key] for key in ("devices", "rows", "dropped")} == {
        "devices": 2,
        "rows": 5,
        "dropped": 1,
    }
    assert found["summary"]["losses"].keys() == {"client left"}
    assert verify(folder, rerun=True) == []


def test_devices_are_given_to_clients_in_turns(tmp_path):
    """Devices 3 and 7 are those of clients 0, 2 and 1, 3; other columns may be named, an origin shifts, a period repeats."""
    path = tmp_path / "t.csv"
    path.write_text(TRACE.replace("client,start_s,end_s", "who,from,to"))
    windows = traces.read(path, ("who", "from", "to"), origin_s=1.0, period_s=30.0).windows
    assert [(w.start, w.end) for _, w in zip(range(2), ahead(windows, 2, window_at(windows, 2, 0)), strict=False)] == [
        (0, 5 * S),
        (30 * S, 35 * S),
    ]
    assert [online(windows, client, 7 * S) for client in range(4)] == [False, True, False, True]
    assert online(windows, 1, 29 * S + 1)  # what lies before the origin comes round again


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"client,start_s,end_s\n1,2,abc\n", ":2: column end_s: 'abc' is not a number"),
        (b"client,start_s,end_s\n1,2,3\n1,5,4\n", ":3: column end_s: the window ends at 4 s, before it starts at 5 s"),
        (b"client,start_s,end_s\n1.5,2,3\n", ":2: column client: 1.5 is not a whole number"),
        (b"client,start_s,end_s\n-1,2,3\n", ":2: column client: -1 is not a whole number"),
        (b"client,start_s,end_s\nnan,2,3\n", ":2: column client: nan is not a whole number"),
        (b"client,start_s,end_s\n1,2,inf\n", ":2: column end_s: inf s is out of range"),
        (b"client,start_s,end_s\n1,2\n", ":2: has 2 cells, the header 3"),
        (b"client,begin,end_s\n1,2,3\n", ":1: has no column 'start_s'; its columns are 'client', 'begin', 'end_s'"),
        (b"client,start_s,end_s\n", "has no windows"),
        (b"", ":1: has no column 'client'"),
        (b"client,start_s,end_s\n\xff,2,3\n", ":2: is not UTF-8 text"),
        (b'client,start_s,end_s\n"1,2,3\n', "is not CSV"),
    ],
)  # fmt: skip
def test_a_bad_trace_is_named_with_its_place(tmp_path, content, complaint):
    """File, line, column and what is wrong."""
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        traces.read(path, COLUMNS)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


PHONES = """
[data]
name = "quadratic"
[clients]
count = 2
seconds_per_job = 4.0
[availability]
name = "trace"
path = "phones.parquet"
client_column = "device"
start_column = "available_from_s"
end_column = "available_until_s"
origin_s = 2410196
[strategy]
name = "fedasync"
[run]
concurrency = 2
max_time_s = 12.0
"""


def test_a_table_of_phones_as_it_is_published_plays_by_hand(tmp_path):
    """Whole seconds by device beside the ends of its record: device 7 is there throughout, 681 from 4 to 14 s, one window is empty."""
    rows = [(681, 2410200, 2410210), (7, 2410196, 2410300), (681, 2410250, 2410250)]
    names = ("device", "available_from_s", "available_until_s")
    table = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Int64), orient="row")
    table = table.with_columns(trace_start_s=pl.lit(2410196), trace_end_s=pl.lit(2928596))
    table.write_parquet(tmp_path / "phones.parquet")
    folder, manifest = scenarios.played(tmp_path, PHONES, timing_only=True)
    assert [manifest["trace"][key] for key in ("devices", "rows", "dropped")] == [2, 3, 1]
    events = pl.read_parquet(folder / "events" / "part-00000.parquet")
    arrivals = events.filter(pl.col("kind") == "arrive").select("time_s", "client").rows()
    assert arrivals == [(4.0, 0), (8.0, 0), (8.0, 1), (12.0, 0), (12.0, 1)]


def test_a_bad_trace_ends_a_plan_before_it_begins(tmp_path):
    """Exit code 2, one line with the trace's place, and nothing is written."""
    (tmp_path / "bad.csv").write_text("client,start_s,end_s\n1,2,abc\n")
    scenario = scenarios.write(tmp_path, scenarios.QUADRATIC + '\n[availability]\nname = "trace"\npath = "bad.csv"\n')
    command = [sys.executable, "-m", "desim_fl", "plan", str(scenario), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "bad.csv:2: column end_s: 'abc' is not a number" in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_bad_parquet_trace_is_named_with_its_row(tmp_path):
    """A text column, an empty cell, a window that ends too early, no Parquet at all."""
    path = tmp_path / "bad.parquet"
    for columns, complaint in (
        ({"client": ["a"], "start_s": [1], "end_s": [2]}, "column client: holds String, not numbers"),
        ({"client": [1, 1], "start_s": [1, None], "end_s": [2, 3]}, ":2: column start_s: is empty"),
        ({"client": [1, 1], "start_s": [1, 5], "end_s": [2, 3]}, ":2: column end_s: the window ends at 3 s"),
    ):
        pl.DataFrame(columns).write_parquet(path)
        with pytest.raises(ScenarioError, match=complaint):
            traces.read(path, COLUMNS)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ScenarioError, match="is not a Parquet file"):
        traces.read(path, COLUMNS)
    with pytest.raises(ScenarioError, match="cannot be read"):
        traces.read(tmp_path / "none.csv", COLUMNS)
