"""How large a model is, without importing torch: formulas for the built-in models, a child process for others.

Byte counts are what a client downloads and uploads: trainable parameters and buffers (frozen parameters among them).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

FLOAT_BYTES = 4
KERNEL = 3  # the built-in convolutions are 3 x 3


class ModelFacts(NamedTuple):
    """Number of trainable parameters, and bytes of parameters and of everything that travels beside them."""

    parameters: int
    parameter_bytes: int
    buffer_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """What one transfer of the model moves."""
        return self.parameter_bytes + self.buffer_bytes


def _facts(parameters: int) -> ModelFacts:
    return ModelFacts(parameters, FLOAT_BYTES * parameters)


def flat_size(shape: Sequence[int]) -> int:
    """Count the numbers in one sample."""
    size = 1
    for side in shape:
        size *= side
    return size


def mlp_facts(shape: Sequence[int], classes: int, hidden: Sequence[int] = (64,)) -> ModelFacts:
    """Count the weights and biases of ``models.mlp``."""
    widths = [flat_size(shape), *hidden, classes]
    return _facts(sum((before + 1) * after for before, after in pairwise(widths)))


def cnn_features(shape: Sequence[int], channels: Sequence[int]) -> int:
    """Count what reaches the last layer of ``models.cnn``; each entry of ``channels`` halves height and width.

    Raises ``ScenarioError`` if samples are not images or are halved away.
    """
    if len(shape) != 3:  # noqa: PLR2004  (channels, height, width)
        raise ScenarioError(f'[model] name = "cnn" needs images, but a sample has shape {tuple(shape)}; use "mlp"')
    if not channels:
        raise ScenarioError("[model] channels must name at least one convolution")
    height, width = (side >> len(channels) for side in shape[1:])
    if height * width == 0:
        raise ScenarioError(f"[model] channels has {len(channels)} entries: too many halvings of {shape[1]}x{shape[2]}")
    return channels[-1] * height * width


def cnn_facts(shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16)) -> ModelFacts:
    """Count the weights and biases of ``models.cnn``."""
    features = cnn_features(shape, channels)
    depths = [shape[0], *channels]
    convolutions = sum((KERNEL**2 * i + 1) * o for i, o in zip(depths, channels, strict=False))
    return _facts(convolutions + (features + 1) * classes)


FORMULAS: dict[str, Callable[..., ModelFacts]] = {"mlp": mlp_facts, "cnn": cnn_facts}


def model_facts(name: str, args: Mapping[str, Any], shape: Sequence[int], classes: int) -> ModelFacts:
    """Return the facts of a model as a scenario names it: "mlp", "cnn", or "pkg.mod:factory" called with ``args``.

    Raises ``ScenarioError`` where the model cannot be made.
    """
    if name in FORMULAS:
        return FORMULAS[name](shape, classes, **args)
    from desim_fl.learning.facts import factory_facts  # noqa: PLC0415  (formulas need no child process)

    return factory_facts(name, args)
