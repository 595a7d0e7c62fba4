"""Tables about the model: what is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from desim_fl.scenario.table import CUSTOM, Amount, Args, CustomName, Number, Table, Width, tag_of

DEFAULT_MODEL = "mlp"
VISION = "torchvision"
VISION_MODELS = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169
    densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5
    efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small
    regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
    regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d
    resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
    squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16
    vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
    VisionTransformer
    """.split()  # noqa: SIM905
)  # torchvision.models' builders of classifiers, and its class of vision transformers of any size


class Mlp(Table):
    """Fully connected layers with ReLU between them."""

    name: Literal["mlp"] = Field(default=DEFAULT_MODEL, description="Fully connected layers with ReLU between them.")
    hidden: Annotated[tuple[Width, ...], Field(strict=False, max_length=64)] = Field(
        default=(64,), description="Widths of the hidden layers; [] = a linear model."
    )


class Cnn(Table):
    """A small convolutional network for images."""

    name: Literal["cnn"] = Field(default="cnn", description="A small convolutional network for images.")
    channels: Annotated[tuple[Width, ...], Field(strict=False, min_length=1, max_length=64)] = Field(
        default=(8, 16), description="Output channels of each convolution."
    )


class CnnGap(Table):
    """Convolutions of one width, then the average over all places (Forootani & Iervolino, arXiv 2508.01675)."""

    name: Literal["cnn_gap"] = Field(
        default="cnn_gap", description="3x3 convolutions of one width, averaged over all places, one linear layer."
    )
    width: Width = Field(default=32, description="Channels of each convolution.")
    layers: Annotated[int, Field(ge=1, le=64)] = Field(default=3, description="Number of convolutions.")


class LeNet5(Table):
    """The classic of digits (LeCun et al., Proc. IEEE 1998), with ReLU and max pooling."""

    name: Literal["lenet5"] = Field(default="lenet5", description="LeNet-5, with ReLU and max pooling.")


class ResNet20(Table):
    """The residual network of 20 layers for small images (He et al., CVPR 2016), with 1x1 convolutions as shortcuts."""

    name: Literal["resnet20"] = Field(default="resnet20", description="ResNet-20 for small images.")
    norm: Literal["batch", "group"] = Field(
        default="batch", description="Normalise over the batch, or over groups of channels, which needs no statistics."
    )
    groups: Literal[1, 2, 4, 8, 16] = Field(default=8, description='Groups of channels. Only with norm = "group".')

    def idle(self) -> frozenset[str]:
        """Return ``groups`` beside batch normalisation."""
        return frozenset() if self.norm == "group" else frozenset({"groups"})


class Scalar(Table):
    """A single number, for quadratic data."""

    name: Literal["scalar"] = Field(default="scalar", description="A single number; goes with quadratic data.")
    start: Number = Field(default=0.0, description="Its value in version 0.")


class Linear(Table):
    """One number a feature, in double precision, for least-squares data."""

    name: Literal["linear"] = Field(
        default="linear", description="One number a feature, in double precision; goes with least_squares data."
    )
    start: Number = Field(default=0.0, description="Value of every entry in version 0.")


class Logistic(Table):
    """Multinomial logistic regression in double precision, with its gradient in closed form: no torch, start at 0."""

    name: Literal["logistic"] = Field(
        default="logistic", description="Multinomial logistic regression in double precision, without torch."
    )
    l2: Amount = Field(default=0.0, description="Weight of the penalty l2 / 2 ||x||^2, biases included.")


class VisionModel(Table):
    """A model of ``torchvision.models``, untrained, made for the data's channels and classes."""

    name: Annotated[str, Field(json_schema_extra={"enum": list(VISION_MODELS)})] = Field(
        description='A name of torchvision.models: "mobilenet_v2", "resnet18", "VisionTransformer", ...'
    )
    args: Args = Field(default={}, description="More keyword arguments of the builder; not weights or num_classes.")


class CustomModel(Table):
    """Anyone's own ``torch.nn.Module``; the factory is imported when the run is built, not here."""

    name: CustomName = Field(description='Where the factory stands: "package.module:factory".')
    args: Args = Field(default={}, description="Keyword arguments of the factory: TOML values, no dates.")


BY_DATA = {"quadratic": "scalar", "least_squares": "linear"}  # models that belong to one kind of data, and stand for it


def model_tag(value: Any) -> str | None:
    """Return which variant a table is; ``None`` if it does not say so properly."""
    tag = tag_of(value, DEFAULT_MODEL)
    return VISION if tag in VISION_MODELS else tag


MODELS: dict[str, type[Table]] = {
    "mlp": Mlp,
    "cnn": Cnn,
    "cnn_gap": CnnGap,
    "lenet5": LeNet5,
    "resnet20": ResNet20,
    "scalar": Scalar,
    "linear": Linear,
    "logistic": Logistic,
    VISION: VisionModel,
    CUSTOM: CustomModel,
}
Model = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[CnnGap, Tag("cnn_gap")]
    | Annotated[LeNet5, Tag("lenet5")]
    | Annotated[ResNet20, Tag("resnet20")]
    | Annotated[Scalar, Tag("scalar")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Logistic, Tag("logistic")]
    | Annotated[VisionModel, Tag(VISION)]
    | Annotated[CustomModel, Tag(CUSTOM)],
    Discriminator(model_tag),
]
