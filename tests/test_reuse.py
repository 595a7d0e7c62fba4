"""Never training twice: what is reused is what training would give, and whatever matters is part of the key."""

from __future__ import annotations

import dataclasses
import math
import threading
import time

import numpy as np
import pytest
import torch
from test_learning_batched import NormNet
from training_world import BLOBS, PARTS, NoisyNet, blob_task, equal_buffers, job_of, mlp_of

import scenarios
from desim_fl.core import Model, Outcome, Promise, Score
from desim_fl.executors import choice, reuse
from desim_fl.executors.reuse import ReuseExecutor, packed, unpacked
from desim_fl.executors.store import Behind, Store
from desim_fl.learning.identity import Identity
from desim_fl.learning.models import factory
from desim_fl.learning.optimizers import OptimizerSettings
from desim_fl.learning.quadratic import QuadraticTask

CPU = torch.device("cpu")


class Counting:
    """A plain executor that counts what it is asked."""

    def __init__(self, task, *, exact: bool = True) -> None:
        self.task, self.exact, self.name = task, exact, "counting"
        self.submitted, self.collected, self.evaluated = [], [], 0

    def submit(self, job, due):
        self.submitted.append((job.id, due))

    def collect(self, job, steps):
        assert job.id in {number for number, _ in self.submitted}
        self.collected.append(job.id)
        return self.task.train(job, steps)

    def release(self, job):
        pass

    def evaluate(self, model):
        self.evaluated += 1
        scores = tuple(self.task.evaluate(model))
        return Promise(lambda: scores)

    def close(self):
        pass


def reusing(folder, task, **options) -> tuple[ReuseExecutor, Counting]:
    """A reuse executor in front of a counting one."""
    inner = Counting(task, **options)
    return ReuseExecutor(inner, Store(folder, 10**9), Identity(task), CPU), inner


def once(executor, job, steps=None) -> Outcome:
    """Submit, collect and release one job."""
    executor.submit(job, 5)
    outcome = executor.collect(job, job.work.steps if steps is None else steps)
    executor.release(job)
    return outcome


def same(left: Outcome, right: Outcome) -> bool:
    """Whether two outcomes hold the same bits."""
    plain = all(getattr(left, name) == getattr(right, name) for name in ("examples", "steps", "stopped", "loss", "bad"))
    return plain and torch.equal(left.params, right.params) and equal_buffers(left.buffers, right.buffers)


@pytest.mark.parametrize("model", [None, NoisyNet])
def test_a_known_job_is_taken_from_the_store_bit_for_bit(tmp_path, model):
    """The second executor, on a task of its own, trains nothing and returns equal bits, buffers included."""
    first, inner = reusing(tmp_path, blob_task(model))
    job = job_of(first.inner.task.initial(), steps=4)
    trained = once(first, job)
    second, other = reusing(tmp_path, blob_task(model))
    reused = once(second, job_of(second.inner.task.initial(), steps=4, number=77))
    assert (len(inner.collected), len(other.collected)) == (1, 0)
    assert (second.reused, second.trained) == (1, 0)
    assert same(trained, reused)


def test_whatever_decides_a_result_is_part_of_its_key():
    """Another base, buffer, client, data, nth, rate, decay, steps, seed, batch size, optimiser, threads or model differs."""
    base = blob_task()
    job = job_of(base.initial(), steps=4)

    def key(task, job=job, steps=4):
        identity = Identity(task)
        return identity.job_key(identity.model_digest(job.params, job.buffers), job, steps)

    moved = job._replace(params=torch.nextafter(job.params, job.params + 1))
    swapped = [PARTS[0][::-1].copy(), *PARTS[1:]]
    images = dataclasses.replace(BLOBS, train_images=BLOBS.train_images + np.float32(1e-7))
    variants = [
        key(base),
        key(base, moved),
        key(base, job._replace(buffers={"extra": torch.zeros(1)})),
        key(base, job._replace(client=1)),
        key(base, job._replace(nth=1)),
        key(base, job._replace(extra=1.0)),
        key(base, job._replace(memory={"buffers": {"a": torch.zeros(1)}})),
        key(base, job._replace(work=job.work._replace(lr=0.2))),
        key(base, job._replace(work=job.work._replace(decay="inverse_sqrt_epoch"))),
        key(base, job._replace(work=job.work._replace(epochs=2))),
        key(base, steps=3),
        key(blob_task(seed=8)),
        key(blob_task(parts=swapped)),
        key(blob_task(keys=[9, 1, 2, 3])),
        key(blob_task(batch_size=16)),
        key(blob_task(optimizer=OptimizerSettings("sgd", 0.5))),
        key(blob_task(optimizer=OptimizerSettings("adam"))),
        key(blob_task(threads=2)),
        key(blob_task(buffers="local")),
        key(blob_task(dataset=images)),
        key(blob_task(mlp_of(hidden=(15,)))),
    ]
    assert len(set(variants)) == len(variants)
    assert None not in variants
    assert key(base) == key(blob_task())
    assert key(base, job._replace(id=5, version=3, tag=9)) == key(base)


