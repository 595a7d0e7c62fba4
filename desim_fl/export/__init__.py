"""What a run directory, or a study's folder, can be turned into for other tools; each layout is one function (folder, new folder) -> files."""

from __future__ import annotations

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

    Raises ``RefusedError`` for a layout that is not known, ``RunDirectoryError`` where there is no run (no study), or ``out`` is taken.
    """
    if layout not in LAYOUTS:
        raise RefusedError(f'there is no layout "{layout}"; there are {", ".join(LAYOUTS)}')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(f"{out} is there already and is not an empty folder; give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        return LAYOUTS[layout](run_dir, out)
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {out}: {error.strerror or error}; give another --out") from error
