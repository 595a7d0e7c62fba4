"""Tables of the asynchronous methods: every arrival, or every few, makes a version."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from desim_fl.scenario.method import NOTHING, MethodTable, StalenessTable
from desim_fl.scenario.table import Amount, Count, Positive, Share, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from desim_fl.scenario.training import Training

QUEUE_MAX = 10_000  # models that a method may hold


class FedAsync(StalenessTable):
    """Every arrival is mixed into the model at once (Xie et al., arXiv 1903.03934)."""

    name: Literal["fedasync"] = Field(default="fedasync", description="Mix every arrival in at once.")
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(default=0.6, description="Mixing rate of a fresh update.")
    mixing: Literal["model", "delta"] = Field(
        default="model", description="Mix with the client's model, or add its change to the current model."
    )
    sampled_staleness: Annotated[int, Field(ge=0, le=QUEUE_MAX)] | None = Field(
        default=None,
        description="Replay the paper's experiments: one job at a time, from a version that is 0 to so many versions old, "
        "drawn; absent = staleness emerges.",
    )
    draws: ClassVar[bool] = True

    def settles(self) -> Mapping[str, str]:
        """Return whom to send out, in a replay."""
        reason = "with sampled_staleness one job flies at a time"
        return NOTHING if self.sampled_staleness is None else {"concurrency": reason, "dispatch": reason}

    def places(self, clients: int, asked: int) -> int:  # noqa: ARG002
        """Return 1 in a replay."""
        return asked if self.sampled_staleness is None else 1

    def no_optimizer(self) -> str | None:
        """Say that models are mixed."""
        return None if self.mixing == "delta" else 'it mixes models and publishes no delta; use mixing = "delta"'


class FedBuff(StalenessTable):
    """Arrivals are collected and applied together (Nguyen et al., AISTATS 2022)."""

    name: Literal["fedbuff"] = Field(
        default="fedbuff", description="Collect buffer_size arrivals, apply them together."
    )
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    normalize: Literal["K", "sum_w", "none"] = Field(
        default="K",
        description="Divide the weighted sum by the buffer size (as the paper), by the sum of weights, or not.",
    )
    flush_at_end: bool = Field(default=False, description="Apply what a stop leaves in the buffer.")


class Bounded(MethodTable):
    """What most methods share: a bound on staleness."""

    max_staleness: Whole | None = Field(default=None, description="Turn older updates away; absent = no bound.")


Decay = Annotated[float, Field(ge=0, lt=1)]
TO_ITS_CLIENT = MappingProxyType({"dispatch": "the model goes back to the client that arrived, at once"})


class AsyncSGD(Bounded):
    """Every arrival is a step of SGD, the model goes back to who arrived (Koloskova et al.; Mishchenko et al., NeurIPS 2022)."""

    name: Literal["asyncsgd"] = Field(default="asyncsgd", description="A step of SGD at every arrival.")
    server_lr: Positive = Field(default=1.0, description="Factor of every step.")
    delay_rule: Literal["none", "koloskova", "mishchenko"] = Field(
        default="none",
        description="Factor of a step of delay tau: 1; 1 up to the threshold and 1/tau (or 0) beyond; or threshold / "
        "max(threshold, tau).",
    )
    beyond: Literal["inv", "drop"] = Field(
        default="inv", description="koloskova: 1/tau beyond the threshold, or no step at all."
    )
    threshold: Count | None = Field(
        default=None, description="Delay up to which steps are whole; absent = the jobs in flight."
    )
    workers: Literal["same", "sampled"] = Field(
        default="same", description="The model goes back to the client that arrived, or to one that is selected."
    )

    def unused(self) -> Mapping[str, str]:
        """Return what the delay rule does not ask for."""
        facts = {
            "beyond": (self.delay_rule != "koloskova", 'it belongs to delay_rule = "koloskova"'),
            "threshold": (self.delay_rule == "none", 'it belongs to delay_rule = "koloskova" or "mishchenko"'),
        }
        return {key: reason for key, (unused, reason) in facts.items() if unused}

    def settles(self) -> Mapping[str, str]:
        """Return dispatch, where the model goes back to its client."""
        return TO_ITS_CLIENT if self.workers == "same" else NOTHING


class Fadas(Bounded):
    """The mean of a buffer is the gradient of an AMSGrad step of the server (Wang et al., ICML 2024)."""

    no_delta: ClassVar[str | None] = "it is an optimiser of the server itself; use fedbuff with one"
    name: Literal["fadas"] = Field(default="fadas", description="AMSGrad at the server, on buffered updates.")
    buffer_size: Count = Field(default=5, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1e-3, description="Server learning rate eta.")
    beta1: Decay = Field(default=0.9, description="Decay of the first moment.")
    beta2: Decay = Field(default=0.99, description="Decay of the second moment.")
    eps: Positive = Field(default=1e-8, description="Added to the root of the second moment.")
    bias_correction: bool = Field(default=True, description="Correct the moments' bias, as the authors' code does.")
    delay_adaptive: bool = Field(default=True, description="Lower the rate of a buffer that holds very stale updates.")
    delay_rule: Literal["code", "formula"] = Field(
        default="code", description="Beyond tau_c: eta / tau, as the authors' code does, or min(eta, 1/tau)."
    )
    tau_c: Whole = Field(default=1, description="Largest staleness in a buffer up to which the rate is whole.")

    def unused(self) -> Mapping[str, str]:
        """Return what belongs to the delay-adaptive rate."""
        reason = "it belongs to delay_adaptive = true"
        return NOTHING if self.delay_adaptive else {"delay_rule": reason, "tau_c": reason}


class Ca2fl(Bounded):
    """Buffered updates, calibrated by what each client sent last (Wang et al., ICLR 2024)."""

    name: Literal["ca2fl"] = Field(default="ca2fl", description="Buffered updates, calibrated by cached ones.")
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")


class Port(MethodTable):
    """Waits for a few reports, and for whoever falls too far behind (Su & Li, IWQoS 2022)."""

    no_delta: ClassVar[str | None] = "it averages models of several versions, and has no delta"
    name: Literal["port"] = Field(default="port", description="A few reports, none of them too old.")
    min_clients: Count = Field(default=15, description="Reports that make a new version.")
    staleness_bound: Count | None = Field(
        default=None,
        description="Jobs that would be older after an aggregation are waited for, and told to report at the end of "
        "their epoch; absent = no bound.",
    )
    alpha: Positive = Field(default=3.0, description="Weight of freshness.")
    beta: Amount = Field(default=1.0, description="Weight of the likeness to the last aggregation's step.")


class Area(Bounded):
    """The mean of every client's latest model (Iakovidou & Kim, arXiv 2405.10123)."""

    no_delta: ClassVar[str | None] = (
        "its fixed point is the mean of the clients' latest models, which it must step to exactly"
    )
    name: Literal["area"] = Field(default="area", description="The mean of every client's latest model.")
    buffer_size: Count = Field(default=1, description="Arrivals that make a new version.")


