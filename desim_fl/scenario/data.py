"""Tables about the data: what is learned, and where it comes from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from desim_fl.scenario.models import VISION
from desim_fl.scenario.table import (
    CUSTOM,
    Amount,
    Args,
    Count,
    CustomName,
    FileName,
    Number,
    PartShare,
    Table,
    Whole,
)

DEFAULT_DATA = "fashion_mnist_6k"
FASHION_TRAIN = 6000
MADE_MAX = 10_000_000  # examples, features or classes that are made in memory


def _shape_of(value: Any) -> str:
    return "each" if isinstance(value, (list, tuple)) else "one"


Made = Annotated[int, Field(ge=1, le=MADE_MAX)]
Numbers = Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
Sizes = Annotated[tuple[Whole, ...], Field(strict=False, min_length=1)]
NumberOrEach = Annotated[Annotated[Number, Tag("one")] | Annotated[Numbers, Tag("each")], Discriminator(_shape_of)]
SizeOrEach = Annotated[Annotated[Whole, Tag("one")] | Annotated[Sizes, Tag("each")], Discriminator(_shape_of)]
Validation = Annotated[PartShare, Field(description="Share of the training images kept back, by key, for decisions.")]

HeldOut = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None,
    Field(
        description="Share of its samples that each client keeps back from training; the last model is scored on each client's "
        "part when the run ends, for fairness. Absent = none."
    ),
]


class FashionMnist(Table):
    """6,000 training and 1,000 test images of Fashion-MNIST, which travel inside the package."""

    name: Literal["fashion_mnist_6k"] = Field(
        default=DEFAULT_DATA, description="The Fashion-MNIST part in the package."
    )
    examples: int | None = Field(
        default=None,
        ge=1,
        le=FASHION_TRAIN,
        description="Use only the first so many training images; absent = all 6,000.",
    )
    validation_share: Validation = 0.0
    client_test_share: HeldOut = None


class Blobs(Table):
    """Made data: one Gaussian cloud of feature vectors for each class."""

    name: Literal["blobs"] = Field(
        default="blobs", description="One Gaussian cloud for each class, made from the seed."
    )
    examples: Made = Field(default=2000, description="Training examples.")
    test_examples: Made = Field(default=500, description="Test examples.")
    classes: Made = Field(default=10, description="Number of classes.")
    features: Made = Field(default=20, description="Length of each feature vector.")
    spread: Amount = Field(default=1.0, description="Standard deviation of each cloud.")
    validation_share: Validation = 0.0
    client_test_share: HeldOut = None


class Quadratic(Table):
    """No data at all: client i minimises curvature_i / 2 * (w - optimum_i)^2 over one number w."""

    name: Literal["quadratic"] = Field(
        default="quadratic", description="One quadratic function a client, for exact tests."
    )
    curvature: NumberOrEach = Field(
        default=1.0, description="Second derivative: one number for all, or one for each client."
    )
    optimum: NumberOrEach = Field(
        default=0.0, description="Where the minimum lies: one number for all, or one for each."
    )
    examples_per_client: SizeOrEach = Field(
        default=1, description="Pretended sample count: one for all, or one for each."
    )


class LeastSquares(Table):
    """Made data for theory: b = A x* + noise, A uniform in (0, 1) over sqrt(features) (Mishchenko et al., NeurIPS 2022)."""

    name: Literal["least_squares"] = Field(
        default="least_squares", description="A quadratic in many dimensions: 1 / (2 examples) ||A x - b||^2."
    )
    examples: Made = Field(default=10_000, description="Rows of A.")
    features: Made = Field(default=400, description="Columns of A: the number of parameters.")
    noise_sd: Amount = Field(default=1e-5, description="Standard deviation of the noise in b.")
    gradient_noise_sd: Amount = Field(
        default=0.0, description="Standard deviation of noise added to every entry of every gradient."
    )
    shared: bool = Field(
        default=False, description="Every client draws its batches from all rows, instead of from a part of its own."
    )
    client_shift_sd: Amount = Field(
        default=0.0, description="Standard deviation of each client's own truth around the common x*."
    )


FOLDER = "ImageFolder"
Folder = Annotated[FileName, Field(description="Folder with the files; relative to the working folder.")]
ImageSide = Annotated[int, Field(ge=1, le=4096)]
Resized = Annotated[
    ImageSide | None,
    Field(description="Make every image so many pixels high and wide; needed where images differ in size."),
]
Normalize = Annotated[
    Literal["published", "training", "half"],
    Field(
        description="Mean and deviation that images are normalised by: those published for the set (without any: "
        "those of the training images), those of the training images, or 0.5 and 0.5."
    ),
]
Held = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None,
    Field(description="Share of a set without a test part that becomes one; absent = 0.2. Only with such a set."),
]
First = Annotated[Count | None, Field(description="Use only the first so many training samples; absent = all.")]
FirstTest = Annotated[Count | None, Field(description="Use only the first so many test samples; absent = all.")]


class Stored(Table):
    """What data sets that lie in files have in common."""

    examples: First = None
    test_examples: FirstTest = None
    normalize: Normalize = "published"
    test_share: Held = None
    validation_share: Validation = 0.0
    client_test_share: HeldOut = None


class Vision(Stored):
    """Any classification set of ``torchvision.datasets``, by the name of its class."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=100)] = Field(
        description='A class of torchvision.datasets: "MNIST", "FashionMNIST", "CIFAR10", "SVHN", "EMNIST", ...'
    )
    folder: Folder = "data"
    args: Args = Field(default={}, description='More arguments of the class, for example { split = "letters" }.')
    image_size: Resized = None
    download: bool = Field(default=False, description="Let torchvision fetch what is missing from its own addresses.")


