"""Checkpoints: a run's trained values on disk, as JSON and tensors in one safetensors file, never as pickle.

A SimPy environment cannot be stored, and need not be: the timeline is played again, on ``Null`` parameters, and only
the values that training made are read back. So a checkpoint holds a nested value: numbers, text, tuples, lists,
dicts, named tuples, frozen dataclasses, tensors, arrays and ``Null``. Tensors that several places share are stored
once, and shared again when they are read.

A file is called ``checkpoint-<position>-<digest>.safetensors``; it is written aside and renamed, and its digest says
whether it is whole. The last two are kept, so that a damaged one costs some time and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from desim_fl import durable
from desim_fl.algebra import Null
from desim_fl.errors import CheckpointError
from desim_fl.executors.packing import copied, in_memory, plain_bytes, tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FORMAT = "desim-fl checkpoint 1"
KEPT = 2
_DIGITS = 16
_TYPE = "."  # the key that tells a tagged node from a plain value


# ---- values as JSON and arrays


class Encoder:
    """Turns a value into JSON nodes; ``arrays`` are the bytes of its tensors and arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._seen: dict[int, tuple[Any, dict[str, Any]]] = {}  # keeps values alive, so that ids stay theirs

    def node(self, value: Any) -> Any:
        """Encode one value; raises ``CheckpointError`` for what has no form here."""
        if value is None or type(value) in {bool, int, str}:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {_TYPE: "float", "value": repr(value)}
        if value is Null:
            return {_TYPE: "Null"}
        if type(value) is list:
            return [self.node(item) for item in value]
        known = self._seen.get(id(value))
        if known is not None:
            return known[1]
        made = self._made(value)
        self._seen[id(value)] = value, {_TYPE: "same", "number": len(self._seen)}
        return made

    def _made(self, value: Any) -> dict[str, Any]:
        for sort, form in self.forms:
            if sort(value):
                return form(self, value)
        raise CheckpointError(f"a {type(value).__name__} cannot be kept in a checkpoint ({value!r:.200})")

    def _fields(self, value: Any, fields: dict[str, Any]) -> dict[str, Any]:
        """Name the type so that it is found again; one that is made inside a function is not."""
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        if _found(name) is not type(value):
            raise CheckpointError(f"a {type(value).__qualname__} cannot be kept in a checkpoint: define it in a module")
        return {_TYPE: "type", "name": name, "fields": {key: self.node(item) for key, item in fields.items()}}

    def _tuple(self, value: tuple[Any, ...]) -> dict[str, Any]:
        return {_TYPE: "tuple", "items": [self.node(item) for item in value]}

    def _bytes(self, value: bytes) -> dict[str, Any]:
        return {_TYPE: "bytes", "data": self._kept(np.frombuffer(value, np.uint8))}

    def _named_tuple(self, value: Any) -> dict[str, Any]:
        return self._fields(value, value._asdict())

    def _dict(self, value: dict[Any, Any]) -> dict[str, Any]:
        return {_TYPE: "dict", "items": [[self.node(key), self.node(item)] for key, item in value.items()]}

    def _dataclass(self, value: Any) -> dict[str, Any]:
        return self._fields(value, {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init})

    def _array(self, value: Any) -> dict[str, Any]:
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        data = self._kept(np.asarray(value))
        return {_TYPE: kind, "data": data, "shape": list(value.shape), "dtype": _spelled(value.dtype)}

    def _tensor(self, parameter: Any) -> dict[str, Any]:
        value = parameter.detach()
        solid, strides = in_memory(value)
        return {
            _TYPE: "tensor",
            "data": self._kept(plain_bytes(solid)),
            "shape": list(value.shape),
            "strides": list(strides),
            "dtype": str(value.dtype).removeprefix("torch."),
            "on": "cpu" if value.device.type == "cpu" else "device",
        }

    def _kept(self, array: np.ndarray) -> str:
        name = str(len(self.arrays))
        self.arrays[name] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        return name

    # Not lambdas of one encoder: in a cycle with them, the values that it saw would live until a collection.
    forms: ClassVar[Any] = (
        (lambda v: type(v) is tuple, _tuple),
        (lambda v: type(v) is bytes, _bytes),
        (lambda v: type(v) is dict, _dict),
        (lambda v: _is_named_tuple(type(v)), _named_tuple),
        (lambda v: dataclasses.is_dataclass(v) and not isinstance(v, type), _dataclass),
        (lambda v: isinstance(v, (np.ndarray, np.generic)) and v.dtype.kind in "biufV", _array),
        (lambda v: _is_tensor(v), _tensor),  # noqa: PLW0108  (it stands below)
    )


