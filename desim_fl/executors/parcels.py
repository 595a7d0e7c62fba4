"""Values on their way through a pipe: tensors travel as plain arrays.

Handing a tensor to another process as a handle to shared memory costs about a millisecond, its bytes through the pipe a
fraction of that for any model a client would train; so only the data set is mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Parcel(NamedTuple):
    """A tensor's content."""

    array: NDArray[Any]


def packed(value: Any) -> Any:
    """The value with every tensor in it as a parcel; tuples, lists and dicts are searched."""
    if isinstance(value, torch.Tensor):
        return value if value.dtype == torch.bfloat16 or value.device.type != "cpu" else Parcel(value.detach().numpy())
    return _each(value, packed)


def unpacked(value: Any) -> Any:
    """The value with its tensors again, each with memory of its own."""
    if isinstance(value, Parcel):
        return torch.from_numpy(value.array)
    return _each(value, unpacked)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [change(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return [change(item) for item in value] if isinstance(value, list) else value
