"""Local training against an independent plain loop with torch.optim, and its edge cases."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from training_world import BLOBS, IMAGES, PARTS, NoisyNet, blob_task, equal_buffers, job_of, mlp_of

from desim_fl.core import Model
from desim_fl.draws import Purpose, stream
from desim_fl.errors import LawError, RefusedError, ScenarioError
from desim_fl.learning import models
from desim_fl.learning.classification import ClassificationTask
from desim_fl.learning.optimizers import OptimizerSettings


def images_task(name: str, **options) -> ClassificationTask:
    """Two clients with 75 and 40 images, training a built-in model or the one given."""
    model = models.factory(name, {}, IMAGES.shape, IMAGES.classes) if isinstance(name, str) else name
    parts = [np.arange(0, 75), np.arange(75, 115)]
    return ClassificationTask(seed=3, keys=[10, 11], model=model, dataset=IMAGES, parts=parts, **options)


def plain_inputs() -> torch.Tensor:
    """Normalised images as a plain loop would prepare them, channels last."""
    pixels = torch.from_numpy(np.array(IMAGES.train_images)).float().div(255)
    inputs = (pixels - torch.tensor(IMAGES.mean)) / torch.tensor(IMAGES.std)
    return inputs.unsqueeze(1).contiguous(memory_format=torch.channels_last)


def plain_loop(module: nn.Module, sizes: list[int], epochs: int, make, rates: list[float]) -> torch.Tensor:
    """Train client 0 (key 10, dispatch 2) the textbook way and return the flat parameters."""
    inputs, labels = plain_inputs(), torch.from_numpy(np.array(IMAGES.train_labels))
    module = module.to(memory_format=torch.channels_last)
    order = stream(3, Purpose.BATCH_ORDER, 10, 2)
    optimizer = make(module.parameters())
    module.train()
    for epoch in range(epochs):
        permuted = torch.from_numpy(order.permutation(75))
        for group in optimizer.param_groups:
            group["lr"] = rates[epoch]
        for batch in permuted.split(sizes):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return torch.cat([value.detach().flatten() for value in module.parameters()])


ORACLES = {
    "sgd": (OptimizerSettings(), lambda p: torch.optim.SGD(p, lr=1)),
    "momentum": (OptimizerSettings("sgd", 0.9), lambda p: torch.optim.SGD(p, lr=1, momentum=0.9)),
    "momentum+decay": (
        OptimizerSettings("sgd", 0.9, 1e-3),
        lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, weight_decay=1e-3),
    ),
    "adam": (OptimizerSettings("adam"), lambda p: torch.optim.Adam(p, lr=1)),
    "adam+decay": (
        OptimizerSettings("adam", weight_decay=1e-2),
        lambda p: torch.optim.Adam(p, lr=1, weight_decay=1e-2),
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Oracles run on one thread, as jobs do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("decay", ["constant", "inverse_sqrt_epoch"])
def test_training_equals_a_plain_loop_bit_for_bit(name: str, oracle: str, decay: str) -> None:
    """Three epochs of 32 + 32 + 11 samples end in exactly the parameters of torch.optim on the same batches."""
    settings, make = ORACLES[oracle]
    task = images_task(name, optimizer=settings)
    start = task.initial()
    rates = [0.01 / math.sqrt(epoch + 1) if decay != "constant" else 0.01 for epoch in range(3)]
    twin = models.factory(name, {}, IMAGES.shape, IMAGES.classes)()
    nn.utils.vector_to_parameters(start.params.clone(), twin.parameters())
    expected = plain_loop(twin, [32, 32, 11], 3, make, rates)
    outcome = task.train(job_of(start, 0, nth=2, lr=0.01, decay=decay, epochs=3), 9)
    assert torch.equal(outcome.params, expected)
    assert not torch.equal(outcome.params, start.params)


def test_batch_norm_training_equals_a_plain_loop() -> None:
    """Convolution with BatchNorm: parameters and buffers are those of the plain loop, bit for bit."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))

    task = images_task(model, optimizer=OptimizerSettings("sgd", 0.9))
    start = task.initial()
    twin = model()
    nn.utils.vector_to_parameters(start.params.clone(), twin.parameters())
    expected = plain_loop(twin, [32, 32, 11], 2, lambda p: torch.optim.SGD(p, lr=1, momentum=0.9), [0.05, 0.05])
    outcome = task.train(job_of(start, 0, nth=2, lr=0.05), 6)
    assert torch.equal(outcome.params, expected)
    assert equal_buffers(outcome.buffers, dict(twin.named_buffers()))
    assert int(outcome.buffers["1.num_batches_tracked"]) == 6


