"""The table [failures]: what goes wrong between dispatch and arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from desim_fl.scenario.availability import Pairs, check_pairs
from desim_fl.scenario.laws import Constant, Duration, Span
from desim_fl.scenario.table import Amount, Positive, Share, Table

if TYPE_CHECKING:
    from typing import Self

CRASHES = ("crash_download", "crash_compute", "crash_upload", "crash_hazard_per_s")
BACKOFF = ("backoff_s", "backoff_factor")


class FailuresTable(Table):
    """Crashes, lost and repeated uploads, retries, timeouts and server outages; all off by default."""

    crash_download: Share = Field(default=0.0, description="Chance that an attempt crashes in its download.")
    crash_compute: Share = Field(default=0.0, description="Chance that an attempt crashes while it computes.")
    crash_upload: Share = Field(default=0.0, description="Chance that an attempt crashes in its upload.")
    crash_hazard_per_s: Amount = Field(default=0.0, description="Rate of crashes a second at work, in any leg.")
    upload_loss: Share = Field(default=0.0, description="Chance that a whole upload arrives nowhere.")
    duplicate: Share = Field(default=0.0, description="Chance that an update is delivered once more.")
    duplicate_delay_s: Duration = Field(
        default=Constant(value=0.0), description="Law: seconds between the arrival and the second delivery."
    )
    max_retries: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="So often a crashed or interrupted leg is tried again; then the job is lost."
    )
    backoff_s: Duration = Field(default=Constant(value=1.0), description="Law: seconds before the first retry.")
    backoff_factor: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=2.0, description="Each further retry waits so many times as long."
    )
    timeout_s: Positive | None = Field(
        default=None, description="So many seconds after a dispatch the server no longer waits for the job."
    )
    late: Literal["ignore", "accept"] = Field(
        default="ignore",
        description="After the timeout: the job is lost, or its place is filled and its update still taken.",
    )
    outages_s: Annotated[Pairs, Field(min_length=1)] | None = Field(
        default=None, description="Windows [start, end] in seconds in which the server is down."
    )
    outage_every_s: Span | None = Field(
        default=None, description="Law: seconds from the end of an outage (or from 0) to the next. With outage_for_s."
    )
    outage_for_s: Span | None = Field(default=None, description="Law: seconds that an outage lasts.")
    on_outage: Literal["wait", "fail"] = Field(
        default="wait",
        description="A transfer under way when the server goes down stands still until it is back, or fails.",
    )
    interrupted_transfers: Literal["resume", "restart"] = Field(
        default="resume", description="An interrupted transfer goes on where it was, or begins anew."
    )

    @property
    def crashes(self) -> bool:
        """Whether a job can crash."""
        return any(getattr(self, key) > 0 for key in CRASHES)

    @property
    def goes_down(self) -> bool:
        """Whether the server has outages."""
        return self.outages_s is not None or self.outage_every_s is not None

    @property
    def retried(self) -> bool:
        """Whether there is anything that a retry could mend."""
        return self.crashes or (self.goes_down and self.on_outage == "fail")

    def interrupts(self) -> bool:
        """Whether a transfer can be interrupted and go on, by what stands in this table."""
        return (self.goes_down and self.on_outage == "wait") or (self.retried and self.max_retries > 0)

    def idle(self) -> frozenset[str]:
        """Return what has no effect: chances of 0, and what belongs to them."""
        keys = {key for key in (*CRASHES, "upload_loss", "duplicate") if not getattr(self, key)}
        keys |= {"duplicate_delay_s"} if not self.duplicate else set()
        keys |= {"max_retries"} if not self.max_retries else set()
        keys |= set(BACKOFF) if not self.max_retries else set()
        keys |= {"late"} if self.timeout_s is None else set()
        keys |= {"on_outage"} if not self.goes_down else set()
        return frozenset(keys | ({"interrupted_transfers"} if self.interrupted_transfers == "resume" else set()))

    @model_validator(mode="after")
    def _outages_end(self) -> Self:
        check_pairs("outages_s", self.outages_s or ())
        return self
