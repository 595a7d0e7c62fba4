"""A recorded step gives the bits of the plain one, and a step that cannot be recorded stays plain and says why."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from training_world import blob_task, job_of

from desim_fl.draws import Purpose
from desim_fl.learning import recording, steps
from desim_fl.learning.optimizers import OptimizerSettings
from desim_fl.learning.randomness import keyed
from desim_fl.learning.samples import Samples
from desim_fl.learning.steps import Steps, batch_loss
from desim_fl.learning.vectors import ModuleState

CLASSES, SIZE = 4, 6
CPU = torch.device("cpu")


class Images(nn.Module):
    """What all models below have in common: four classes out of a six by six image of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Linear(4 * SIZE * SIZE, CLASSES)

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        """What differs; shapes stay."""
        return torch.relu(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, do something, classify."""
        return self.last(self.middle(self.first(x)).flatten(1))


def with_layer(layer) -> type[Images]:
    """A model whose middle is one layer."""

    class Layered(Images):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def middle(self, x):
            return self.layer(x)

    return Layered


def with_middle(middle, prepare=lambda module: None) -> type[Images]:
    """A model whose middle is a function of (module, features)."""

    class Made(Images):
        def __init__(self) -> None:
            super().__init__()
            prepare(self)

        def middle(self, x):
            return middle(self, x)

    return Made


class Tied(Images):
    """One convolution used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.once = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.once

    def middle(self, x):
        return self.again(torch.tanh(self.once(x)))


class Frozen(Images):
    """A frozen layer, and a parameter that no result depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Conv2d(4, 4, 1).requires_grad_(requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3))

    def middle(self, x):
        return self.fixed(x)


class Recurrent(Images):
    """Keeps its parameters in a list of its own beside the usual places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(SIZE, SIZE, batch_first=True)

    def middle(self, x):
        return self.layer(x.flatten(1, 2))[0].reshape(x.shape)


class Attention(Images):
    """Self-attention between the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(SIZE, 2, batch_first=True)

    def middle(self, x):
        rows = x.flatten(1, 2)
        return (rows + self.layer(rows, rows, rows, need_weights=False)[0]).reshape(x.shape)


class Doubling(torch.autograd.Function):
    """Written by hand, forward and backward."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(context, *gradients):
        (x,) = context.saved_tensors
        return 2 * gradients[0] + 0 * x


def moving_mean(module, x):
    """Keep a running mean in a buffer, in place."""
    module.mean.mul_(0.9).add_(0.1 * x.detach().mean())
    return x - module.mean


def inside_out(module, x):
    """Write into views of features."""
    y = x.clone()
    y[:, 0].mul_(2)
    y[:, 1:3] += x[:, :2]
    y.transpose(1, 2).mul_(0.5)
    return y


def noisy(module, x):
    """Draw afresh in every step, from torch's generator."""
    return x + 0.1 * torch.randn_like(x) + torch.rand(x.shape[1], 1, 1)


def crowded(module, x):
    """Make new tensors of the sizes of all parameters: they lie where something was freed, if anything was."""
    sizes = [value.numel() for value in module.parameters()]
    made = [torch.tensor([0.5] * size) for size in sizes for _ in range(4)]
    return x * torch.stack([value.mean() for value in made]).mean() * module.large.mean()


def with_large(module):
    """Add a parameter whose place, once freed, is the next one to be given away."""
    module.register_parameter("large", nn.Parameter(torch.ones(64, 64)))


def summed(module, x):
    """Start from a new tensor that Python made, and add to it in place."""
    total = torch.tensor([0.5, 0.25, 0.125, 1.0]).view(1, 4, 1, 1)
    total += 1
    zeros = torch.zeros_like(x)
    zeros += x
    return zeros * total


RECORDABLE = {
    "relu": Images,
    "batch norm": with_layer(lambda: nn.BatchNorm2d(4)),
    "dropout": with_layer(lambda: nn.Dropout(0.3)),
    "dropout of channels": with_layer(lambda: nn.Dropout2d(0.3)),
    "group norm": with_layer(lambda: nn.GroupNorm(2, 4)),
    "layer norm": with_layer(lambda: nn.LayerNorm(SIZE)),
    "instance norm": with_layer(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "in place": with_layer(lambda: nn.Hardswish(inplace=True)),
    "pool and back": with_layer(lambda: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2))),
    "weight norm": with_layer(lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))),
    "spectral norm": with_layer(lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))),
    "tied": Tied,
    "frozen and unused": Frozen,
    "attention": Attention,
    "autograd function": with_middle(lambda module, x: Doubling.apply(x)),
    "buffer in place": with_middle(moving_mean, lambda module: module.register_buffer("mean", torch.zeros(()))),
    "scratch buffer": with_middle(
        moving_mean, lambda module: module.register_buffer("mean", torch.zeros(()), persistent=False)
    ),
    "views in place": with_middle(inside_out),
    "noise": with_middle(noisy),
    "new tensors": with_middle(summed),
    "indexing by number": with_middle(lambda module, x: x[:, torch.tensor([1, 0, 3, 2])]),
    "many new tensors": with_middle(crowded, with_large),
    "detached": with_middle(lambda module, x: x * x.detach().amax((1, 2, 3), keepdim=True)),
    "fixed tensor": with_middle(
        lambda module, x: x * module.mask, lambda module: setattr(module, "mask", torch.arange(6.0))
    ),
}


