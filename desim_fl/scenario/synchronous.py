"""Tables of the synchronous and semi-synchronous methods: rounds, cohorts, tiers."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from desim_fl.scenario.method import Beta, MethodTable, StalenessTable
from desim_fl.scenario.table import CLIENT_MAX, Amount, Count, Positive, Share, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from desim_fl.scenario.training import Training

Cohort = Annotated[int, Field(ge=1, le=CLIENT_MAX)]
TierCount = Annotated[int, Field(ge=1, le=1000)]
Mu = Annotated[float, Field(ge=0, le=1e9)]
_ONLY_SGD = "the method's formula is for plain sgd"


class RoundTable(MethodTable):
    """What methods of rounds share: the cohort, when a round ends, and what counts in it."""

    clients_per_round: Cohort = Field(default=10, description="Updates that make a round.")
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
    weights: Literal["examples", "uniform"] | None = Field(
        default=None,
        description="What an update weighs in the mean: its client's examples, or 1. Absent = as published: 1 with scaffold, "
        "else examples.",
    )
    partial_work: Literal["keep", "drop"] | None = Field(
        default=None,
        description="What becomes of an update whose client managed only a part of its work: it counts (absent), or is "
        "rejected. Only with straggler_share in [clients].",
    )

    @property
    def cohort(self) -> int:
        """How many clients a round sends out: ceil(over_selection * clients_per_round), of the numbers as written."""
        return math.ceil(Decimal(repr(self.over_selection)) * self.clients_per_round)

    @property
    def flying(self) -> int:
        """How many clients are out at once."""
        return self.cohort

    def settles(self) -> Mapping[str, str]:
        """Return that the cohort is what flies."""
        return {"concurrency": "it follows from clients_per_round"}

    def places(self, clients: int, asked: int) -> None:
        """Return no bound: stragglers of closed rounds fly beside the cohort."""


class FedAvg(RoundTable):
    """Rounds: a cohort trains from one version, its sample-weighted mean is the next (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = Field(default="fedavg", description="Synchronous rounds.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")


class FedProx(RoundTable):
    """FedAvg whose clients have a proximal term, and whose stragglers return partial work (Li et al., MLSys 2020)."""

    name: Literal["fedprox"] = Field(default="fedprox", description="Rounds with a proximal term at the clients.")
    mu: Mu = Field(default=0.01, description="Weight mu of the term mu / 2 ||x - x_b||^2 in every client's loss.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")

    def proximal_mu(self) -> float:
        """Return mu."""
        return self.mu


class _OptimizedRounds(RoundTable):
    """Rounds whose method is its optimiser at the server."""

    def no_optimizer(self) -> str | None:
        """Say that there is one already."""
        return f'{self.name} is an optimiser of the server itself; use name = "fedavg" with it'  # pyright: ignore[reportAttributeAccessIssue]


class FedAvgM(_OptimizedRounds):
    """FedAvg with momentum at the server (Hsu, Qi, Brown, arXiv 1909.06335)."""

    name: Literal["fedavgm"] = Field(default="fedavgm", description="Rounds with momentum at the server.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    beta: Beta = Field(default=0.9, description="Momentum.")


class _Adaptive(_OptimizedRounds):
    """What FedAdagrad, FedAdam and FedYogi share."""

    server_lr: Positive = Field(default=0.1, description="Server learning rate.")
    beta1: Beta = Field(default=0.9, description="Decay of the first moment.")
    eps: Positive = Field(default=1e-3, description="Added to the root of the second moment (the paper's tau).")
    initial_v: Amount = Field(default=0.0, description="The second moment before the first step.")


class FedAdagrad(_Adaptive):
    """FedAvg with Adagrad at the server (Reddi et al., ICLR 2021)."""

    name: Literal["fedadagrad"] = Field(default="fedadagrad", description="Rounds with Adagrad at the server.")
    beta1: Beta = Field(default=0.0, description="Decay of the first moment.")


class FedAdam(_Adaptive):
    """FedAvg with Adam at the server (Reddi et al., ICLR 2021)."""

    name: Literal["fedadam"] = Field(default="fedadam", description="Rounds with Adam at the server.")
    beta2: Beta = Field(default=0.99, description="Decay of the second moment.")
    bias_correction: bool = Field(default=False, description="As in Kingma and Ba's Adam; the paper's has none.")


class FedYogi(_Adaptive):
    """FedAvg with Yogi at the server (Reddi et al., ICLR 2021)."""

    name: Literal["fedyogi"] = Field(default="fedyogi", description="Rounds with Yogi at the server.")
    beta2: Beta = Field(default=0.99, description="Decay of the second moment.")


class FedNova(RoundTable):
    """FedAvg of updates normalised by their local steps (Wang et al., NeurIPS 2020)."""

    name: Literal["fednova"] = Field(default="fednova", description="Rounds of normalised updates.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")

    def lent(self, training: Training) -> Mapping[str, Any]:
        """Return local momentum and proximal term, which enter the norm."""
        return {"momentum": training.momentum, "mu": training.proximal_mu or 0.0}

    def objections(self, training: Training) -> Iterator[tuple[str, str]]:
        """Yield what the norm is not known for."""
        if training.optimizer != "sgd":
            yield "optimizer", f'must be "sgd" with strategy fednova: {_ONLY_SGD}, with momentum or a proximal term'
        if training.momentum and training.proximal_mu:
            yield "proximal_mu", "must not be given beside momentum with strategy fednova: no norm of both is known"
        if training.gradient_decay is not None:
            yield "gradient_decay", "must not be given with strategy fednova: no norm of its steps is known"
        if training.delay_aware is not None:
            yield "delay_aware", "must not be given with strategy fednova: the norm is for a constant local rate"
        if training.delay_step is not None:
            yield "delay_step", "must not be given with strategy fednova: the norm is for one rate of all clients"


class Scaffold(RoundTable):
    """Rounds with control variates (Karimireddy et al., ICML 2020)."""

    name: Literal["scaffold"] = Field(default="scaffold", description="Rounds with control variates.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")

    def objections(self, training: Training) -> Iterator[tuple[str, str]]:
        """Yield what the variates cannot be worked out with."""
        if training.optimizer != "sgd":
            yield "optimizer", f'must be "sgd" with strategy scaffold: {_ONLY_SGD}'
        if training.momentum:
            yield "momentum", f"must be 0 with strategy scaffold: {_ONLY_SGD}, whose steps say what the gradients were"
        if training.gradient_decay is not None:
            yield (
                "gradient_decay",
                "must not be given with strategy scaffold: its steps would not say what the gradients were",
            )


class SemiAsync(StalenessTable):
    """The first K of M clients make a version, whatever they started from; the others go on."""

    name: Literal["semi_async"] = Field(default="semi_async", description="The first K of M clients make a version.")
    clients_per_version: Count = Field(default=10, description="K; M is concurrency in [run].")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    mixing: Literal["model", "delta"] = Field(
        default="model", description="Mean of the clients' models, or mean of their changes added to the current model."
    )
    weights: Literal["examples", "uniform"] = Field(
        default="examples", description="What an update weighs, before its staleness: its client's examples, or 1."
    )
    staleness: Literal["polynomial", "constant", "hinge"] = Field(
        default="constant",
        description="Weight of staleness s: 1, (1+s)^-power, or 1 up to b and 1/(a(s-b)+1) beyond.",
    )

    def settles(self) -> Mapping[str, str]:
        """Return that places are refilled with each version."""
        return {"dispatch": 'it is "after_aggregation": the K that came leave again with the new version'}

    def no_optimizer(self) -> str | None:
        """Say that models are averaged."""
        return None if self.mixing == "delta" else 'it averages models of several versions; use mixing = "delta"'


class Safa(MethodTable):
    """Semi-asynchronous rounds over a cache of all clients' models (Wu et al., IEEE TC 2021)."""

    no_delta: ClassVar[str | None] = "it averages the cached models of all clients, and has no delta"
    name: Literal["safa"] = Field(default="safa", description="Semi-asynchronous rounds over a cache of all models.")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="Share of all clients whose reports a round picks."
    )
    lag_tolerance: Whole = Field(
        default=5, description="Versions that a client may fall behind before it must start again."
    )
    round_limit_s: Positive | None = Field(
        default=None, description="End a round so many seconds after its start; absent = never."
    )

    def settles(self) -> Mapping[str, str]:
        """Return that everybody trains."""
        return {"concurrency": "all clients train", "dispatch": "clients leave when a round begins"}

    def places(self, clients: int, asked: int) -> int:  # noqa: ARG002
        """Return that everybody may be out."""
        return clients


class FedAT(RoundTable):
    """Tiers of clients, each with rounds of its own, mixed with the weights of the opposite tiers (Chai et al., SC 2021)."""

    no_delta: ClassVar[str | None] = "it averages the models of its tiers, and has no delta"
    name: Literal["fedat"] = Field(default="fedat", description="Rounds in each tier, mixed across tiers.")
    tiers: TierCount = Field(
        default=5, description="Tiers, of equally many clients each, by their usual trip's length."
    )
    clients_per_round: Cohort = Field(default=10, description="Updates that make a round of one tier.")
    mu: Mu = Field(default=0.4, description="Weight mu of the term mu / 2 ||x - x_b||^2 in every client's loss.")
    uniform_at_first: bool = Field(
        default=False, description="Weigh all tiers alike until each has finished a round, instead of as published."
    )

    @property
    def flying(self) -> int:
        """A cohort of every tier."""
        return self.tiers * self.cohort

    def proximal_mu(self) -> float:
        """Return mu."""
        return self.mu


class TiFL(RoundTable):
    """Rounds whose cohort comes from one tier of equally fast clients (Chai et al., HPDC 2020)."""

    draws: ClassVar[bool] = True
    name: Literal["tifl"] = Field(default="tifl", description="Rounds, each with clients of one tier.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    tiers: TierCount = Field(
        default=5, description="Tiers, of equally many clients each, by their usual trip's length."
    )
    chances: Annotated[tuple[Share, ...], Field(strict=False, min_length=1, max_length=1000)] | None = Field(
        default=None, description="Chance of each tier to have the next round, fastest first; absent = all the same."
    )
    adaptive: bool = Field(
        default=False, description="Change the chances by the losses that the tiers' rounds report, worst tiers first."
    )
    interval: Count = Field(default=10, description="Of adaptive: rounds from one look at the losses to the next.")
    credits: Annotated[tuple[Whole, ...], Field(strict=False, min_length=1, max_length=1000)] | None = Field(
        default=None, description="Of adaptive: how many rounds each tier may have, fastest first; absent = no bound."
    )

    def unused(self) -> Mapping[str, str]:
        """Return what belongs to the other kind of chances."""
        if self.adaptive:
            return {"chances": "it belongs to adaptive = false"}
        reason = "it belongs to adaptive = true"
        return {"interval": reason, "credits": reason}


SYNCHRONOUS: dict[str, type[MethodTable]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "semi_async": SemiAsync,
    "safa": Safa,
    "fedat": FedAT,
    "tifl": TiFL,
}
