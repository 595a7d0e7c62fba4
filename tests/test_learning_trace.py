"""Training and evaluation leave no trace, and random numbers depend on the job alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from training_world import BLOBS, PARTS, NoisyNet, blob_task, equal_buffers, job_of

from desim_fl.draws import Purpose
from desim_fl.errors import RefusedError, RunError, ScenarioError
from desim_fl.learning import randomness
from desim_fl.learning.device import resolve

CPU = torch.device("cpu")


def global_states() -> list[bytes]:
    """Bytes of every process-wide generator."""
    numpy = np.random.get_state()[1]  # noqa: NPY002
    return [repr(random.getstate()).encode(), np.asarray(numpy).tobytes(), torch.get_rng_state().numpy().tobytes()]


def played(evaluate_every: int | None):
    """Ten jobs one after another on a model with Dropout and BatchNorm, each from the one before."""
    task = blob_task(NoisyNet, validation_indices=np.arange(200, 260))
    model = task.initial()
    for turn in range(10):
        outcome = task.train(job_of(model, turn % 3, nth=turn), 2)
        model = model._replace(version=turn + 1, params=outcome.params, buffers=outcome.buffers)
        if evaluate_every and turn % evaluate_every == 0:
            task.evaluate(model)
    return task, model


def test_lt_03_evaluation_changes_nothing() -> None:
    """Evaluating after every job, every third or never ends in the same weights and buffers; counters count steps."""
    _, never = played(None)
    for every in (1, 3):
        _, model = played(every)
        assert torch.equal(model.params, never.params)
        assert equal_buffers(model.buffers, never.buffers)
    assert int(never.buffers["norm.num_batches_tracked"]) == int(never.buffers["calls"]) == 20


def test_lt_03_evaluation_repeats_and_restores_modes() -> None:
    """Scores of a version never change, and every part of the module is left in the mode it had."""
    task, model = played(None)
    task.module.get_submodule("norm").eval()
    modes = [part.training for part in task.module.modules()]
    scores = task.evaluate(model)
    assert [part.training for part in task.module.modules()] == modes
    task.train(job_of(model, 0), 2)
    assert task.evaluate(model) == scores


def test_evaluation_is_the_mean_over_the_split() -> None:
    """Loss and accuracy are those of one pass over all samples; the validation split scores its own samples."""
    chosen = np.arange(200, 260)
    task = blob_task(NoisyNet, validation_indices=chosen)
    test, validation = task.evaluate(task.initial())
    task.module.eval()
    for score, images, labels in (
        (test, BLOBS.test_images, BLOBS.test_labels),
        (validation, BLOBS.train_images[chosen], BLOBS.train_labels[chosen]),
    ):
        logits = task.module(torch.tensor(images))
        expected = nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
        assert score.loss == pytest.approx(expected, rel=1e-5)
        assert score.accuracy == (logits.argmax(1) == torch.tensor(labels)).double().mean().item()
        assert score.examples == len(labels)
    assert (test.split, validation.split) == ("test", "validation")


def test_rp_01_global_generators_and_threads_are_as_before() -> None:
    """Building, training and evaluating leave Python's, NumPy's and torch's generators and threads untouched."""
    random.random()
    torch.rand(3)
    before, threads = global_states(), torch.get_num_threads()
    torch.set_num_threads(threads + 2)  # another number than a job is given, on a machine of one core, too
    try:
        played(1)
        assert global_states() == before
        assert torch.get_num_threads() == threads + 2
    finally:
        torch.set_num_threads(threads)


def test_rp_01_what_was_drawn_before_does_not_matter() -> None:
    """Draws from the global generators, and other jobs in between, leave a job's result as it was."""
    task, again = blob_task(NoisyNet), blob_task(NoisyNet)
    expected = task.train(job_of(task.initial(), 0), 4)
    torch.rand(17)
    np.random.random()  # noqa: NPY002
    again.train(job_of(again.initial(), 1), 2)
    outcome = again.train(job_of(again.initial(), 0), 4)
    assert torch.equal(outcome.params, expected.params)
    assert outcome.loss == expected.loss


class Recorder(nn.Module):
    """Remembers its inputs and the Dropout mask of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.log: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Train through a mask."""
        mask = nn.functional.dropout(torch.ones(40), 0.5, self.training)
        self.log.append((inputs, mask))
        return self.linear(inputs) * mask.mean()


