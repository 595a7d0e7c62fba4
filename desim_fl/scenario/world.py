"""Tables about the world outside the server: the data, the clients, and the network between them and the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from desim_fl.scenario.devices import UNITS, DeviceClass
from desim_fl.scenario.laws import ONE_BIT_A_SECOND, Bandwidth, Constant, Duration, Factor
from desim_fl.scenario.table import CLIENT_MAX, LARGEST, Amount, Count, Number, PartShare, Positive, Share, Table, Whole

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


def data_name(value: Any) -> str | None:
    """Return which kind of data a table (or a part read before) is; ``None`` if it does not say so properly."""
    name = value.get("name", DEFAULT_DATA) if isinstance(value, dict) else getattr(value, "name", None)
    return name if isinstance(name, str) else None


DATA: dict[str, type[Table]] = {
    "fashion_mnist_6k": FashionMnist,
    "blobs": Blobs,
    "quadratic": Quadratic,
    "least_squares": LeastSquares,
}
Data = Annotated[
    Annotated[FashionMnist, Tag("fashion_mnist_6k")]
    | Annotated[Blobs, Tag("blobs")]
    | Annotated[Quadratic, Tag("quadratic")]
    | Annotated[LeastSquares, Tag("least_squares")],
    Discriminator(data_name),
]

ClientKey = Annotated[int, Field(ge=0, lt=CLIENT_MAX)]
ProfileName = Literal["fadas_mild", "fadas_large", "quafl", "port", "fedscale_lognormal", "safa", "boards", "phones"]
ClientName = Annotated[str, Field(min_length=1, max_length=200)]


class Clients(Table):
    """Who takes part: how many, with which data, how fast."""

    count: int = Field(ge=1, le=CLIENT_MAX, description="Number of clients.")
    partition: Literal["iid", "dirichlet"] = Field(
        default="iid",
        description="How the training data is dealt out: evenly at random, or with a Dirichlet mix of classes.",
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Dirichlet concentration; smaller is more uneven. Only with dirichlet, and there required.",
    )
    min_samples: Count = Field(default=1, description="Every client gets at least so many training examples.")
    profile: ProfileName | None = Field(
        default=None,
        description="Devices (and links) as published, by name: stands for the keys that are listed in the docs, each of "
        "which can still be given.",
    )
    seconds_per_step: Amount = Field(
        default=0.01, description="Compute time of one optimiser step, in seconds, at factor 1."
    )
    seconds_per_sample: Amount | None = Field(
        default=None, description="Compute time of one training sample, instead of seconds_per_step."
    )
    seconds_per_job: Amount | None = Field(
        default=None, description="Compute time of a whole job, however many steps it has, instead of seconds_per_step."
    )
    flops_per_sample: Positive | None = Field(
        default=None,
        description="Floating-point operations of one training sample, forward and backward; with device_flops instead "
        "of seconds_per_step.",
    )
    device_flops: Factor | None = Field(
        default=None, description="Law drawn once a client: floating-point operations a second of its device."
    )
    device_factor: Factor = Field(
        default=Constant(value=1.0),
        description="Law drawn once a client: its compute time is multiplied with it (2 = half as fast).",
    )
    jitter_factor: Factor = Field(
        default=Constant(value=1.0), description="Law drawn for every job: its compute time is multiplied with it."
    )
    wait_s: Duration | None = Field(
        default=None,
        description="Law drawn for every job: seconds between download and compute; absent = starts at once.",
    )
    straggler_share: Share | None = Field(
        default=None,
        description="Share of jobs, drawn by client and job, that manage only a part of their epochs: 1 to epochs - 1, all "
        "equally likely (or of their steps, where training says steps); absent = none.",
    )
    epoch_idle_s: Duration | None = Field(
        default=None,
        description="Law drawn for every epoch of every job: seconds the device pauses after it, part of the compute leg.",
    )
    watts_compute: Amount | None = Field(default=None, description="Power while computing, pauses included.")
    watts_send: Amount | None = Field(default=None, description="Power while uploading.")
    watts_receive: Amount | None = Field(default=None, description="Power while downloading.")
    watts_idle: Amount | None = Field(
        default=None, description="Power at all other times of the run, the wait before computing included."
    )
    price_per_hour: Amount | None = Field(default=None, description="Money for an hour in which the client has a job.")
    price_per_gb: Amount | None = Field(default=None, description="Money for 10^9 bytes, down or up.")
    classes: Annotated[tuple[DeviceClass, ...], Field(strict=False, min_length=1, max_length=100)] | None = Field(
        default=None, description="Classes of devices, one table [[clients.classes]] each; absent = all are alike."
    )
    class_shares: Literal["drawn", "exact"] = Field(
        default="drawn",
        description="A client's class is drawn by share, or the numbers of clients follow the shares exactly.",
    )
    keys: Annotated[tuple[ClientKey, ...], Field(strict=False)] | None = Field(
        default=None, description="One distinct number a client, which names its random streams; absent = 0, 1, 2, ..."
    )
    names: Annotated[tuple[ClientName, ...], Field(strict=False)] | None = Field(
        default=None, description="One name a client, for reports; absent = its number."
    )

    @property
    def unit(self) -> str:
        """The key that says how long work takes."""
        return next((key for key in UNITS if key != UNITS[0] and getattr(self, key) is not None), UNITS[0])

    def idle(self) -> frozenset[str]:
        """Return ``seconds_per_step`` beside another unit of work, ``class_shares`` without classes, and what all classes say."""
        measured = self.unit != UNITS[0] or self.every_class_says("unit")
        facts = {"seconds_per_step": measured, "class_shares": self.classes is None}
        said = (key for key in ("device_factor", "jitter_factor") if self.every_class_says(key))
        return frozenset(key for key, idle in facts.items() if idle) | frozenset(said)

    def every_class_says(self, key: str) -> bool:
        """Tell whether there are classes, and each has this key, so that what is said for all has no effect."""
        kinds = self.classes or ()
        return bool(kinds) and all(getattr(kind, key) is not None for kind in kinds)


REGIONS_MAX = 1000  # each costs something at every event on a shared link
Rate = Annotated[float, Field(ge=ONE_BIT_A_SECOND, le=LARGEST)]
Rates = Annotated[tuple[Rate, ...], Field(strict=False, min_length=1, max_length=REGIONS_MAX)]


class Network(Table):
    """The way between a client and the server: a leg takes its latency plus bytes over bandwidth."""

    down_mbps: Bandwidth | None = Field(
        default=None, description="Law drawn once a client: download bandwidth in Mbit/s; absent = unlimited."
    )
    up_mbps: Bandwidth | None = Field(
        default=None, description="Law drawn once a client: upload bandwidth in Mbit/s; absent = unlimited."
    )
    latency_s: Duration = Field(
        default=Constant(value=0.0),
        description="Law drawn once a client: seconds before a transfer starts, each direction.",
    )
    latency_jitter_factor: Factor = Field(
        default=Constant(value=1.0),
        description="Law drawn for every job and direction: the latency is multiplied with it.",
    )
    server_egress_mbps: Rate | None = Field(
        default=None,
        description="What the server sends in all, in Mbit/s: downloads under way share it; absent = unlimited.",
    )
    server_ingress_mbps: Rate | None = Field(
        default=None,
        description="What the server receives in all, in Mbit/s: uploads under way share it; absent = unlimited.",
    )
    region_shares: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1, max_length=REGIONS_MAX)] | None = (
        Field(default=None, description="One number a region: how likely a client lives there, beside the others.")
    )
    region_down_mbps: Rates | None = Field(
        default=None, description="What all clients of each region download together, in Mbit/s; absent = unlimited."
    )
    region_up_mbps: Rates | None = Field(
        default=None, description="What all clients of each region upload together, in Mbit/s; absent = unlimited."
    )

    @property
    def shares_down(self) -> bool:
        """Whether downloads share a link."""
        return self.server_egress_mbps is not None or self.region_down_mbps is not None

    @property
    def shares_up(self) -> bool:
        """Whether uploads share a link."""
        return self.server_ingress_mbps is not None or self.region_up_mbps is not None