class CustomData(Stored):
    """Anyone's own class or function that makes data sets as ``torchvision.datasets`` does."""

    name: CustomName = Field(description='Where it stands: "package.module:Dataset".')
    folder: Folder = "data"
    args: Args = Field(default={}, description="More arguments of it: TOML values, no dates.")
    image_size: Resized = None
    download: bool = Field(default=False, description="Passed on to it.")


class ImageFolder(Stored):
    """Images in folders: ``train/CLASS/...`` and ``test/CLASS/...``, or ``CLASS/...`` alone."""

    name: Literal["ImageFolder"] = Field(default=FOLDER, description="Images in one folder for each class.")
    folder: Folder = "data"
    image_size: Resized = None


class ArrayFile(Stored):
    """A file of arrays: .npz, or Parquet with one row a sample."""

    name: Literal["file"] = Field(default="file", description="A .npz or Parquet file with images and labels.")
    path: FileName = Field(
        description="The file. .npz: train_images, train_labels, test_images, test_labels, or images and labels. "
        "Parquet: columns label, image (encoded or numbers), and split if it has a test part."
    )
    image_size: Resized = None


def data_name(value: Any) -> str | None:
    """Return which kind of data a table (or a part read before) is; ``None`` if it does not say so properly."""
    name = value.get("name", DEFAULT_DATA) if isinstance(value, dict) else getattr(value, "name", None)
    return name if isinstance(name, str) else None


def data_tag(value: Any) -> str | None:
    """Return which variant a table is; ``None`` if it does not say so properly."""
    name = data_name(value)
    if name is None or name in DATA:
        return name
    if ":" in name:
        return CUSTOM
    return VISION if name[:1].isascii() and name[:1].isupper() else name


DATA: dict[str, type[Table]] = {
    "fashion_mnist_6k": FashionMnist,
    "blobs": Blobs,
    "quadratic": Quadratic,
    "least_squares": LeastSquares,
    "file": ArrayFile,
    FOLDER: ImageFolder,
    VISION: Vision,
    CUSTOM: CustomData,
}
Data = Annotated[
    Annotated[FashionMnist, Tag("fashion_mnist_6k")]
    | Annotated[Blobs, Tag("blobs")]
    | Annotated[Quadratic, Tag("quadratic")]
    | Annotated[LeastSquares, Tag("least_squares")]
    | Annotated[ArrayFile, Tag("file")]
    | Annotated[ImageFolder, Tag(FOLDER)]
    | Annotated[Vision, Tag(VISION)]
    | Annotated[CustomData, Tag(CUSTOM)],
    Discriminator(data_tag),
]
