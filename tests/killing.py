"""Kill real runs at random moments, resume them, and compare: ``python tests/killing.py [kills] [executor] [seed]``.

Each kill is SIGKILL to a process of the command line, anywhere between its start and the end of the run: while torch is
imported, while jobs are trained, and a third of them in the middle of a write (as soon as a half-written file is seen).
A resumed run may be killed again. Law 4 is checked file by file. No worker may outlive the process that was killed.
Prints one line a kill and a table as JSON; exit code 1 if any run differs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from test_resume import assert_equal_runs

SCENARIO = """
[data]
name = "fashion_mnist_6k"
[clients]
count = 20
partition = "dirichlet"
alpha = 0.5
min_samples = 10
seconds_per_step = 0.01
device_factor = { law = "lognormal", median = 1.0, sigma = 0.7 }
[network]
latency_s = 0.05
down_mbps = 10.0
up_mbps = 2.0
[model]
name = "mlp"
hidden = [32]
[training]
momentum = 0.9
lr = 0.02
[strategy]
name = "fedbuff"
buffer_size = 4
[run]
concurrency = 8
max_updates = 800
eval_every_versions = 20
[checkpoint]
every_versions = 7
[executor]
reuse = false
"""
OPTIONS = {
    "inline": (),
    "pool": ("--workers", "2"),
    "threads": ("--workers", "2"),
    "ray": ("--workers", "2"),
    "vmap": ("--set", "executor.width=4"),
}
AT_A_WRITE = 1 / 3  # of the kills
TWICE = 0.3  # of those that left something to resume
GONE_WITHIN_S = 30.0


def say(*words: object) -> None:
    """Write a line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def started(*arguments: str) -> subprocess.Popen:
    """Start the command line, silent, as the first process of a group of its own."""
    command = [sys.executable, "-m", "desim_fl", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finished(*arguments: str) -> None:
    """Run the command line to its end; what it says on stderr is the error."""
    process = started(*arguments)
    told = process.communicate()[1].decode()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {told}")


def half_written(folder: Path) -> bool:
    """Whether a file of a run directory is being written now."""
    return any(next(place.glob("*.partial"), None) for place in (folder, folder / "events", folder / "checkpoints"))


def killed(after_s: float, folder: Path, *arguments: str, at_a_write: bool = False) -> bool:
    """Start a command, and kill it after some seconds, or at its next write then; whether it was still running."""
    process, until = started(*arguments), time.monotonic() + after_s
    while process.poll() is None:
        time.sleep(0 if at_a_write and time.monotonic() > until else 0.01)
        if time.monotonic() > until and (not at_a_write or half_written(folder)):
            process.kill()
            break
    process.wait()
    group_gone(process.pid)
    return process.returncode == -signal.SIGKILL


def group_gone(group: int) -> None:
    """Wait until no process of a group is left; raises ``RuntimeError``, and ends them, if some stay."""
    until = time.monotonic() + GONE_WITHIN_S
    with suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
        raise RuntimeError(f"workers outlived their run by {GONE_WITHIN_S:.0f} s")


def one(folder: Path, whole: Path, length_s: float, options: tuple[str, ...], chance: random.Random) -> Counter:
    """Kill a run, perhaps kill its resume too, let it end, and compare; says what happened."""
    scenario = str(folder.parent / "killing.toml")
    aimed, after_s = chance.random() < AT_A_WRITE, chance.uniform(0.1, length_s)
    if not killed(after_s, folder, "run", scenario, "--out", str(folder), *options, at_a_write=aimed):
        return Counter(["ended before"])
    if not (folder / "scenario.toml").is_file():
        finished("run", scenario, "--out", str(folder), *options)
        assert_equal_runs(whole, folder)
        return Counter(["killed", "before anything was written", "equal"])
    found = Counter(["killed"])
    found["in the middle of a write"] = half_written(folder)
    found["before the first checkpoint"] = not list((folder / "checkpoints").glob("*.safetensors"))
    found["killed twice"] = chance.random() < TWICE and killed(
        chance.uniform(1.0, length_s), folder, "resume", str(folder), at_a_write=chance.random() < AT_A_WRITE
    )
    finished("resume", str(folder))
    assert_equal_runs(whole, folder)
    return found + Counter(["equal"])


def main(kills: int = 25, executor: str = "inline", seed: int = 0) -> int:
    """Do it so many times."""
    chance, table = random.Random(seed), Counter({"different": 0})
    options = ("--executor", executor, *OPTIONS[executor])
    with tempfile.TemporaryDirectory() as space:
        base = Path(space)
        (base / "killing.toml").write_text(SCENARIO)
        began = time.monotonic()
        finished("run", str(base / "killing.toml"), "--out", str(base / "whole"), *options)
        length_s = time.monotonic() - began
        say(f"{executor}: undisturbed run {length_s:.1f} s")
        for number in range(kills):
            folder = base / f"killed-{number}"
            try:
                found = one(folder, base / "whole", length_s, options, chance)
            except Exception as error:  # noqa: BLE001  (each is to be told, and the others go on)
                say(f"{type(error).__name__}: {error}")
                found = Counter(["killed", "different"])
            table.update(found)
            say(number, ", ".join(found))
            shutil.rmtree(folder, ignore_errors=True)
    say(json.dumps({"executor": executor, "n": kills, "seconds": round(length_s, 1), **table}))
    return 1 if table["different"] else 0


if __name__ == "__main__":
    number, name, start = [*sys.argv[1:], *["25", "inline", "0"][len(sys.argv) - 1 :]]
    raise SystemExit(main(int(number), name, int(start)))
