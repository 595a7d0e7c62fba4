"""Loss and gradients of one batch: by the plain step, or by replaying a recorded one where that gives the same bits.

A batch size is recorded after some plain steps, since a recording pays only for jobs that are many. It is used if it is
the same for two unrelated models and batches, and if replays of it give the bits of the plain step on both: loss,
gradients, buffers and the state of the generator. Anything else, an error included, leaves the model with plain steps.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from desim_fl.learning import randomness
from desim_fl.learning.recording import UnrecordableError, compiled, places, record, same_bits, tensors
from desim_fl.learning.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    LossOf = Callable[[nn.Module, Samples], Tensor]

RECORDED_AFTER = 32  # plain steps of a batch size; a recording takes about as long as fifty steps of a small network
_SIZES = 16  # recordings kept: the last batches of clients come in many sizes


class Gradients(NamedTuple):
    """The loss of a batch before the step, and the gradient of each parameter (``None`` where it has none)."""

    loss: Tensor
    values: Sequence[Tensor | None]


@contextmanager
def batch_norm_spared(module: nn.Module, batch: int) -> Iterator[None]:
    """Put BatchNorm layers in evaluation mode around a batch of one sample, which has no variance to learn from."""
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training] if batch == 1 else []
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def batch_loss(module: nn.Module, batch: Samples) -> Tensor:
    """Return the mean cross entropy of one batch; scores may be logits or log-probabilities."""
    with batch_norm_spared(module, len(batch.labels)):
        return nn.functional.cross_entropy(module(batch.inputs), batch.labels)


def plain(module: nn.Module, parameters: Sequence[Tensor], batch: Samples, loss_of: LossOf = batch_loss) -> Gradients:
    """Do the step as anyone would write it, with ``grad`` in place of ``backward``: nothing has to be zeroed."""
    loss = loss_of(module, batch)
    return Gradients(loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True))


class Steps:
    """Steps of one module in training mode; ``kinds`` tells by batch size how they are done and why."""

    def __init__(self, module: nn.Module, loss_of: LossOf = batch_loss) -> None:
        self.module, self._loss_of = module, loss_of
        self.kinds: dict[int, str] = {}
        self._places = places(module)
        self._parameters = tensors(self._places.parameters)
        self._seen: dict[int, int] = {}
        self._replays: dict[int, Callable[..., Sequence[Any]]] = {}
        self._refused: str | None = None
        self._state: list[Tensor] | None = None

    def reload(self) -> None:
        """Say that the module's buffers may be other tensors now."""
        self._state = None

    def __call__(self, batch: Samples) -> Gradients:
        """Return loss and gradients; buffers and generators move on as in the plain step."""
        size = len(batch.labels)
        replay = self._replays.get(size)
        if replay is None and self._due(size):
            replay = self._recorded(size, batch)
        if replay is None:
            self._state = None
            return plain(self.module, self._parameters, batch, self._loss_of)
        if self._state is None:
            self._state = [*self._parameters, *tensors(self._places.buffers)]
        with torch.inference_mode():
            loss, *gradients = replay(*self._state, *batch)
        return Gradients(loss, gradients)

    def _due(self, size: int) -> bool:
        """Count the steps of a size; tell whether it is time to record it."""
        if self._refused is not None or len(self._replays) == _SIZES:
            return False
        self._seen[size] = self._seen.get(size, 0) + 1
        return self._seen[size] > RECORDED_AFTER * (len(self._replays) + 1)

    def _recorded(self, size: int, batch: Samples) -> Callable[..., Sequence[Any]] | None:
        try:
            self._replays[size] = proven(self.module, batch, self._loss_of)
        except Exception as error:  # noqa: BLE001  (whatever a user's model does on stand-ins, its plain step is right)
            told = str(error) if isinstance(error, UnrecordableError) else repr(error)
            self._refused = self.kinds[size] = f"plain: {told}"
            return None
        self.kinds[size] = "recorded"
        return self._replays[size]


def proven(module: nn.Module, batch: Samples, loss_of: LossOf = batch_loss) -> Callable[..., Sequence[Any]]:
    """Record a step and compare replays with plain steps; neither module, batch nor generators are changed.

    Raises ``UnrecordableError`` where they differ.
    """
    device = batch.labels.device
    generators = randomness.states(device)
    try:
        cases = [(copy.deepcopy(module), batch), _other(module, batch)]
        programs = [record(*case, loss_of) for case in cases]
        if programs[0] != programs[1]:
            raise UnrecordableError("it runs other kernels for other values")
        replay = compiled(programs[0])
        for case in cases:
            _compare(replay, *case, loss_of)
    finally:
        randomness.put_back(device, generators)
    return replay


def _other(module: nn.Module, batch: Samples) -> tuple[nn.Module, Samples]:
    """Make a model and a batch of the same kind with quite different values."""
    twin, inputs = copy.deepcopy(module), torch.empty_like(batch.inputs)
    with torch.no_grad():
        inputs.copy_(batch.inputs.flip(0).mul(-0.75).add(0.5))
        for value in tensors(places(twin).parameters):
            value.mul_(-0.5).add_(0.01)
    return twin, Samples(inputs, batch.labels.flip(0))


def _compare(
    replay: Callable[..., Sequence[Any]], twin: nn.Module, batch: Samples, loss_of: LossOf = batch_loss
) -> None:
    """Do the plain step on a model that is not needed any more, and the replay on copies of its tensors."""
    there = places(twin)
    state = [value.detach().clone() for value in (*tensors(there.parameters), *tensors(there.buffers))]
    device = batch.labels.device
    generators, python = randomness.states(device), _python_state(twin)
    loss, gradients = plain(twin, tensors(there.parameters), batch, loss_of)
    expected = [loss, *gradients, *tensors(there.buffers), *randomness.states(device)]
    if _python_state(twin) != python:
        raise UnrecordableError("its step changes attributes that are neither parameters nor buffers")
    randomness.put_back(device, generators)
    with torch.inference_mode():
        outputs = replay(*state, *batch)
    found = [*outputs, *state[len(there.parameters) :], *randomness.states(device)]
    if not all(same_bits(*pair) for pair in zip(expected, found, strict=True)):
        raise UnrecordableError("a replay gives other bits than the plain step")


def _python_state(module: nn.Module) -> list[Any]:
    """What a module's attributes say of themselves, tensors by identity and version."""
    return [
        (name, key, _told(value))
        for name, part in module.named_modules()
        for key, value in sorted(vars(part).items())
        if key not in {"_parameters", "_buffers", "_modules"}
    ]


def _told(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value), value._version  # noqa: SLF001
    own = vars(value) if hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)) else None
    return repr(value), None if own is None else repr(own)
