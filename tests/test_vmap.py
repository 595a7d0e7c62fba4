"""Waiting jobs trained together: groups from the timeline alone, results near the inline ones and always the same."""

from __future__ import annotations

import random
import time

import polars as pl
import pytest
import torch
from test_learning_batched import Branching, NormNet, batched, cumulative, jobs_of, same_bits, smooth
from training_world import NoisyNet, blob_task, equal_buffers, job_of

import scenarios
from desim_fl import eventlog
from desim_fl.core import Job, Model, Outcome
from desim_fl.errors import JobError, LawError, ScenarioError
from desim_fl.executors.choice import Wish, choose
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.reuse import ReuseExecutor
from desim_fl.executors.store import Store
from desim_fl.executors.tickets import WorkerError
from desim_fl.executors.vmap import VmapExecutor
from desim_fl.learning.identity import Identity
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.run import resume
from desim_fl.scenario import load
from desim_fl.study.playing import key_of
from desim_fl.verify import verify

VMAP = ('executor.name="vmap"', "executor.width=4")


class Watched(VmapExecutor):
    """Remembers which jobs were trained together."""

    def __init__(self, task, width=3, lanes=1) -> None:
        super().__init__(task, width, lanes)
        assert self.batched is not None
        self.together: list[list[int]] = []
        self._really, self.batched.train = self.batched.train, self._noted

    def _noted(self, jobs):
        self.together.append([job.id for job, _ in jobs])
        return self._really(jobs)


def simple(task, number: int, client: int = 0, steps: int = 3, **more) -> Job:
    """A job of some steps, whose number of dispatch is its own number."""
    return job_of(task.initial(), client, nth=number, number=number, steps=steps, **more)


def submitted(executor, *entries: tuple[int, int]) -> list[Job]:
    """Hand in jobs, ``(number, due)``."""
    jobs = [simple(executor.task, number) for number, _ in entries]
    for job, (_, due) in zip(jobs, entries, strict=True):
        executor.submit(job, due)
    return jobs


# ---- groups


def test_a_group_is_the_job_needed_and_those_due_next():
    """Of five that wait, job 4 takes the two with the smallest (due, number) along; the last two train when needed."""
    executor = Watched(blob_task(smooth))
    jobs = submitted(executor, (0, 50), (1, 20), (2, 50), (3, 20), (4, 90))
    for number in (4, 1, 3, 0, 2):
        assert executor.collect(jobs[number], 3).steps == 3
    assert executor.together == [[4, 1, 3], [0, 2]]
    assert executor.groups == [3, 2]
    assert [row.job for row in executor.wall] == [4, 1, 3, 0, 2]
    assert all(row.train_s > 0 for row in executor.wall)


def test_what_arrives_later_joins_the_next_group():
    """A job handed in after a group was trained waits for one that is needed."""
    executor = Watched(blob_task(smooth))
    first = submitted(executor, (0, 1), (1, 2))
    executor.collect(first[0], 3)
    later = submitted(executor, (2, 3), (3, 4))
    executor.collect(first[1], 3)
    executor.collect(later[0], 3)
    assert executor.together == [[0, 1], [2, 3]]


def test_released_jobs_are_in_no_group_and_trained_ones_are_thrown_away():
    """Let go before: not trained at all. Let go after: the outcome is gone, and nothing is held."""
    executor = Watched(blob_task(smooth))
    jobs = submitted(executor, (0, 1), (1, 2), (2, 3), (3, 4))
    executor.release(jobs[1])
    executor.collect(jobs[0], 3)
    executor.release(jobs[2])
    executor.release(jobs[2])
    assert executor.together == [[0, 2, 3]]
    for gone in (0, 1, 2):
        with pytest.raises(LawError, match=f"job {gone} is not waiting here"):
            executor.collect(jobs[gone], 3)
    executor.collect(jobs[3], 3)
    for job in jobs:
        executor.release(job)
    assert (executor._waiting, executor._alone, executor._trained) == ({}, {}, {})
    executor.submit(jobs[0], 0)
    with pytest.raises(LawError, match="job 0 was submitted twice"):
        executor.submit(jobs[0], 0)