def branching(module, x):
    """Take a path that depends on the data."""
    return x if x.mean() > 0 else -2 * x


def counting(module, x):
    """Keep a count in Python."""
    module.count += 1
    return x * 1.5


def rebinding(module, x):
    """Put a new tensor where the buffer was."""
    module.mean = 0.9 * module.mean + 0.1 * x.detach().mean()
    return x - module.mean


def marking(module, x):
    """Change a tensor that is neither parameter nor buffer."""
    module.mask += 1
    return x


def by_closure(module, x):
    """Reach a parameter by another way than the module's attribute."""
    return x * module.shortcut[0].mean()


def by_data(module, x):
    """Read a parameter's values behind autograd's back."""
    return x * float(module.last.weight.data.numpy()[0, 0])


def in_numpy(module, x):
    """Leave torch and come back."""
    return x + torch.from_numpy(x.detach().numpy().sum(keepdims=True))


def own_generator(module, x):
    """Draw from a generator that belongs to the module."""
    return x + torch.rand(x.shape[1], 1, 1, generator=module.source)


def listing(module, x):
    """Remember what was seen."""
    module.seen.append(len(module.seen))
    return x


PLAIN = {
    "branch": (with_middle(branching), "values"),
    "item": (with_middle(lambda module, x: x * x.detach().max().item()), "values"),
    "tolist": (with_middle(lambda module, x: x * x.detach().amax().tolist()), "tolist"),
    "numpy": (with_middle(in_numpy), "numpy"),
    "data": (with_middle(by_data), "numpy"),
    "mask": (with_middle(lambda module, x: x + x[x > 0].mean()), "values"),
    "nonzero": (with_middle(lambda module, x: x + torch.nonzero(x > 0).float().mean()), "values"),
    "unique": (with_middle(lambda module, x: x + torch.unique(x.detach()).mean()), ""),
    "average of all": (with_layer(lambda: nn.BatchNorm2d(4, momentum=None)), "values"),
    "count": (with_middle(counting, lambda module: setattr(module, "count", 0)), "attributes"),
    "list": (with_middle(listing, lambda module: setattr(module, "seen", [])), "attributes"),
    "rebound buffer": (
        with_middle(rebinding, lambda module: module.register_buffer("mean", torch.zeros(()))),
        "place of a buffer",
    ),
    "tensor changed": (
        with_middle(marking, lambda module: setattr(module, "mask", torch.zeros(2))),
        "neither parameter nor buffer",
    ),
    "closure": (
        with_middle(by_closure, lambda module: setattr(module, "shortcut", [module.last.weight])),
        "another way",
    ),
    "recurrent": (Recurrent, "another shape"),
    "generator": (
        with_middle(own_generator, lambda module: setattr(module, "source", torch.Generator().manual_seed(1))),
        "",
    ),
}