def test_what_has_no_identity_is_trained_every_time(tmp_path):
    """A broadcast of an unknown type gives no key: nothing is stored, nothing is guessed."""
    executor, inner = reusing(tmp_path, blob_task())
    job = job_of(executor.inner.task.initial(), steps=2)._replace(extra=object())
    once(executor, job)
    once(executor, job._replace(id=1))
    assert len(inner.collected) == 2
    assert not list(tmp_path.glob("*/*"))


def test_only_exact_executors_write(tmp_path):
    """An executor that is not exact may read, and leaves the store as it was."""
    near, inner = reusing(tmp_path, blob_task(), exact=False)
    once(near, job_of(near.inner.task.initial(), steps=2))
    near.evaluate(near.inner.task.initial())()
    assert not list(tmp_path.glob("*/*"))
    exact, _ = reusing(tmp_path, blob_task())
    once(exact, job_of(exact.inner.task.initial(), steps=2))
    once(near, job_of(near.inner.task.initial(), steps=2, number=1))
    assert (len(inner.collected), near.reused) == (1, 1)


def test_a_job_that_reports_early_is_another_result(tmp_path):
    """Known in full but stopped after two steps: trained once, then known for two steps as well."""
    executor, inner = reusing(tmp_path, blob_task())
    initial = executor.inner.task.initial()
    whole = once(executor, job_of(initial, steps=4))
    early = once(executor, job_of(initial, steps=4, number=1), 2)
    again = once(executor, job_of(initial, steps=4, number=2), 2)
    assert inner.collected == [0, 1]
    assert same(early, again)
    assert early.steps == 2
    assert not torch.equal(whole.params, early.params)


def test_evaluations_are_reused_too(tmp_path):
    """Scores of a version come from the store, exactly, NaN included."""
    first, inner = reusing(tmp_path, blob_task())
    model = first.inner.task.initial()
    scores = first.evaluate(model)()
    second, other = reusing(tmp_path, blob_task())
    assert second.evaluate(model)() == tuple(scores)
    assert (inner.evaluated, other.evaluated, second.rescored) == (1, 0, 1)
    broken = Model(1, model.params * math.nan, model.buffers)
    assert math.isnan(first.evaluate(broken)()[0].loss)
    again = second.evaluate(broken)()[0]
    assert isinstance(again, Score)
    assert math.isnan(again.loss)
    assert other.evaluated == 0


def test_damaged_files_are_noticed_and_trained_again(tmp_path):
    """A flipped bit or a cut file is no result; the job is trained and the store healed."""
    executor, inner = reusing(tmp_path, blob_task())
    job = job_of(executor.inner.task.initial(), steps=2)
    once(executor, job)
    (path,) = tmp_path.glob("*/*")
    whole = path.read_bytes()
    for number, damaged in enumerate((whole[:-5], bytes([*whole[:50], whole[50] ^ 1, *whole[51:]]), b"")):
        path.write_bytes(damaged)
        once(executor, job._replace(id=number + 1))
        assert len(inner.collected) == number + 2
        assert path.read_bytes() == whole
    assert executor.store.failed == 3


def test_the_store_keeps_its_bound_and_what_was_used_last(tmp_path):
    """Beyond the bound the files not used for longest go; one that was just read stays; CASES RS-01."""
    store = Store(tmp_path, 10**9)
    for number in range(30):
        store.put(f"{number:02x}{number:062x}", bytes([number]) * 968)
        path = tmp_path / f"{number:02x}"
        (file,) = path.iterdir()
        stamp = 1_000_000_000 * (number + 1)
        import os  # noqa: PLC0415

        os.utime(file, ns=(stamp, stamp))
    assert store.get(f"{0:02x}{0:062x}") == bytes(968)
    store.limit_bytes = 20_000
    store.trim()
    left = {int(path.parent.name, 16) for path in tmp_path.glob("*/*")}
    assert left == {0, *range(13, 30)}
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 20_000


