"""Hand-worked scalar cases of every method: ``vectors/*.toml``, played on floats; ``vectors/README.md`` tells the format."""

from __future__ import annotations

import ast
import math
import operator
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from desim_fl.core import Work
from desim_fl.strategies import TABLE, build
from desim_fl.testing import Playground

if TYPE_CHECKING:
    from desim_fl.core import Reply

FOLDER = Path(__file__).parent / "vectors"
SUMS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
KEYS = {
    "do",
    "delta",
    "model",
    "bad",
    "examples",
    "steps",
    "x",
    "v",
    "weight",
    "sent",
    "from",
    "stopped",
    "urged",
    "rejected",
    "because",
    "control",
    "controls",
    "partial",
    "why",
    "abandoned",
    "kept",
    "alarms",
}


def worked(text: str | float) -> float:
    """The value of a sum as it would be written on paper: + - * / ** ( ) and sqrt, nothing else."""

    def value(node):
        if isinstance(node, ast.Constant):
            return float(node.value)
        if isinstance(node, ast.BinOp):
            return SUMS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        assert isinstance(node, ast.Call)
        assert ast.unparse(node.func) == "sqrt"
        return math.sqrt(value(node.args[0]))

    return value(ast.parse(str(text), mode="eval").body)


CASES = [
    pytest.param(case, id=f"{case['method']} {case['name']}")
    for path in sorted(FOLDER.glob("*.toml"))
    for case in tomllib.loads(path.read_text())["case"]
]


def tiers(case: dict) -> dict[str, tuple[int, ...]]:
    """Client c is in tier c mod ``tiers``."""
    count = case.get("tiers", 0)
    return {f"tier {tier}": tuple(range(tier, case.get("clients", 2), count)) for tier in range(count)}


def happen(ground: Playground, step: dict) -> Reply:
    """Let one thing happen."""
    what, _, whom = step["do"].partition(" ")
    if what == "ring":
        return ground.alarm(whom)
    if what == "lose":
        return ground.lose(int(whom), step.get("why", "lost"))
    if what == "stop":
        return ground.strategy.finish(ground.state, ground)
    assert what == "arrive", step
    if step.get("partial"):
        ground.jobs[int(whom)] = ground.jobs[int(whom)]._replace(work=Work(1, 1, 0.1, partial=True))
    job = ground.jobs[int(whom)]
    end = job.params + worked(step["delta"]) if "delta" in step else worked(step.get("model", "0"))
    rest = {key: step[key] for key in ("examples", "steps") if key in step}
    if "control" in step:
        rest["extra"] = {"control": worked(step["control"])}
    return ground.arrive(job.id, end, finite=not step.get("bad", False), **rest)


def shown(ground: Playground, reply: Reply, before: set[int]) -> dict:
    """What a step may state, as the strategy and the playground have it."""
    new = [job for job in ground.jobs.values() if job.id not in before]
    return {
        "x": ground.params,
        "v": ground.version,
        "weight": reply.weight,
        "sent": [job.client for job in new],
        "from": [job.params for job in new],
        "controls": [job.extra["control"] for job in new if isinstance(job.extra, dict)],
        "stopped": [stop.job for stop in reply.stops if stop.how == "cancel"],
        "urged": [stop.job for stop in reply.stops if stop.how != "cancel"],
        "rejected": reply.reject,
        "abandoned": reply.abandon,
        "kept": [client for client, _ in reply.keep],
        "alarms": sorted(ground.alarms),
    }


@pytest.mark.parametrize("case", CASES)
def test_hand_worked_cases(case):
    """Every number that a case states is what the method gives, to 12 digits; each case says how it was worked out; CASES AG-05."""
    ground = Playground(
        build(case["method"], case.get("options", {})), float(case.get("x", 0.0)), clients=case.get("clients", 2),
        concurrency=case.get("concurrency", case.get("clients", 2)), policy=case.get("dispatch", "immediate"),
        sizes=case.get("sizes"), groups=tiers(case), work=Work(lr=case.get("lr")),
    )  # fmt: skip
    assert any("because" in step for step in case["play"])
    for step in case["play"]:
        assert set(step) <= KEYS, step
        before = set(ground.jobs)
        reply = happen(ground, step)
        if step["do"] == "stop":
            due = pytest.approx(worked(step["x"]), rel=1e-12, abs=1e-12) if "x" in step else None
            assert reply.params == due, step
            continue
        found = shown(ground, reply, before)
        for key, value in found.items():
            if key in {"x", "weight"} and key in step:
                assert value == pytest.approx(worked(step[key]), rel=1e-12, abs=1e-12), (key, step)
            elif key in {"from", "controls"} and key in step:
                assert value == pytest.approx([worked(text) for text in step[key]], rel=1e-12, abs=1e-12), step
            elif key in step:
                assert value == step[key], (key, step)


def test_every_method_has_hand_worked_cases():
    """No method of the table is without a case, and none of the cases is about another name."""
    told = {case.values[0]["method"] for case in CASES}
    assert told == set(TABLE), set(TABLE) ^ told
