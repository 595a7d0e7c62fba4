"""What a run directory, or a study's folder, can be turned into for other tools; each layout is one function (folder, new folder) -> files."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from desim_fl.errors import RefusedError, RunDirectoryError
from desim_fl.export import perfetto, pictures, plain, readme, tensorboard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYOUTS: dict[str, Callable[[Path, Path], list[Path]]] = {
    "csv": plain.write,
    "readme": readme.write,
    "perfetto": perfetto.write,
    "tensorboard": tensorboard.write,
    "svg": pictures.svg,
    "png": pictures.png,
}


def export(run_dir: Path, layout: str, out: Path) -> list[Path]:
    """Write a run (``svg``, ``png``: a study) in a layout of ``LAYOUTS`` into a new or empty folder; returns the files.

    The folder is there when all of it is: it is written beside and moved to its place.

    Raises ``RefusedError`` for a layout that is not known, ``RunDirectoryError`` where there is no run (no study), or ``out`` is taken.
    """
    if layout not in LAYOUTS:
        raise RefusedError(f'there is no layout "{layout}"; there are {", ".join(LAYOUTS)}')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(f"{out} is there already and is not an empty folder; give another --out")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        files = LAYOUTS[layout](run_dir, aside)
        if out.exists():
            out.rmdir()
        aside.rename(out)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror or error}; give another --out") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [out / path.relative_to(aside) for path in files]