def test_unused_parameters_are_left_alone() -> None:
    """A parameter without gradient stays as it is, weight decay included, as in torch.optim."""

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 4), nn.Linear(2, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)

    for optimizer in (OptimizerSettings("sgd", 0.9, 0.1), OptimizerSettings("adam", weight_decay=0.1)):
        task = blob_task(Lazy, optimizer=optimizer)
        start = task.initial()
        after, before = (task.state.split(params) for params in (task.train(job_of(start), 4).params, start.params))
        assert torch.equal(after["unused.weight"], before["unused.weight"])
        assert not torch.equal(after["used.weight"], before["used.weight"])


def test_log_probabilities_train_like_logits() -> None:
    """A model that ends in log-softmax gets the same training as its logits, to rounding."""

    def logits() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4))

    def log_probabilities() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 4), nn.LogSoftmax(dim=1))

    ends = [task.train(job_of(task.initial()), 4).params for task in map(blob_task, (logits, log_probabilities))]
    torch.testing.assert_close(ends[0], ends[1])


def test_a_partial_job_is_the_beginning_of_the_whole_one() -> None:
    """Collecting 2 of 4 steps gives the same as asking for two, with the steps really done and their loss."""
    task = blob_task()
    start = task.initial()
    part, whole = (task.train(job_of(start), steps) for steps in (2, 4))
    assert (part.steps, whole.steps) == (2, 4)
    again = task.train(job_of(start, epochs=None, steps=2), 2)
    assert torch.equal(part.params, again.params)
    assert part.loss == again.loss != whole.loss


def test_the_loss_is_the_mean_over_the_steps() -> None:
    """With one batch an epoch, two steps report the mean of the losses before the first and the second step."""
    task = blob_task(batch_size=200)
    start = task.initial()
    first, both = (task.train(job_of(start), steps) for steps in (1, 2))
    second = task.train(job_of(start._replace(params=first.params)), 1)
    assert first.loss is not None
    assert second.loss is not None
    assert both.loss == pytest.approx((first.loss + second.loss) / 2, rel=1e-6)


def test_no_steps_change_nothing() -> None:
    """A job that is asked for nothing returns a copy of its model, 0 steps and no loss."""
    task = blob_task()
    job = job_of(task.initial())
    outcome = task.train(job, 0)
    assert torch.equal(outcome.params, job.params)
    assert outcome.params.data_ptr() != job.params.data_ptr()
    assert (outcome.steps, outcome.loss) == (0, None)


def test_lt_04_a_last_batch_of_one_does_not_crash_batch_norm() -> None:
    """33 samples in batches of 32 train in 2 steps of 17 and 16, and both count in BatchNorm."""
    task = blob_task(NoisyNet)
    outcome = task.train(job_of(task.initial(), client=1), 2)
    assert outcome.steps == 2
    assert int(outcome.buffers["norm.num_batches_tracked"]) == 2
    assert outcome.bad is None


def test_lt_04_a_client_with_one_sample_trains_by_rule() -> None:
    """One sample: the step is done with BatchNorm in evaluation mode, so its statistics stay and weights move."""
    task = blob_task(NoisyNet)
    start = task.initial()
    outcome = task.train(job_of(start, client=3), 1)
    assert (outcome.steps, outcome.examples, outcome.bad) == (1, 1, None)
    assert torch.equal(outcome.buffers["norm.running_mean"], start.buffers["norm.running_mean"])
    assert int(outcome.buffers["norm.num_batches_tracked"]) == 0
    assert not torch.equal(outcome.params, start.params)
    assert task.module.get_submodule("norm").training


