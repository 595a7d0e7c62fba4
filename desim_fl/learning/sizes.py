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


def check_images(name: str, shape: Sequence[int]) -> None:
    """Raise ``ScenarioError`` unless samples are images."""
    if len(shape) != 3:  # noqa: PLR2004  (channels, height, width)
        raise ScenarioError(f'[model] name = "{name}" needs images, but a sample has shape {tuple(shape)}; use "mlp"')


def cnn_gap_facts(shape: Sequence[int], classes: int, width: int = 32, layers: int = 3) -> ModelFacts:
    """Count the weights and biases of ``networks.cnn_gap``: 19,146 by default for grey images and ten classes."""
    check_images("cnn_gap", shape)
    depths = [shape[0], *[width] * (layers - 1)]
    return _facts(sum((KERNEL**2 * before + 1) * width for before in depths) + (width + 1) * classes)


def lenet5_padding(shape: Sequence[int]) -> int:
    """Padding of the first convolution: 2 for images below 32 pixels, as the 28 x 28 of MNIST are padded to 32."""
    return 2 if min(shape[1:]) < 32 else 0  # noqa: PLR2004


def lenet5_features(shape: Sequence[int]) -> int:
    """Count what reaches the first linear layer of ``networks.lenet5``; ``ScenarioError`` for images too small."""
    check_images("lenet5", shape)
    padding = lenet5_padding(shape)
    height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in shape[1:])
    if height < 1 or width < 1:
        raise ScenarioError(f'[model] name = "lenet5": images of {shape[1]}x{shape[2]} pixels are too small for it')
    return 16 * height * width


def lenet5_facts(shape: Sequence[int], classes: int) -> ModelFacts:
    """Count the weights and biases of ``networks.lenet5``."""
    dense = [lenet5_features(shape), 120, 84, classes]
    convolutions = (25 * shape[0] + 1) * 6 + (25 * 6 + 1) * 16
    return _facts(convolutions + sum((before + 1) * after for before, after in pairwise(dense)))


RESNET20_BLOCKS = (
    (16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)
)  # channels before and after, stride  # fmt: skip


def resnet20_facts(shape: Sequence[int], classes: int, norm: str = "batch", groups: int = 8) -> ModelFacts:
    """Count ``networks.resnet20``: 272,474 parameters for coloured images and ten classes.

    Batch normalisation has two statistics a channel and a 64-bit counter a layer beside them, groups have none.
    """
    check_images("resnet20", shape)
    del groups
    convolutions, widths = KERNEL**2 * shape[0] * 16, [16]
    for before, after, stride in RESNET20_BLOCKS:
        convolutions += KERNEL**2 * (before + after) * after
        widths += [after, after]
        if stride != 1 or before != after:
            convolutions += before * after
            widths.append(after)
    parameters = convolutions + 2 * sum(widths) + 65 * classes
    beside = 2 * FLOAT_BYTES * sum(widths) + 8 * len(widths) if norm == "batch" else 0
    return ModelFacts(parameters, FLOAT_BYTES * parameters, beside)


FORMULAS: dict[str, Callable[..., ModelFacts]] = {
    "mlp": mlp_facts,
    "cnn": cnn_facts,
    "cnn_gap": cnn_gap_facts,
    "lenet5": lenet5_facts,
    "resnet20": resnet20_facts,
}


FIRST_LAYERS: dict[str, Callable[..., tuple[int, int]]] = {
    "mlp": lambda shape, classes, hidden=(64,): ((*hidden, classes)[0], flat_size(shape)),
    "cnn": lambda shape, classes, channels=(8, 16): (channels[0], KERNEL**2 * shape[0]),  # noqa: ARG005
    "cnn_gap": lambda shape, classes, width=32, layers=3: (width, KERNEL**2 * shape[0]),  # noqa: ARG005
    "lenet5": lambda shape, classes: (6, 25 * shape[0]),  # noqa: ARG005
    "resnet20": lambda shape, classes, norm="batch", groups=8: (16, KERNEL**2 * shape[0]),  # noqa: ARG005
}  # units and inputs of each; its weights, unit by unit, are the first numbers of the flat vector


def model_facts(name: str, args: Mapping[str, Any], shape: Sequence[int], classes: int) -> ModelFacts:
    """Return the facts of a model as a scenario names it: built in, of torchvision, or "pkg.mod:factory".

    Raises ``ScenarioError`` where the model cannot be made.
    """
    if name in FORMULAS:
        return FORMULAS[name](shape, classes, **args)
    from desim_fl.learning import facts  # noqa: PLC0415  (formulas need no child process)

    return facts.factory_facts(name, args) if ":" in name else facts.vision_facts(name, args, shape, classes)