def test_a_store_that_is_written_to_never_grows_far_beyond_its_bound(tmp_path):
    """Whoever writes looks how large the folder is at its first put, and after every fiftieth of the bound; CASES RS-01."""
    for turn in range(5):
        store = Store(tmp_path, 100_000)
        for number in range(3 * turn, 3 * turn + 40):
            store.put(f"{number:02x}{turn:062x}", bytes(5_000))
            assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 100_000 + 5_032


def test_several_writers_and_readers_share_a_store(tmp_path):
    """Threads that put and get the same keys see whole contents or nothing, and leave no partial file; CASES CK-04."""
    stores = [Store(tmp_path, 50_000) for _ in range(4)]
    contents = {f"{number:064x}": bytes([number]) * 5_000 for number in range(20)}
    wrong = []

    def work(store: Store) -> None:
        for _ in range(20):
            for key, content in contents.items():
                store.put(key, content)
                found = store.get(key)
                if found not in {None, content}:
                    wrong.append(key)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(not path.name.startswith(".") for path in tmp_path.glob("*/*"))


def test_writing_beside_training_loses_nothing_and_is_bounded(tmp_path, monkeypatch):
    """What is on its way is found; at most sixteen contents are; when the executor is closed all are on the disk."""
    store, gate, most = Store(tmp_path, 10**9), threading.Event(), []
    really = store.put
    monkeypatch.setattr(store, "put", lambda key, content: (gate.wait(10), time.sleep(0.005), really(key, content)))
    behind = Behind(store)
    for number in range(16):
        behind.put(f"{number:064x}", bytes([number]))
    assert [behind.get(f"{number:064x}") for number in range(17)] == [*(bytes([number]) for number in range(16)), None]
    assert not list(tmp_path.glob("*/*"))
    threading.Timer(0.05, gate.set).start()
    for number in range(16, 60):
        behind.put(f"{number:064x}", bytes([number]))
        most.append(len(behind._underway))
    assert gate.is_set()
    assert max(most) <= 16
    ReuseExecutor(Counting(blob_task()), behind, Identity(blob_task()), CPU).close()
    assert [Store(tmp_path, 10**9).get(f"{number:064x}") for number in range(60)] == [bytes([n]) for n in range(60)]


def test_an_unusable_folder_costs_time_only(tmp_path):
    """Where nothing can be written, everything is trained and the failures are counted."""
    (tmp_path / "file").write_text("in the way")
    executor, inner = reusing(tmp_path / "file", blob_task())
    job = job_of(executor.inner.task.initial(), steps=2)
    once(executor, job)
    once(executor, job._replace(id=1))
    assert len(inner.collected) == 2
    assert executor.store.failed >= 2


def test_memory_travels_and_unknown_shapes_are_not_kept():
    """FedBN's client buffers come back; an outcome with anything else in it is not stored."""
    buffers = {"mean": torch.arange(3.0), "count": torch.tensor(4)}
    outcome = Outcome(torch.ones(2), buffers, 3, 2, loss=math.inf, memory={"buffers": {"mean": torch.zeros(3)}})
    back = unpacked(packed(outcome) or b"", CPU)
    assert same(outcome, back)
    assert equal_buffers(back.memory["buffers"], outcome.memory["buffers"])
    assert packed(outcome._replace(memory={"other": 1})) is None
    assert packed(outcome._replace(extra=1)) is None


def test_no_version_is_held_longer_than_its_jobs(tmp_path):
    """Digests are remembered while a job in flight uses the version, and forgotten with it; CASES RS-01."""
    executor, _ = reusing(tmp_path, blob_task())
    initial = executor.inner.task.initial()
    for number in range(3):
        executor.submit(job_of(initial, number, steps=1, number=number), 0)
    assert len(executor._models) == 1
    for number in range(3):
        executor.release(job_of(initial, number, steps=1, number=number))
    assert executor._models == {}


