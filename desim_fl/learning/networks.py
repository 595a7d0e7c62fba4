"""Networks for images whose shape is fixed by their name: a plain convolutional net, LeNet-5, ResNet-20, torchvision's."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import functional

from desim_fl.errors import ScenarioError
from desim_fl.learning import sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

_SET_HERE = ("num_classes", "weights", "weights_backbone", "pretrained", "progress")


def cnn_gap(shape: Sequence[int], classes: int, width: int = 32, layers: int = 3) -> nn.Module:
    """Build 3x3 convolutions of one width with ReLU, the average over all places, and one linear layer.

    The network of Forootani & Iervolino (arXiv 2508.01675): Xavier-uniform convolutions without bias at the start.
    """
    sizes.check_images("cnn_gap", shape)
    parts: list[nn.Module] = []
    for before in [shape[0], *[width] * (layers - 1)]:
        convolution = nn.Conv2d(before, width, sizes.KERNEL, padding=1)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]  (there is one)
        parts += [convolution, nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def lenet5(shape: Sequence[int], classes: int) -> nn.Module:
    """Build LeNet-5 (LeCun et al., 1998) with ReLU and max pooling; images below 32 pixels are padded by 2."""
    features = sizes.lenet5_features(shape)
    padding = sizes.lenet5_padding(shape)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int, norm: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.first_norm = norm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = norm(width)
        same = stride == 1 and before == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, width, 1, stride, bias=False)
        self.shortcut_norm = nn.Identity() if same else norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions find to the shortcut."""
        found = functional.relu(self.first_norm(self.first(x)))
        found = self.second_norm(self.second(found))
        return functional.relu(found + self.shortcut_norm(self.shortcut(x)))


def resnet20(shape: Sequence[int], classes: int, norm: str = "batch", groups: int = 8) -> nn.Module:
    """Build ResNet-20 (He et al., CVPR 2016, 4.2): three stages of three blocks, 16, 32 and 64 channels wide."""
    sizes.check_images("resnet20", shape)

    def normalised(width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(groups, width)

    parts: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), normalised(16), nn.ReLU()]
    parts += [Block(*block, normalised) for block in sizes.RESNET20_BLOCKS]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def vision_model(name: str, shape: Sequence[int], classes: int, args: Mapping[str, Any]) -> nn.Module:
    """Build a model of ``torchvision.models``, untrained, for so many classes; its first convolution takes the channels.

    Raises ``ScenarioError`` where it cannot be built so; trained weights are refused, since they would be fetched.
    """
    from torchvision import models  # noqa: PLC0415  (half a second that other models do not need)

    sizes.check_images(name, shape)
    taken = [key for key in args if key in _SET_HERE]
    if taken:
        raise ScenarioError(
            f"[model] args must not hold {taken[0]}: models start untrained, with the classes of the data"
        )
    build = getattr(models, name)
    settings = {"aux_logits": False} if "aux_logits" in inspect.signature(build).parameters else {}
    if name in {"googlenet", "inception_v3"}:
        settings = {"aux_logits": False, "init_weights": True}
    if name == "VisionTransformer":
        settings = {"image_size": shape[1]}
    try:
        module = build(**{**settings, **args}, num_classes=classes)
    except Exception as error:
        raise ScenarioError(f'[model] name = "{name}": building it with {dict(args)} raised {error!r}') from error
    _fit_channels(module, shape[0])
    return module


def _fit_channels(module: nn.Module, channels: int) -> None:
    """Put a new first convolution in the place of one that takes another number of channels."""
    for owner in module.modules():
        for name, part in owner.named_children():
            if isinstance(part, nn.Conv2d):
                if part.in_channels != channels:
                    new = nn.Conv2d(
                        channels,
                        part.out_channels,
                        part.kernel_size,  # pyright: ignore[reportArgumentType]
                        part.stride,  # pyright: ignore[reportArgumentType]
                        part.padding,  # pyright: ignore[reportArgumentType]
                        bias=part.bias is not None,
                    )
                    setattr(owner, name, new)
                return
