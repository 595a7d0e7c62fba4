"""The command line as a person uses it: exit codes, messages, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import jsonschema
import polars as pl
import pytest

import scenarios
from desim_fl import eventlog

desim = scenarios.commanded


def apart(*arguments: object, cwd=None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "desim_fl", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
    )


def test_cf_01_a_misspelt_key_is_named_with_its_place_and_nearest_key(tmp_path):
    """[strategy] stalness_exponent: exit code 2 before anything runs, file, line, table, key and a suggestion."""
    path = scenarios.write(
        tmp_path, scenarios.QUADRATIC.replace("buffer_size = 2", "buffer_size = 2\nstalness_power = 0.5")
    )
    line = 1 + path.read_text().splitlines().index("stalness_power = 0.5")
    for command in ("run", "plan"):
        done = desim(command, path, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert f'{path}:{line}: [strategy] has no key "stalness_power"; did you mean "staleness_power"?' in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_cf_01_unknown_tables_and_keys_of_another_strategy_are_refused(tmp_path):
    """All mistakes are reported at once, one line each."""
    text = scenarios.QUADRATIC.replace("buffer_size = 2", "alpha = 0.5\nbuffer_size = 0") + "\n[stragety]\nname = 'x'\n"
    done = desim("run", scenarios.write(tmp_path, text))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 3
    for part in ("alpha", "fedasync", "buffer_size", "stragety", "strategy"):
        assert part in done.stderr


def test_print_config_shows_every_effective_value_and_loads_again(tmp_path):
    """--print-config is TOML with defaults and overrides; nothing runs; CASES CF-01."""
    path = scenarios.write(tmp_path)
    done = desim("run", path, "--set", "strategy.server_lr=0.5", "--seed", 11, "--print-config", cwd=tmp_path)
    shown = tomllib.loads(done.stdout)
    assert (shown["strategy"]["server_lr"], shown["strategy"]["staleness_power"], shown["run"]["seed"]) == (
        0.5,
        0.5,
        11,
    )
    again = desim("plan", scenarios.write(tmp_path, done.stdout, "again.toml"), "--print-config")
    assert tomllib.loads(again.stdout) == {**shown, "name": shown["name"]}
    assert not (tmp_path / "reports").exists()


def test_json_is_one_object_and_nothing_else(tmp_path):
    """Run --json prints exactly one JSON object with the promised names; plan's has null for what is trained."""
    path = scenarios.write(tmp_path)
    done = apart("run", path, "--out", tmp_path / "run", "--json")
    found = json.loads(done.stdout)
    promised = {
        "run_dir", "timeline_sha256", "model_sha256", "accuracy", "loss", "virtual_time_s", "versions", "updates", "wall_s",
    }  # fmt: skip
    assert promised <= set(found)
    assert (found["run_dir"], found["accuracy"], found["updates"]) == (str(tmp_path / "run"), None, 60)
    planned = json.loads(desim("plan", path, "--json").stdout)
    assert planned["timeline_sha256"] == found["timeline_sha256"]
    assert planned["model_sha256"] is planned["accuracy"] is planned["loss"] is planned["run_dir"] is None