def batches(count: int, seed: int = 0) -> list[Samples]:
    """Some batches of images, channels last."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in [5, 3] * (count // 2):
        inputs = torch.randn(size, 3, SIZE, SIZE, generator=generator).to(memory_format=torch.channels_last)
        made.append(Samples(inputs, torch.randint(CLASSES, (size,), generator=generator)))
    return made


def made(model: type[nn.Module], seed: int = 1) -> nn.Module:
    """A model in training mode with reproducible parameters."""
    with keyed(seed, Purpose.MODEL_INIT, 0, 0, CPU):
        return model().to(memory_format=torch.channels_last).train()


def trained(module: nn.Module, sequence: list[Samples]) -> tuple[list[torch.Tensor], Steps]:
    """Descend along the gradients of each batch; returns everything that a step may change."""
    doing, found = Steps(module), []
    state = ModuleState(module)
    with keyed(7, Purpose.TRAINING, 0, 0, CPU):
        for batch in sequence:
            loss, gradients = doing(batch)
            with torch.no_grad():
                for value, gradient in zip(state.parameters, gradients, strict=True):
                    if gradient is not None:
                        value.sub_(gradient, alpha=0.1)
            found += [loss, *(value for value in gradients if value is not None), *module.buffers()]
            found = [value.clone() for value in found]
        return [*found, *(value.detach() for value in module.parameters()), torch.get_rng_state()], doing


@pytest.fixture(autouse=True)
def one_thread():
    """Steps run on one thread, as jobs do: with more, kernels may split their sums otherwise from call to call."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def early(monkeypatch):
    """Record after two steps of a batch size."""
    monkeypatch.setattr(steps, "RECORDED_AFTER", 2)


