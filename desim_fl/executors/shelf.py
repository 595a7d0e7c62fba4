"""Memory that a pool's processes share. It has no name: whatever becomes of them, nothing of it stays behind."""

from __future__ import annotations

import mmap
import os
import tempfile
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.executors.packing import Packed, Packer, in_memory, needed, spans, tensor, unpacked

if TYPE_CHECKING:
    from desim_fl.learning.task import Task

_FIRST_PLACES = 8  # in the first piece; each further one has twice as many, so that pieces stay few
_WORTH_MOVING = 1 << 20  # bytes of a tensor


def anonymous(size: int) -> int:
    """Make memory of ``size`` bytes; returns its file descriptor. Pages that were never written cost nothing."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("desim-fl", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Handle:
    """A descriptor that a process inherits when it is started; ``detach`` there gives its number.

    It is duplicated while the process is started and not before: multiprocessing would keep a duplicate for a process
    that is killed before it could fetch it, for ever.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (DupFd(self.descriptor),)


def _inherited(handle: Any) -> Any:
    return handle


class Lent(NamedTuple):
    """A descriptor on its way into a process that is just being started; ``size`` in bytes."""

    handle: Any
    size: int


class Shelf:
    """Equal places, numbered from 0, as many as are asked for; the owner takes them and gives them back."""

    def __init__(self, descriptor: int, place_bytes: int) -> None:
        self.descriptor, self.place_bytes = descriptor, place_bytes
        self.places = 0  # made so far
        self._free: list[int] = []
        self._pieces: list[memoryview] = []

    @classmethod
    def fitting(cls, size: int) -> Shelf:
        """Make an empty shelf whose places hold ``size`` bytes."""
        return cls(anonymous(0), -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)

    @classmethod
    def borrowed(cls, lent: Lent) -> Shelf:
        """Open the same shelf in another process."""
        return cls(lent.handle.detach(), lent.size)

    def lend(self) -> Lent:
        """Pass the shelf to a process; only while that is being started."""
        return Lent(Handle(self.descriptor), self.place_bytes)

    @property
    def used(self) -> int:
        """Places that are taken now."""
        return self.places - len(self._free)

    def take(self) -> int:
        """Take a place."""
        if self._free:
            return self._free.pop()
        self.places += 1
        return self.places - 1

    def give(self, place: int) -> None:
        """Give a place back; its content is lost."""
        self._free.append(place)

    def room(self, place: int) -> memoryview:
        """Look at a place; every process sees the same bytes."""
        number = (place // _FIRST_PLACES + 1).bit_length() - 1
        while len(self._pieces) <= number:
            self._pieces.append(self._piece(len(self._pieces)))
        start = (place - _first(number)) * self.place_bytes
        return self._pieces[number][start : start + self.place_bytes]

    def _piece(self, number: int) -> memoryview:
        begin, end = _first(number) * self.place_bytes, _first(number + 1) * self.place_bytes
        if os.fstat(self.descriptor).st_size < end:
            os.ftruncate(self.descriptor, end)
        return memoryview(mmap.mmap(self.descriptor, end - begin, offset=begin))

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last view of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor, self._pieces = -1, []


def _first(number: int) -> int:
    """Number of the first place in a piece."""
    return _FIRST_PLACES * ((1 << number) - 1)


class Recipe:
    """A task as it is passed to workers: its pickle, and its arrays (the data set) once in shared memory.

    Large CPU tensors of the task itself are moved there too, so that the data set is in memory once.
    """

    def __init__(self, task: Task) -> None:
        packer = Packer()
        packer.dump(task)
        self.size = max(1, needed(packer.sizes))
        self.descriptor = anonymous(self.size)
        room = memoryview(mmap.mmap(self.descriptor, self.size))
        self.parcel = packer.put(room)
        arrays = spans(room, self.parcel.sizes)
        for mine, number in packer.tensors:
            _moved(mine, arrays[number])

    def lend(self) -> tuple[Packed, Lent]:
        """Pass the recipe to a process; only while that is being started."""
        return self.parcel, Lent(Handle(self.descriptor), self.size)

    def close(self) -> None:
        """Let go of the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1


def rebuilt(parcel: Packed, lent: Lent) -> Task:
    """Make the task in a worker; its arrays are mapped, and what a worker writes into them stays its own."""
    return unpacked(parcel, mapped(lent), copy=False)


def mapped(lent: Lent) -> memoryview:
    """Look at lent memory; what is written into it stays this process's own."""
    descriptor = lent.handle.detach()
    memory = mmap.mmap(descriptor, lent.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    os.close(descriptor)
    return memoryview(memory)


def _moved(mine: Any, room: memoryview) -> None:
    """Let a large tensor use the shared copy of its bytes instead of its own."""
    if len(room) < _WORTH_MOVING or mine.is_inference():
        return
    mine.set_(tensor(room, mine.dtype, tuple(mine.shape), in_memory(mine)[1], "cpu"))