def test_lt_05_a_client_smaller_than_the_batch_trains() -> None:
    """Five samples, batch 32, two epochs: two steps, five examples, a finite loss > 0 and a non-zero delta."""
    task = blob_task()
    start = task.initial()
    outcome = task.train(job_of(start, client=2, epochs=2), 2)
    assert (outcome.steps, outcome.examples) == (2, 5)
    assert outcome.loss is not None
    assert 0 < outcome.loss < math.inf
    assert torch.count_nonzero(outcome.params - start.params) > 0


def test_ag_07_training_shares_no_memory_with_its_job() -> None:
    """The job's tensors keep their bits while and after others train; no outcome is a view of anything else."""
    task = blob_task(NoisyNet)
    start = task.initial()

    def fingerprint(model: Model) -> str:
        tensors = [model.params, *model.buffers.values()]
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()

    before = fingerprint(start)
    outcomes = [task.train(job_of(start, client=client), 2) for client in (0, 1, 0)]
    assert fingerprint(start) == before
    assert torch.equal(outcomes[0].params, outcomes[2].params)
    held = [start, *(Model(0, outcome.params, outcome.buffers) for outcome in outcomes)]
    kept = [tensor for model in held for tensor in (model.params, *model.buffers.values())]
    kept += [*task.module.parameters(), *task.module.buffers()]
    assert len({tensor.data_ptr() for tensor in kept}) == len(kept)


def test_ag_05_the_first_bad_entry_is_named() -> None:
    """A diverged job names its first parameter that is not finite."""
    task = blob_task()
    outcome = task.train(job_of(task.initial(), lr=1e38), 4)
    assert outcome.bad == "1.weight"


def test_a_bad_buffer_is_named_but_a_mask_is_not() -> None:
    """Infinity that a buffer already had is its own business; a statistic that became NaN is reported; CASES AG-05."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
            self.register_buffer("statistic", torch.zeros(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.statistic += self.poison
            return self.linear(inputs)

        poison = 0.0

    task = blob_task(Masked)
    assert task.train(job_of(task.initial()), 1).bad is None
    task.module.poison = math.nan
    assert task.train(job_of(task.initial()), 1).bad == "statistic"


def test_what_cannot_be_trained_is_refused() -> None:
    """Steps without samples, a job without rate, an unknown decay and a sub-model are errors with a reason."""
    task = blob_task(parts=[np.arange(10), np.arange(0)], keys=[0, 1])
    start = task.initial()
    with pytest.raises(LawError, match="client 1 has 0 training samples"):
        task.train(job_of(start, client=1), 1)
    assert task.train(job_of(start, client=1), 0).examples == 0
    with pytest.raises(LawError, match="no learning rate"):
        task.train(job_of(start, lr=None), 1)
    with pytest.raises(ScenarioError, match="cosine"):
        task.train(job_of(start, decay="cosine"), 1)
    with pytest.raises(RefusedError, match="part"):
        task.train(job_of(start, part=(0,)), 1)


def test_optimizer_settings_are_checked() -> None:
    """An unknown optimiser, or momentum for Adam, is refused."""
    with pytest.raises(ScenarioError, match="rmsprop"):
        OptimizerSettings("rmsprop")
    with pytest.raises(ScenarioError, match="momentum"):
        OptimizerSettings("adam", momentum=0.9)


def test_training_learns() -> None:
    """Fifty epochs on 100 blobs bring the test accuracy from chance above 60 % and the loss down."""
    task = blob_task(mlp_of(BLOBS))
    start = task.initial()
    end = task.train(job_of(start, lr=0.1, epochs=50), 200)
    before, after = (task.evaluate(start._replace(params=params))[0] for params in (start.params, end.params))
    assert after.loss < before.loss
    assert after.accuracy is not None
    assert after.accuracy > 0.6


def test_parts_and_keys_must_match() -> None:
    """As many keys as parts, or an error."""
    with pytest.raises(ScenarioError, match="3 client keys"):
        blob_task(keys=[0, 1, 2])
    assert len(PARTS) == 4
