"""Arithmetic on ``Params``: floats, NumPy arrays, torch vectors and ``Null``, told apart by type, without imports.

``+ - * /`` come with the values themselves. The functions here add what strategies and server optimisers need
beyond that. They never change their arguments.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NoReturn

from desim_fl.errors import RefusedError

Params = Any


class NullType:
    """Parameters that were never trained: any arithmetic on them gives ``Null`` again.

    It lets ``plan`` and replays drive the real strategies. Asking for a truth value, an order or a number is an
    error, because the timeline would then depend on training: such a strategy declares ``reads_outcomes``.
    """

    __slots__ = ()

    def _absorb(self, _: object = None) -> NullType:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _absorb
    __truediv__ = __rtruediv__ = __neg__ = __abs__ = __pow__ = __getitem__ = _absorb

    def _refuse(self, *_: object) -> NoReturn:
        msg = (
            "a decision was asked of parameters that are not trained here; whatever decides on trained values "
            "must declare reads_outcomes = True"
        )
        raise RefusedError(msg)

    __bool__ = __float__ = __int__ = __lt__ = __le__ = __gt__ = __ge__ = __iter__ = __len__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)  # how Python asks whether a protocol is supported
        self._refuse()

    def __repr__(self) -> str:
        return "Null"

    def __reduce__(self) -> str:
        return "Null"


Null = NullType()


def _is_torch(value: Params) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _apply(name: str, value: Params) -> Params:
    """Apply an elementwise function that NumPy and torch call by the same name."""
    if value is Null:
        return Null
    if _is_torch(value):
        return getattr(sys.modules["torch"], name)(value)
    import numpy as np  # noqa: PLC0415  (floats alone must not need NumPy)

    return getattr(np, name)(value)


def sqrt(value: Params) -> Params:
    """Elementwise square root."""
    return math.sqrt(value) if isinstance(value, (int, float)) else _apply("sqrt", value)


def sign(value: Params) -> Params:
    """Elementwise sign: -1, 0 or 1."""
    if isinstance(value, (int, float)):
        return float((value > 0) - (value < 0))
    return _apply("sign", value)


def maximum(left: Params, right: Params) -> Params:
    """Elementwise maximum of two values of the same shape."""
    if left is Null or right is Null:
        return Null
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return max(left, right)
    if _is_torch(left) or _is_torch(right):
        torch = sys.modules["torch"]
        return torch.maximum(torch.as_tensor(left), torch.as_tensor(right))
    import numpy as np  # noqa: PLC0415

    return np.maximum(left, right)


def dot(left: Params, right: Params) -> Params:
    """Inner product, as a float (``Null`` for ``Null``)."""
    if left is Null or right is Null:
        return Null
    product = left * right
    return float(product) if isinstance(product, (int, float)) else float(product.sum())


def norm(value: Params) -> Params:
    """Euclidean norm, as a float (``Null`` for ``Null``)."""
    square = dot(value, value)
    return Null if square is Null else math.sqrt(square)


def median(values: list[Params]) -> Params:
    """Elementwise median over a list; the mean of the middle two where the number is even."""
    if any(value is Null for value in values):
        return Null
    if isinstance(values[0], (int, float)):
        import statistics  # noqa: PLC0415

        return statistics.median(values)
    if _is_torch(values[0]):
        ordered = sys.modules["torch"].stack(values).sort(dim=0).values
    else:
        import numpy as np  # noqa: PLC0415

        ordered = np.sort(np.stack(values), axis=0)
    middle = len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def salient(value: Params, rows: int, columns: int) -> Params:
    """Weigh the first ``rows * columns`` entries, a matrix row by row, by how large they are in their row; others stay.

    ``w_ij <- exp|w_ij| / sum_j exp|w_ij| * w_ij``. A plain number is a matrix of one entry, whose share is 1.
    """
    if value is Null or isinstance(value, (int, float)):
        return value
    matrix = value[: rows * columns].reshape(rows, columns)
    library: Any = sys.modules["torch" if _is_torch(value) else "numpy"]
    raised = library.exp(abs(matrix) - library.amax(abs(matrix), 1)[:, None])  # the largest has exp 0: no overflow
    shares = raised / raised.sum(1)[:, None]
    return library.concatenate([(shares * matrix).reshape(-1), value[rows * columns :]])


def is_finite(value: Params) -> bool:
    """Whether every entry is finite; ``Null`` counts as finite."""
    if value is Null:
        return True
    if isinstance(value, (int, float)):
        return math.isfinite(value)
    return bool(_apply("isfinite", value).all())
