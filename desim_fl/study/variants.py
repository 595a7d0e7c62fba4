"""From a study to what is played: variants, each a setting of the base scenario under a name."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.errors import ScenarioError
from desim_fl.scenario.overrides import path_of
from desim_fl.study.document import MOST_RUNS, Level

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from desim_fl.study.document import Factor, Study

Setting = tuple[tuple[str, ...], Any]
_SEPARATOR = " · "


class Variant(NamedTuple):
    """One way to play: its label, the level of each factor, and what it sets, in order."""

    label: str
    levels: tuple[str, ...]
    settings: tuple[Setting, ...]


def settings_of(level: Level | Study) -> tuple[Setting, ...]:
    """Return (path, value) pairs of what a level leaves out (``None``), then of what it sets.

    A key may be dotted. An inner table is set key by key; one with ``name`` or ``law`` says what the whole table is, so
    it takes the place of whatever stood there. Raises ScenarioError for what is no key.
    """
    return (*((path_of(key), None) for key in level.unset), *_flattened((), level.set))


def _flattened(outer: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[Setting]:
    for key, value in table.items():
        path = (*outer, *path_of(key))
        if isinstance(value, dict) and value and not {"name", "law"} & value.keys():
            yield from _flattened(path, value)
        else:
            yield path, value


def levels(factor: Factor) -> tuple[Level, ...]:
    """Return the named levels of a factor; those of a key are named by their values."""
    if factor.levels is not None:
        return factor.levels
    assert factor.key is not None
    return tuple(Level(label=shown(value), set={factor.key: value}) for value in factor.values or ())


def shown(value: Any) -> str:
    """Return a value as a label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        name = value.get("name") or value.get("law")
        rest = [f"{key}={shown(entry)}" for key, entry in value.items() if key not in ("name", "law")]
        return " ".join([*([str(name)] if name else []), *rest])[:100] or "{}"
    if isinstance(value, (list, tuple)):
        return ("[" + ", ".join(map(shown, value)) + "]")[:100]
    return str(value)[:100] or '""'


def variants(study: Study) -> list[Variant]:
    """Return all variants, the baseline first."""
    if study.design == "list":
        found = [Variant(level.label, (level.label,), settings_of(level)) for level in study.variants]
    else:
        found = [_combined(choice) for choice in _choices(study)]
    base = baseline(study)
    return sorted(found, key=lambda variant: variant.levels != base)  # a stable sort: the rest stays in order


def factor_names(study: Study) -> tuple[str, ...]:
    """Return what the levels of a variant are levels of."""
    return ("variant",) if study.design == "list" else tuple(factor.name for factor in study.factors)


def baseline(study: Study) -> tuple[str, ...]:
    """Return the levels of the variant that the others are compared with."""
    if study.design == "list":
        return (study.baseline if isinstance(study.baseline, str) else study.variants[0].label,)
    chosen = study.baseline if isinstance(study.baseline, dict) else {}
    return tuple(chosen.get(factor.name, levels(factor)[0].label) for factor in study.factors)


def _choices(study: Study) -> list[tuple[Level, ...]]:
    every = [levels(factor) for factor in study.factors]
    if study.design == "grid":
        return list(itertools.product(*every))
    base = baseline(study)
    start = tuple(next(level for level in of if level.label == name) for of, name in zip(every, base, strict=True))
    drawn = [start]
    seen = {base}
    rng = np.random.Generator(np.random.Philox(study.sample_seed))
    wanted = min(study.sample or 0, math.prod(map(len, every)) - 1)
    while len(drawn) <= wanted:
        choice = tuple(of[int(u * len(of))] for u, of in zip(rng.random(len(every)), every, strict=True))
        names = tuple(level.label for level in choice)
        if names not in seen:
            seen.add(names)
            drawn.append(choice)
    return drawn


def _combined(choice: Sequence[Level]) -> Variant:
    settings = tuple(setting for level in choice for setting in settings_of(level))
    names = tuple(level.label for level in choice)
    return Variant(_SEPARATOR.join(names) or "base", names, settings)