class Decoder:
    """Makes values of nodes again; tensors that were on an accelerator go to ``device``."""

    def __init__(self, arrays: dict[str, np.ndarray], device: str) -> None:
        self.arrays, self.device = arrays, device
        self._made: list[Any] = []

    def value(self, node: Any) -> Any:
        """Decode one node."""
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node[_TYPE]
        if kind == "float":
            return float(node["value"])
        if kind == "Null":
            return Null
        if kind == "same":
            return self._made[node["number"]]
        made = self.makers[kind](self, node)
        self._made.append(made)
        return made

    def _typed(self, node: dict[str, Any]) -> Any:
        kind = _found(node["name"])
        record = isinstance(kind, type) and (dataclasses.is_dataclass(kind) or _is_named_tuple(kind))
        if not record:
            raise CheckpointError(f"it holds a {node['name']}, which this run does not know")
        return kind(**{key: self.value(item) for key, item in node["fields"].items()})

    def _array(self, node: dict[str, Any]) -> np.ndarray:
        return self.arrays[node["data"]].view(_dtype(node["dtype"])).reshape(node["shape"])

    def _tensor(self, node: dict[str, Any]) -> Any:
        import torch  # noqa: PLC0415  (worlds without torch have no tensors)

        dtype = getattr(torch, node["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"it holds a tensor of type {node['dtype']}")
        content = copied(self.arrays[node["data"]].data)
        device = self.device if node["on"] == "device" else "cpu"
        try:
            return tensor(content, dtype, node["shape"], node["strides"], device)
        except RuntimeError as error:  # torch's answer to shapes that the bytes do not hold
            raise CheckpointError(f"it holds a tensor that cannot be made: {error}") from error

    makers: ClassVar[dict[str, Callable[[Decoder, dict[str, Any]], Any]]] = {
        "tuple": lambda self, node: tuple(self.value(item) for item in node["items"]),
        "dict": lambda self, node: {self.value(key): self.value(item) for key, item in node["items"]},
        "type": _typed,
        "bytes": lambda self, node: self.arrays[node["data"]].tobytes(),
        "array": lambda self, node: self._array(node).copy(),
        "scalar": lambda self, node: self._array(node)[()],
        "tensor": _tensor,
    }


def _spelled(dtype: np.dtype) -> Any:
    """Write a dtype, that of records as a list of its fields."""
    if dtype.names is None:
        return dtype.str
    return [[name, dtype[name].str] for name in dtype.names]


def _dtype(spelled: Any) -> np.dtype:
    return np.dtype([tuple(field) for field in spelled] if isinstance(spelled, list) else spelled)


def _is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and type(value) in {torch.Tensor, torch.nn.Parameter}


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _found(name: str) -> Any:
    """What ``"module:Class"`` names among the modules that are loaded already; nothing is imported for a file's sake."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def encoded(value: Any) -> bytes:
    """Turn a value into the content of a file."""
    encoder = Encoder()
    state = json.dumps(encoder.node(value), allow_nan=False)
    return save(encoder.arrays, metadata={"format": FORMAT, "state": state})


def decoded(content: bytes, device: str = "cpu") -> Any:
    """Make the value again; raises ``CheckpointError`` for anything but the content of a checkpoint."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"it is not a {FORMAT}")
        return Decoder(load(content), device).value(json.loads(metadata["state"]))
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"it cannot be read: {type(error).__name__}: {error}") from error


# ---- files


def store(folder: Path, position: int, value: Any) -> Path:
    """Keep a value; the ones before the last are removed once it is whole on the disk. Raises ``OSError``."""
    content = encoded(value)
    folder.mkdir(exist_ok=True)
    path = folder / f"checkpoint-{position:015d}-{_digest(content)}.safetensors"
    durable.write(path, content)
    for old in files(folder)[:-KEPT]:
        durable.remove(old)
    return path


def latest(folder: Path, device: str = "cpu") -> tuple[Any, list[str]]:
    """Return the newest value that is whole (``None`` if there is none), and what is wrong with newer ones."""
    faults = []
    for path in reversed(files(folder)):
        try:
            return decoded(_whole(path), device), faults
        except CheckpointError as error:
            faults.append(f"{path}: {error}")
    return None, faults


def damage(path: Path) -> str | None:
    """Say what is wrong with a file; ``None`` = it is whole."""
    try:
        _whole(path)
    except CheckpointError as error:
        return str(error)
    return None


def _whole(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"it cannot be read ({error})") from error
    if path.stem.rpartition("-")[2] != _digest(content):
        raise CheckpointError("it is damaged: its content is not what was written")
    return content


def files(folder: Path) -> list[Path]:
    """The checkpoints of a run directory, oldest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
