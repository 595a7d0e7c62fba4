"""Batched training against the definition (one job at a time) and against torch.optim, row by row."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_world import IMAGES, PARTS, NoisyNet, blob_task, equal_buffers, job_of

from desim_fl.learning import kernel, models, trial
from desim_fl.learning.batched import HAND, TOLERANCE, Batched
from desim_fl.learning.batched_optimizers import BATCHED, Rate
from desim_fl.learning.optimizers import OptimizerSettings
from desim_fl.learning.ragged import Course, dealt, planned

SETTINGS = {
    "sgd": OptimizerSettings(),
    "momentum": OptimizerSettings("sgd", 0.9),
    "momentum+decay": OptimizerSettings("sgd", 0.9, 1e-2),
    "decay": OptimizerSettings("sgd", 0.0, 1e-2),
    "adam": OptimizerSettings("adam"),
    "adam+decay": OptimizerSettings("adam", weight_decay=1e-2),
}


class NormNet(nn.Module):
    """BatchNorm, an integer buffer that is bound anew, one that is counted in place, and a parameter nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        self.unused = nn.Parameter(torch.ones(3))
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls = self.calls + 1
        return self.last(torch.tanh(self.norm(self.first(inputs))))


def smooth() -> nn.Module:
    """A small network without kinks, whose batched results differ by rounding only."""
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


class OddNet(nn.Module):
    """Tied and frozen parameters, a scratch buffer that sums up, and two buffers that hand their value on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.tied = self.first
        self.frozen.requires_grad_(requires_grad=False)
        self.current: torch.Tensor
        self.previous: torch.Tensor
        self.seen: torch.Tensor
        self.register_buffer("current", torch.zeros(6))
        self.register_buffer("previous", torch.zeros(6))
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.tied(self.frozen(self.first(inputs))))
        if self.training:
            self.previous = self.current
            self.current = self.first.weight.detach().sum(1)
            self.seen += 1
        return self.last(hidden) * (1 + 0.1 * self.seen)


class Centred(nn.Linear):
    """Subtracts the mean of its batch: samples are not independent, though no layer says so."""

    def __init__(self) -> None:
        super().__init__(6, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs - inputs.mean(0))


class Branching(nn.Linear):
    """Control flow that depends on data, behind a BatchNorm that has counted by then."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        normed = self.norm(inputs)
        return super().forward(normed if normed[0, 0] > 0 else -normed)


class Growing(nn.Linear):
    """A buffer that becomes longer."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.trail: torch.Tensor
        self.register_buffer("trail", torch.zeros(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.trail = torch.cat([self.trail, torch.ones(1)])
        return super().forward(inputs)


def cumulative() -> nn.Module:
    """A BatchNorm that averages over all batches so far, for which it reads its counter as a number."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 4))


def conv_norm() -> nn.Module:
    """A small convolutional net with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(48, 10)
    )


TASKS = {
    "mlp": blob_task,
    "smooth": lambda **options: blob_task(smooth, **options),
    "norm": lambda **options: blob_task(NormNet, **options),
    "odd": lambda **options: blob_task(OddNet, **options),
    "centred": lambda **options: blob_task(Centred, **options),
    "cnn": lambda **options: blob_task(models.factory("cnn", {}, IMAGES.shape, 10), dataset=IMAGES, **options),
    "conv norm": lambda **options: blob_task(conv_norm, dataset=IMAGES, **options),
}


SMOOTH = 1e-4  # tolerance of models without kinks, by tensor; the whole move agrees to 1e-6 or so


@pytest.fixture(autouse=True)
def one_thread():
    """The definition runs on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batched(task) -> Batched:
    """The task's batched trainer, with the traits that the trial finds."""
    traits = trial.examine(task).traits
    assert traits is not None
    return Batched(task, traits)


