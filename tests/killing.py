"""Kill real runs at random moments, resume them, and compare: ``python tests/killing.py [kills] [executor] [seed]``.

Each kill is SIGKILL to a process of the command line, anywhere between its start and the end of the run: while torch is
imported, while jobs are trained, in the middle of any write. A resumed run may be killed again. Law 4 is checked file by
file. Prints one line a kill and a table; exit code 1 if any run differs.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
"""


def say(*words: object) -> None:
    """Write a line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def started(*arguments: str) -> subprocess.Popen:
    """Start the command line, silent."""
    command = [sys.executable, "-m", "desim_fl", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(*arguments: str) -> None:
    """Run the command line to its end; what it says on stderr is the error."""
    process = started(*arguments)
    told = process.communicate()[1].decode()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {told}")


def killed(after_s: float, *arguments: str) -> bool:
    """Start a command, and kill it after some seconds; whether it was still running."""
    process = started(*arguments)
    try:
        process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


def one(folder: Path, whole: Path, length_s: float, options: list[str], chance: random.Random) -> str:
    """Kill a run, perhaps kill its resume too, let it end, and compare; says what happened."""
    scenario = str(folder.parent / "killing.toml")
    if not killed(chance.uniform(0.1, length_s), "run", scenario, "--out", str(folder), *options):
        return "ended before"
    if not (folder / "scenario.toml").is_file():
        return "before anything was written"
    kept = len(list((folder / "checkpoints").glob("*.safetensors")))
    twice = chance.random() < 0.3 and killed(chance.uniform(1.0, length_s), "resume", str(folder))
    finished("resume", str(folder))
    assert_equal_runs(whole, folder)
    return f"equal, {'killed twice' if twice else 'from a checkpoint' if kept else 'from the start'}"


def main(kills: int = 25, executor: str = "inline", seed: int = 0) -> int:
    """Do it so many times."""
    chance, found = random.Random(seed), Counter()
    options = ["--executor", executor] + (["--workers", "2"] if executor != "inline" else [])
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
                what = one(folder, base / "whole", length_s, options, chance)
            except Exception as error:  # noqa: BLE001  (each is to be told, and the others go on)
                what = f"DIFFERENT: {type(error).__name__}: {error}"
            found[what.split(":")[0]] += 1
            say(number, what)
            shutil.rmtree(folder, ignore_errors=True)
    say(dict(found))
    return 1 if "DIFFERENT" in found else 0


if __name__ == "__main__":
    number, name, start = [*sys.argv[1:], *["25", "inline", "0"][len(sys.argv) - 1 :]]
    raise SystemExit(main(int(number), name, int(start)))
