"""Link noise: bandwidths that get better and worse by client and time, never by job."""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction

import pytest
from fluid import Flow, Fluid
from worlds import S, ScriptedTrips, play

import scenarios
from desim_fl.durations import Uniform
from desim_fl.errors import ScenarioError
from desim_fl.network import Noise, SharedWays, Way
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.verify import verify
from desim_fl.world import StopRules


@dataclass
class Scripted:
    """Factors by client and second, the last one for ever."""

    by_client: list[list[float]]

    def factor(self, client, tick):
        """As listed."""
        mine = self.by_client[client]
        return mine[min(tick // S, len(mine) - 1)]

    def until(self, tick):
        """The next second."""
        return (tick // S + 1) * S


def test_a_transfer_goes_on_at_the_rate_of_each_window():
    """800 bits at 400 bit/s times 1, 1/2, 2: 400 in the first second, 200 in the second, the last 200 in a quarter of one."""
    way = Way(None, rates=[0.0004], noise=Scripted([[1.0, 0.5, 2.0]]))  # type: ignore[arg-type]
    played = play(
        ScriptedTrips([1.0], contended=True),
        shared=SharedWays(egress=way),
        concurrency=1,
        stops=StopRules(max_updates=1),
    )
    assert [row[:2] for row in played.rows("downloaded", "arrive")] == [(2.25, "downloaded"), (3.25, "arrive")]
    assert played.engine.roads == []  # nothing is shared: no table of links


@pytest.mark.parametrize("seed", range(8))
def test_noisy_caps_on_a_crowded_link_are_those_of_the_brute_force(seed):
    """Six clients begin together on one link, caps change every second: all ends are those of the fluid in fractions."""
    chance = random.Random(seed)
    rates = [chance.choice([100, 200, 300]) for _ in range(6)]
    factors = [[chance.choice([0.25, 0.5, 1.0, 2.0]) for _ in range(30)] for _ in range(6)]
    way = Way(chance.choice([500, 700, 100_000]), rates=[rate / 1e6 for rate in rates], noise=Scripted(factors))  # type: ignore[arg-type]
    played = play(
        ScriptedTrips([500.0] * 6, contended=True), shared=SharedWays(egress=way), concurrency=6,
        stops=StopRules(max_ticks=200 * S),
    )  # fmt: skip
    fluid = Fluid(Fraction(way.capacity, S), [None])
    fluid.flows = {job: Flow(Fraction(800), None, 0, 0) for job in range(6)}
    for second in range(200):
        for job, flow in fluid.flows.items():
            flow.cap = Fraction(rates[job], S) * Fraction(factors[job][min(second, 29)])
        fluid.advance((second + 1) * S)
    ends = {job: tick for job, _, tick in fluid.ended}
    assert {job: round(t * S) for t, _, _, job, *_ in played.rows("downloaded")} == ends


def test_factors_belong_to_client_direction_and_time():
    """The same wherever they are asked for; other clients, directions and windows have others; their law is the one given."""
    noise = Noise(7, range(5), Uniform(0.5, 1.5), 10 * S, 0)
    assert noise.factor(3, 25 * S) == noise.factor(3, 29 * S + 999_999) != noise.factor(3, 30 * S)
    assert len({each.factor(client, 25 * S) for each in (noise, noise._replace(slot=1)) for client in range(5)}) == 10
    drawn = [noise.factor(client, window * 10 * S) for client in range(5) for window in range(400)]
    assert all(0.5 <= factor <= 1.5 for factor in drawn)
    assert abs(sum(drawn) / len(drawn) - 1.0) < 4 * (1 / 12) ** 0.5 / len(drawn) ** 0.5
    assert noise.until(29 * S) == 30 * S == noise.until(20 * S)


LINKS = ("network.latency_s=0.05", "network.down_mbps=0.001", "network.up_mbps=0.0005")
TROUBLE = (
    "availability.name=renewal", "availability.on_s={law='exponential',mean=4.0}", "availability.on_leave=pause",
    "availability.off_s={law='exponential',mean=1.0}", "failures.timeout_s=3.0", "failures.crash_compute=0.2",
    "failures.max_retries=1", "failures.outages_s=[[5, 6], [9, 9.5]]", "run.max_time_s=30", "run.max_updates=60",
)  # fmt: skip


def planned(tmp_path, *keys):
    """A plan of the small quadratic world."""
    return execute(load(scenarios.write(tmp_path, scenarios.QUADRATIC), keys), None, timing_only=True)


def test_noise_that_changes_nothing_is_none(tmp_path):
    """A factor of 1 for ever, and a server's link so wide that nobody feels it: the timeline of links of one's own, in any trouble."""
    private = planned(tmp_path, *LINKS, *TROUBLE)
    assert (
        planned(tmp_path, *LINKS, *TROUBLE, "network.noise_factor=1.0")["timeline_sha256"]
        == (private["timeline_sha256"])
    )
    wide = ("network.server_ingress_mbps=1000", "network.server_egress_mbps=1000")
    assert planned(tmp_path, *LINKS, *TROUBLE, *wide)["timeline_sha256"] == private["timeline_sha256"]
    half = planned(tmp_path, *LINKS, *TROUBLE, "network.noise_factor=0.5")
    slow = ("network.latency_s=0.05", "network.down_mbps=0.0005", "network.up_mbps=0.00025")
    assert (
        half["timeline_sha256"] == planned(tmp_path, *slow, *TROUBLE)["timeline_sha256"] != private["timeline_sha256"]
    )


def test_a_noisy_run_keeps_the_laws(tmp_path):
    """Plan and run agree, verify finds nothing, training again included; no table of links, since nothing is shared."""
    keys = [*LINKS, *TROUBLE, "network.noise_factor={law='uniform',low=0.2,high=2.0}", "network.noise_window_s=0.7"]
    scenario = load(scenarios.write(tmp_path, scenarios.QUADRATIC), keys)
    manifest = execute(scenario, tmp_path / "run")
    assert planned(tmp_path, *keys)["timeline_sha256"] == manifest["timeline_sha256"]
    assert verify(tmp_path / "run", rerun=True) == []
    assert not (tmp_path / "run" / "links.parquet").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["network.noise_factor=1.0"], "noise_factor has no effect: nobody has down_mbps or up_mbps"),
        (["network.noise_window_s=5"], "noise_window_s has no effect without noise_factor"),
        ([*LINKS, "network.noise_factor=0"], "must be"),
        ([*LINKS, "network.noise_factor=1.0", "network.noise_window_s=0"], "noise_window_s must be at least 0.001"),
    ],
)
def test_noise_without_what_it_needs_is_refused(tmp_path, keys, said):
    """An error that names the key and says what is wrong."""
    text = "\n".join(line for line in scenarios.QUADRATIC.splitlines() if "_mbps" not in line)
    with pytest.raises(ScenarioError) as caught:
        load(scenarios.write(tmp_path, text), keys)
    assert "[network]" in str(caught.value)
    assert said in str(caught.value)
