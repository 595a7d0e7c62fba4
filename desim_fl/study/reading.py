"""From a study file to a checked study: every mistake at once, with file, line and key."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from desim_fl.errors import ScenarioError
from desim_fl.scenario import load as load_scenario
from desim_fl.scenario import messages
from desim_fl.scenario.places import Places, lines
from desim_fl.scenario.reading import MAX_PROBLEMS, refuse_deep, toml
from desim_fl.scenario.rules import quoted
from desim_fl.study.document import MOST_RUNS, Factor, Level, Published, Study, Target, Tuning
from desim_fl.study.variants import check, levels, settings_of, variants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from desim_fl.scenario import Scenario
    from desim_fl.scenario.places import Loc
    from desim_fl.scenario.table import Table
    from desim_fl.study.variants import Setting, Variant

_TABLES: dict[str, type[Table]] = {
    "": Study,
    "factors": Factor,
    "levels": Level,
    "variants": Level,
    "target": Target,
    "tuning": Tuning,
    "published": Published,
}


class Plan(NamedTuple):
    """A study that can be played: its file and text, its tables, the base scenario's path, and its variants."""

    path: Path
    text: str
    study: Study
    scenario: Path
    variants: tuple[Variant, ...]
    scenarios: tuple[Scenario, ...]  # of the variants, with the first seed

    def scenario_of(self, settings: Sequence[Setting], seed: int, label: str) -> Scenario:
        """Load the base scenario with what the study and a variant set. Raises ScenarioError naming the variant."""
        values = (*settings_of(self.study), *settings)
        return load_scenario(self.scenario, (), seed, values=values, place=f'{self.path} (variant "{label}")')


def load(path: Path, overrides: Sequence[tuple[str, Any]] = ()) -> Plan:
    """Read a study file, and check it together with every variant of its scenario.

    ``overrides`` are (key, value) pairs that take the place of keys of the study itself (seeds, say). Raises
    ScenarioError with one line for each problem.
    """
    text, document = toml(path)
    document.setdefault("name", path.stem)
    document.update(overrides)
    places = Places(str(path), lines(text), {(key,): f"--{key.replace('_', '-')}" for key, _ in overrides})
    refuse_deep(document, places)
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS]
        raise ScenarioError(_said([_explained(document, detail) for detail in details], places)) from None
    wrong = list(check(study))
    if wrong:
        raise ScenarioError(_said(wrong, places))
    if study.design != "list" and math.prod(len(levels(factor)) for factor in study.factors) > MOST_RUNS:
        raise ScenarioError(f"{places.of(('factors',))[1]}: these are more than {MOST_RUNS:,} variants")
    plan = Plan(path, text, study, path.parent / study.scenario, tuple(variants(study)), ())
    if len(plan.variants) * len(study.seeds) > MOST_RUNS:
        raise ScenarioError(f"{places.of(('seeds',))[1]}: these are more than {MOST_RUNS:,} runs")
    return plan._replace(scenarios=_scenarios(plan))


def _scenarios(plan: Plan) -> tuple[Scenario, ...]:
    """Load the scenario of every variant; raises ScenarioError with what is wrong, each fault once."""
    found: dict[str, None] = {}
    loaded: list[Scenario] = []
    for variant in plan.variants:
        try:
            loaded.append(plan.scenario_of(variant.settings, plan.study.seeds[0], variant.label))
        except ScenarioError as error:
            found.update(dict.fromkeys(_naming(plan, variant, line) for line in str(error).splitlines()))
        if len(found) >= MAX_PROBLEMS:
            break
    if found:
        raise ScenarioError("\n".join(list(found)[:MAX_PROBLEMS]))
    return tuple(loaded)


def _naming(plan: Plan, variant: Variant, line: str) -> str:
    """Say in which variant something is wrong, where the line does not."""
    return line if line.startswith(str(plan.path)) else f'{line} (variant "{variant.label}" of {plan.path})'


def _said(problems: Sequence[tuple[Loc, str]], places: Places) -> str:
    rows = sorted(((*places.of(loc), text) for loc, text in problems), key=lambda row: row[0])
    return "\n".join(f"{place}: {text}" for _, place, text in rows)


def _explained(document: dict[str, Any], detail: Any) -> tuple[Loc, str]:
    """Return place and message of one finding of pydantic."""
    kind, loc, context = detail["type"], _without_tags(detail["loc"]), detail.get("ctx", {})
    key = str(loc[-1])
    name = ".".join(map(str, loc))
    if kind == "missing":
        return loc[:-1], f"{_table(loc)}needs the key {quoted(key)}"
    if kind == "extra_forbidden":
        home = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
        keys = list(_TABLES[home].model_fields)
        guess = messages.near(key, keys)
        hint = f"did you mean {quoted(guess)}?" if guess else f"its keys are {', '.join(keys)}"
        return loc, f"{_table(loc)}has no key {quoted(key)}; {hint}"
    if kind == "literal_error":
        return loc, f"{name} must be {context['expected']}, not {messages.shown(messages.value_at(document, loc))}"
    return loc, _table(loc) + messages.problem(document, kind, loc, context, detail["msg"]).text


def _without_tags(loc: Loc) -> Loc:
    """Leave out the names of union members that pydantic puts into a place."""
    return tuple(
        part for part in loc if not (isinstance(part, str) and part.startswith(("dict[", "constrained", "str")))
    )


def _table(loc: Loc) -> str:
    names = [str(part) for part in loc[:-1] if isinstance(part, str)]
    return f"[{'.'.join(names)}] " if names else ""
