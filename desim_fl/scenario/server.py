"""Tables about the server: how the run goes and ends, and where training takes place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from desim_fl.scenario.table import CLIENT_MAX, Args, Count, CustomName, Positive, Share, Table

SEED_MAX = 2**64 - 1
ADDRESS = r"^(auto|(ray://)?[^\s/:]+:[0-9]{1,5}|(ray://)?\[[0-9a-fA-F:.]+\]:[0-9]{1,5})$"  # of a Ray cluster

Cohort = Annotated[int, Field(ge=1, le=CLIENT_MAX)]


ClientId = Annotated[int, Field(ge=0, lt=CLIENT_MAX)]


SelectionName = Literal[
    "uniform", "round_robin", "longest_idle", "order", "weighted", "fastest", "power_of_choice", "oort"
]
SELECTION_KEYS = {"power_of_choice": "poc_", "oort": "oort_"}  # the prefix of what belongs to a selection


class Run(Table):
    """How the run goes, what is measured, and when it ends: at the first stop rule that is met."""

    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] = Field(default=0, description="Seed of every random stream.")
    concurrency: Cohort = Field(
        default=10, description="Jobs in flight at once; with fedavg it follows from the cohort."
    )
    dispatch: Literal["immediate", "after_aggregation"] = Field(
        default="immediate", description="When a freed place is filled: at once, or when the next version is published."
    )
    selection: SelectionName = Field(default="uniform", description="Who is sent out next.")
    order: Annotated[tuple[ClientId, ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description='Client numbers in the order to send them out. Only with selection = "order", and there required.',
    )
    selector: CustomName | None = Field(
        default=None, description='Your own selector, instead of selection: "package.module:Selector".'
    )
    selector_args: Args = Field(default={}, description="Keyword arguments of selector: TOML values, no dates.")
    poc_candidates: Cohort = Field(
        default=10, description="Of power_of_choice: how many candidates are drawn, by data, for a dispatch."
    )
    poc_probe: bool = Field(
        default=False,
        description="Of power_of_choice: ask candidates for the loss of the model in force, by jobs that take time and move "
        "bytes, instead of going by what they last reported.",
    )
    poc_probe_share: Share = Field(
        default=1 / 3,
        description="Of poc_probe: time of an evaluation pass over a client's samples, as a share of an epoch of training.",
    )
    oort_exploration: Share = Field(
        default=0.1, description="Of oort: share of dispatches to clients that never reported, while there are any."
    )
    oort_preferred_s: Positive | None = Field(
        default=None, description="Of oort: clients whose jobs typically take longer are penalised; absent = nobody is."
    )
    oort_penalty: Annotated[float, Field(ge=0, le=30)] = Field(
        default=2.0,
        description="Of oort: power of preferred over typical time that a slow client's utility is multiplied with.",
    )
    oort_pacer_s: Positive | None = Field(
        default=None, description="Of oort: added to the preferred time when a window's utility falls; absent = never."
    )
    oort_pacer_window: Count = Field(default=20, description="Of oort: reports in a window of the pacer.")
    arrivals: Literal["constant", "poisson"] | None = Field(
        default=None,
        description="Open system: jobs are sent out at a rate, in equal steps or as a Poisson process, whatever comes "
        "back. Absent = closed: concurrency jobs in flight.",
    )
    arrival_rate: Positive | None = Field(
        default=None, description="Jobs sent out in a virtual second. Only with arrivals, and there required."
    )
    client_queue: Annotated[int, Field(ge=1, le=CLIENT_MAX)] | None = Field(
        default=None,
        description="Open jobs that a client may have; they are computed one after another, first come, first served. "
        "Absent = 1.",
    )
    delay_scale: Positive = Field(default=1.0, description="Every duration is multiplied with it.")
    max_time_s: Positive | None = Field(default=None, description="Stop rule: virtual seconds.")
    max_versions: Count | None = Field(default=None, description="Stop rule: versions published.")
    max_updates: Count | None = Field(default=None, description="Stop rule: updates received.")
    target_accuracy: Share | None = Field(
        default=None, description="Stop rule: an evaluation of the validation part reaches this accuracy."
    )
    max_wall_s: Positive | None = Field(
        default=None, description="Interrupt the run after so many real seconds; resume goes on with it, as long again."
    )
    patience: Count | None = Field(
        default=None,
        description="Stop rule: so many evaluations on end, on the validation part, without a new best. Jobs in flight then "
        "are not applied.",
    )
    monitor: Literal["accuracy", "loss"] = Field(
        default="accuracy", description="What is watched, on the validation part. Only with patience."
    )
    eval_every_versions: Count | None = Field(default=None, description="Evaluate every so many versions.")
    eval_every_s: Positive | None = Field(default=None, description="Evaluate every so many virtual seconds.")
    non_finite: Literal["skip", "fail"] = Field(
        default="skip", description="A non-finite update keeps its place with weight 0, or ends the run with an error."
    )

    def idle(self) -> frozenset[str]:
        """Return the options of selections that are not chosen, and what an open system, or no patience, has no use for."""
        facts = {
            "concurrency": self.arrivals is not None,
            "dispatch": self.arrivals is not None,
            "selector_args": self.selector is None,
            "selection": self.selector is not None,
            "monitor": self.patience is None,
            "poc_probe_share": not self.poc_probe,
            "oort_penalty": self.oort_preferred_s is None,
            "oort_pacer_window": self.oort_pacer_s is None,
        }
        return frozenset(key for key, idle in facts.items() if idle) | frozenset(
            key
            for key in type(self).model_fields
            for name, prefix in SELECTION_KEYS.items()
            if key.startswith(prefix) and name != self.selection
        )

    def selection_options(self) -> dict[str, Any]:
        """Return the options of the selection that is chosen, by the names of its class."""
        prefix = SELECTION_KEYS.get(self.selection)
        keys = [] if prefix is None else [key for key in type(self).model_fields if key.startswith(prefix)]
        return {key.removeprefix(str(prefix)): getattr(self, key) for key in keys if getattr(self, key) is not None}


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
    near: bool = Field(
        default=False,
        description="Let auto take vmap as well, where the network's kind says that it is faster: dense layers alone, on "
        "a CPU. Results are then those of vmap.",
    )
    reuse: bool | None = Field(
        default=None,
        description="Keep outcomes in the user's cache folder, and take those that were computed before on this "
        "machine. Absent = where a built-in network is trained whose jobs cost much more than keeping an outcome does.",
    )
    reuse_limit_gb: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=2.0, description="Largest size of that folder; what was not used for longest goes first."
    )

    def bits(self) -> dict[str, object]:
        """Return what decides last bits of results: nothing, unless jobs may be trained together."""
        return {"name": self.name, "width": self.width} if self.name == "vmap" or self.near else {}

    def idle(self) -> frozenset[str]:
        """Return ``width`` where jobs are not trained together."""
        return frozenset() if self.bits() else frozenset({"width"})