def first_draws(client: int, nth: int, *, seed: int = 7, extra_clients: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """First batch and first mask of one job; every client holds the same 60 samples."""
    count = 4 + extra_clients
    task = blob_task(Recorder, seed=seed, keys=range(count), parts=[np.arange(60)] * count)
    task.train(job_of(task.initial(), client, nth=nth), 1)
    assert isinstance(task.module, Recorder)
    return task.module.log[-1]


def test_rp_03_draws_differ_between_clients_and_dispatches_and_repeat_otherwise() -> None:
    """First batch and mask differ between clients, dispatches and seeds; (client 3, dispatch 1) repeats exactly."""
    base = first_draws(3, 1)
    for other in (first_draws(2, 1), first_draws(3, 0), first_draws(3, 1, seed=8)):
        assert not torch.equal(base[0], other[0])
        assert not torch.equal(base[1], other[1])
    for same in (first_draws(3, 1), first_draws(3, 1, extra_clients=5)):
        assert torch.equal(base[0], same[0])
        assert torch.equal(base[1], same[1])


def test_a_clients_key_names_its_streams() -> None:
    """Client 0 with key 3 draws what client 3 with key 3 draws."""
    params = [
        task.train(job_of(task.initial(), client), 4).params
        for client, task in ((0, blob_task(keys=[3, 9], parts=[PARTS[0]] * 2)), (3, blob_task(parts=[PARTS[0]] * 4)))
    ]
    assert torch.equal(*params)


def test_two_builds_start_alike_and_seeds_differ() -> None:
    """Version 0 follows from the seed alone, and seed 0 is a seed."""
    torch.rand(5)
    first, second, zero = (blob_task(NoisyNet, seed=seed).initial() for seed in (7, 7, 0))
    assert torch.equal(first.params, second.params)
    assert not torch.equal(first.params, zero.params)


def test_models_that_draw_are_found() -> None:
    """A dry step tells whether training draws random numbers."""
    assert blob_task(NoisyNet).draws_random
    assert not blob_task().draws_random


def test_unkeyed_draws_are_refused() -> None:
    """A model that draws from NumPy's or Python's global generator is refused, and both are put back."""

    class Stray(nn.Linear):
        draw = staticmethod(random.random)

        def __init__(self) -> None:
            super().__init__(6, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) + self.draw()

    class StrayNumpy(Stray):
        draw = staticmethod(np.random.random)

    before = global_states()
    for model in (Stray, StrayNumpy):
        with pytest.raises(RefusedError, match="global generator"):
            blob_task(model)
    assert global_states() == before


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: nn.Linear(5, 4), r"inputs of shape \(2, 6\)"),
        (lambda: nn.Linear(6, 3), r"\(2, 4\) is needed"),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten(0)), "scores of shape"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_an_error_at_once(model, why: str) -> None:
    """Wrong inputs, too few classes or a wrong output shape are found before anything runs."""
    with pytest.raises(ScenarioError, match=why):
        blob_task(model)


def test_keyed_restores_the_generators_after_an_error_too() -> None:
    """The state after a body that fails is the state before, and inside it the draws are the keyed ones."""
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), randomness.keyed(1, Purpose.TRAINING, 2, 3, CPU):
            drawn.append(torch.rand(4)) or 1 / 0
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_pinned_restores_the_number_of_threads() -> None:
    """Inside the body the asked number holds, afterwards the old one."""
    before = torch.get_num_threads()
    with randomness.pinned(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_devices_are_resolved_or_refused() -> None:
    """The name "cpu" is the CPU, "auto" is something that exists, an unknown name is refused."""
    assert resolve("cpu") == CPU
    assert resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RefusedError, match="tpu"):
        resolve("tpu")


def test_asking_for_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a CUDA device the request is refused with the way out, not run elsewhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RefusedError, match='"auto"'):
        blob_task(device="cuda")


class Witness(nn.Module):
    """Notes threads and memory format of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.notes: list[tuple[int, bool, bool]] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Note, then score."""
        formats = [x.is_contiguous(memory_format=torch.channels_last) for x in (inputs, self.convolution.weight)]
        self.notes.append((torch.get_num_threads(), *formats))
        return self.convolution(inputs).mean(dim=(2, 3))


def test_threads_and_memory_format_are_the_same_everywhere() -> None:
    """Training and evaluation run on the asked number of threads, colour images and weights channels last; CASES RP-05."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    data = replace(
        BLOBS,
        train_images=pixels,
        test_images=pixels,
        train_labels=BLOBS.train_labels[:40],
        test_labels=BLOBS.test_labels[:40],
    )
    threads = torch.get_num_threads() + 1
    task = blob_task(
        Witness,
        dataset=replace(data, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)),
        parts=[range(40)] * 4,
        threads=threads,
    )
    task.train(job_of(task.initial()), 2)
    task.evaluate(task.initial())
    assert isinstance(task.module, Witness)
    assert task.module.notes == [(threads, True, True)] * 3
    expected = (pixels[7, 2, 3] / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4]
    assert task.training.inputs[7, :, 2, 3].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu_and_repeats() -> None:
    """On a CUDA device a job repeats bit for bit and ends near the CPU's parameters; CASES RP-05."""

    def trained(device: str) -> torch.Tensor:
        task = blob_task(device=device)
        return task.train(job_of(task.initial()), 4).params.cpu()

    assert torch.equal(trained("cuda"), trained("cuda"))
    torch.testing.assert_close(trained("cuda"), trained("cpu"), rtol=1e-3, atol=1e-5)


class Writer(torch.nn.Module):
    """Writes into its inputs: always, or only when it sees more than so many at once."""

    def __init__(self, more_than: int) -> None:
        super().__init__()
        self.last, self.more_than = torch.nn.Linear(6, 4), more_than

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Double the inputs in place."""
        return self.last(inputs.mul_(2.0) if len(inputs) > self.more_than else 2.0 * inputs)


def test_a_model_that_writes_into_its_inputs_changes_no_data() -> None:
    """Such a model is trained and scored on copies, from its first dry step on: data stay, and scores repeat."""
    task = blob_task(lambda: Writer(0))
    fresh = blob_task()
    scores = task.evaluate(task.initial())
    task.train(job_of(task.initial()), 3)
    assert task.evaluate(task.initial()) == scores
    for mine, theirs in (
        (task.training, fresh.training),
        *zip(task.splits.values(), fresh.splits.values(), strict=True),
    ):
        assert torch.equal(mine.inputs, theirs.inputs)


def test_a_model_that_writes_only_now_and_then_is_an_error() -> None:
    """What a dry step of two samples does not show is named when it happens, before a score is told."""
    task = blob_task(lambda: Writer(2))
    with pytest.raises(RunError, match="writes into the test samples in evaluation"):
        task.evaluate(task.initial())
