"""The floor plan as a test: import direction, third-party packages, no hidden state, budgets."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "desim_fl"

# Each room, its floor, and the third-party packages it may import (anywhere, type hints included).
FLOORS: dict[str, tuple[int, set[str]]] = {
    "core": (0, set()),
    "errors": (0, set()),
    "ticks": (0, set()),
    "provenance": (0, set()),
    "own": (1, set()),
    "algebra": (0, {"numpy"}),
    "draws": (0, {"numpy"}),
    "elementary": (0, {"numpy"}),
    "scenario": (1, {"pydantic", "pydantic_core", "tomli_w"}),
    "durable": (0, set()),
    "eventlog": (1, {"numpy", "polars"}),
    "tables": (1, {"polars"}),
    "continuation": (3, set()),
    "checkpoint": (3, {"numpy", "safetensors", "torch"}),
    "checkpointing": (4, set()),
    "records": (1, {"numpy"}),
    "strategies": (2, set()),
    "assignment": (2, set()),
    "ledger": (2, {"numpy"}),
    "laws": (2, set()),
    "durations": (2, {"numpy"}),
    "availability": (2, {"numpy"}),
    "attendance": (2, {"numpy"}),
    "course": (3, set()),
    "failures": (3, {"numpy"}),
    "journeys": (3, set()),
    "network": (2, {"numpy"}),
    "sharing": (2, set()),
    "meter": (2, set()),
    "roads": (3, {"simpy"}),
    "passage": (3, set()),
    "transit": (3, set()),
    "curtailments": (3, set()),
    "stays": (3, set()),
    "blackouts": (3, set()),
    "queues": (3, set()),
    "absences": (3, set()),
    "loads": (3, {"numpy"}),
    "recall": (3, set()),
    "timing": (2, {"numpy"}),
    "devices": (2, {"numpy"}),
    "energy": (2, {"numpy"}),
    "service": (2, set()),
    "server": (3, set()),
    "opening": (3, set()),
    "polling": (3, set()),
    "premises": (3, set()),
    "partitions": (2, {"numpy"}),
    "held_out": (2, {"numpy"}),
    "population": (2, {"numpy"}),
    "selection": (2, {"numpy"}),
    "preferences": (2, {"numpy"}),
    "datasets": (2, {"PIL", "numpy", "polars"}),
    "learning": (2, {"numpy", "torch", "torchvision"}),
    "executors": (2, {"numpy", "ray", "safetensors", "torch"}),
    "world": (3, set()),
    "data": (3, {"numpy"}),
    "allotment": (3, {"numpy"}),
    "patience": (3, set()),
    "delays": (3, set()),
    "flight": (3, {"simpy"}),
    "view": (3, set()),
    "buffers": (3, set()),
    "complaints": (3, set()),
    "standstill": (3, set()),
    "consultation": (2, set()),
    "recount": (4, {"polars"}),
    "balance": (4, {"polars"}),
    "link_usage": (4, {"polars"}),
    "usage": (3, {"numpy"}),
    "evaluation": (3, {"simpy"}),
    "readings": (3, set()),
    "dispatch": (3, set()),
    "engine": (3, {"simpy"}),
    "report": (3, {"polars", "altair", "jinja2", "vl_convert", "markupsafe"}),
    "footprint": (3, set()),
    "closed_form": (3, {"numpy"}),
    "circumstances": (4, {"numpy"}),
    "traces": (3, {"numpy", "polars"}),
    "build": (4, {"numpy"}),
    "fleet": (3, {"numpy"}),
    "rundir": (4, {"numpy", "polars", "safetensors"}),
    "reserve": (4, {"numpy", "polars"}),
    "run": (4, {"polars"}),
    "inventory": (4, {"polars"}),
    "claims": (4, {"polars"}),
    "replay": (4, {"numpy", "polars"}),
    "verify": (4, {"polars"}),
    "damage": (4, set()),
    "oracles": (4, {"numpy"}),
    "advice": (4, {"numpy"}),
    "testing": (4, {"numpy"}),
    "effort": (4, set()),
    "study": (4, {"numpy", "polars", "pydantic", "scipy"}),
    "bench": (4, {"numpy", "torch"}),
    "bench_reuse": (4, set()),
    "bench_plan": (4, {"simpy"}),
    "bench_report": (4, {"polars"}),
    "bench_links": (4, {"numpy"}),
    "bench_pfl": (4, {"pfl", "torch"}),
    "progress": (5, {"rich"}),
    "cli": (5, {"typer"}),
    "cli_bench": (5, {"typer"}),
    "cli_study": (5, {"rich", "typer"}),
    "cli_data": (5, {"typer"}),
    "api": (5, {"polars", "pydantic"}),
    "cli_parameters": (5, {"typer"}),
    "cli_export": (5, {"typer"}),
    "cli_compare": (5, {"rich", "typer"}),
    "export": (4, {"altair", "numpy", "polars", "torch", "vl_convert"}),
    "compare": (4, {"polars"}),
    "comparison_page": (4, {"polars"}),
    "__init__": (5, set()),
    "__main__": (6, set()),
}
# Rooms on one floor that may look into each other, downward within the floor.
WITHIN = {
    "scenario": set(),
    "eventlog": {"records"},
    "executors": {"learning"},
    "learning": {"datasets"},
    "selection": {"population"},
    "availability": {"durations"},
    "attendance": {"availability", "population"},
    "course": {"flight"},
    "failures": {"course"},
    "journeys": {"absences", "course", "failures", "flight", "world"},
    "absences": {"complaints", "failures", "flight"},
    "roads": {"flight"},
    "passage": {"course", "flight", "roads"},
    "stays": {"flight", "passage"},
    "blackouts": {"flight"},
    "queues": {"passage"},
    "curtailments": {"course", "flight", "journeys", "passage"},
    "transit": {
        "absences",
        "blackouts",
        "course",
        "curtailments",
        "failures",
        "flight",
        "journeys",
        "passage",
        "queues",
        "roads",
        "stays",
    },
    "preferences": {"population", "selection"},
    "service": {"durations"},
    "server": {"flight"},
    "opening": {"dispatch", "flight"},
    "polling": {"dispatch", "flight", "opening"},
    "premises": {
        "absences",
        "dispatch",
        "journeys",
        "loads",
        "opening",
        "polling",
        "recall",
        "roads",
        "server",
        "transit",
        "view",
        "world",
    },
    "timing": {"devices", "durations", "network"},
    "world": {"failures"},
    "flight": {"world"},
    "buffers": {"world"},
    "view": {"flight", "world"},
    "usage": {"flight"},
    "meter": {"sharing"},
    "network": {"durations", "meter", "sharing"},
    "recall": {"absences", "flight"},
    "evaluation": {"flight", "world"},
    "dispatch": {"world"},
    "complaints": {"dispatch"},
    "standstill": {"complaints", "world"},
    "patience": {"evaluation", "flight", "world"},
    "engine": {
        "patience",
        "standstill",
        "complaints",
        "delays",
        "evaluation",
        "flight",
        "readings",
        "buffers",
        "usage",
        "view",
        "world",
        "premises",
    },
    "continuation": {"engine", "readings", "buffers"},
    "build": {"circumstances"},
    "rundir": {"balance", "build"},
    "checkpointing": {"build"},
    "run": {"build", "checkpointing", "link_usage", "reserve", "rundir"},
    "oracles": {"build"},
    "advice": {"build", "run"},
    "inventory": {"checkpointing", "link_usage", "reserve", "rundir"},
    "reserve": {"build", "rundir"},
    "claims": {"run", "rundir"},
    "replay": {"balance", "build", "link_usage", "recount", "reserve", "run", "rundir"},
    "verify": {"balance", "claims", "inventory", "link_usage", "recount", "replay", "reserve", "run", "rundir"},
    "damage": {"verify"},
    "effort": {"build", "run"},
    "bench": {"bench_pfl"},
    "closed_form": {"data"},
    "allotment": {"closed_form", "data"},
    "population": {"partitions"},
    "held_out": {"population"},
    "study": {"build", "run", "rundir"},
    "compare": {"study"},
    "comparison_page": {"compare"},
    "bench_reuse": {"bench", "build", "run"},
    "bench_plan": {"bench", "build", "run"},
    "bench_report": {"bench", "bench_plan", "run"},
    "bench_links": {"bench"},
    "cli": {"cli_bench", "cli_compare", "cli_data", "cli_export", "cli_parameters", "cli_study", "progress"},
    "algebra": {"errors"},
    "core": set(),
    "ticks": {"core"},
}
NO_TORCH = (
    "engine",
    "strategies",
    "selection",
    "timing",
    "network",
    "population",
    "data",
    "datasets",
    "build",
    "run",
    "eventlog",
)
WALL_CLOCK = {
    "bench.py",
    "bench_reuse.py",
    "bench_plan.py",
    "bench_report.py",
    "bench_links.py",
    "checkpointing.py",
    "executors/choice.py",
    "executors/reuse.py",
    "executors/inline.py",
    "executors/threads.py",
    "executors/bridge.py",
    "executors/vmap.py",
    "executors/worker.py",
    "run.py",
    "progress.py",
}  # provenance and progress only
GLOBAL_RANDOM = {"learning/randomness.py"}


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def room(path: Path) -> str:
    """The room a module stands in: the first folder, or the module itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of all imports, those inside functions and type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_in_a_known_room():
    """A new module is given its floor here before it is used."""
    assert {room(path) for path in modules()} <= set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_only_downward(path):
    """A room imports from lower floors, or from the rooms of its own floor that are listed."""
    mine = room(path)
    for name in imports(path):
        if not name.startswith("desim_fl."):
            continue
        other = name.split(".")[1]
        if other == mine or other not in FLOORS:  # its own room, or desim_fl.__version__
            continue
        lower = FLOORS[other][0] < FLOORS[mine][0]
        assert lower or other in WITHIN.get(mine, set()), f"{mine} (floor {FLOORS[mine][0]}) imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_third_party_packages_stay_in_their_rooms(path):
    """Each layer uses only the packages that the floor plan gives it."""
    known = set(sys.stdlib_module_names) | {"desim_fl"}
    foreign = {name.split(".")[0] for name in imports(path)} - known
    assert foreign <= FLOORS[room(path)][1], f"{path.name} imports {foreign - FLOORS[room(path)][1]}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_global_is_touched(path):
    """No module-level random generator, no seeding, no host clock, no hash() of objects, outside the listed places; CASES RP-01."""
    relative = str(path.relative_to(ROOT))
    source = path.read_text()
    names = imports(path)
    clocks = {name for name in names if name.split(".")[0] in {"time", "datetime"}}
    assert not clocks or relative in WALL_CLOCK, f"{relative} reads the host clock: {clocks}"
    assert relative in GLOBAL_RANDOM or not any(name.split(".")[0] in {"random", "secrets"} for name in names)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            forbidden = called in {"hash", "np.random.seed", "torch.manual_seed", "torch.cuda.manual_seed_all"} or (
                called.startswith("np.random.") and called.split(".")[2] not in {"Generator", "Philox"}
            )
            assert not forbidden or relative in GLOBAL_RANDOM, f"{relative}:{node.lineno} calls {called}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loop_runs_over_a_set(path):
    """Sets are for membership; iterating one would make results depend on hashes; CASES RP-01."""
    for node in ast.walk(ast.parse(path.read_text())):
        loops = isinstance(node, (ast.For, ast.comprehension))
        assert not (loops and isinstance(node.iter, (ast.Set, ast.SetComp))), f"{path.name}: a loop over a set"
        if loops and isinstance(node.iter, ast.Call):
            assert ast.unparse(node.iter.func) not in {"set", "frozenset"}, f"{path.name}: a loop over a set"


