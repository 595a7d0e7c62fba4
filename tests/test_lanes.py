"""Batched groups in processes of their own: the bits of the same groups in this process, whatever becomes of a process."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from test_learning_batched import NormNet, batched, jobs_of, same_bits
from training_world import blob_task, equal_buffers

from desim_fl.executors.choice import Wish, choose
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.lanes import HandError, Lanes
from desim_fl.executors.packing import packed, unpacked
from desim_fl.executors.vmap import VmapExecutor
from desim_fl.learning import trial


class Wired(InlineExecutor):
    """Outcomes come back as they do from another process."""

    def collect(self, job, steps):
        return unpacked(packed(super().collect(job, steps)))


@pytest.fixture(scope="module")
def task():
    """BatchNorm, with buffers that travel."""
    return blob_task(NormNet)


@pytest.fixture(scope="module")
def lanes(task):
    """Two processes, for all tests."""
    made = Lanes(task, trial.examine(task).traits, 2)
    yield made
    made.close()


def test_where_a_hand_is_trained_changes_no_bit(task, lanes):
    """Twenty jobs of many versions, twice: outcomes of the processes are those of this one, and no version is held."""
    jobs = jobs_of(task, 20)
    right = batched(task).train(jobs)
    for _ in range(2):
        assert all(map(same_bits, right, lanes.train(jobs)))
    assert (lanes._pool._models, lanes._pool._jobs) == ({}, {})


def test_what_a_job_held_comes_back_as_the_same_thing():
    """Under FedBN buffers stay as they were, and are not sent back; a client's own are."""
    task = blob_task(NormNet, buffers="local")
    lanes = Lanes(task, trial.examine(task).traits, 2)
    lanes._pool = Wired(lanes._pool.task)
    jobs = [(job._replace(memory={"buffers": job.buffers}), steps) for job, steps in jobs_of(task, 10)]
    right, found = batched(task).train(jobs), lanes.train(jobs)
    for one, other, (job, _) in zip(right, found, jobs, strict=True):
        assert torch.equal(one.params, other.params)
        assert equal_buffers(one.memory["buffers"], other.memory["buffers"])
        assert other.buffers is job.buffers


def test_a_hand_that_fails_says_why_and_the_processes_go_on(task, lanes):
    """One member asks for a part of the model: the group is refused as a whole, the next one is trained."""
    jobs = jobs_of(task, 20)
    spoilt, steps = jobs[7]
    spoilt = spoilt._replace(work=spoilt.work._replace(part=(1,)))
    with pytest.raises(HandError, match=r"RefusedError: work\.part") as caught:
        lanes.train([*jobs[:7], (spoilt, steps), *jobs[8:]])
    assert not caught.value.memory
    assert lanes._pool._jobs == {}
    assert len(lanes.train(jobs[:9])) == 9


def test_a_process_that_is_killed_costs_time_only(task, lanes, monkeypatch):
    """Killed with a hand before it, whatever ended it: another process trains that, with the same bits."""
    pool, jobs, killed = lanes._pool, jobs_of(task, 20), []
    right = batched(task).train(jobs)

    def kill(hand, ticket, give=pool._give) -> None:
        if not killed:
            killed.append(hand.process.pid)
            os.kill(killed[0], signal.SIGKILL)
        give(hand, ticket)

    monkeypatch.setattr(pool, "_give", kill)
    assert all(map(same_bits, right, lanes.train(jobs)))
    assert killed[0] not in pool.pids


def test_evaluations_are_done_beside_training(task, lanes):
    """A promise is kept by the processes, with the scores that this one would give."""
    model = task.initial()
    promise = lanes.evaluate(model)
    lanes.train(jobs_of(task, 9))
    assert tuple(promise()) == tuple(task.evaluate(model))


def test_processes_are_as_many_as_a_group_has_hands(monkeypatch):
    """Eight jobs at once are one hand, trained here; nine are two; and a worker itself starts no others."""
    task, wish = blob_task(NormNet), Wish("vmap", 4, 1, None)
    for width, told in ((8, "up to 8 jobs at once, batches of one size at a time"), (9, "in 2 processes")):
        executor, reason = choose(task, wish._replace(width=width), [1])
        assert reason.endswith(told)
        assert isinstance(executor, VmapExecutor)
        assert isinstance(executor.batched, Lanes) == (width == 9)
        executor.close()
    monkeypatch.setattr("multiprocessing.process._current_process._config", {"daemon": True})
    assert not isinstance(VmapExecutor(task, 16, 2).batched, Lanes)
