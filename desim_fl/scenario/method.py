"""What the tables of server methods have in common."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from desim_fl.scenario.schedules import LrSchedule
from desim_fl.scenario.table import Amount, Positive, Table, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from desim_fl.scenario.training import Training

NOTHING: Mapping[str, str] = MappingProxyType({})


OPTIMIZER_KEYS = {
    "beta1": ("momentum", "adagrad", "adam", "yogi", "amsgrad"),
    "beta2": ("adam", "yogi", "amsgrad"),
    "eps": ("adagrad", "adam", "yogi", "amsgrad"),
    "initial_v": ("adagrad", "adam", "yogi", "amsgrad"),
    "bias_correction": ("adam", "amsgrad"),
}
Beta = Annotated[float, Field(ge=0, lt=1)]


class ServerOptimizer(Table):
    """What the server does with the delta that a method computed, instead of adding it."""

    name: Literal["sgd", "momentum", "adagrad", "adam", "yogi", "amsgrad"] = Field(
        description="x += lr D; FedAvgM's momentum; or FedAdagrad, FedAdam, FedYogi, AMSGrad (Reddi et al., ICLR 2021)."
    )
    lr: Positive = Field(default=1.0, description="Server learning rate, instead of server_lr.")
    beta1: Beta = Field(default=0.9, description="Decay of the first moment, or of the momentum.")
    beta2: Beta = Field(default=0.99, description="Decay of the second moment.")
    eps: Positive = Field(default=1e-3, description="Added to the root of the second moment.")
    initial_v: Amount = Field(default=0.0, description="The second moment before the first step.")
    bias_correction: bool = Field(
        default=False, description="Divide both moments by what their start from 0 left out, as Kingma and Ba's Adam."
    )

    def idle(self) -> frozenset[str]:
        """Return the parameters of the optimisers that are not chosen."""
        return frozenset(key for key, owners in OPTIMIZER_KEYS.items() if self.name not in owners)


class MethodTable(Table):
    """A server method by name; its keys are the options of the class in :data:`desim_fl.strategies.TABLE`.

    Every method has ``server_optimizer`` and ``server_lr_schedule``, which make :class:`desim_fl.strategies.optimized.Optimized`
    of it; one that publishes no delta says why they do not go with it.
    """

    no_delta: ClassVar[str | None] = None  # why the method publishes no delta that an optimiser could take
    draws: ClassVar[bool] = False  # whether the method draws numbers, and so takes the run's seed

    server_optimizer: ServerOptimizer | None = Field(
        default=None, description="An optimiser of the server instead of plain addition; absent = none."
    )
    server_lr_schedule: LrSchedule | None = Field(
        default=None, description="How the server's rate changes with the version; absent = it does not."
    )

    def no_optimizer(self) -> str | None:
        """Say why no server optimiser goes with this method; ``None`` = one does."""
        return self.no_delta

    def lent(self, training: Training) -> Mapping[str, Any]:  # noqa: ARG002
        """Return options of the class that other tables of the scenario settle."""
        return NOTHING

    def objections(self, training: Training) -> Iterator[tuple[str, str]]:  # noqa: ARG002
        """Yield keys of [training] that do not go with this method, each with the reason."""
        yield from ()

    def proximal_mu(self) -> float | None:
        """Return the weight of the proximal term that belongs to the method; ``None`` = that of [training]."""
        return None

    def settles(self) -> Mapping[str, str]:
        """Return the keys of [run] that this method itself settles, each with the reason: they must not be given."""
        return NOTHING

    def unused(self) -> Mapping[str, str]:
        """Return the keys of this table that have no effect beside its others, each with the reason: they must not be given."""
        return NOTHING

    def idle(self) -> frozenset[str]:
        """Return the keys without effect, and ``server_lr`` beside an optimiser, which has a rate of its own."""
        return frozenset(self.unused()) | frozenset({"server_lr"} if self.server_optimizer is not None else ())

    def places(self, clients: int, asked: int) -> int | None:  # noqa: ARG002
        """Return the jobs in flight, at most: run.concurrency, unless the method settles it; ``None`` = no bound."""
        return asked


class StalenessTable(MethodTable):
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
        idle = frozenset(key for key, owner in STALENESS_KEYS.items() if owner != self.staleness)
        return MethodTable.idle(self) | idle


STALENESS_KEYS = {"staleness_power": "polynomial", "hinge_a": "hinge", "hinge_b": "hinge"}
