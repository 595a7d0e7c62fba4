"""Flat vectors, buffers and their average."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from training_world import NoisyNet, blob_task, equal_buffers, job_of

from desim_fl.errors import ScenarioError
from desim_fl.learning.average import average
from desim_fl.learning.vectors import ModuleState


class Tied(nn.Module):
    """One weight used twice, a frozen layer and a buffer registered in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 6)
        self.outer.weight = self.inner.weight
        self.frozen = nn.Linear(6, 4).requires_grad_(requires_grad=False)
        scale = torch.ones(1)
        self.register_buffer("scale", scale)
        self.inner.register_buffer("scale", scale)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Change the scratch buffer and the shared one in training."""
        if self.training:
            self.scratch += 1
            self.scale += 0.5
        return self.frozen(self.outer(torch.relu(self.inner(inputs)))) * self.scale


def test_the_vector_holds_each_trainable_float_once_in_order() -> None:
    """A tied weight stands once, frozen parameters are missing, and the order is that of named_parameters."""
    module = Tied()
    state = ModuleState(module)
    assert state.names == ("inner.weight", "inner.bias", "outer.bias")
    assert state.vector().shape == (6 * 6 + 6 + 6,)
    assert torch.equal(state.vector()[:36], module.inner.weight.detach().flatten())
    assert set(state.buffers()) == {"scale", "frozen.weight", "frozen.bias"}


def test_loading_a_vector_is_the_inverse_of_reading_it() -> None:
    """A random vector comes back bit for bit, also where a module stores its weights channels last."""
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    state = ModuleState(module.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
    wanted = torch.randn(state.vector().shape, generator=torch.Generator().manual_seed(0))
    state.load(wanted, state.buffers())
    assert torch.equal(state.vector(), wanted)
    assert torch.equal(dict(state.split(wanted))["0.weight"], module[0].weight)


def test_tied_weights_and_frozen_ones_survive_training() -> None:
    """After a job the tie still holds, frozen parameters have their bits, and shared buffers moved together."""
    task = blob_task(Tied)
    start = task.initial()
    outcome = task.train(job_of(start), 4)
    module = task.module
    assert module.get_parameter("outer.weight") is module.get_parameter("inner.weight")
    assert torch.equal(outcome.buffers["frozen.weight"], start.buffers["frozen.weight"])
    assert outcome.buffers["scale"].item() == 3.0
    assert module.get_buffer("scale") is module.get_buffer("inner.scale")
    assert not torch.equal(outcome.params, start.params)


def test_scratch_buffers_start_afresh_in_every_job() -> None:
    """A non-persistent buffer never travels and is reset before each job, so no client sees another's; CASES AG-07."""
    task = blob_task(Tied)
    start = task.initial()
    task.train(job_of(start), 4)
    task.train(job_of(start, client=1), 2)
    assert task.module.get_buffer("scratch").item() == 2
    assert "scratch" not in start.buffers


def test_modules_whose_state_cannot_be_carried_are_refused() -> None:
    """No trainable parameter, another float type, or extra state: an error that says which."""

    class Extra(nn.Linear):
        def get_extra_state(self) -> int:
            return 1

    with pytest.raises(ScenarioError, match="no trainable parameter"):
        ModuleState(nn.Linear(2, 2).requires_grad_(requires_grad=False))
    with pytest.raises(ScenarioError, match=r"weight is torch\.float64"):
        ModuleState(nn.Linear(2, 2).double())
    with pytest.raises(ScenarioError, match="extra state"):
        ModuleState(Extra(2, 2))


def test_ag_01_float_statistics_are_averaged_with_the_shares() -> None:
    """Clients with n = 30 and n = 10 and running means 1 and 5 give 2.0."""
    members = [(share, {"running_mean": torch.tensor([value])}) for share, value in ((0.75, 1.0), (0.25, 5.0))]
    assert average({"running_mean": torch.tensor([9.0])}, members)["running_mean"].item() == 2.0


def test_ag_01_one_client_with_share_one_gives_its_state_exactly() -> None:
    """Mixing 1 without staleness: every key is the client's, bit for bit."""
    task = blob_task(NoisyNet)
    start = task.initial()
    outcome = task.train(job_of(start), 4)
    assert equal_buffers(task.average(start.buffers, [(1.0, outcome.buffers)]), outcome.buffers)


