"""What may stand in a study file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from desim_fl.scenario.server import SEED_MAX
from desim_fl.scenario.table import Count, Number, Positive, Table

Label = Annotated[str, Field(min_length=1, max_length=100)]
Seed = Annotated[int, Field(ge=0, le=SEED_MAX)]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=10_000)]
Settings = Annotated[dict[str, Any], Field(max_length=200)]
Key = Annotated[str, Field(min_length=1, max_length=200)]
Keys = Annotated[tuple[Key, ...], Field(strict=False, max_length=200)]
MOST_RUNS = 1_000_000


class Level(Table):
    """One value of a factor, or one variant of a list: a label, and what it sets in the scenario."""

    label: Label = Field(description="What it is called in tables and charts.")
    set: Settings = Field(
        default={}, description='What it sets: scenario keys ("run.delay_scale" = 10), or whole tables.'
    )
    unset: Keys = Field(default=(), description="Scenario keys that it leaves out, so that their defaults hold.")


class Factor(Table):
    """Something that varies: one key with its values, or named levels that set several keys."""

    name: Label = Field(description="What it is called.")
    key: Key | None = Field(
        default=None, description='The scenario key that varies, as in "run.delay_scale"; with values.'
    )
    values: Annotated[tuple[Any, ...], Field(strict=False, min_length=1, max_length=10_000)] | None = Field(
        default=None, description="Its values."
    )
    levels: Annotated[tuple[Level, ...], Field(strict=False, min_length=1, max_length=10_000)] | None = Field(
        default=None, description="Named levels instead of key and values."
    )


class Target(Table):
    """What counts as having got there."""

    metric: Literal["accuracy", "loss"] = Field(default="accuracy", description="What is to be reached.")
    value: Number = Field(description="Accuracy of at least, or loss of at most, so much.")
    split: Literal["test", "validation"] = Field(default="test", description="On which part of the data.")
    hold: Count = Field(
        default=1,
        description="Evaluations on end that must be that good; the first of them is when the target was reached. So a run that "
        "only swings through it has not got there.",
    )


class Tuning(Table):
    """A key that is chosen from a grid before the study, on seeds of its own."""

    key: Key = Field(description="The scenario key that is tuned.")
    values: Annotated[tuple[Any, ...], Field(strict=False, min_length=1, max_length=1000)] = Field(
        description="Its grid."
    )
    seeds: Seeds = Field(description="Seeds of the tuning runs; none of the study's own.")
    by: Annotated[tuple[Label, ...], Field(strict=False)] = Field(
        default=(), description="Factors for whose levels it is chosen apart; the others stay at the baseline."
    )
    metric: Literal["accuracy", "loss", "time"] = Field(
        default="loss",
        description="The best mean of this value at the end is chosen; or the value with which most runs reach the study's "
        "target, and of those the one that takes the least virtual time.",
    )
    split: Literal["test", "validation"] = Field(
        default="validation",
        description="On which part; validation needs data.validation_share. Not with time: the target says it.",
    )


class Published(Table):
    """Numbers of a paper, or of theory, that stand beside the study's own in its charts."""

    label: Label = Field(description="Whose they are, as the legend says it.")
    metric: Literal["time_to_target_s", "updates_to_target"] = Field(
        default="time_to_target_s", description="What they are numbers of: virtual seconds, or updates, to the target."
    )
    against: Label | None = Field(
        default=None,
        description="They are ratios to the baseline's level of this factor; absent = they are values as they stand.",
    )
    values: Annotated[dict[Label, Positive], Field(min_length=1, max_length=1000)] = Field(
        description='Number by variant, named as in the tables of the study (levels joined by " \u00b7 ").'
    )


class Study(Table):
    """A whole study."""

    name: str = Field(default="study", min_length=1, max_length=255, description="Name; absent = the file's.")
    description: str = Field(default="", max_length=100_000, description="The question it answers.")
    scenario: str = Field(min_length=1, max_length=4096, description="Base scenario, seen from the study file.")
    seeds: Seeds = Field(default=(0, 1, 2, 3, 4), description="Replications: every variant plays with each seed.")
    timing_only: bool = Field(default=False, description="Play timelines without training.")
    design: Literal["grid", "sample", "list"] = Field(
        default="grid",
        description="grid = every combination of levels, sample = a random part of them, list = the variants as written.",
    )
    sample: Annotated[int, Field(ge=1, le=MOST_RUNS)] | None = Field(
        default=None, description="How many combinations sample draws; required there."
    )
    sample_seed: Seed = Field(default=0, description="Seed of that draw.")
    set: Settings = Field(default={}, description="What all variants set, before their own.")
    unset: Keys = Field(default=(), description="Scenario keys that all leave out, before their own are set.")
    factors: Annotated[tuple[Factor, ...], Field(strict=False, max_length=20)] = Field(
        default=(), description="What varies; of each, the first level is the baseline unless baseline says otherwise."
    )
    variants: Annotated[tuple[Level, ...], Field(strict=False, max_length=MOST_RUNS)] = Field(
        default=(), description="With design = list: the variants."
    )
    baseline: dict[Label, Label] | Label = Field(
        default={}, description="Level of each factor (or the label of the variant) that others are compared with."
    )
    target: Target | None = Field(default=None, description="For the time to target; absent = it is not reported.")
    tuning: Tuning | None = Field(default=None, description="A key chosen beforehand.")
    published: Annotated[tuple[Published, ...], Field(strict=False, max_length=20)] = Field(
        default=(), description="Numbers of others for its charts."
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(default=0.95, description="Of all intervals.")
    keep_runs: bool = Field(default=False, description="Keep a run directory of every run.")