def test_arguments_that_leave_no_trace_in_the_module_are_part_of_the_key():
    """Two factories that differ by an argument only, or by a buffer that is not saved, never share outcomes."""
    from functools import partial  # noqa: PLC0415

    def key(model):
        task = blob_task(model)
        return Identity(task).task

    assert key(partial(_sloped, 0.1)) != key(partial(_sloped, 0.9))
    assert key(partial(_masked, 2)) != key(partial(_masked, 5))
    assert key(partial(_sloped, 0.1)) == key(partial(_sloped, 0.1))


def _sloped(slope):
    module = torch.nn.Linear(6, 4)
    module.slope = slope
    return module


def _masked(keep):
    module = torch.nn.Linear(6, 4)
    module.register_buffer("mask", (torch.arange(6) < keep).float(), persistent=False)
    return module


# ---- by itself

JOB_S = 1.0


def kept(monkeypatch, task=None, *, wish=None, job_s=JOB_S, keep_s=JOB_S / 100, exact=True) -> bool:
    """Whether the store is put in front of an executor, for jobs and outcomes of such a cost."""
    monkeypatch.setattr(choice, "_job_s", lambda *_: job_s)
    monkeypatch.setattr(reuse, "keeping_s", lambda *_: keep_s)
    inner = Counting(task or blob_task(), exact=exact)
    executor = choice.reusing(inner, inner.task, [4, 2, 1, 1], wish=wish, limit_gb=1.0)
    assert executor is inner or executor.inner is inner
    executor.close()
    return executor is not inner


def test_outcomes_are_kept_by_themselves_where_that_is_sure_and_pays(monkeypatch):
    """A built-in network, exact, forty times as long to train as to keep; ``false`` and ``true`` need no reasons."""
    assert kept(monkeypatch)
    assert not kept(monkeypatch, exact=False)
    assert not kept(monkeypatch, blob_task(NormNet))
    assert not kept(monkeypatch, blob_task(factory("training_world:NoisyNet", {}, (6,), 4)))
    assert not kept(monkeypatch, QuadraticTask(curvature=[1.0], optimum=[2.0], examples=[4]))
    assert not kept(monkeypatch, job_s=39 * JOB_S / 100)
    assert kept(monkeypatch, job_s=41 * JOB_S / 100)
    assert not kept(monkeypatch, keep_s=math.inf)
    assert not kept(monkeypatch, wish=False)
    assert kept(monkeypatch, blob_task(factory("training_world:NoisyNet", {}, (6,), 4)), wish=True, job_s=0.0)


def test_a_run_that_says_nothing_keeps_its_outcomes_and_takes_them_again(tmp_path, monkeypatch):
    """Worth it by decree: the second run trains nothing, with the hashes of one that trains all; vmap keeps nothing."""
    monkeypatch.setattr(choice, "WORTH_KEEPING", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = scenarios.BLOBS.replace("[executor]\nreuse = false\n", "[executor]\nname = 'inline'\n")
    runs = [scenarios.played(tmp_path, text, *more, out=out)[1] for out, more in RUNS.items()]
    assert [run["reuse"] and run["reuse"]["trained"] for run in runs] == [30, 0, None, None]
    assert len({run["timeline_sha256"] for run in runs}) == 1
    assert len({run["model_sha256"] for run in runs[:3]}) == 1
    assert "reuse" not in (tmp_path / "first" / "scenario.toml").read_text().replace("reuse_limit_gb", "")


RUNS = {"first": (), "again": (), "never": ("executor.reuse=false",), "vmap": ('executor.name="vmap"',)}


def test_what_keeping_costs_is_measured_and_leaves_no_trace(tmp_path):
    """Some microseconds at least; nothing stays in the folder; one that cannot be written to costs infinitely much."""
    task = blob_task()
    assert 1e-6 < reuse.keeping_s(task, Store(tmp_path / "outcomes", 10**9)) < 10
    assert not list((tmp_path / "outcomes").iterdir())
    (tmp_path / "file").write_text("in the way")
    assert reuse.keeping_s(task, Store(tmp_path / "file", 10**9)) == math.inf


def test_the_environment_that_chooses_kernels_is_part_of_the_key(monkeypatch):
    """Another processor level asked for by an environment variable is another machine."""
    base = Identity(blob_task()).task
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert Identity(blob_task()).task != base