def test_what_shares_leave_stays_with_the_server() -> None:
    """Share 0.25 of 8 over a base of 4 gives 5; a share of 0 leaves no trace, even of NaN; nobody changes nothing; CASES AG-05."""
    base = {"mean": torch.tensor([4.0])}
    poisoned = {"mean": torch.tensor([math.nan])}
    assert average(base, [(0.25, {"mean": torch.tensor([8.0])})])["mean"].item() == 5.0
    assert average(base, [(0.25, {"mean": torch.tensor([8.0])}), (0.0, poisoned)])["mean"].item() == 5.0
    assert average(base, []) is base
    assert average(base, [(0.0, poisoned)]) is base


@pytest.mark.parametrize("parts", [3, 7, 10])
def test_equal_members_average_to_themselves(parts: int) -> None:
    """1/K of K equal statistics is that statistic, bit for bit; CASES AG-06."""
    value = torch.randn(1_000, generator=torch.Generator().manual_seed(parts))
    joined = average({"mean": torch.zeros(1_000)}, [(1 / parts, {"mean": value})] * parts)
    assert torch.equal(joined["mean"], value)


def test_an_entry_nobody_changed_keeps_its_bits() -> None:
    """A mask with infinities and a frozen weight come out as they went in, whatever the shares."""
    base = {"mask": torch.tensor([0.0, -math.inf]), "frozen": torch.tensor([0.1])}
    joined = average(base, [(0.1, {name: value.clone() for name, value in base.items()})] * 2)
    assert equal_buffers(joined, base)


def test_ag_02_integer_buffers_take_the_maximum() -> None:
    """Counters 10 and 11 give 11 in int64, boolean flags are joined with "or", a larger base stays."""

    def entry(count: int, flags: list[bool], small: int) -> dict[str, torch.Tensor]:
        return {
            "counter": torch.tensor(count),
            "flags": torch.tensor(flags),
            "small": torch.tensor([small], dtype=torch.uint8),
        }

    members = [(0.5, entry(10, [True, False, False], 3)), (0.5, entry(11, [False, True, False], 4))]
    joined = average(entry(7, [False, False, False], 200), members)
    assert (joined["counter"].item(), joined["counter"].dtype) == (11, torch.int64)
    assert (joined["flags"].tolist(), joined["flags"].dtype) == ([True, True, False], torch.bool)
    assert (joined["small"].item(), joined["small"].dtype) == (200, torch.uint8)


def test_fedbn_keeps_buffers_with_their_client() -> None:
    """With buffers = "local" a client goes on from its own statistics, the global ones stay, nothing is scored; CASES AG-01."""
    task = blob_task(NoisyNet, buffers="local")
    start = task.initial()
    first = task.train(job_of(start), 4)
    assert equal_buffers(first.buffers, start.buffers)
    again = task.train(job_of(start, memory=first.memory), 4)
    assert int(again.memory["buffers"]["norm.num_batches_tracked"]) == 8
    assert task.average(start.buffers, [(1.0, first.memory["buffers"])]) is start.buffers
    assert task.evaluate(start) == ()


def test_fedbn_forgets_a_job_that_diverged() -> None:
    """Memory stays as it was where a job ended with values that are not finite."""
    task = blob_task(NoisyNet, buffers="local")
    first = task.train(job_of(task.initial()), 4)
    bad = task.train(job_of(task.initial(), memory=first.memory, lr=1e38), 4)
    assert bad.bad is not None
    assert bad.memory is first.memory


def test_fedbn_without_buffers_is_scored() -> None:
    """A model that has nothing to keep local is evaluated as usual."""
    task = blob_task(buffers="local")
    assert [score.split for score in task.evaluate(task.initial())] == ["test"]
    with pytest.raises(ScenarioError, match="shared"):
        blob_task(buffers="shared")


def test_tensors_are_named_copies_parameters_first() -> None:
    """The arrays carry the module's names and shapes and can be loaded into a fresh module."""
    task = blob_task(NoisyNet)
    start = task.initial()
    arrays = task.tensors(start)
    assert list(arrays)[:2] == ["first.weight", "first.bias"]
    assert arrays["first.weight"].shape == (16, 6)
    fresh = NoisyNet()
    fresh.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert torch.equal(ModuleState(fresh).vector(), start.params)
    arrays["first.weight"][:] = 0
    assert np.any(start.params[:96].numpy())
