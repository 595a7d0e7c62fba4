"""Tables about the server: its strategy, how the run goes and ends, and where training takes place."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from desim_fl.scenario.table import CLIENT_MAX, Amount, Count, CustomName, Positive, Share, Table, Whole
from desim_fl.scenario.training import CUSTOM, Args, tag_of

DEFAULT_STRATEGY = "fedbuff"
SEED_MAX = 2**64 - 1
ADDRESS = r"^(auto|(ray://)?[^\s/:]+:[0-9]{1,5}|(ray://)?\[[0-9a-fA-F:.]+\]:[0-9]{1,5})$"  # of a Ray cluster

Cohort = Annotated[int, Field(ge=1, le=CLIENT_MAX)]


class StalenessTable(Table):
    """What the asynchronous strategies share: how much an update weighs that started from an old version."""

    staleness: Literal["polynomial", "constant", "hinge"] = Field(
        default="polynomial",
        description="Weight of staleness s: (1+s)^-power, 1, or 1 up to b and 1/(a(s-b)+1) beyond.",
    )
    staleness_power: Annotated[float, Field(ge=0, le=30)] = Field(default=0.5, description="Power of polynomial.")
    hinge_a: Amount = Field(default=10.0, description="Slope a of hinge.")
    hinge_b: Amount = Field(default=4.0, description="Bend b of hinge: no loss of weight up to here.")
    staleness_offset: Annotated[int, Field(ge=0, le=1)] = Field(
        default=0, description="Added to the staleness before it is weighed: 0, or 1 as some papers count."
    )
    max_staleness: Whole | None = Field(default=None, description="Turn older updates away; absent = no bound.")

    def idle(self) -> frozenset[str]:
        """Return the parameters of the staleness functions that are not chosen."""
        return frozenset(key for key, owner in STALENESS_KEYS.items() if owner != self.staleness)


STALENESS_KEYS = {"staleness_power": "polynomial", "hinge_a": "hinge", "hinge_b": "hinge"}


class FedAsync(StalenessTable):
    """Every arrival is mixed into the model at once (Xie et al., arXiv 1903.03934)."""

    name: Literal["fedasync"] = Field(default="fedasync", description="Mix every arrival in at once.")
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(default=0.6, description="Mixing rate of a fresh update.")
    mixing: Literal["model", "delta"] = Field(
        default="model", description="Mix with the client's model, or add its change to the current model."
    )


class FedBuff(StalenessTable):
    """Arrivals are collected and applied together (Nguyen et al., AISTATS 2022)."""

    name: Literal["fedbuff"] = Field(
        default=DEFAULT_STRATEGY, description="Collect buffer_size arrivals, apply them together."
    )
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    normalize: Literal["K", "sum_w", "none"] = Field(
        default="K",
        description="Divide the weighted sum by the buffer size (as the paper), by the sum of weights, or not.",
    )
    flush_at_end: bool = Field(default=False, description="Apply what a stop leaves in the buffer.")


class FedAvg(Table):
    """Rounds: a cohort trains from one version, its sample-weighted mean is the next (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = Field(default="fedavg", description="Synchronous rounds.")
    clients_per_round: Cohort = Field(default=10, description="Updates that make a round.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    over_selection: Annotated[float, Field(ge=1, le=1e6)] = Field(
        default=1.0, description="Send out so many times as many clients as the round needs."
    )
    deadline_s: Positive | None = Field(
        default=None, description="End a round so many seconds after its start; absent = never."
    )
    min_fraction: Share = Field(
        default=0.0, description="A round that ends with fewer than this share of updates is abandoned."
    )
    cancel_stragglers: bool = Field(default=False, description="Cancel what still runs at a round's end.")

    @property
    def cohort(self) -> int:
        """How many clients a round sends out: ceil(over_selection * clients_per_round), of the numbers as written."""
        return math.ceil(Decimal(repr(self.over_selection)) * self.clients_per_round)


class CustomStrategy(Table):
    """Anyone's own strategy class; it is imported when the run is built, not here."""

    name: CustomName = Field(description='Where the class stands: "package.module:Strategy".')
    args: Args = Field(default={}, description="Keyword arguments of the class: TOML values, no dates.")


STRATEGIES: dict[str, type[Table]] = {
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "fedavg": FedAvg,
    CUSTOM: CustomStrategy,
}


def _strategy_tag(value: Any) -> str | None:
    return tag_of(value, DEFAULT_STRATEGY)


Strategy = Annotated[
    Annotated[FedAsync, Tag("fedasync")]
    | Annotated[FedBuff, Tag("fedbuff")]
    | Annotated[FedAvg, Tag("fedavg")]
    | Annotated[CustomStrategy, Tag(CUSTOM)],
    Discriminator(_strategy_tag),
]

ClientId = Annotated[int, Field(ge=0, lt=CLIENT_MAX)]


class Run(Table):
    """How the run goes, what is measured, and when it ends: at the first stop rule that is met."""

    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] = Field(default=0, description="Seed of every random stream.")
    concurrency: Cohort = Field(
        default=10, description="Jobs in flight at once; with fedavg it follows from the cohort."
    )
    dispatch: Literal["immediate", "after_aggregation"] = Field(
        default="immediate", description="When a freed place is filled: at once, or when the next version is published."
    )
    selection: Literal["uniform", "round_robin", "longest_idle", "order"] = Field(
        default="uniform", description="Who is sent out next."
    )
    order: Annotated[tuple[ClientId, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description='Client numbers in the order to send them out. Only with selection = "order", and there required.',
    )
    delay_scale: Positive = Field(default=1.0, description="Every duration is multiplied with it.")
    max_time_s: Positive | None = Field(default=None, description="Stop rule: virtual seconds.")
    max_versions: Count | None = Field(default=None, description="Stop rule: versions published.")
    max_updates: Count | None = Field(default=None, description="Stop rule: updates received.")
    eval_every_versions: Count | None = Field(default=None, description="Evaluate every so many versions.")
    eval_every_s: Positive | None = Field(default=None, description="Evaluate every so many virtual seconds.")
    non_finite: Literal["skip", "fail"] = Field(
        default="skip", description="A non-finite update keeps its place with weight 0, or ends the run with an error."
    )


class Checkpoint(Table):
    """When a run keeps what it needs to go on after a crash. Nothing here changes the timeline, nor any result."""

    every_wall_s: Positive | None = Field(
        default=None, description="Every so many real seconds; absent = 60, if no other period is set."
    )
    every_versions: Count | None = Field(default=None, description="Every so many versions.")
    every_s: Positive | None = Field(default=None, description="Every so many virtual seconds.")


class Executor(Table):
    """Where training takes place. Nothing here changes the timeline."""

    name: Literal["auto", "inline", "threads", "pool", "ray", "vmap"] = Field(
        default="auto",
        description="Which executor: in this process, its threads, worker processes, workers on a Ray cluster, whichever "
        "of the first three is faster, or waiting jobs in batches (vmap), whose results agree with the others' within a "
        "tolerance only.",
    )
    device: Literal["cpu", "cuda", "auto"] = Field(default="cpu", description="Where the tensors live.")
    threads_per_job: Annotated[int, Field(ge=1, le=4096)] = Field(default=1, description="CPU threads a job may use.")
    workers: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Jobs trained side by side; absent = the executor's own choice."
    )
    address: Annotated[str, Field(pattern=ADDRESS, max_length=300)] | None = Field(
        default=None,
        description='Which Ray cluster to join: "auto", "host:port" or "ray://host:port". Absent = an instance of this '
        'machine\'s own. Only with name = "ray".',
    )
    width: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="With vmap: waiting jobs that are trained together. Results depend on it, in last bits."
    )
    reuse: bool = Field(
        default=False,
        description="Take outcomes that were computed before, on this machine, from the user's cache folder.",
    )
    reuse_limit_gb: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=2.0, description="Largest size of that folder; what was not used for longest goes first."
    )

    def idle(self) -> frozenset[str]:
        """Return ``width`` where jobs are not trained together."""
        return frozenset() if self.name == "vmap" else frozenset({"width"})