def test_an_executor_that_goes_on_for_another_trains_nothing_twice():
    """Of five, three were trained as a group, one of them collected; one had failed in a group: what is left, and how, is the same."""
    task = blob_task(smooth)
    first, second = Watched(task), Watched(task)
    jobs = submitted(first, (0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
    first.collect(jobs[0], 3)
    first._alone[3] = first._waiting.pop(3)[2]
    for job, due in zip(jobs[1:], (2, 3, 4, 5), strict=True):
        second.submit(job, due)
    second.take_up(first.ahead())
    assert second._alone.keys() == {3}
    trained = [first._trained[number] for number in (1, 2)]
    for job, outcome in zip(jobs[1:3], trained, strict=True):
        assert torch.equal(second.collect(job, 3).params, outcome.params)
    assert second.together == []
    second.collect(jobs[4], 3)
    second.collect(jobs[3], 3)
    assert second.together == []  # nobody was left to go with either


def test_an_early_report_is_trained_again_as_a_group_of_its_own():
    """Two of three steps, before or after its group was trained: the inline bits; the others' groups stay."""
    task, inline = blob_task(smooth), InlineExecutor(blob_task(smooth))
    executor = Watched(task)
    jobs = submitted(executor, (0, 1), (1, 2), (2, 3), (3, 4), (4, 5))
    early = {number: executor.collect(jobs[number], 2) for number in (1,)}
    executor.collect(jobs[0], 3)
    early |= {number: executor.collect(jobs[number], 2) for number in (2,)}
    assert executor.together == [[0, 2, 3]]
    for number, found in early.items():
        inline.submit(jobs[number], 0)
        assert same_bits(found, inline.collect(jobs[number], 2))
        assert found.steps == 2
        with pytest.raises(LawError):
            executor.collect(jobs[number], 3)
    assert executor.collect(jobs[3], 3).steps == executor.collect(jobs[4], 3).steps == 3


def test_single_jobs_and_jobs_without_steps_are_inline_ones():
    """A group of one has the inline bits, and so has a job of no steps, which joins no group."""
    task, inline = blob_task(NormNet), InlineExecutor(blob_task(NormNet))
    executor = Watched(task)
    idle = simple(task, 7, steps=0)
    for job, steps in ((simple(task, 0), 3), (idle, 0)):
        for each in (executor, inline):
            each.submit(job, 0)
        assert same_bits(executor.collect(job, steps), inline.collect(job, steps))
    jobs = submitted(executor, (1, 1), (2, 2))
    executor.submit(idle._replace(id=3), 0)
    executor.collect(jobs[0], 3)
    assert executor.together == [[1, 2]]
    assert executor.collect(idle._replace(id=3), 0).loss is None


def test_groups_do_not_depend_on_how_long_training_takes(monkeypatch):
    """Slow and fast groups: the same groups and the same bits."""
    draw, ends = random.Random(0), []
    for _ in range(2):
        executor = Watched(blob_task(NormNet), width=20)
        really = executor._really
        monkeypatch.setattr(executor, "_really", lambda jobs, r=really: (time.sleep(draw.random() / 20), r(jobs))[1])
        jobs = [job for job, _ in jobs_of(executor.task, 24)]
        jobs = [job._replace(work=job.work._replace(steps=4 + job.id % 3)) for job in jobs]
        for job in jobs:
            executor.submit(job, -job.id)
        ends.append((executor, [executor.collect(job, job.work.steps or 0) for job in jobs]))
    (one, first), (other, second) = ends
    assert one.together == other.together == [[0, *range(23, 4, -1)], [1, 4, 3, 2]]
    assert all(map(same_bits, first, second))


# ---- falling back


@pytest.mark.parametrize(
    ("model", "why"),
    [(NoisyNet, "the model draws random numbers"), (Branching, "vmap cannot run"), (cumulative, "vmap cannot run")],
)
def test_rp_06_a_model_that_cannot_be_batched_is_trained_one_by_one_from_untouched_state(model, why):
    """The inline bits, batch counters included, and the reason; nothing of a failed attempt stays in the module."""
    executor, inline = VmapExecutor(blob_task(model), 8), InlineExecutor(blob_task(model))
    assert executor.batched is None
    assert executor.reason.startswith(f"trained one by one: {why}")
    jobs = [job._replace(work=job.work._replace(steps=5)) for job, _ in jobs_of(executor.task, 5)]
    for job in jobs:
        executor.submit(job, 0)
        inline.submit(job, 0)
    for job in jobs:
        left, right = executor.collect(job, 5), inline.collect(job, 5)
        assert same_bits(left, right)
        counts = [int(value) for name, value in left.buffers.items() if name.endswith("num_batches_tracked")]
        assert counts == [5 if job.client != 3 else 0]  # a single sample is trained with BatchNorm at rest
    assert executor.groups == []
    assert equal_buffers(executor.task.module.state_dict(), inline.task.module.state_dict())


def test_a_group_that_fails_is_trained_one_by_one(monkeypatch):
    """Whatever vmap raises on the way, halfway through or not: the inline bits for all of its members."""
    executor, inline = Watched(blob_task(NormNet)), InlineExecutor(blob_task(NormNet))
    jobs = submitted(executor, (0, 1), (1, 2), (2, 3))

    def half(jobs):
        batched(executor.task).train(jobs[:2])
        raise RuntimeError("vmap: no such thing")

    monkeypatch.setattr(executor.batched, "train", half)
    for job in jobs:
        inline.submit(job, 0)
        assert same_bits(executor.collect(job, 3), inline.collect(job, 3))
    assert executor.groups == [3]


def test_too_little_memory_is_an_error_that_names_the_way_out(monkeypatch):
    """How much memory a machine has must not decide how jobs are trained, so there is no falling back."""
    executor = Watched(blob_task(smooth))
    jobs = submitted(executor, (0, 1), (1, 2))

    def full(jobs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(executor.batched, "train", full)
    with pytest.raises(
        JobError, match=r"job 1 .*executor vmap\): no memory to train 2 jobs at once; executor.width = 1"
    ):
        executor.collect(jobs[1], 3)


def test_a_process_that_dies_twice_under_a_group_is_an_error_that_names_the_job_needed(monkeypatch):
    """What ended two processes is not tried in this one."""
    executor = Watched(blob_task(smooth))
    jobs = submitted(executor, (0, 1), (1, 2))

    def dead(jobs):
        raise JobError(0, 0, 0, "pool, worker 3", "") from WorkerError(
            "the worker died (killed by signal 9), 2 times\nx"
        )

    monkeypatch.setattr(executor.batched, "train", dead)
    with pytest.raises(JobError, match=r"job 1 .*executor vmap\): training 2 jobs at once: the worker died .*2 times$"):
        executor.collect(jobs[1], 3)


def test_a_job_that_cannot_be_trained_is_named_when_it_is_needed():
    """A job that asks for a part of the model spoils only itself, as inline."""
    executor = VmapExecutor(blob_task(smooth), 4)
    bad = simple(executor.task, 9)._replace(work=simple(executor.task, 9).work._replace(part=(1,)))
    good = submitted(executor, (0, 1))[0]
    executor.submit(bad, 2)
    assert executor.collect(good, 3).steps == 3
    with pytest.raises(JobError, match=r"job 9 .*executor vmap\): RefusedError: work.part"):
        executor.collect(bad, 3)


def test_tasks_without_a_network_and_groups_of_one_go_one_by_one():
    """A quadratic task and ``width = 1`` are played exactly as inline, and the reason is told."""
    task = QuadraticTask(curvature=[1.0], optimum=[2.0], examples=[4])
    wish = Wish("vmap", None, 1, None, width=8)
    executor, reason = choose(task, wish, [1])
    assert reason == "vmap: trained one by one: the task has no network"
    job = Job(0, 0, 0, 0, 5.0, None, job_of(Model(0, 0.0)).work._replace(steps=2))
    executor.submit(job, 0)
    assert executor.collect(job, 2) == task.train(job, 2)
    assert list(executor.evaluate(Model(0, 5.0))()) == list(task.evaluate(Model(0, 5.0)))
    assert choose(blob_task(), wish._replace(width=1), [1])[1] == "vmap: trained one by one: width = 1"
    assert choose(blob_task(), wish, [1])[1] == "vmap: up to 8 jobs at once"
    assert choose(blob_task(NormNet), wish, [1])[1].endswith("at once, batches of one size at a time")


def test_auto_never_takes_vmap_unasked():
    """Results that are only near must be allowed."""
    for jobs in (1, 10_000, None):
        executor, _ = choose(blob_task(), Wish("auto", None, 1, jobs, width=16), [4])
        assert executor.name in {"inline", "threads", "pool"}
        executor.close()


def convolutional() -> torch.nn.Module:
    """Six numbers, taken for a row of them."""
    return torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 6)), torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    )