class AsoFed(Bounded):
    """Experimental: the server's rule of ASO-Fed (Chen et al., IEEE BigData 2020); the clients' is in [training]."""

    no_delta: ClassVar[str | None] = (
        "its fixed point is the mean of the clients' latest models, which it must step to exactly"
    )
    name: Literal["asofed"] = Field(
        default="asofed",
        description="Experimental: ASO-Fed; gradient_decay, delay_step and proximal_mu in [training] are its clients' part.",
    )
    feature_learning: bool = Field(
        default=False,
        description="After each step every weight of the first layer is multiplied with exp|w| over its unit's sum of these. Of n inputs "
        "a weight keeps about 1/n. For built-in networks.",
    )


class FedAsmuStatic(Bounded):
    """FedASMU's server rule with fixed coefficients (Liu et al., AAAI 2024)."""

    no_delta: ClassVar[str | None] = "it mixes models, and has no delta"
    name: Literal["fedasmu_static"] = Field(
        default="fedasmu_static", description="Mix every arrival in, the less the later and the staler it is."
    )
    lam: Amount = Field(default=1.0, description="lambda in xi = lambda / (sqrt(t) (tau + 1)^sigma) + iota.")
    sigma: Annotated[float, Field(ge=0, le=30)] = Field(default=0.5, description="sigma in xi.")
    iota: Amount = Field(default=0.0, description="iota in xi.")
    mu: Positive = Field(default=1.0, description="mu in the mixing rate mu xi / (1 + mu xi).")


class FedFa(Bounded):
    """The mean of a queue of the latest arrivals (Xu et al., IJCAI 2024)."""

    no_delta: ClassVar[str | None] = "it averages a queue, and has no delta"
    name: Literal["fedfa"] = Field(default="fedfa", description="The mean of a queue of the latest arrivals.")
    queue_size: Annotated[int, Field(ge=1, le=QUEUE_MAX)] = Field(default=5, description="Length of the queue.")
    content: Literal["model", "delta"] = Field(default="model", description="What the queue holds.")
    fill: Literal["average", "initial"] = Field(
        default="average", description="While it is not full: the mean of what is there, or of initial models too."
    )


class Ringmaster(MethodTable):
    """Asynchronous SGD without what is too old (Maranjyan et al., ICML 2025)."""

    name: Literal["ringmaster"] = Field(default="ringmaster", description="Asynchronous SGD without what is too old.")
    delay_threshold: Count | None = Field(
        default=None, description="Delay R from which an arrival is discarded; absent = never."
    )
    stop: bool = Field(default=False, description="Stop jobs whose delay reaches R, instead of discarding them.")
    server_lr: Positive = Field(default=1.0, description="Factor of every step.")

    def unused(self) -> Mapping[str, str]:
        """Return stop, where nothing is ever too old."""
        return NOTHING if self.delay_threshold is not None else {"stop": "it needs the key delay_threshold"}

    def settles(self) -> Mapping[str, str]:
        """Return dispatch."""
        return TO_ITS_CLIENT


