"""Bad input by the thousand: ``PYTHONPATH=.:tests python tests/campaign.py 20000 [first] [family]`` (a seed each).

Each input goes through the command line's own entry point in this process. It must be played, or be answered with
exit code 2 and lines that name the place; no traceback, no warning, nothing written, in bounded time and memory. A run
directory may also be answered with 1, which says that it does not hold what it should.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import tomllib
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bad_files
import bad_folders
import bad_scenarios
import jsonschema
import numpy as np

import scenarios
from desim_fl import checkpoint, cli, study
from desim_fl.datasets import archive
from desim_fl.errors import CheckpointError, DataError, ScenarioError
from desim_fl.scenario import reading

if TYPE_CHECKING:
    from collections.abc import Iterator

FAMILIES = (
    "edges",
    "mistaken",
    "garbled",
    "options",
    "places",
    "folders",
    "results",
    "checkpoints",
    "archives",
    *bad_files.KINDS,
    "studies",
)
CPU_LIMIT_S, WALL_LIMIT_S = 30.0, 300.0
LONGEST_LINE = 1500
SCHEMA = jsonschema.Draft202012Validator(bad_scenarios.SCHEMA)
BOMB = "raise SystemExit('code of a scenario was run that it did not name')\n"


class Answer(NamedTuple):
    """What the command line did: its exit code (``None`` = it crashed), and what it said."""

    code: int | None
    out: str
    err: str


class HungError(BaseException):
    """Too long outside the simulation itself."""


def _alarm(_number: int, frame: Any) -> None:
    """Ask a simulation that goes on to stop, as Ctrl-C does; anything else may not take that long."""
    if _alarm.asked or not _inside(frame, "engine.py"):
        raise HungError
    _alarm.asked = True
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    signal.raise_signal(signal.SIGINT)


_alarm.asked = False


def _inside(frame: Any, name: str) -> bool:
    while frame is not None:
        if Path(frame.f_code.co_filename).name == name:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Let the body use a bounded time, of this processor and of the wall."""
    _alarm.asked = False
    timers = ((signal.SIGPROF, signal.ITIMER_PROF, CPU_LIMIT_S), (signal.SIGALRM, signal.ITIMER_REAL, WALL_LIMIT_S))
    before = {number: signal.signal(number, _alarm) for number, _, _ in timers}
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, timer, _ in timers:
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def call(arguments: list[str], folder: Path) -> Answer:
    """Call the command line as the console script does, from a working folder; its streams are strict text."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    before, argv = Path.cwd(), sys.argv
    code: Any = 0
    try:
        os.chdir(folder)
        sys.argv = ["desim-fl", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded(), warnings.catch_warnings():
            warnings.simplefilter("always")
            cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001  (whatever comes out is what a person would see)
        code = None
        err.write(traceback.format_exc())
    finally:
        sys.argv = argv
        os.chdir(before)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Answer(code, *texts)


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below a folder: kinds, targets and content."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def _must_refuse(path: Path) -> bool:
    """Whether the JSON Schema turns a file down (it knows fewer rules than the program, never more)."""
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return True
    try:
        return not SCHEMA.is_valid(json.loads(json.dumps(document, default=str)))
    except (RecursionError, OverflowError):
        return False


def _wording(answer: Answer, arguments: list[str]) -> str | None:
    """What is wrong with how a refusal is worded."""
    lines = answer.err.strip().splitlines()
    if not lines:
        return "nothing is said"
    if lines[0].startswith("Usage:"):
        return None
    for line in lines:
        if not line.isprintable():
            return f"a message steers the terminal: {line!r}"
        if len(line) > LONGEST_LINE:
            return f"a line of {len(line)} characters"
    if not arguments:
        return None
    places = arguments[1:3] if arguments[0] == "compare" else arguments[1:2]
    stems = [re.sub(r"[^ -~].*", "", place, flags=re.DOTALL)[:100] for place in places]
    named = any(stem in answer.err for stem in stems) or any(
        word in answer.err for word in ("--set ", "--unset ", "--seed ", "--out")
    )
    return None if named else f"neither {stems[0]} nor an option is named: {answer.err[-300:]}"


def verdict(answer: Answer, asked: bad_scenarios.Asked, before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What is wrong with an answer; ``None`` = nothing."""
    command = asked.arguments[0]
    if command == "report":  # which writes the page, and its hash
        mine = ("run/report.html", "run/manifest.json")
        before, after = ({name: now[name] for name in now if name not in mine} for now in (before, after))
    if command in {"compare", "export"} and answer.code == 0:
        before, after = ({name: now[name] for name in now if name.split("/")[0] != "out"} for now in (before, after))
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    if changed:
        return f"wrote {changed[:5]}"
    if answer.code is None or "Traceback" in answer.err or "Warning" in answer.err:
        return f"{'warned' if 'Warning' in answer.err else 'crashed'}: {answer.err[-1500:]}"
    return _allowed(answer, asked, command)


