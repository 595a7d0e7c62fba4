"""Labels of a set that torchvision reads, for ``plan``, which never imports torch.

A child process reads the set once; labels, classes and the shape of a sample are kept in the user's cache folder and
used again while every file and folder that the reading opened is unchanged, by content.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.datasets import Labels
from desim_fl.errors import DataError
from desim_fl.learning.facts import asked, cache_folder, file_digest, listing, source_file

if TYPE_CHECKING:
    from collections.abc import Sequence


def labels(source: Sequence[Any]) -> tuple[Labels, bool]:
    """Return the labels of a ``vision.Source``, and whether the set has a test part of its own.

    Without one ``Labels.test`` is empty. Raises ``DataError`` as ``vision.read`` does.
    """
    entry = _entry(source)
    known = _remembered(entry)
    if known is None:
        known = _read(source, entry)
    return known


def _entry(source: Sequence[Any]) -> Path:
    """Name the cache file of a question, without its suffix."""
    name, folder, args, size, _ = source
    own = source_file(name.partition(":")[0]) if ":" in name else None
    facts = [name, os.path.realpath(folder), args, size, own and file_digest(own), metadata.version("torchvision")]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder().parent / "labels" / key


def _remembered(entry: Path) -> tuple[Labels, bool] | None:
    """Read an answer whose files are all unchanged."""
    try:
        kept = json.loads(entry.with_suffix(".json").read_text())
        same = all(file_digest(path) == digest for path, digest in {**kept["files"], **kept["sources"]}.items())
        if same and all(listing(path) == digest for path, digest in kept["folders"].items()):
            return _loaded(kept, entry.with_suffix(".npz"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None


def _loaded(answer: dict[str, Any], arrays: Path) -> tuple[Labels, bool]:
    with np.load(arrays, allow_pickle=False) as archive:
        train, test = archive["train"], archive.get("test", None)
    names = tuple(answer["class_names"])
    known = Labels(train, np.zeros(0, np.int64) if test is None else test, len(names), names, tuple(answer["shape"]))
    return known, test is not None


def _read(source: Sequence[Any], entry: Path) -> tuple[Labels, bool]:
    """Have a child process read the set, and keep what it says if the cache can be written."""
    with tempfile.TemporaryDirectory() as space:
        target = Path(space) / "labels.npz"
        try:
            request = json.dumps({"source": list(source), "target": str(target)})
        except TypeError as error:
            raise DataError(f"[data] args must be numbers, text, booleans, lists and tables: {error}") from error
        answer = asked("desim_fl.learning.vision", request, "[data]")
        if "error" in answer:
            raise DataError(answer["error"])
        found = _loaded(answer, target)
        _remember(answer, target, entry)
    return found


def _remember(answer: dict[str, Any], arrays: Path, entry: Path) -> None:
    """Write an answer, its arrays first; failing is allowed."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        for content, suffix in ((arrays.read_bytes(), ".npz"), (json.dumps(answer).encode(), ".json")):
            with tempfile.NamedTemporaryFile(dir=entry.parent, delete=False) as file:
                file.write(content)
            Path(file.name).replace(entry.with_suffix(suffix))
    except OSError:
        return
