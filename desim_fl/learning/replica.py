"""A task's second self for another thread: samples are shared, whatever training changes is not.

Torch's generators belong to the process, so a replica never touches them, and refuses models that do. A replica pins
the thread that uses it once, for good.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from desim_fl.errors import RefusedError
from desim_fl.learning import probe, randomness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from torch import nn

    from desim_fl.learning.samples import Samples

_WAY_OUT = 'use executor.name = "pool" or "inline"'


class HaltedError(Exception):
    """What a thread was at is not wanted any more."""


class OwnThread:
    """What surrounds the computations of a replica, in place of keyed generators; it belongs to one thread."""

    def __init__(self, threads: int, halted: Callable[[], bool]) -> None:
        self.threads, self.halted = threads, halted
        self._settled = False

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Run the body with the thread's own number of intra-op threads; refuse one that draws random numbers."""
        if not self._settled:
            randomness.settled(self.threads)
            self._settled = True
        with randomness.untouched(f"[model] in a thread, although a first step did not; {_WAY_OUT}"):
            yield

    def until_halted(self, sequence: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches; raises ``HaltedError`` as soon as nobody wants the job any more."""
        for entry in sequence:
            if self.halted():
                raise HaltedError
            yield entry


def check_device(device: torch.device) -> None:
    """Raise ``RefusedError`` for anything but the CPU: kernels of an accelerator are pinned for the whole process."""
    if device.type != "cpu":
        raise RefusedError(f'[executor] name = "threads" trains on the CPU, not on {device}; {_WAY_OUT}')


def check_quiet(module: nn.Module, samples: Samples, seed: int, *, draws_random: bool) -> None:
    """Raise ``RefusedError`` for a model that draws random numbers in training (as told) or in evaluation (tried)."""
    if draws_random or probe.draws_in_evaluation(module, samples, seed):
        when = "training" if draws_random else "evaluation"
        raise RefusedError(
            f'[executor] name = "threads": [model] draws random numbers in {when} (Dropout, say), and torch has one '
            f"generator for the whole process; {_WAY_OUT}"
        )


def check_apart(first: nn.Module, second: nn.Module) -> None:
    """Raise ``RefusedError`` where two modules of one factory share a layer or memory, which threads would mix up."""
    theirs, memory = {id(part) for part in first.modules()}, _memory(first)
    shared = [name for name, part in second.named_modules() if id(part) in theirs]
    shared += [name for name, value in _values(second) if _place(value) in memory]
    if shared:
        raise RefusedError(
            f'[executor] name = "threads": two modules that [model] built share "{shared[0] or "the whole module"}"; '
            f"build it anew in each call, or {_WAY_OUT}"
        )


def only_torchs_own(module: nn.Module) -> bool:
    """Whether every layer's code is torch's own, without hooks; any other may keep state that threads would share."""
    return all(
        type(part).__module__.startswith(("torch.nn.", "torchvision."))
        and "forward" not in vars(part)
        and not any(getattr(part, hooks, None) for hooks in _HOOKS)
        for part in module.modules()
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _values(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _place(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _memory(module: nn.Module) -> set[int]:
    """Where a module's values lie; an empty tensor lies nowhere."""
    return {_place(value) for _, value in _values(module) if value.numel()} - {0}
