"""The size of a user's own model, for ``plan``, which never imports torch.

A child process (``python -m desim_fl.learning.facts``) imports torch once, builds the model and counts. The answer is
kept in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), under a hash of the factory's name, its
arguments, the content of its source file and the version of torch, and is used again only while every other source
file that building the model loaded (installed packages apart) is unchanged. A cache that cannot be read or written
costs time, nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desim_fl.errors import ScenarioError
from desim_fl.learning.sizes import ModelFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_KERNELS = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_",
    "ONEDNN_",
    "MKL_CBWR",
    "MKL_ENABLE",
    "NPY_DISABLE",
    "NPY_ENABLE",
    "GLIBC_TUNABLES",
)


def kernel_settings() -> str:
    """The environment variables that choose kernels, and with them the last bits of results."""
    found = sorted(item for item in os.environ.items() if item[0].startswith(_KERNELS))
    return " ".join(f"{name}={value}" for name, value in found)


def cache_folder() -> Path:
    """Return where facts are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "desim-fl" / "facts"


def file_digest(path: str | Path) -> str | None:
    """Hash a file's content; ``None`` where it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (names that are no path are cheap this way)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def listing(folder: str) -> str:
    """Hash the names in a folder."""
    return hashlib.sha256("\n".join(sorted(os.listdir(folder))).encode("utf-8", "surrogateescape")).hexdigest()  # noqa: PTH208


def source_file(module: str) -> str | None:
    """Find a module's source without importing it or its packages; ``None`` if there is none."""
    path: list[str] | None = [os.getcwd(), *sys.path]  # noqa: PTH109
    spec = None
    for depth in range(len(parts := module.split("."))):
        name = ".".join(parts[: depth + 1])
        found = (finder.find_spec(name, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((one for one in found if one), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec.origin if spec else None


def _entry(name: str, request: str) -> Path | None:
    """Name the cache file of one question; ``None`` if its source cannot be found."""
    source = source_file(name.partition(":")[0])
    content = file_digest(source) if source else None
    if content is None:
        return None
    key = "\n".join([request, str(source), content, metadata.version("torch")])
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _remembered(entry: Path | None) -> ModelFacts | None:
    """Read an answer whose sources are all unchanged."""
    try:
        kept = json.loads(entry.read_text()) if entry else None
        if kept and all(file_digest(path) == digest for path, digest in kept["sources"].items()):
            return ModelFacts(*(int(value) for value in kept["facts"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # unreadable is as good as absent
    return None


def _remember(entry: Path | None, answer: dict[str, Any]) -> None:
    """Write an answer whole or not at all; failing is allowed."""
    if entry is None:
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as file:
            json.dump(answer, file)
        Path(file.name).replace(entry)
    except OSError:
        return


def asked(module: str, request: str, what: str) -> dict[str, Any]:
    """Have a child process that runs ``module`` answer; it sees this process's import path, the current folder first.

    Raises ``ScenarioError`` about the table ``what`` where it ends without an answer.
    """
    path = os.pathsep.join([os.getcwd(), *sys.path])  # noqa: PTH109
    child = subprocess.run(  # noqa: S603  (this very interpreter, and a module of ours)
        [sys.executable, "-m", module],
        input=request,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        return json.loads(child.stdout)
    except ValueError:
        raise ScenarioError(f"{what} could not be looked at: {child.stderr.strip()[-1000:]}") from None


def factory_facts(name: str, args: Mapping[str, Any]) -> ModelFacts:
    """Return the facts of ``"pkg.mod:factory"`` called with ``args``, from the cache or a child process.

    Raises ``ScenarioError`` where the model cannot be made, with the child's reason.
    """
    return _found(name, [name, dict(args)])


def vision_facts(name: str, args: Mapping[str, Any], shape: Sequence[int], classes: int) -> ModelFacts:
    """Return the facts of a model of ``torchvision.models`` for such samples; raises as ``factory_facts``."""
    return _found("torchvision.models", [name, dict(args), list(shape), classes])


def _found(module: str, question: list[Any]) -> ModelFacts:
    """Answer from the cache, or from a child process."""
    try:
        request = json.dumps(question, sort_keys=True)
    except TypeError as error:
        raise ScenarioError(
            f"[model] args of {question[0]} must be numbers, text, booleans, lists and tables: {error}"
        ) from error
    entry = _entry(module, request)
    known = _remembered(entry)
    if known is not None:
        return known
    answer = asked("desim_fl.learning.facts", request, "[model]")
    if "error" in answer:
        raise ScenarioError(answer["error"])
    _remember(entry, answer)
    return ModelFacts(*answer["facts"])


def own_sources() -> dict[str, str]:
    """Hash the source files loaded so far that belong neither to Python nor to an installed package."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    files = sorted({str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())})
    found = {path: file_digest(path) for path in files if path.endswith(".py") and not path.startswith(installed)}
    return {path: digest for path, digest in found.items() if digest}


def _measured(name: str, args: dict[str, Any], shape: Sequence[int] = (), classes: int = 0) -> dict[str, Any]:
    """Build the model and count; needs torch."""
    from desim_fl.learning import models  # noqa: PLC0415
    from desim_fl.learning.vectors import ModuleState  # noqa: PLC0415

    state = ModuleState(models.factory(name, args, shape, classes)())
    trainable = sum(value.numel() * value.element_size() for value in state.parameters)
    beside = sum(value.numel() * value.element_size() for value in state.buffers().values())
    return {"facts": ModelFacts(sum(state.sizes), trainable, beside), "sources": own_sources()}


def main() -> None:
    """Answer the question on standard input, as JSON on standard output."""
    question = json.load(sys.stdin)
    try:
        with redirect_stdout(sys.stderr):  # a factory that prints must not spoil the answer
            answer = _measured(*question)
    except ScenarioError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