def jobs_of(task, count: int = 6, lr: float = 0.05, **work):
    """Jobs of all four clients (100, 33, 5, 1 samples) from different models, of different lengths and rates."""
    start, memory = task.initial(), {}
    found = []
    for number in range(count):
        base = start._replace(params=start.params * (1 + 0.02 * number), buffers=memory or start.buffers)
        rate = lr * (1 + number % 3)
        job = job_of(base, number % 4, nth=number, number=number, lr=rate, epochs=3, **work)
        found.append((job, max(0, (12, 6, 3, 2)[number % 4] - number // 4)))
        memory = {name: value + 1 if value.is_floating_point() else value for name, value in start.buffers.items()}
    return found


def agrees(task, job, right, found, tolerance=SMOOTH) -> None:
    """Everything of an outcome is exact but trained floats and the loss, and these are within the tolerance."""
    for name, value in trial.deviations(task.state, job.params, right.params, found.params, tolerance).items():
        assert value <= 1, f"{name} is {value} times the tolerance away"
    assert list(right.buffers) == list(found.buffers)
    for name, value in right.buffers.items():
        assert value.dtype == found.buffers[name].dtype
        assert value.shape == found.buffers[name].shape
        assert trial.deviation(job.buffers[name], value, found.buffers[name], 0.0, tolerance) <= 1, name
    assert found.loss == (None if right.loss is None else pytest.approx(right.loss, rel=1e-5))
    plain = {"params": None, "buffers": None, "loss": None, "memory": None}
    assert right._replace(**plain) == found._replace(**plain)


def same_bits(left, right) -> bool:
    """Whether two outcomes are the same in every bit (NaN like NaN)."""
    return (
        torch.equal(left.params.view(torch.int32), right.params.view(torch.int32))
        and equal_buffers(left.buffers, right.buffers)
        and repr(left.loss) == repr(right.loss)
    )


# ---- the plan


def test_a_padded_plan_fills_batches_up_with_weight_nothing():
    """Batches of 2 and 1 sample become 2 and 2, the second with its own sample again; then only one job goes on."""
    courses = [Course([np.array([7, 8]), np.array([9])], [0.1, 0.2]), Course([np.array([5])], [0.1])]
    plan = planned(courses, padded=True)
    assert plan.indices.tolist() == [7, 8, 5, 5, 9]
    assert plan.weights.tolist() == [0.5, 0.5, 1.0, 0.0, 1.0]
    assert [(step.active, step.rate) for step in plan.steps] == [(2, 0.1), (1, 0.2)]
    assert [[call[1:] for call in step.calls] for step in plan.steps] == [[(2, 2, 0)], [(1, 1, 4)]]
    assert plan.rates.tolist() == [[0.1, 0.1], [0.2, 0.0]]


def test_a_plan_by_size_makes_one_call_for_each_size():
    """Three jobs with batches of 2, 1 and 2 samples: the pair together, then the single one, nothing filled in."""
    courses = [Course([np.array([7, 8])], [0.1]), Course([np.array([5])], [0.3]), Course([np.array([1, 2])], [0.1])]
    (step,) = planned(courses, padded=False).steps
    assert step.rate is None
    assert [(call.rows.tolist(), call.jobs, call.size, call.start) for call in step.calls] == [
        ([0, 2], 2, 2, 0),
        ([1], 1, 1, 4),
    ]
    assert planned(courses, padded=False).indices.tolist() == [7, 8, 1, 2, 5]
    (alike,) = planned(courses[::2], padded=False).steps
    assert [call.rows for call in alike.calls] == [None]


def test_jobs_are_dealt_into_equal_hands_longest_first():
    """Five jobs in hands of at most four: three and two, each in falling length; none make none."""
    assert dealt([3, 9, 3, 7, 1], 4) == [[1, 0, 4], [3, 2]]
    assert dealt([2, 2, 2], 4) == [[0, 1, 2]]
    assert dealt([], 4) == []
    assert [len(hand) for hand in dealt([1] * 17, 8)] == [6, 6, 5]


# ---- optimisers


MAKERS = {
    "sgd": lambda parameters, s: torch.optim.SGD(parameters, lr=1, momentum=s.momentum, weight_decay=s.weight_decay),
    "adam": lambda parameters, s: torch.optim.Adam(parameters, lr=1, weight_decay=s.weight_decay),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("common", [True, False])
def test_each_row_moves_as_torch_optim_moves_it_and_rests_when_its_job_has_ended(name, common):
    """In double precision, to 1e-12: five, three and two steps of three rows; beyond its end a row keeps its bits."""
    setting, lengths, draw = SETTINGS[name], (5, 3, 2), torch.Generator().manual_seed(0)
    stacks = [torch.randn(3, *shape, generator=draw, dtype=torch.float64) for shape in ((4, 2), (2,))]
    gradients = [[torch.randn(value.shape, generator=draw, dtype=torch.float64) for value in stacks] for _ in range(5)]
    rates = torch.tensor([[0.1 / (step + 1) * (1 if common else row + 1) for row in range(3)] for step in range(5)])
    expected = []
    for row, length in enumerate(lengths):
        mine = [value[row].clone().requires_grad_() for value in stacks]
        plain = MAKERS[setting.name](mine, setting)
        for step in range(length):
            plain.param_groups[0]["lr"] = float(rates[step, row])
            for value, gradient in zip(mine, gradients[step], strict=True):
                value.grad = gradient[row].clone()
            plain.step()
        expected.append(mine)
    optimizer, ended = BATCHED[setting.name](setting), {}
    for step in range(5):
        active = sum(length > step for length in lengths)
        each = rates[step, :active].double()
        rate = Rate(float(each[0]), None) if common else Rate(None, each)
        optimizer.step([value[:active] for value in stacks], [g[:active] for g in gradients[step]], rate)
        ended |= {row: [value[row].clone() for value in stacks] for row in range(3) if lengths[row] == step + 1}
    for row in range(3):
        for value, right, at_end in zip(stacks, expected[row], ended[row], strict=True):
            torch.testing.assert_close(value[row], right.detach(), rtol=1e-12, atol=1e-12)
            assert torch.equal(value[row], at_end)


# ---- whole jobs


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("decay", ["constant", "inverse_sqrt_epoch"])
def test_a_ragged_group_agrees_with_each_job_alone(name, decay):
    """RP-06: clients of 100, 33, 5 and 1 samples, other lengths, rates and models: each within the tolerance."""
    task = TASKS["smooth"](optimizer=SETTINGS[name])
    jobs = jobs_of(task, lr=0.05 if SETTINGS[name].name == "sgd" else 1e-3, decay=decay)
    for (job, steps), found in zip(jobs, batched(task).train(jobs), strict=True):
        agrees(task, job, task.train(job, steps), found)
        assert found.steps == steps


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", ["sgd", "momentum+decay"])
def test_every_kind_of_model_agrees_buffers_included(kind, name):
    """BatchNorm, tied, frozen and unused parameters, scratch buffers, mixing of samples, convolutions: as alone."""
    task = TASKS[kind](optimizer=SETTINGS[name])
    jobs = jobs_of(task, lr=0.02)
    for (job, steps), found in zip(jobs, batched(task).train(jobs), strict=True):
        agrees(task, job, task.train(job, steps), found, TOLERANCE if kind in {"mlp", "cnn"} else SMOOTH)
    if kind == "norm":
        assert [int(end.buffers["norm.num_batches_tracked"]) for end in batched(task).train(jobs[:4])] == [12, 6, 3, 0]
        assert [int(end.buffers["calls"]) for end in batched(task).train(jobs[:4])] == [12, 6, 3, 2]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_ragged_group_agrees_and_repeats_itself(data):
    """Any clients, lengths (0 included), rates and models in any order: near the single job, and the same bits again."""
    kind, name = (
        data.draw(st.sampled_from(["smooth", "norm", "odd"])),
        data.draw(st.sampled_from(["sgd", "momentum+decay"])),
    )
    task, trainer = _prepared(kind, name)
    one = st.tuples(
        st.integers(0, 3), st.integers(0, 9), st.sampled_from([0.01, 0.1]), st.sampled_from([0.9, 1.0, 1.1])
    )
    chosen = data.draw(st.lists(one, min_size=1, max_size=11))
    start, jobs = task.initial(), []
    for number, (client, steps, lr, scale) in enumerate(chosen):
        base = start._replace(params=start.params * scale)
        jobs.append((job_of(base, client, nth=number, number=number, lr=lr, decay="inverse_sqrt_epoch"), steps))
    first, second = trainer.train(jobs), trainer.train(jobs)
    for (job, steps), found, again in zip(jobs, first, second, strict=True):
        assert same_bits(found, again)
        agrees(task, job, task.train(job, steps), found)


_PREPARED: dict[tuple[str, str], tuple] = {}


def _prepared(kind, name):
    if (kind, name) not in _PREPARED:
        task = TASKS[kind](optimizer=SETTINGS[name])
        _PREPARED[kind, name] = (task, batched(task))
    return _PREPARED[kind, name]


@pytest.mark.parametrize("name", ["momentum+decay", "adam+decay"])
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_a_job_that_has_ended_does_not_move(kind, name):
    """One step beside a job of one step, or beside one of twelve: the same bits of parameters, buffers and loss."""
    task = TASKS[kind](optimizer=SETTINGS[name])
    start, trainer = task.initial(), batched(task)
    long, short = job_of(start, 0, lr=1e-3), job_of(start, 1, number=1, lr=1e-3)
    _, beside_short = trainer.train([(long, 1), (short, 1)])
    _, beside_long = trainer.train([(long, 12), (short, 1)])
    assert same_bits(beside_short, beside_long)
    assert beside_short.steps == 1


@pytest.mark.parametrize("kind", ["mlp", "norm", "cnn"])
def test_a_job_that_diverges_does_not_touch_the_others(kind):
    """A job from parameters that are not finite is named bad as alone; its neighbours keep their bits."""
    task = TASKS[kind]()
    start, trainer = task.initial(), batched(task)
    jobs = jobs_of(task, 3)
    broken = job_of(start._replace(params=start.params * math.nan), 1, nth=1, number=1)
    sound, mixed = trainer.train(jobs), trainer.train([jobs[0], (broken, 6), jobs[2]])
    assert same_bits(sound[0], mixed[0])
    assert same_bits(sound[2], mixed[2])
    assert (sound[0].bad, mixed[1].bad) == (None, task.train(broken, 6).bad)
    assert mixed[1].bad is not None
    wild = job_of(start, 0, lr=1e30)
    assert trainer.train([(wild, 12), jobs[1]])[0].bad == task.train(wild, 12).bad is not None


def test_one_job_alone_and_jobs_without_steps():
    """A group of one agrees; a job of no steps keeps its model, exactly, and has no loss; no jobs give nothing."""
    task = TASKS["norm"]()
    trainer, start = batched(task), task.initial()
    (found,) = trainer.train([(job_of(start), 5)])
    agrees(task, job_of(start), task.train(job_of(start), 5), found)
    idle = job_of(start, 2, number=1)
    for group in ([(idle, 0)], [(job_of(start), 4), (idle, 0)]):
        rested = trainer.train(group)[-1]
        assert same_bits(rested, task.train(idle, 0))
        assert (rested.steps, rested.loss, rested.bad) == (0, None, None)
    assert trainer.train([]) == []


def test_records_change_no_bit(monkeypatch):
    """Before and after shapes were recorded: the bits of 20 jobs, which are three hands, are the same."""
    monkeypatch.setattr(kernel, "_OFTEN", 12)
    for kind in ("mlp", "norm"):
        task = TASKS[kind](optimizer=SETTINGS["momentum+decay"])
        jobs = jobs_of(task, 20)
        assert len(jobs) > 2 * HAND
        trainer = batched(task)
        first = trainer.train(jobs)
        for _ in range(4):
            assert all(map(same_bits, first, trainer.train(jobs)))
        assert trainer.records.made > 0


def test_a_record_that_gives_other_bits_is_not_used(monkeypatch):
    """Recording is trusted only after its result was compared; one that fails is done without."""

    def spoilt(graph) -> None:
        for node in graph.graph.nodes:
            if node.target is torch.ops.aten.neg.default:
                node.target = torch.ops.aten.exp.default
        graph.recompile()

    def failing(graph) -> None:
        raise ValueError(graph)

    task = blob_task()
    jobs = jobs_of(task, 8)
    first = batched(task).train(jobs)
    for broken in (spoilt, failing):
        monkeypatch.setattr(kernel, "_thinned", broken)
        trainer = batched(task)
        for _ in range(20):
            assert all(map(same_bits, first, trainer.train(jobs)))
        assert max(trainer.records.uses.values()) >= 64
        assert trainer.records.made == 0


def test_outcomes_share_no_memory_and_jobs_stay_as_they_were():
    """Each tensor has memory of its own; writing into it changes no other outcome, no job, nor what is trained next."""
    task = TASKS["norm"]()
    jobs, trainer = jobs_of(task, 4), batched(task)
    before = copy.deepcopy([job for job, _ in jobs])
    first, expected = trainer.train(jobs), trainer.train(jobs)
    tensors = [value for end in first for value in (end.params, *end.buffers.values())]
    assert len({value.untyped_storage().data_ptr() for value in tensors}) == len(tensors)
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in tensors)
    for outcome in first[:2]:
        outcome.params.fill_(7)
        for value in outcome.buffers.values():
            value.fill_(7)
    assert all(map(same_bits, first[2:], expected[2:]))
    assert all(map(same_bits, trainer.train(jobs), expected))
    for old, (job, _) in zip(before, jobs, strict=True):
        assert torch.equal(old.params, job.params)
        assert equal_buffers(old.buffers, job.buffers)


def test_local_buffers_come_from_and_go_to_the_clients_memory():
    """FedBN: as alone, a job starts from its client's own buffers, and the model's stay as they were."""
    task = TASKS["norm"](buffers="local")
    trainer, start = batched(task), task.initial()
    first = [job_of(start, client, number=client) for client in (0, 1)]
    memories = [end.memory for end in trainer.train([(job, 3) for job in first])]
    second = [job._replace(nth=1, memory=memory) for job, memory in zip(first, memories, strict=True)]
    broken = job_of(start._replace(params=start.params * math.nan), 2)._replace(memory=memories[0])
    ends = trainer.train([*((job, 3) for job in second), (broken, 1)])
    for job, end in zip(second, ends, strict=False):
        right = task.train(job, 3)
        assert end.buffers is job.buffers
        for name, value in right.memory["buffers"].items():
            assert trial.deviation(job.memory["buffers"][name], value, end.memory["buffers"][name]) <= 1
    assert int(ends[0].memory["buffers"]["calls"]) == 6
    assert ends[2].memory is memories[0]


# ---- which models can be batched


@pytest.mark.parametrize(
    ("model", "padded", "why"),
    [
        (None, True, ""),
        (NormNet, False, "batches of one size at a time"),
        (Centred, False, "batches of one size at a time"),
        (NoisyNet, None, "the model draws random numbers"),
        (Branching, None, "vmap cannot run the model"),
        (cumulative, None, "vmap cannot run the model"),
        (Growing, None, "changes its shape"),
    ],
)
def test_the_trial_finds_how_a_model_can_be_batched(model, padded, why):
    """Filled-up batches where samples are independent, else one size at a time; what vmap cannot do is named."""
    traits, told = trial.examine(blob_task(model))
    assert (None if traits is None else traits.padded) == padded
    assert why in told
    assert bool(why) == bool(told)


def test_parameters_that_get_no_gradient_are_left_alone():
    """Weight decay does not touch a parameter that the loss does not depend on."""
    task = TASKS["norm"](optimizer=SETTINGS["momentum+decay"])
    traits = trial.examine(task).traits
    assert traits is not None
    assert traits.unused == {"unused"}
    for end in batched(task).train(jobs_of(task, 3)):
        assert len(set(task.state.split(end.params)["unused"].tolist())) == 1
    (job, _), *_ = jobs_of(task, 1)
    assert torch.equal(task.state.split(batched(task).train([(job, 4)])[0].params)["unused"], torch.ones(3))


@pytest.mark.parametrize("model", [None, NormNet, OddNet, NoisyNet, Branching, cumulative, Growing])
def test_trial_and_training_leave_the_task_as_it_was(model):
    """RP-06: neither parameters, buffers (the batch counter), modes, generators nor threads of the task change."""
    task, twin = blob_task(model), blob_task(model)
    start = task.initial()
    before = copy.deepcopy(task.module.state_dict())
    modes, generator = [part.training for part in task.module.modules()], torch.get_rng_state()
    traits = trial.examine(task).traits
    if traits is not None:
        Batched(task, traits).train(jobs_of(task, 3))
    assert equal_buffers(before, task.module.state_dict())
    assert modes == [part.training for part in task.module.modules()]
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.get_num_threads() == 1
    assert same_bits(task.train(job_of(start), 5), twin.train(job_of(start), 5))


def test_a_wrong_batched_result_is_found_out(monkeypatch):
    """Where batching gave something else than one job at a time, the trial says so and names where."""
    from desim_fl.learning.kernel import Kernel  # noqa: PLC0415

    right = Kernel.plain

    def wrong(self, *flat):
        first, *rest = right(self, *flat)
        return (first * 1.02, *rest)

    monkeypatch.setattr(Kernel, "plain", wrong)
    traits, why = trial.examine(blob_task())
    assert traits is None
    assert why == "vmap gives another result than one job at a time (1.weight)"


def test_the_deviation_is_in_units_of_the_tolerance():
    """A move of length 5 tolerates 0.05 (and rounding): an error of 0.1 counts about 2, NaN infinitely."""
    base, right = torch.zeros(2), torch.tensor([3.0, 4.0])
    assert trial.deviation(base, right, torch.tensor([3.0, 4.1])) == pytest.approx(2, rel=0.02)
    assert trial.deviation(base, right, torch.tensor([3.0, 4.1]), 0.0, 0.1) == pytest.approx(0.2, rel=0.02)
    assert trial.deviation(base, right, right) == 0
    assert trial.deviation(base, right, right * math.nan) == math.inf
    assert trial.deviation(torch.tensor(1), torch.tensor(2), torch.tensor(3)) == math.inf


def test_the_parts_of_these_tests_are_ragged():
    """Batches of 32 over 100, 33, 5 and 1 samples: full, shared, small and single ones."""
    assert [len(part) for part in PARTS] == [100, 33, 5, 1]
