"""Tables about the world outside the server: the clients, and the network between them and the server."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from desim_fl.scenario.availability import DAY_S
from desim_fl.scenario.devices import UNITS, DeviceClass
from desim_fl.scenario.laws import ONE_BIT_A_SECOND, Bandwidth, Constant, Duration, Factor
from desim_fl.scenario.table import CLIENT_MAX, LARGEST, Amount, Count, FileName, Positive, Share, Table

ClientKey = Annotated[int, Field(ge=0, lt=CLIENT_MAX)]
ProfileName = Literal["fadas_mild", "fadas_large", "quafl", "port", "fedscale_lognormal", "safa", "boards", "phones"]
ClientName = Annotated[str, Field(min_length=1, max_length=200)]


class Clients(Table):
    """Who takes part: how many, with which data, how fast."""

    count: int = Field(ge=1, le=CLIENT_MAX, description="Number of clients.")
    partition: Literal["iid", "dirichlet", "dirichlet_sizes", "shards", "map"] = Field(
        default="iid",
        description="How the training data is dealt out: evenly at random, with a Dirichlet mix of classes, at random in "
        "parts of Dirichlet sizes, a few classes a client, or as a file says.",
    )
    alpha: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Dirichlet concentration; smaller is more uneven. Only with dirichlet and dirichlet_sizes, and there "
        "required.",
    )
    classes_per_client: Count | None = Field(
        default=None, description="How many classes each client holds. Only with shards, and there required."
    )
    map: FileName | None = Field(
        default=None,
        description="A .csv or .parquet file with columns index (training sample) and client. Only with map, and there "
        "required.",
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
    noise_factor: Factor | None = Field(
        default=None,
        description="Law drawn for every client, direction and window of time: its bandwidth is multiplied with it "
        "meanwhile, also of transfers under way; absent = never changes.",
    )
    noise_window_s: Annotated[float, Field(ge=0.001, le=DAY_S)] = Field(
        default=60.0, description="For so many seconds at a time a factor of the noise holds."
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

    def idle(self) -> frozenset[str]:
        """Return the window of noise where there is none."""
        return frozenset() if self.noise_factor is not None else frozenset({"noise_window_s"})

    @property
    def shares_down(self) -> bool:
        """Whether downloads share a link."""
        return self.server_egress_mbps is not None or self.region_down_mbps is not None

    @property
    def shares_up(self) -> bool:
        """Whether uploads share a link."""
        return self.server_ingress_mbps is not None or self.region_up_mbps is not None