def test_a_run_without_out_finds_a_new_folder_each_time(tmp_path):
    """reports/NAME, then reports/NAME-2; the report's place is printed."""
    path = scenarios.write(tmp_path)
    for folder in ("small", "small-2"):
        done = desim("run", path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"report: reports/{folder}/report.html" in done.stdout
        assert (tmp_path / "reports" / folder / "report.html").exists()
    hostile = desim("run", path, "--set", 'name="../../etc/<b>x</b>"', cwd=tmp_path)
    assert hostile.returncode == 0
    assert {place.parent for place in (tmp_path / "reports").glob("*/manifest.json")} <= set(
        (tmp_path / "reports").iterdir()
    )


def test_an_occupied_directory_is_refused(tmp_path):
    """Exit code 2 and a way out; what lies there is untouched."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    done = desim("run", scenarios.write(tmp_path), "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_verify_says_what_holds_and_exits_with_one_where_something_does_not(tmp_path):
    """A sound run: exit 0, also with --rerun; a changed row: exit 1 and the row; no run directory: exit 2."""
    desim("run", scenarios.write(tmp_path), "--out", tmp_path / "run")
    assert desim("verify", tmp_path / "run", "--rerun").returncode == 0
    part = tmp_path / "run" / "events" / "part-00000.parquet"
    table = pl.read_parquet(part)
    table.with_columns(
        pl.when(pl.col("seq") == 9).then(pl.col("ticks") + 1).otherwise(pl.col("ticks")).alias("ticks")
    ).write_parquet(part)
    done = desim("verify", tmp_path / "run")
    assert done.returncode == 1
    assert "timeline_sha256" in done.stderr
    assert json.loads(desim("verify", tmp_path / "run", "--json").stdout)["ok"] is False
    missing = desim("verify", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr


def test_a_failing_job_exits_with_one_and_leaves_the_directory(tmp_path):
    """The message names job, client and version, without a traceback."""
    (tmp_path / "shop.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    calls = 0\n    def forward(self, x):\n"
        "        Net.calls += 1\n        assert Net.calls < 50, 'out of luck'\n        return super().forward(x)\n"
        "def net():\n    return Net(8, 4)\n"
    )
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "shop:net"')
    done = apart("run", scenarios.write(tmp_path, text), "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1
    for part in ("job ", "client ", "from version ", "executor inline", "out of luck"):
        assert part in done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_an_own_strategy_runs_by_name(tmp_path):
    """strategy.name = "module:Class" beside the scenario is imported and driven; its arguments are checked; CASES CF-01."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from desim_fl.core import Reply
            @dataclass(frozen=True)
            class Half:
                rate: float = 0.5
                reads_outcomes: bool = False
                max_staleness: int | None = None
                def start(self, view):
                    return None, Reply()
                def arrive(self, state, view, update):
                    return state, Reply(params=view.params + self.rate * update.delta, weight=self.rate, scale=1.0)
                def lose(self, state, view, loss):
                    return state, Reply()
                def alarm(self, state, view, name):
                    return state, Reply()
            """
        )
    )
    text = scenarios.QUADRATIC.replace(
        'name = "fedbuff"\nbuffer_size = 2', 'name = "mine:Half"\nargs = { rate = 0.25 }'
    )
    path = scenarios.write(tmp_path, text)
    done = apart("run", path, "--json", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(eventlog.read(tmp_path / "run" / "events").collect()["weight"].drop_nulls()) == {0.25}
    wrong = apart("run", path, "--set", "strategy.args={ratio=1}", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "ratio" in wrong.stderr


def test_the_schema_is_valid_and_accepts_what_load_accepts(tmp_path):
    """desim-fl schema prints JSON Schema that the quickstart satisfies and a misspelt key does not."""
    made = json.loads(desim("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(made)
    check = jsonschema.Draft202012Validator(made)
    sound = tomllib.loads(scenarios.write(tmp_path).read_text())
    assert list(check.iter_errors(sound)) == []
    sound["run"]["concurency"] = 3
    assert list(check.iter_errors(sound)) != []


def test_workers_beyond_one_are_refused_by_name(tmp_path):
    """The inline executor runs one job at a time, and says so."""
    done = desim("run", scenarios.write(tmp_path), "--executor", "inline", "--workers", 2)
    assert done.returncode == 2
    assert "one job at a time" in done.stderr
    assert "--workers" in done.stderr or "executor.workers" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "nowhere.toml"], ["fly"], ["run", "nowhere.toml", "--set", "x"], []]
)
def test_wrong_usage_exits_with_two_and_no_traceback(arguments, tmp_path):
    """Missing files, commands and arguments are told in words."""
    done = (desim if arguments else apart)(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "executor"), [("SIGINT", "inline"), ("SIGTERM", "pool")])
def test_ctrl_c_keeps_what_was_computed(tmp_path, number, executor):
    """SIGINT and SIGTERM end a run with code 130, status "interrupted", and a log that verify accepts."""
    command = [sys.executable, "-m", "desim_fl", "run", str(scenarios.write(tmp_path, scenarios.BLOBS))]
    process = subprocess.Popen(
        [*command, "--set", "run.max_updates=1000000", "--set", "checkpoint.every_versions=50", "--executor", executor, "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not list((tmp_path / "run" / "checkpoints").glob("*")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(getattr(signal, number))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert manifest["summary"]["updates"] > 0
    assert desim("verify", tmp_path / "run").returncode == 0
