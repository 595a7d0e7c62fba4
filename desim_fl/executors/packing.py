"""Values on their way between processes: a small pickle, and large arrays beside it that can lie in shared memory.

Tensors and NumPy arrays keep their bits and their order in memory (channels last, say). Nothing is left in shared
memory that the garbage collector of either side would have to know of.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.core import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

_ALIGNED = 64  # bytes; as torch aligns its own memory, since some kernels round differently where it is not


class Packed(NamedTuple):
    """``head`` is the pickle; ``sizes`` are those of the arrays, which lie in a room or, if they did not fit, in ``loose``."""

    head: bytes
    sizes: tuple[int, ...] = ()
    loose: tuple[bytes, ...] = ()


def needed(sizes: Sequence[int]) -> int:
    """Bytes of room for arrays of these sizes."""
    return sum(-(-size // _ALIGNED) * _ALIGNED for size in sizes)


def packed(value: Any, room: memoryview | None = None) -> Packed:
    """Take a value apart; its arrays are copied into ``room`` if it is large enough. Raises what pickling raises."""
    packer = Packer()
    packer.dump(value)
    return packer.put(room)


class Packer(pickle.Pickler):
    """Takes one value apart (``dump``), then puts its arrays somewhere; ``tensors`` are the CPU tensors among them."""

    def __init__(self) -> None:
        self._head, self._beside = io.BytesIO(), list[pickle.PickleBuffer]()
        super().__init__(self._head, protocol=5, buffer_callback=self._beside.append)
        torch = sys.modules.get("torch")
        if torch is not None:
            mine: dict[type, Any] = {torch.Tensor: self._reduced}
            self.dispatch_table = ChainMap(mine, copyreg.dispatch_table)
        self.tensors: list[tuple[Any, int]] = []  # with the number of their array

    def dump(self, obj: Any) -> None:
        """Take it apart."""
        try:
            super().dump(obj)
        finally:
            self.dispatch_table = {}  # the other one knows this packer: a ring, which would hold a version's arrays

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each array."""
        return tuple(buffer.raw().nbytes for buffer in self._beside)

    def put(self, room: memoryview | None) -> Packed:
        """Copy the arrays into a room, or where they do not fit (or there is none) take them along."""
        head, sizes, raws = self._head.getvalue(), self.sizes, [buffer.raw() for buffer in self._beside]
        if room is None or needed(sizes) > len(room):
            return Packed(head, sizes, tuple(bytes(raw) for raw in raws))
        for raw, span in zip(raws, spans(room, sizes), strict=True):
            span[:] = raw
        return Packed(head, sizes)

    def _reduced(self, value: Any) -> Any:
        """Treat a plain tensor as an array; unusual ones pickle themselves."""
        special = value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg() or value.is_meta
        if special or value.layout is not sys.modules["torch"].strided:
            return value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        solid, strides = in_memory(value)
        if value.device.type == "cpu":
            self.tensors.append((value, len(self._beside)))
        flat = pickle.PickleBuffer(plain_bytes(solid).data)
        return tensor, (flat, value.dtype, tuple(value.shape), strides, str(value.device))


def in_memory(value: Any) -> tuple[Any, tuple[int, ...]]:
    """Return a contiguous CPU tensor of the same elements as they lie in memory, and the strides to see them with.

    Strides are kept exactly, those of axes of length 1 too: they tell kernels that images are channels last.
    """
    order = sorted(range(value.ndim), key=lambda axis: -value.stride(axis))
    there = value.cpu().permute(order)
    solid = there.contiguous()
    if there.is_contiguous():  # nothing left out, nothing twice
        return solid, tuple(value.stride())
    by_axis = dict(zip(order, solid.stride(), strict=True))
    return solid, tuple(by_axis[axis] for axis in range(value.ndim))


def plain_bytes(solid: Any) -> np.ndarray:
    """View a contiguous CPU tensor as its bytes."""
    if solid.numel() == 0:  # whose strides torch may not view as bytes
        return np.empty(0, np.uint8)
    return solid.reshape(-1).view(sys.modules["torch"].uint8).numpy()


def tensor(content: Any, dtype: Any, shape: Sequence[int], strides: Sequence[int], device: str) -> Any:
    """Make a tensor on (a view of) its bytes, with the strides that it had."""
    import torch  # noqa: PLC0415  (only who gets tensors needs torch)

    if memoryview(content).nbytes == 0:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)
    return torch.frombuffer(content, dtype=dtype).as_strided(shape, strides).to(device)


def unpacked(parcel: Packed, room: memoryview | None = None, *, copy: bool = True) -> Any:
    """Put a value together again; without ``copy`` its arrays are views of the room."""
    contents = parcel.loose or (() if room is None else spans(room, parcel.sizes))
    arrays = [copied(content) if copy or parcel.loose else content for content in contents]
    return pickle.loads(parcel.head, buffers=arrays)  # noqa: S301  (parent and worker hear each other only)


class Same(NamedTuple):
    """In an outcome on its way: the very thing that the job held, of this name."""

    name: str


_FIELDS = ("params", "buffers", "memory")


def lean(outcome: Any, job: Any) -> Any:
    """Leave out of an outcome what the job held, as it is there already."""
    if not isinstance(outcome, Outcome):
        return outcome
    same = {name: value for name in _FIELDS if (value := getattr(outcome, name)) is not None}
    return outcome._replace(**{name: Same(name) for name, value in same.items() if value is getattr(job, name)})


def full(outcome: Any, job: Any) -> Any:
    """Put it back."""
    if not isinstance(outcome, Outcome):
        return outcome
    left_out = [name for name in _FIELDS if isinstance(getattr(outcome, name), Same)]
    return outcome._replace(**{name: getattr(job, name) for name in left_out}) if left_out else outcome


def spans(room: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Cut a room into aligned pieces."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(room[start : start + size])
        start += needed((size,))
    return pieces


def copied(content: bytes | memoryview) -> np.ndarray:
    """Copy bytes into aligned memory of their own, which can be written to."""
    size = len(content)
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    mine = raw[start : start + size]
    mine[:] = np.frombuffer(content, np.uint8)
    return mine
