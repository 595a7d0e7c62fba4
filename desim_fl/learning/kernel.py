"""One step of several jobs at once: ``torch.func.vmap`` over the gradient of a module's loss, recorded where it pays.

Recording (``make_fx``) turns a call into the list of its tensor operations, which runs without the layers of Python
above them: 1.6 to 2 times as fast for a small network. It takes about 0.1 s for each shape, so only shapes that come up
often are recorded, and a record is used only if it gave the bits of the plain call.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from desim_fl.learning.steps import batch_norm_spared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

Flat = "Callable[..., Sequence[Tensor]]"
_OFTEN = 64  # calls of one shape: from here on a record pays
_MOST_RECORDS = 64


class Kernel:
    """Calls one module, which it may change at will: nothing of that is ever read.

    ``names`` are the parameters that get gradients, ``beside`` everything else that is handed in.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], beside: Sequence[str]) -> None:
        self.module = module.train()
        self.names, self.beside = tuple(names), tuple(beside)
        self._gradients = vmap(grad(self._loss, has_aux=True))

    def _loss(
        self, parameters: Sequence[Tensor], states: Sequence[Tensor], inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, tuple[list[Tensor], Tensor]]:
        """Cross entropy of one job's batch, weighted; beside it the states afterwards, and the loss again."""
        held = dict(zip((*self.names, *self.beside), (*parameters, *states), strict=True))
        scores = functional_call(self.module, held, (inputs,))  # leaves what the module bound anew in ``held``
        chances = nn.functional.log_softmax(scores, dim=1)
        loss = -(chances.gather(1, labels[:, None]).squeeze(1) * weights).sum()
        return loss, ([held[name] for name in self.beside], loss)

    def plain(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """Return gradients, states and losses from parameters, states, inputs, labels and weights, in a row."""
        split = len(self.names)
        gradients, (states, losses) = self._gradients(flat[:split], flat[split:-3], *flat[-3:])
        return (*gradients, *states, losses)

    def run(self, how: Callable[..., Sequence[Tensor]], size: int, flat: Sequence[Tensor]) -> Sequence[Tensor]:
        """Make a call, plain or recorded, on batches of ``size``."""
        with batch_norm_spared(self.module, size):
            return how(*flat)


class Records:
    """Recorded calls by shape (jobs, samples each), shared by kernels of equal modules; counts how often each came."""

    def __init__(self) -> None:
        self.uses: Counter[tuple[int, int]] = Counter()
        self._made: dict[tuple[int, int], Callable[..., Sequence[Tensor]] | None] = {}

    def wanted(self, shape: tuple[int, int], uses: int) -> bool:
        """Count uses to come, and tell whether the shape should be recorded before them."""
        self.uses[shape] += uses
        return shape not in self._made and self.uses[shape] >= _OFTEN and len(self._made) < _MOST_RECORDS

    def record(self, shape: tuple[int, int], kernel: Kernel, flat: Sequence[Tensor]) -> None:
        """Record a call; to be done while no other thread uses torch, since recording patches it for a moment."""
        self._made[shape] = _recorded(kernel, shape[1], flat)

    def found(self, shape: tuple[int, int], kernel: Kernel) -> Callable[..., Sequence[Tensor]]:
        """Return the record of a shape, or the plain call."""
        return self._made.get(shape) or kernel.plain

    @property
    def made(self) -> int:
        """How many shapes were recorded and are in use."""
        return sum(record is not None for record in self._made.values())


def _recorded(kernel: Kernel, size: int, flat: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]] | None:
    """Record one call, or return ``None`` where that fails or the record does not give the same bits."""
    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415  (half a second, only if it is to pay)

    try:
        graph = make_fx(lambda *flat: kernel.run(kernel.plain, size, flat))(*_copies(flat))
        _thinned(graph)
        expected, found = kernel.run(kernel.plain, size, _copies(flat)), graph(*_copies(flat))
    except Exception:  # noqa: BLE001  (whatever it is, the plain call does without)
        return None
    same = len(expected) == len(found) and all(map(torch.equal, expected, found))
    return graph.forward if same else None


def _copies(flat: Sequence[Tensor]) -> list[Tensor]:
    """A call may change its states in place, so each gets its own."""
    return [value.clone() for value in flat]


def _thinned(graph: Any) -> None:
    """Leave out what only gives a tensor another name: views and expansions to the shape that it has."""
    aten = torch.ops.aten
    names = (aten.view.default, aten.expand.default, aten._unsafe_view.default)  # noqa: SLF001
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in names:
            continue
        source = node.args[0]
        shapes = [each.meta[key].shape for each in (source, node) for key in ("val", "tensor_meta") if key in each.meta]
        if len(dict.fromkeys(shapes)) == 1:
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
