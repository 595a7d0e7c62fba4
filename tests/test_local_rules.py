"""The proximal term and control variates: by hand, against torch.optim, and the same in every executor."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_world import PARTS, blob_task, equal_buffers, job_of

from desim_fl.core import Job, Work
from desim_fl.draws import Purpose, stream
from desim_fl.executors import packing
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.pool import PoolExecutor
from desim_fl.executors.reuse import packed, unpacked
from desim_fl.executors.threads import ThreadExecutor
from desim_fl.executors.vmap import VmapExecutor
from desim_fl.learning import batches, controls, steps
from desim_fl.learning.batched import TOLERANCE
from desim_fl.learning.identity import Identity
from desim_fl.learning.optimizers import OptimizerSettings
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.learning.trial import deviations

PROX = OptimizerSettings("sgd", proximal_mu=0.5)


class Normed(nn.Sequential):
    """A small network with buffers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 4))


def scalar(client: int = 0, *, extra=None, memory=None, **work) -> Job:
    """A job from 0 with rate 0.1."""
    return Job(0, client, 0, 0, 0.0, None, Work(**{"epochs": 1, "lr": 0.1, **work}), extra, memory)


def valley(**options) -> QuadraticTask:
    """(x - 1)^2 / 2 for client 0 and 2 (x + 2)^2 for client 1."""
    return QuadraticTask(curvature=[1.0, 4.0], optimum=[1.0, -2.0], examples=[3, 1], **options)


# ---- the proximal term


@pytest.mark.parametrize(("mu", "path"), [(1.0, [0.1, 0.18]), (0.0, [0.1, 0.19]), (3.0, [0.1, 0.16])])
def test_lt_01_the_proximal_term_by_hand(mu, path):
    """(w - 1)^2 / 2 from 0 with rate 0.1: 0.1, then 0.1 + 0.1 * (0.9 - mu * 0.1); CASES LT-01."""
    task = valley(proximal_mu=mu)
    assert [task.train(scalar(), count).params for count in (1, 2)] == pytest.approx(path, abs=1e-15)


def test_lt_01_a_weight_of_0_changes_no_bit():
    """Without the term, and with a weight of 0, jobs end in the same bits, on numbers and on networks; CASES LT-01."""
    assert valley(proximal_mu=0.0).train(scalar(), 7) == valley().train(scalar(), 7)
    plain, zero = blob_task(), blob_task(optimizer=OptimizerSettings(proximal_mu=0.0))
    job = job_of(plain.initial(), steps=8)
    assert torch.equal(plain.train(job, 8).params, zero.train(job, 8).params)


def oracle(task, job: Job, count: int, make, mu: float, shift: torch.Tensor | None = None) -> torch.Tensor:
    """A plain loop with ``torch.optim`` on ``loss + mu / 2 ||y - x||^2 + shift . y``, on the same batches."""
    module = task.model()
    nn.utils.vector_to_parameters(job.params.clone(), module.parameters())
    anchors = [value.detach().clone() for value in module.parameters()]
    shifts = None if shift is None else list(task.state.split(shift).values())
    optimizer = make(module.parameters())
    order = batches.sequence(
        PARTS[job.client], task.batch_size, stream(task.seed, Purpose.BATCH_ORDER, job.client, job.nth)
    )
    for _, (_, indices) in zip(range(count), order, strict=False):
        batch = task.training.chosen(indices)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(batch.inputs), batch.labels).backward()
        with torch.no_grad():
            for place, (value, anchor) in enumerate(zip(module.parameters(), anchors, strict=True)):
                if mu:
                    value.grad.add_(value - anchor, alpha=mu)
                if shifts is not None:
                    value.grad.add_(shifts[place])
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()