class Choosy(torch.nn.Module):
    """A dense layer behind a branch on the data, which cannot be batched."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs if inputs[0, 0] > 0 else -inputs)


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (smooth, True),
        (lambda: torch.nn.Linear(6, 4), True),
        (convolutional, False),
        (NormNet, False),
        (lambda: torch.nn.Sequential(torch.nn.Linear(6, 20_000), torch.nn.Linear(20_000, 4)), False),
        (Choosy, False),
    ],
)
@pytest.mark.parametrize("jobs", [1, None])
def test_auto_takes_vmap_for_small_dense_networks_where_near_results_are_allowed(model, taken, jobs):
    """The kind of network decides, not how fast or busy this machine is, nor how much there is to train."""
    wish = Wish("auto", None, 1, jobs, width=4, near=True)
    executor, reason = choose(blob_task(model), wish, [4])
    executor.close()
    assert (executor.name == "vmap") == taken, reason
    assert taken == ("near results are allowed" in reason)


def test_the_store_of_outcomes_gets_nothing(tmp_path):
    """Outcomes and scores of vmap are never written where exact executors would take them for their own."""
    task = blob_task(smooth)
    executor = ReuseExecutor(VmapExecutor(task, 4), Store(tmp_path, 10**9), Identity(task), task.device)
    jobs = submitted(executor.inner, (0, 1), (1, 2))
    for job in jobs:
        executor.inner.release(job)
        executor.submit(job, 1)
    outcomes = [executor.collect(job, 3) for job in jobs]
    executor.evaluate(task.initial())()
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ('executor={name="inline", width=4}', 'width must not be given with name = "inline"; it belongs to "vmap"'),
        ("executor.width=4", 'width must not be given with name = "auto"; it belongs to "vmap"'),
        ('executor={name="vmap", reuse=true}', "reuse = true is refused with vmap"),
        ("executor={near=true, reuse=true}", "reuse = true is refused with vmap"),
        ('executor={name="pool", near=true}', 'near must not be given with name = "pool"'),
        ('executor={name="vmap", width=0}', "width"),
    ],
)
def test_scenarios_that_do_not_fit_vmap_are_refused(tmp_path, override, why):
    """``width`` belongs to vmap, and what a cache holds may not decide who is trained with whom."""
    text = scenarios.BLOBS.replace("[executor]\nreuse = false\n", "")
    with pytest.raises(ScenarioError) as caught:
        load(scenarios.write(tmp_path, text), [override])
    assert why in str(caught.value)


# ---- whole runs

STRATEGIES = {
    "fedasync": 'name = "fedasync"',
    "fedasync delta, bounded": 'name = "fedasync"\nmixing = "delta"\nstaleness = "hinge"\nmax_staleness = 1',
    "fedbuff": 'name = "fedbuff"\nbuffer_size = 3\nflush_at_end = true',
    "fedavg": 'name = "fedavg"\nclients_per_round = 2\nover_selection = 2.0\ncancel_stragglers = true',
    "fedavg with a deadline": 'name = "fedavg"\nclients_per_round = 4\ndeadline_s = 0.9',
}


def world(strategy: str, extra: str = "") -> str:
    """The blobs under a strategy."""
    text = scenarios.BLOBS.replace('name = "fedasync"', strategy).replace("seed = 3", f"seed = 3\n{extra}")
    return text.replace("concurrency = 3\n", "" if "fedavg" in strategy else "concurrency = 5\n")


@pytest.mark.parametrize("name", STRATEGIES)
def test_laws_1_and_3_for_every_strategy(tmp_path, name):
    """The timeline is inline's; two vmap runs have the same bits, with other lanes too; the model is near inline's."""
    text = world(STRATEGIES[name])
    _, inline = scenarios.played(tmp_path, text, 'executor.name="inline"', out="inline")
    _, first = scenarios.played(tmp_path, text, *VMAP, "executor.workers=1", out="first")
    _, second = scenarios.played(tmp_path, text, *VMAP, "executor.workers=3", out="second")
    assert inline["timeline_sha256"] == first["timeline_sha256"] == second["timeline_sha256"]
    assert first["model_sha256"] == second["model_sha256"]
    for table in ("metrics", "clients"):
        left, right = (pl.read_parquet(tmp_path / run / f"{table}.parquet") for run in ("first", "second"))
        assert left.equals(right)
    logs = [eventlog.read(tmp_path / run / "events").collect() for run in ("first", "second")]
    assert logs[0].equals(logs[1])
    scores = [pl.read_parquet(tmp_path / run / "metrics.parquet")["loss"] for run in ("inline", "first")]
    assert scores[0].to_list() == pytest.approx(scores[1].to_list(), rel=1e-3)


def test_a_run_is_really_batched_and_verify_plays_it_again_with_the_same_groups(tmp_path):
    """The manifest tells executor and reason, and does not call the executor a matter of wall time; verify agrees."""
    sizes, steps = [], []

    def watch(session) -> None:
        sizes[:] = session.built.world.executor.groups
        steps[:] = session.built.world.executor.batched.records.uses.items()

    folder, manifest = scenarios.played(tmp_path, world(STRATEGIES["fedbuff"]), *VMAP, watch=watch)
    assert max(sizes) == 4
    assert sum(sizes) >= 30
    assert sum(uses for (jobs, _), uses in steps if jobs > 1) > 20
    assert manifest["executor"] == "vmap"
    assert manifest["executor_reason"] == "vmap: up to 4 jobs at once"
    assert "executor" not in manifest["wall_fields"]
    assert verify(folder, rerun=True) == []
    _, inline = scenarios.played(tmp_path, world(STRATEGIES["fedbuff"]), 'executor.name="inline"', out="inline")
    assert "executor" in inline["wall_fields"]
    resolved = (folder / "scenario.toml").read_text()
    assert "width = 4" in resolved
    assert "width" not in (tmp_path / "inline" / "scenario.toml").read_text()


def test_a_run_that_allows_near_results_is_that_of_vmap_and_only_it_can_end_it(tmp_path):
    """``near`` gives vmap's bits; they belong to the run's identity, so that no exact executor takes the rest over."""
    text = world(STRATEGIES["fedbuff"])
    _, asked = scenarios.played(tmp_path, text, *VMAP, out="asked")
    folder, allowed = scenarios.played(tmp_path, text, "executor.near=true", "executor.width=4", out="allowed")
    assert allowed["executor"] == "vmap"
    assert allowed["model_sha256"] == asked["model_sha256"]
    assert "executor" not in allowed["wall_fields"]
    assert verify(folder, rerun=True) == []
    exact, _ = scenarios.played(tmp_path, text, 'executor.name="inline"', out="exact")
    assert key_of(load(exact / "scenario.toml"), timing_only=False) != key_of(
        load(folder / "scenario.toml"), timing_only=False
    )
    for began, other in ((folder, '"inline"'), (folder, '"vmap"'), (exact, '"vmap"')):
        manifest = began / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
        with pytest.raises(ScenarioError, match=r"only vmap can end alike|near must not be given"):
            resume(began, [f"executor.name={other}"])


def test_a_run_with_another_width_is_another_run_in_last_bits_only(tmp_path):
    """The timeline does not depend on the width, losses hardly; width 1 has the inline bits."""
    text = world(STRATEGIES["fedasync"])
    runs = [
        scenarios.played(tmp_path, text, *VMAP, f"executor.width={width}", out=f"w{width}")[1] for width in (1, 2, 5)
    ]
    _, inline = scenarios.played(tmp_path, text, 'executor.name="inline"', out="inline")
    assert len({run["timeline_sha256"] for run in (*runs, inline)}) == 1
    assert runs[0]["model_sha256"] == inline["model_sha256"]
    losses = [run["summary"]["loss"] for run in runs]
    assert losses == pytest.approx([inline["summary"]["loss"]] * 3, rel=1e-3)


def test_a_model_with_dropout_runs_with_the_inline_bits(tmp_path, monkeypatch):
    """A user's model that draws falls back, tells why, and gives the inline run's hashes."""
    (tmp_path / "noisy_nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.2), nn.Linear(12, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "noisy_nets:net"')
    _, inline = scenarios.played(tmp_path, text, 'executor.name="inline"', out="inline")
    _, near = scenarios.played(tmp_path, text, *VMAP, out="vmap")
    assert near["executor_reason"] == "vmap: trained one by one: the model draws random numbers"
    for name in ("timeline_sha256", "model_sha256"):
        assert inline[name] == near[name]


def test_a_quadratic_world_runs_under_vmap(tmp_path):
    """A task without a network is played one by one: the inline hashes."""
    _, inline = scenarios.played(tmp_path, scenarios.QUADRATIC, 'executor.name="inline"', out="inline")
    _, near = scenarios.played(tmp_path, scenarios.QUADRATIC, 'executor.name="vmap"', out="vmap")
    assert (near["executor"], near["model_sha256"]) == ("vmap", inline["model_sha256"])