def test_budgets_of_functions_and_modules_hold():
    """Modules stay readable: about 300 lines, functions about 6 lines at the median and 40 at most."""
    lengths: list[int] = []
    for path in modules():
        assert len(path.read_text().splitlines()) <= 430, f"{path.name} is too long for one room"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                body = (node.end_lineno or 0) - first.lineno + 1
                lengths.append(body)
                assert body <= 40, f"{path.name}: {node.name} has {body} body lines"
    assert statistics.median(lengths) <= 7


def test_plan_imports_no_torch():
    """The modules that plan needs are importable, and plan plays, without torch."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['torchvision'] = None\n"
        f"import {', '.join('desim_fl.' + name for name in NO_TORCH)}\n"
        "from pathlib import Path; from desim_fl.scenario import load; from desim_fl.run import execute\n"
        f"print(execute(load(Path({str(ROOT.parent / 'scenarios' / 'quickstart.toml')!r})), None, timing_only=True)"
        "['timeline_sha256'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64


def test_help_needs_nothing_heavy():
    """``--help`` imports neither numpy, polars, torch, altair, simpy nor pydantic."""
    code = (
        "import sys\nfrom desim_fl.cli import app\ntry:\n    app(['--help'], standalone_mode=False)\n"
        "except SystemExit:\n    pass\nheavy = {'numpy', 'polars', 'torch', 'altair', 'simpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