def check(study: Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what is wrong between the keys of a study: (place, message)."""
    wrong = [*_check_factors(study), *_check_design(study)]
    if not list(_check_factors(study)):
        wrong += [*_check_baseline(study), *_check_tuning(study)]
    wrong += _check_keys(("set",), study)
    for number, variant in enumerate(study.variants):
        wrong += _check_keys(("variants", number), variant)
    yield from wrong or _check_published(study)


def _check_keys(place: tuple[str | int, ...], level: Level | Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    try:
        found = settings_of(level)
    except ScenarioError as error:
        yield place, str(error)
        return
    for path, _ in found:
        if path == ("run", "seed"):
            yield place, "the seeds of a study stand in its key seeds; run.seed cannot be set"


def _check_factors(study: Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    names: list[str] = []
    for number, factor in enumerate(study.factors):
        place = ("factors", number)
        if factor.name in names:
            yield (*place, "name"), f'two factors are called "{factor.name}"'
        names.append(factor.name)
        if (factor.levels is None) == (factor.values is None) or (factor.key is None) != (factor.values is None):
            yield place, "a factor has either key and values, or levels"
            continue
        labels = [level.label for level in levels(factor)]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            yield (*place, "values" if factor.values else "levels"), f'the level "{twice}" stands there twice'
        for level in levels(factor):
            yield from _check_keys((*place, "key" if factor.key else "levels"), level)


def _check_design(study: Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    listed = study.design == "list"
    if listed and not study.variants:
        yield ("variants",), 'design = "list" needs [[variants]]'
    if not listed and study.variants:
        yield ("variants",), '[[variants]] belong to design = "list"'
    if listed and study.factors:
        yield ("factors",), '[[factors]] belong to the designs "grid" and "sample"'
    if (study.sample is None) == (study.design == "sample"):
        yield ("sample",), 'sample belongs to design = "sample", and there it is required'
    if study.sample_seed and study.design != "sample":
        yield ("sample_seed",), 'sample_seed belongs to design = "sample"'
    labels = [variant.label for variant in study.variants]
    if len(set(labels)) < len(labels):
        yield ("variants",), f'two variants are called "{next(name for name in labels if labels.count(name) > 1)}"'
    if len(set(study.seeds)) < len(study.seeds):
        yield ("seeds",), "a seed stands there twice"
    if study.timing_only and (study.target is not None or study.tuning is not None):
        yield ("timing_only",), "without training there is nothing to reach or to tune; take target and tuning out"


def _check_baseline(study: Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if study.design == "list":
        labels = [variant.label for variant in study.variants]
        if isinstance(study.baseline, dict) and study.baseline:
            yield ("baseline",), 'with design = "list" the baseline is the label of a variant'
        elif isinstance(study.baseline, str) and study.baseline not in labels:
            yield ("baseline",), f'there is no variant "{study.baseline}"; there are {", ".join(labels[:20])}'
        return
    if isinstance(study.baseline, str):
        yield ("baseline",), "the baseline is a table: the level of each factor"
        return
    known = {factor.name: [level.label for level in levels(factor)] for factor in study.factors}
    for name, label in study.baseline.items():
        if name not in known:
            yield ("baseline", name), f'there is no factor "{name}"; there are {", ".join(known) or "none"}'
        elif label not in known[name]:
            yield ("baseline", name), f'"{name}" has no level "{label}"; it has {", ".join(known[name][:20])}'


def _check_tuning(study: Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    tuning = study.tuning
    if tuning is None:
        return
    yield from _check_keys(("tuning", "key"), Level(label="tuned", set={tuning.key: 0}))
    if tuning.metric == "time":
        if study.target is None:
            yield ("tuning", "metric"), 'metric = "time" needs a [target], which is to be reached in it'
        if tuning.given("split"):
            yield ("tuning", "split"), 'split must not be given with metric = "time": [target] says it'
    both = [seed for seed in tuning.seeds if seed in study.seeds]
    if both:
        yield ("tuning", "seeds"), f"seed {both[0]} is one of the study's own; what is tuned on it is not tested by it"
    unknown = [name for name in tuning.by if name not in factor_names(study)]
    if unknown:
        yield ("tuning", "by"), f'there is no factor "{unknown[0]}"; there are {", ".join(factor_names(study))}'
    for number, factor in enumerate(study.factors):
        if any(path == path_of(tuning.key) for level in levels(factor) for path, _ in settings_of(level)):
            yield ("factors", number), f"{tuning.key} is tuned, so it cannot vary"


def _check_published(study: Study) -> Iterator[tuple[tuple[str | int, ...], str]]:
    known = {} if not study.published or _too_many(study) else {variant.label: None for variant in variants(study)}
    for number, entry in enumerate(study.published):
        place = ("published", number)
        if study.target is None:
            yield place, "published numbers are about the time to a target; the study needs a [target]"
        if entry.against is not None and entry.against not in factor_names(study):
            yield (
                (*place, "against"),
                f'there is no factor "{entry.against}"; there are {", ".join(factor_names(study))}',
            )
        if entry.label in [other.label for other in study.published[:number]]:
            yield (*place, "label"), f'two tables of published numbers are called "{entry.label}"'
        for label in entry.values:
            if known and label not in known:
                yield (*place, "values"), f'there is no variant "{label}"; there are {", ".join(list(known)[:20])}'


def _too_many(study: Study) -> bool:
    """Whether there are more variants than may be, which is told elsewhere."""
    return study.design != "list" and math.prod(len(levels(factor)) for factor in study.factors) > MOST_RUNS