def _allowed(answer: Answer, asked: bad_scenarios.Asked, command: str) -> str | None:
    """Judge the exit code, and the words that belong to it."""
    if answer.code == 2:
        return _wording(answer, asked.arguments)
    if asked.refused:
        return f"exit code {answer.code} for what cannot be played: {answer.out[-200:]}{answer.err[-200:]}"
    if answer.code == 1:
        return _wording(answer, []) if command == "verify" else _failed(answer)
    if answer.code not in {0, 130}:
        return f"exit code {answer.code}"
    as_written = not {"--set", "--unset"} & set(asked.arguments)
    if command in {"run", "plan"} and as_written and _must_refuse(Path(asked.arguments[1])):
        return "the JSON Schema refuses it, the program does not"
    return None


def _failed(answer: Answer) -> str | None:
    """A plan that cannot be played to its end says why in one line."""
    return None if answer.err.startswith("error: ") else f"exit code 1 without words: {answer.err[-300:]}"


# ---- what is no command line


def try_checkpoint(chance: random.Random) -> str | None:
    """A spoilt checkpoint is read as some value, or is a named error."""
    sound = checkpoint.encoded({"a": np.arange(4.0), "b": (1, [2.5, float("inf")], "x" * 40), 3: None})
    spoilt = bad_scenarios.spoil(chance, sound) if chance.random() < 0.7 else _other_state(chance, sound)
    try:
        with bounded():
            checkpoint.decoded(spoilt)
    except CheckpointError:
        return None
    except BaseException:  # noqa: BLE001
        return f"checkpoint: {traceback.format_exc()[-1500:]}"
    return None


def _other_state(chance: random.Random, sound: bytes) -> bytes:
    """A well-formed checkpoint file whose value is nonsense."""
    size = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + size])
    values = [1, [], {}, {".": "type", "name": "os:system", "fields": {}}, {".": "same", "number": 10**9}, {".": "array", "data": "0", "shape": [10**9, 10**9], "dtype": "<f8"},
              {".": "tensor", "data": "0", "shape": [-1], "strides": [10**12], "dtype": "float32", "on": "cpu"}, {".": "scalar", "data": "9", "shape": [], "dtype": "O"},
              {".": "dict", "items": [[[1], 2]]}, {".": "tensor", "data": "0", "shape": [4], "strides": [1], "dtype": "manual_seed", "on": "cpu"},
              {".": "float", "value": "x"}, {".": "array", "data": "0", "shape": [32], "dtype": "S1, O"}, {".": "type", "name": "desim_fl.world:StopRules", "fields": {"x": 1}}]  # fmt: skip
    header["__metadata__"]["state"] = json.dumps(chance.choice(values))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + sound[8 + size :]


def try_study(folder: Path, chance: random.Random) -> str | None:
    """A spoilt study file is read, or is a named error."""
    path = bad_files.study(chance, folder)
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("error")
            study.load(path)
    except ScenarioError as error:
        return _wording(Answer(2, "", str(error)), ["study", str(path)])
    except BaseException:  # noqa: BLE001
        return f"study: {path.read_bytes()[:400]!r} {traceback.format_exc()[-1500:]}"
    return None