class Rennala(MethodTable):
    """Minibatches that whoever is fast fills (Tyurin & Richtarik, NeurIPS 2023)."""

    name: Literal["rennala"] = Field(default="rennala", description="Minibatches that whoever is fast fills.")
    batch: Count = Field(default=10, description="Arrivals that make a new version.")
    stop_unfinished: bool = Field(
        default=False, description="Stop what is unfinished when the model changes, or ignore it when it arrives."
    )
    server_lr: Positive = Field(default=1.0, description="Factor of every step.")

    def settles(self) -> Mapping[str, str]:
        """Return dispatch."""
        return TO_ITS_CLIENT


class Everybody(MethodTable):
    """A method in which all clients compute all the time."""

    def settles(self) -> Mapping[str, str]:
        """Return whom to send out, and how many at once."""
        reason = "all clients compute at once"
        return {"concurrency": reason, "selection": reason, "dispatch": reason}

    def places(self, clients: int, asked: int) -> int:  # noqa: ARG002
        """Return as many as there are clients."""
        return clients


class Malenia(Everybody):
    """A step when every client has sent enough (Tyurin & Richtarik, NeurIPS 2023)."""

    name: Literal["malenia"] = Field(default="malenia", description="A step when every client has sent enough.")
    gradients: Count = Field(
        default=1, description="S: wait until the harmonic mean of the clients' counts exceeds S / n."
    )
    server_lr: Positive = Field(default=1.0, description="Factor of every step.")


class Ringleader(Everybody):
    """Steps in which every client counts the same (Maranjyan & Richtarik, ICLR 2026)."""

    name: Literal["ringleader"] = Field(
        default="ringleader", description="Steps in which every client counts the same."
    )
    server_lr: Positive = Field(default=1.0, description="Factor of every step.")


class FedVarp(Bounded):
    """FedStale with beta = 1 (Jhunjhunwala et al., UAI 2022)."""

    name: Literal["fedvarp"] = Field(
        default="fedvarp", description="The mean of all, those absent by what they sent last."
    )
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")


class Mifa(Bounded):
    """FedStale with beta = 1 and weights of the population (Gu et al., NeurIPS 2021)."""

    name: Literal["mifa"] = Field(default="mifa", description="The mean of every client's latest delta.")
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")


class FedStale(Bounded):
    """Who is absent takes part with what it sent last, in part (Rodio & Neglia, ECAI 2024)."""

    name: Literal["fedstale"] = Field(default="fedstale", description="Who is absent takes part, in part.")
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    beta: Share = Field(default=0.5, description="How much those who are absent count.")
    weights: Literal["cohort", "population"] = Field(
        default="cohort", description="Weight of a member: 1 / members, or 1 / clients."
    )
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")


class Polled(Everybody):
    """What QuAFL and FAVAS share: a server that asks by the clock."""

    draws: ClassVar[bool] = True
    contacted: Count = Field(default=5, description="Clients that are drawn and asked at a time.")
    interval_s: Positive = Field(
        default=10.0, description="Virtual seconds from a step of the server to the next asking."
    )


class Quafl(Polled):
    """The server and s drawn clients are averaged (Zakerinia et al., AISTATS 2024)."""

    no_delta: ClassVar[str | None] = "it averages models, and has no delta"
    name: Literal["quafl"] = Field(
        default="quafl", description="The server and drawn clients are averaged, by the clock."
    )
    scale_rate: bool = Field(
        default=False,
        description="Clients train at (s+1)/s times the rate of [training], s being contacted, as the authors' code does.",
    )

    def lent(self, training: Training) -> Mapping[str, Any]:
        """Return the rate that is to be scaled."""
        return {"lr": training.lr} if self.scale_rate else NOTHING

    def objections(self, training: Training) -> Iterator[tuple[str, str]]:
        """Yield the delay-aware rate, which is no one rate to scale."""
        if self.scale_rate and training.delay_aware is not None:
            yield "delay_aware", "must not be given with scale_rate of strategy quafl, which scales lr"


class Favas(Polled):
    """The server and what s drawn clients have got done, made comparable (Leconte et al., 2023)."""

    no_delta: ClassVar[str | None] = "it averages models, and has no delta"
    name: Literal["favas"] = Field(
        default="favas", description="Drawn clients' progress, made comparable, by the clock."
    )
    scaling: Literal["expected", "realized"] = Field(
        default="expected",
        description="Divide progress by the mean number of steps, or by their chance times their number.",
    )


ASYNCHRONOUS: dict[str, type[MethodTable]] = {
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "asyncsgd": AsyncSGD,
    "fadas": Fadas,
    "ca2fl": Ca2fl,
    "port": Port,
    "area": Area,
    "asofed": AsoFed,
    "fedasmu_static": FedAsmuStatic,
    "fedfa": FedFa,
    "ringmaster": Ringmaster,
    "rennala": Rennala,
    "malenia": Malenia,
    "ringleader": Ringleader,
    "fedstale": FedStale,
    "fedvarp": FedVarp,
    "mifa": Mifa,
    "quafl": Quafl,
    "favas": Favas,
}
