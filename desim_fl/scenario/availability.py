"""The table [availability]: when clients are online, and what it means when one leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from desim_fl.scenario.laws import Constant, Duration, Span, problem
from desim_fl.scenario.table import Amount, Number, Positive, Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

DEFAULT_AVAILABILITY = "always"
DAY_S = 86_400

Pair = Annotated[tuple[Amount, ...], Field(strict=False, min_length=2, max_length=2)]
Pairs = Annotated[tuple[Pair, ...], Field(strict=False)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
OnLeave = Annotated[
    Literal["drop", "pause", "finish"],
    Field(
        description="What becomes of a running job when its client leaves: it is lost, stands still until the client "
        "comes back, or goes on as if nothing had happened."
    ),
]


def check_pairs(key: str, pairs: Sequence[Sequence[float]]) -> None:
    """Refuse a window that does not end after it starts."""
    for start, end in pairs:
        if end <= start:
            raise problem(key, f"{key} has the window [{start:g}, {end:g}], which does not end after it starts")


class Always(Table):
    """Everybody is online all the time."""

    name: Literal["always"] = Field(default=DEFAULT_AVAILABILITY, description="Everybody is online all the time.")
    pauses: ClassVar[bool] = False

    def entries(self) -> dict[str, Any]:
        """Nothing to write: it is as if the table were not there."""
        return {}


class Coming(Table):
    """What all tables share whose clients come and leave."""

    on_leave: OnLeave = "drop"

    @property
    def pauses(self) -> bool:
        """Whether a job stands still while its client is away."""
        return self.on_leave == "pause"


class RenewalTable(Coming):
    """Times online and offline in turns, drawn for each client on its own."""

    name: Literal["renewal"] = Field(default="renewal", description="Times online and offline in turns.")
    on_s: Span = Field(description="Law of the times online, in seconds.")
    off_s: Span = Field(description="Law of the times offline, in seconds.")
    start: Literal["stationary", "on"] = Field(
        default="stationary",
        description="At time 0: as if it had gone on for ever (a share mean on / (mean on + mean off) is online), or "
        "everybody just came online.",
    )


class DiurnalTable(Coming):
    """Day and night: the chance of being online follows a cosine over the local day."""

    name: Literal["diurnal"] = Field(default="diurnal", description="A chance of being online by local hour.")
    mean: Annotated[float, Field(ge=0.001, le=0.999)] = Field(
        default=0.5, description="Chance of being online, mean over the day (before it is cut to 0..1)."
    )
    amplitude: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.4, description="How far the chance swings around the mean."
    )
    peak_h: Annotated[float, Field(ge=0, le=24)] = Field(
        default=2.0, description="Local hour at which the chance is largest."
    )
    time_zone_h: Duration = Field(
        default=Constant(value=0.0),
        description="Law drawn once a client: hours by which its clock is ahead of virtual time.",
    )
    window_s: Annotated[float, Field(ge=1, le=DAY_S)] = Field(
        default=600.0, description="For so many seconds at a time a client is online or offline, by a draw of its own."
    )


class WindowsTable(Coming):
    """Windows as they are listed here."""

    name: Literal["windows"] = Field(default="windows", description="Listed windows.")
    windows_s: Annotated[tuple[Pairs, ...], Field(strict=False, min_length=1)] = Field(
        description="For each client a list of windows [start, end] in seconds, online from start to before end."
    )
    period_s: Positive | None = Field(default=None, description="Repeat the windows every so many seconds.")

    @model_validator(mode="after")
    def _windows_end(self) -> Self:
        for pairs in self.windows_s:
            check_pairs("windows_s", pairs)
        return self


class TraceTable(Coming):
    """Windows from a file: CSV or Parquet with one row a window."""

    name: Literal["trace"] = Field(default="trace", description="Windows from a CSV or Parquet file.")
    path: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="The file: *.csv or *.parquet, relative to the scenario file's folder."
    )
    client_column: Column = Field(default="client", description="Column with a whole number for each device.")
    start_column: Column = Field(default="start_s", description="Column with the start of a window, in seconds.")
    end_column: Column = Field(default="end_s", description="Column with its end, in seconds.")
    origin_s: Number = Field(default=0.0, description="The trace's time at virtual time 0, in seconds.")
    period_s: Positive | None = Field(default=None, description="Repeat the trace every so many seconds.")


AVAILABILITIES: dict[str, type[Table]] = {
    "always": Always,
    "renewal": RenewalTable,
    "diurnal": DiurnalTable,
    "windows": WindowsTable,
    "trace": TraceTable,
}


def availability_tag(value: Any) -> str | None:
    """Return which kind of availability a table is; ``None`` if it does not say so properly."""
    name = value.get("name", DEFAULT_AVAILABILITY) if isinstance(value, dict) else getattr(value, "name", None)
    return name if isinstance(name, str) else None


Availability = Annotated[
    Annotated[Always, Tag("always")]
    | Annotated[RenewalTable, Tag("renewal")]
    | Annotated[DiurnalTable, Tag("diurnal")]
    | Annotated[WindowsTable, Tag("windows")]
    | Annotated[TraceTable, Tag("trace")],
    Discriminator(availability_tag),
]
