"""Workers end with their parent, however it ends, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = Path("/dev/shm")  # noqa: S108  (only looked at)
PROCESS = """
import sys
from pathlib import Path
from test_pool import Plain, plain_job
from desim_fl.executors.pool import PoolExecutor
if __name__ == "__main__":
    pool = PoolExecutor(Plain(Path(sys.argv[1])), 2)
    try:
        for number in range(4):
            pool.submit(plain_job(number, "very slow" if number else None), number)
        print(*pool.pids, flush=True)
        for number in range(4):
            pool.collect(plain_job(number), 4)
            print("collected", number, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        pool.close()
"""


@pytest.mark.parametrize("moment", ["while workers start", "while they train"])
def test_ctrl_c_ends_everything_quietly(tmp_path, moment):
    """Ctrl-C reaches the whole group: the parent ends its workers at once, nobody prints a traceback, nothing stays."""
    before = set(SHARED.iterdir())
    parent = _process(tmp_path)
    pids = [int(pid) for pid in _line(parent).split()]
    if moment == "while they train":
        assert _line(parent) == "collected 0\n"
    assert all(_deaf(pid) for pid in pids)
    os.killpg(parent.pid, signal.SIGINT)
    out, err = parent.communicate(timeout=10)
    assert (out, err, parent.returncode) == ("interrupted\n", "", 0)
    assert _gone(pids)
    assert set(SHARED.iterdir()) <= before


def test_workers_end_with_their_parent(tmp_path):
    """A parent that is killed leaves no worker behind, not even one in the middle of a long job."""
    before = set(SHARED.iterdir())
    parent = _process(tmp_path)
    pids = [int(pid) for pid in _line(parent).split()]
    assert _line(parent) == "collected 0\n"
    parent.kill()
    parent.communicate(timeout=10)
    assert _gone(pids)
    assert set(SHARED.iterdir()) <= before


def _process(folder: Path) -> subprocess.Popen[str]:
    """A process of its own, in a group of its own, with a pool whose jobs take a minute."""
    (folder / "parent.py").write_text(PROCESS)
    command = [sys.executable, str(folder / "parent.py"), str(folder)]
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": paths}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=pipe, stderr=pipe, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    """What it prints next."""
    assert process.stdout is not None
    return process.stdout.readline()


def _deaf(pid: int) -> bool:
    """Whether a process blocks or ignores Ctrl-C."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk", "SigIgn"))]
    return any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


def _gone(pids: list[int]) -> bool:
    """Whether these processes end within three seconds."""
    for _ in range(60):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return bool(pids)
        time.sleep(0.05)
    return False