def equal(first, second) -> bool:
    """Bit by bit."""
    return len(first) == len(second) and all(recording.same_bits(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("name", RECORDABLE)
def test_replays_are_the_plain_step(name, early, monkeypatch):
    """Losses, gradients, buffers, parameters and the generator agree bit by bit with plain steps, at both batch sizes."""
    found, doing = trained(made(RECORDABLE[name]), batches(14))
    assert doing.kinds == {5: "recorded", 3: "recorded"}
    monkeypatch.setattr(steps, "RECORDED_AFTER", 10**9)
    expected, plain = trained(made(RECORDABLE[name]), batches(14))
    assert plain.kinds == {}
    assert equal(found, expected)


@pytest.mark.parametrize("name", PLAIN)
def test_what_cannot_be_recorded_stays_plain(name, early, monkeypatch):
    """A step that looks at values, or keeps state elsewhere, is never replayed; its results are those of plain steps; CASES RP-06."""
    model, reason = PLAIN[name]
    found, doing = trained(made(model), batches(14))
    assert list(doing.kinds) == [5]
    assert doing.kinds[5].startswith("plain: ")
    assert reason in doing.kinds[5]
    monkeypatch.setattr(steps, "RECORDED_AFTER", 10**9)
    expected, _ = trained(made(model), batches(14))
    assert equal(found, expected)


def test_recording_leaves_no_trace():
    """The module, its attributes, the batch and the generator are as before a recording; CASES RP-06."""
    module, batch = made(RECORDABLE["batch norm"]), batches(2)[0]
    module.seen = []
    before = [value.detach().clone() for value in (*module.parameters(), *module.buffers(), *batch)]
    attributes, generator = steps._python_state(module), torch.get_rng_state()
    steps.proven(module, batch)
    after = [*module.parameters(), *module.buffers(), *batch]
    assert equal(before, [value.detach() for value in after])
    assert steps._python_state(module) == attributes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(type(value) in {torch.Tensor, nn.Parameter} for value in after)


def spoiled(kernel):
    """The same kernel with one element of its first result changed."""

    def wrong(*args, **kwargs):
        result = kernel(*args, **kwargs)
        first = next(value for value in result if value is not None) if isinstance(result, tuple) else result
        first.as_strided((1,), (1,)).add_(1)
        return result

    return wrong


def test_a_wrong_replay_is_noticed():
    """Whichever kernel gives one other number, the proof fails, save for sizes and views, which are no numbers."""
    module, batch = made(Images), batches(2)[0]
    program = recording.record(module, batch, batch_loss)
    noticed = 0
    for place, call in enumerate(program.calls):
        if call.kernel.is_view or str(call.kernel).startswith("aten._to_copy"):
            continue
        calls = (*program.calls[:place], call._replace(kernel=spoiled(call.kernel)), *program.calls[place + 1 :])
        twin = copy.deepcopy(module)
        try:
            steps._compare(recording.compiled(program._replace(calls=calls)), twin, batch)
        except recording.UnrecordableError as error:
            noticed += "other bits" in str(error)
        else:
            pytest.fail(f"{call.kernel} was spoiled without notice")
    assert noticed > 5


def test_values_of_constants_are_compared():
    """A number that Python computed from a count differs between two recordings, and is not taken for fixed."""
    calls = iter(range(100))
    model = with_middle(lambda module, x: x * (1 + next(calls)))
    with pytest.raises(recording.UnrecordableError, match="other kernels"):
        steps.proven(made(model), batches(2)[0])


class Normed(nn.Module):
    """Dropout and BatchNorm on the blobs."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        return self.layers(x)


@pytest.mark.parametrize("settings", [("sgd", 0.0, 0.0), ("sgd", 0.9, 1e-3), ("adam", 0.0, 1e-2)])
@pytest.mark.parametrize("buffers", ["average", "local"])
def test_jobs_do_not_depend_on_recordings(settings, buffers, monkeypatch):
    """Jobs of a task that records early have the outcomes of one that never does, whatever came before them."""
    options = {"optimizer": OptimizerSettings(*settings), "buffers": buffers, "model": Normed, "batch_size": 8}
    outcomes = []
    for after in (0, 3, 10**9):
        monkeypatch.setattr(steps, "RECORDED_AFTER", after)
        task = blob_task(**options)
        jobs = [job_of(task.initial(), client, nth=nth, steps=20) for nth in range(2) for client in (0, 1)]
        outcomes.append([task.train(job, job.work.steps) for job in jobs])
        assert bool(task.steps.kinds) == (after < 10)
    for one, *others in zip(*outcomes, strict=True):
        assert all(torch.equal(one.params, other.params) and one.loss == other.loss for other in others)
        held = [(outcome.memory or {}).get("buffers", outcome.buffers) for outcome in (one, *others)]
        assert all(equal(list(held[0].values()), list(other.values())) for other in held[1:])


def test_recordings_are_bounded(early):
    """The last batches of clients come in many sizes: only so many are recorded, and the frequent ones first; CASES RS-01."""
    module, doing = made(Images), None
    doing = Steps(module)
    inputs = torch.randn(200, 3, SIZE, SIZE)
    for size in [*range(1, 60)] * 4:
        doing(Samples(inputs[:size], torch.zeros(size, dtype=torch.int64)))
    assert 0 < len(doing.kinds) <= steps._SIZES


def test_importing_no_compiler():
    """Recording loads neither torch's compiler nor sympy, which would take seconds."""
    code = (
        "import sys, torch; from torch import nn; from desim_fl.learning import steps, samples\n"
        "b = samples.Samples(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))\n"
        "steps.proven(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train(), b)\n"
        "print('sympy' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
