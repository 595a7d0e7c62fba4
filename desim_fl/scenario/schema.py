"""The JSON Schema of scenario files, for completion and checking in editors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.scenario.availability import AVAILABILITIES, DEFAULT_AVAILABILITY
from desim_fl.scenario.data import DATA, DEFAULT_DATA
from desim_fl.scenario.document import Scenario
from desim_fl.scenario.laws import LAWS
from desim_fl.scenario.models import BY_DATA, DEFAULT_MODEL, MODELS
from desim_fl.scenario.strategies import DEFAULT_STRATEGY, STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from desim_fl.scenario.table import Table

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that scenario files follow; rules between keys are not in it."""
    raw = Scenario.model_json_schema()
    variants = ((DATA, DEFAULT_DATA), (AVAILABILITIES, DEFAULT_AVAILABILITY), (MODELS, DEFAULT_MODEL))
    for kinds, default in (*variants, (STRATEGIES, DEFAULT_STRATEGY)):
        _require(raw, "name", {tag: kind for tag, kind in kinds.items() if tag not in (default, *BY_DATA.values())})
    _require(raw, "law", LAWS)
    model = raw["properties"]["model"]
    model["anyOf"] = model.pop("oneOf")  # without a name it is mlp, scalar or linear, as the data decides
    for section in raw["properties"].values():
        if "default" in section and not isinstance(section["default"], str):
            del section["default"]
    return {"$schema": DIALECT, **_without_null(raw)}


def _require(raw: dict[str, Any], key: str, kinds: Mapping[str, type[Table]]) -> None:
    """Require the key that tells variants apart, so that exactly one of them matches a table."""
    for kind in kinds.values():
        definition = raw["$defs"][kind.__name__]
        definition["required"] = sorted({*definition.get("required", ()), key})


def _without_null(node: Any) -> Any:
    """Drop the null that stands for "absent", which TOML cannot write."""
    if isinstance(node, list):
        return [_without_null(entry) for entry in node if entry != {"type": "null"}]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("default"), dict) and "value" in node["default"]:
        node = {**node, "default": node["default"]["value"]}  # a law: the bare number says the same
    clean = {key: _without_null(value) for key, value in node.items() if not (key == "default" and value is None)}
    choices = clean.get("anyOf", ())
    if len(choices) == 1:
        del clean["anyOf"]
        return {**choices[0], **clean}
    return clean