def try_archive(folder: Path, chance: random.Random) -> str | None:
    """A spoilt archive of data gives arrays, or is a named error."""
    path = folder / "data.npz"
    archive.write(path, {"train_labels": np.arange(50, dtype=np.uint8)})
    path.write_bytes(bad_scenarios.spoil(chance, path.read_bytes()))
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("error")
            archive.member("train_labels", path)
    except DataError as error:
        return None if str(path) in str(error) else f"archive: {error}"
    except BaseException:  # noqa: BLE001
        return f"archive: {traceback.format_exc()[-1500:]}"
    return None


# ---- the campaign


class Campaign:
    """A folder to work in, sound run directories to damage, and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.work, self.sound = folder / "work", []
        for name, text in (("blobs", scenarios.BLOBS), ("quadratic", scenarios.QUADRATIC)):
            (folder / name).mkdir()
            run, _ = scenarios.played(folder / name, text, "run.max_updates=12")
            (run / "report.html").unlink()
            self.sound.append(run)
        plan = study.load(bad_files.sound_study(folder))
        study.conduct(plan, folder / "studied", 1)
        (folder / "studied" / "report.html").unlink()
        self.shown = [*self.sound, folder / "studied"]

    def one(self, seed: int, family: str = "") -> tuple[str, Answer | None, str | None]:
        """Try the input of this seed; returns its family, the answer, and what was wrong with it."""
        chance = random.Random(seed)
        family = family or chance.choices(FAMILIES, (8, 8, 6, 8, 2, 5, 5, 3, 1, 2, 2, 2, 2, 1))[0]
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        tries = {"checkpoints": lambda _, chance: try_checkpoint(chance), "archives": try_archive, "studies": try_study}
        if family in tries:
            fault = tries[family](self.work, chance)
            return family, None, fault and f"seed {seed} ({family}): {fault}"
        asked = self._asked(chance, family)
        (self.work / "bomb.py").write_text(BOMB)
        before = snapshot(self.work)
        answer = call(asked.arguments, self.work)
        fault = verdict(answer, asked, before, snapshot(self.work))
        return (
            family,
            answer,
            fault and f"seed {seed} ({family}): {[word[:300] for word in asked.arguments[:6]]}: {fault}",
        )

    def _asked(self, chance: random.Random, family: str) -> bad_scenarios.Asked:
        if family == "folders":
            return bad_folders.damaged(chance, self.work, chance.choice(self.sound))
        if family == "results":
            return bad_folders.shown(chance, self.work, chance.choice(self.shown))
        if family in bad_files.KINDS:
            return bad_files.KINDS[family](chance, self.work)
        if family == "places":
            return bad_scenarios.odd_places(chance, self.work)
        return bad_scenarios.asked(chance, self.work, family)


def main(count: int, first: int = 0, family: str = "") -> int:
    """Try so many inputs; print each fault, then a table of families and exit codes."""
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, resource.RLIM_INFINITY))
    tally: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as space:
        os.environ["XDG_CACHE_HOME"] = f"{space}/cache"
        reading.PIPE_WAIT_S = 0.1
        campaign = Campaign(Path(space))
        for seed in range(first, first + count):
            kind, answer, fault = campaign.one(seed, family)
            code = "value or named error" if answer is None else f"exit code {answer.code}"
            tally[kind, "FAULT" if fault else code] += 1
            if fault:
                print(fault, end="\n\n", flush=True)  # noqa: T201
    for (kind, code), number in sorted(tally.items()):
        print(f"{kind:12} {code:24} {number:7}")  # noqa: T201
    return sum(number for (_, code), number in tally.items() if code == "FAULT")


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(
        1 if main(int(given[0]), int(given[1]) if len(given) > 1 else 0, given[2] if len(given) > 2 else "") else 0
    )