OPTIMIZERS = {
    "sgd": (("sgd", 0.0, 0.0), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum+decay": (("sgd", 0.9, 1e-2), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2)),
    "adam": (("adam", 0.0, 0.0), lambda p: torch.optim.Adam(p, lr=0.1)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recorded_after", [0, 10**9])
def test_lt_01_steps_are_those_of_torch_optim_recorded_or_not(optimizer, recorded_after, monkeypatch):
    """Bit for bit the plain loop whose gradient has mu (y - x) added, also where steps are replayed; CASES LT-01."""
    monkeypatch.setattr(steps, "RECORDED_AFTER", recorded_after)
    settings, make = OPTIMIZERS[optimizer]
    task = blob_task(optimizer=OptimizerSettings(*settings, proximal_mu=0.5))
    job = job_of(task.initial(), steps=12)
    found = task.train(job, 12).params
    assert ("recorded" in task.steps.kinds.values()) == (recorded_after == 0)
    assert torch.equal(found, oracle(task, job, 12, make, 0.5))
    assert not torch.allclose(found, oracle(task, job, 12, make, 0.0), atol=1e-4)


def test_lt_01_the_anchor_is_what_the_job_started_from():
    """Two jobs from different versions are pulled back to their own, whatever was loaded last; CASES LT-01."""
    task = blob_task(optimizer=PROX)
    first = job_of(task.initial(), steps=6)
    second = first._replace(params=first.params * 1.5)
    alone = [task.train(job, 6).params for job in (first, second)]
    again = blob_task(optimizer=PROX)
    assert torch.equal(again.train(second, 6).params, alone[1])
    assert torch.equal(again.train(first, 6).params, alone[0])
    assert torch.equal(first.params, task.initial().params)


# ---- control variates


def test_scaffold_option_two_by_hand():
    """On (w - 1)^2 / 2 with c = .5, c_i = .2, rate .1: two gradients are -1 + .3 and -.93 + .3.

    y = .07, then .133; c_i+ = .2 - .5 + (0 - .133) / (2 * .1) = -.965, and the difference -1.165 goes back.
    """
    job = scalar(extra={"control": 0.5}, memory={"control": 0.2})
    done = valley().train(job, 2)
    assert done.params == pytest.approx(0.133, abs=1e-15)
    assert done.memory == {"control": pytest.approx(-0.965, abs=1e-14)}
    assert done.extra == {"control": pytest.approx(-1.165, abs=1e-14)}


def test_scaffold_counts_the_steps_really_done():
    """2 epochs of 33 samples in batches of 32 are K = 4 steps here and by the formula: c_i+ = (x - y) / (4 lr)."""
    task = blob_task(batch_size=32)
    job = job_of(task.initial(), 1, epochs=2)._replace(extra={"control": 0.0 * task.initial().params})
    assert batches.steps_per_epoch(len(PARTS[1]), 32) * 2 == 4
    done = task.train(job, 4)
    expected = (job.params - done.params) / 0.4
    torch.testing.assert_close(done.memory["control"], expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(done.extra["control"], expected, rtol=1e-6, atol=1e-7)
    assert done.steps == 4


def test_scaffold_divides_by_the_sum_of_decaying_rates():
    """With rates .1 and .1 / sqrt 2 the divisor is their sum: the mean corrected gradient, weighted as it was walked."""
    task = valley(batch_size=3)
    job = scalar(extra={"control": 0.0}, decay="inverse_sqrt_epoch")
    done = task.train(job, 2)
    assert done.memory["control"] == pytest.approx(-done.params / (0.1 + 0.1 / 2**0.5), rel=1e-12)


def test_scaffold_leaves_variates_alone_without_a_sound_step():
    """No step, or an end that is not finite: the client keeps what it had, and nothing goes back."""
    memory = {"control": 0.2}
    idle = valley().train(scalar(extra={"control": 0.5}, memory=memory), 0)
    wild = valley().train(scalar(extra={"control": 0.5}, memory=memory, lr=1e200), 4)
    assert wild.bad == "x"
    assert (idle.extra, wild.extra, wild.memory) == (None, None, memory)
    task = blob_task()
    start = task.initial()
    job = job_of(start, lr=1e38, steps=4)._replace(
        extra={"control": start.params}, memory={"control": start.params * 2}
    )
    done = task.train(job, 4)
    assert done.bad is not None
    assert done.memory is job.memory
    assert done.extra is None


def controlled(task, client: int, number: int, **work) -> Job:
    """A job with both variates, each client's its own."""
    start = task.initial()
    generator = torch.Generator().manual_seed(number)
    control, own = (0.1 * torch.randn(len(start.params), generator=generator) for _ in range(2))
    memory = {"control": own} | ({"buffers": start.buffers} if task.local_buffers else {})
    return job_of(start, client, number=number, **work)._replace(extra={"control": control}, memory=memory)


@pytest.mark.parametrize("recorded_after", [0, 10**9])
def test_scaffold_on_networks_is_the_plain_loop(recorded_after, monkeypatch):
    """Bit for bit a loop whose gradient has c - c_i added; variates are as long as the parameters, buffers apart."""
    monkeypatch.setattr(steps, "RECORDED_AFTER", recorded_after)
    task = blob_task()
    job = controlled(task, 0, 1, steps=9)
    done = task.train(job, 9)
    shift = job.extra["control"] - job.memory["control"]
    assert torch.equal(done.params, oracle(task, job, 9, OPTIMIZERS["sgd"][1], 0.0, shift))
    expected = job.memory["control"] - job.extra["control"] + (job.params - done.params) / 0.9
    torch.testing.assert_close(done.memory["control"], expected, rtol=1e-5, atol=1e-6)
    normed = blob_task(Normed)
    done = normed.train(controlled(normed, 0, 1, steps=3), 3)
    assert len(done.extra["control"]) == len(done.params) == sum(normed.state.sizes)
    assert not equal_buffers(done.buffers, normed.initial().buffers)


# ---- balanced gradients (ASO-Fed)


def test_balanced_gradients_by_hand():
    """(w - 1)^2 / 2 from 0, rate .1, beta .5: zeta = -1, then -.9 + 1 = .1, then -.91 + .9 - .5 = -.51; y = .1, .09, .141.

    h is 0, 0, -.5 before these steps and -.7 after them; a second job goes on where the first one's client stood.
    """
    task = valley(gradient_decay=0.5)
    whole = task.train(scalar(), 3)
    assert whole.params == pytest.approx(0.141, abs=1e-15)
    assert whole.memory == {"gradients": {"history": pytest.approx(-0.7), "previous": pytest.approx(-0.91)}}
    first = task.train(scalar(), 2)
    assert first.params == pytest.approx(0.09, abs=1e-15)
    second = task.train(scalar(memory=first.memory)._replace(params=first.params), 1)
    assert (second.params, second.memory) == (whole.params, whole.memory)
    with_term = valley(gradient_decay=0.5, proximal_mu=1.0).train(scalar(), 2)
    assert with_term.params == pytest.approx(0.1 - 0.1 * (-0.9 + 0.1 + 1.0), abs=1e-15)  # the term is part of g


def test_balanced_gradients_are_left_alone_without_a_sound_step():
    """No step, no samples, or an end that is not finite: the client keeps what it had."""
    memory = {"gradients": {"history": 0.2, "previous": 0.3}}
    task = valley(gradient_decay=0.5)
    assert task.train(scalar(memory=memory), 0).memory == memory
    wild = task.train(scalar(memory=memory, lr=1e200), 4)
    assert (wild.bad, wild.memory) == ("x", memory)
    net = blob_task(optimizer=OptimizerSettings(gradient_decay=0.5))
    job = job_of(net.initial(), lr=1e38, steps=4)
    done = net.train(job, 4)
    assert done.bad is not None
    assert done.memory is job.memory


@pytest.mark.parametrize("recorded_after", [0, 10**9])
def test_balanced_gradients_on_networks_are_the_plain_loop(recorded_after, monkeypatch):
    """Bit for bit a loop that keeps gradients itself, over two jobs of a client, also where steps are replayed."""
    monkeypatch.setattr(steps, "RECORDED_AFTER", recorded_after)
    task = blob_task(optimizer=OptimizerSettings(gradient_decay=0.25))
    module, memory, history, previous = task.model(), None, None, None
    for number in range(2):
        job = job_of(task.initial(), steps=7, number=number)._replace(memory=memory, nth=number)
        done = task.train(job, 7)
        memory = done.memory
        nn.utils.vector_to_parameters(job.params.clone(), module.parameters())
        order = batches.sequence(PARTS[0], task.batch_size, stream(task.seed, Purpose.BATCH_ORDER, job.client, job.nth))
        for _, (_, indices) in zip(range(7), order, strict=False):
            batch = task.training.chosen(indices)
            loss = nn.functional.cross_entropy(module(batch.inputs), batch.labels)
            found = torch.autograd.grad(loss, list(module.parameters()))
            if previous is None:
                zeta, history = found, [0.0 * value for value in found]
            else:
                zeta = [g - p + h for g, p, h in zip(found, previous, history, strict=True)]
                history = [0.25 * h + 0.75 * p for h, p in zip(history, previous, strict=True)]
            previous = found
            with torch.no_grad():
                for value, change in zip(module.parameters(), zeta, strict=True):
                    value.add_(change, alpha=-job.work.lr)
        assert torch.equal(done.params, nn.utils.parameters_to_vector(module.parameters()))
    assert ("recorded" in task.steps.kinds.values()) == (recorded_after == 0)
    assert torch.equal(memory["gradients"]["history"], torch.cat([value.reshape(-1) for value in history]))
    assert torch.equal(memory["gradients"]["previous"], torch.cat([value.reshape(-1) for value in previous]))


def test_balanced_gradients_in_every_executor():
    """Threads give the inline bits, memory included, which a process gets as it is; batches train one by one and say why.

    Nothing is kept for reuse.
    """
    task = blob_task(Normed, optimizer=OptimizerSettings(gradient_decay=0.5, proximal_mu=0.5), buffers="local")
    first = [task.train(job_of(task.initial(), client, steps=2), 2) for client in (0, 1)]
    jobs = [
        job_of(task.initial(), client, number=client, steps=3)._replace(memory=done.memory, nth=1)
        for client, done in enumerate(first)
    ]
    expected = outcomes(InlineExecutor(task), jobs)
    sent = [packing.unpacked(packing.packed(done)) for done in expected]
    for found in (outcomes(ThreadExecutor(task, 2), jobs), sent):
        for right, mine in zip(expected, found, strict=True):
            assert torch.equal(mine.params, right.params)
            assert equal_buffers(mine.memory["gradients"], right.memory["gradients"])
            assert equal_buffers(mine.memory["buffers"], right.memory["buffers"])
    assert VmapExecutor(task, 4).reason == "trained one by one: clients remember gradients from job to job"
    assert packed(expected[0]) is None


# ---- executors


def outcomes(executor, jobs):
    """What an executor makes of jobs."""
    try:
        for job in jobs:
            executor.submit(job, job.id)
        return [executor.collect(job, job.work.steps) for job in jobs]
    finally:
        executor.close()


def same(left, right) -> bool:
    """Whether two outcomes hold the same bits."""
    pairs = [(left.params, right.params)]
    pairs += [(left.extra["control"], right.extra["control"]), (left.memory["control"], right.memory["control"])]
    return all(torch.equal(*pair) for pair in pairs) and equal_buffers(
        left.memory.get("buffers", {}), right.memory.get("buffers", {})
    )


def test_lt_01_every_executor_gives_the_same_bits_and_batches_agree():
    """Proximal term and variates together, FedBN's buffers beside them: threads and pool as inline, vmap nearly; CASES LT-01."""
    task = blob_task(Normed, optimizer=PROX, buffers="local", batch_size=16)
    jobs = [controlled(task, client, number, steps=4) for number, client in enumerate((0, 1, 0, 1))]
    expected = outcomes(InlineExecutor(task), jobs)
    assert all(torch.isfinite(done.extra["control"]).all() for done in expected)
    for executor in (ThreadExecutor(task, 2), PoolExecutor(task, 1)):
        assert all(map(same, expected, outcomes(executor, jobs)))
    vmap = VmapExecutor(task, 4)
    found = outcomes(vmap, jobs)
    assert vmap.groups == [4]
    for job, right, mine in zip(jobs, expected, found, strict=True):
        for start, end, other in (
            (job.params, right.params, mine.params),
            (job.memory["control"], right.memory["control"], mine.memory["control"]),
        ):
            assert max(deviations(task.state, start, end, other, TOLERANCE).values()) < 1e-2


def test_batches_of_jobs_of_different_lengths_keep_their_own_anchor_and_variates():
    """Jobs that start from different models and end at different steps agree with those trained alone."""
    task = blob_task(optimizer=PROX, batch_size=16)
    jobs = [controlled(task, 0, number, steps=count) for number, count in enumerate((2, 5, 3))]
    jobs = [job._replace(params=job.params * (1 + 0.1 * job.id)) for job in jobs]
    vmap = VmapExecutor(task, 3)
    for job, mine in zip(jobs, outcomes(vmap, jobs), strict=True):
        right = task.train(job, job.work.steps)
        torch.testing.assert_close(mine.params, right.params, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.extra["control"], right.extra["control"], rtol=1e-3, atol=1e-4)
    assert vmap.groups == [3]


def test_kept_outcomes_are_those_of_the_same_rule_and_hold_variates():
    """The weight of the term and both variates are in the key of reuse, and variates come back from the store."""
    task, other = blob_task(optimizer=PROX), blob_task(optimizer=OptimizerSettings(proximal_mu=0.25))
    job = controlled(task, 0, 1, steps=2)
    changed = [
        job._replace(extra={"control": job.extra["control"] + 1}),
        job._replace(memory={"control": job.memory["control"] + 1}),
        job._replace(extra=None, memory=None),
    ]
    keys = [Identity(task).job_key("m", each, 2) for each in (job, *changed)] + [Identity(other).job_key("m", job, 2)]
    assert None not in keys
    assert len(set(keys)) == 5
    done = task.train(job, 2)
    assert same(done, unpacked(packed(done) or b"", task.device))
    assert controls.sent(job) is job.extra["control"]
