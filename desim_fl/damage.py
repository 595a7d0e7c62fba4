"""What is wrong with a folder of results that cannot be shown: asked only once showing it has failed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from desim_fl.errors import DesimError, RunDirectoryError
from desim_fl.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def named(folders: Sequence[Path]) -> Iterator[None]:
    """Read folders of results in the body; where it fails for what they hold, raise ``RunDirectoryError`` that says what that is.

    A failure in spite of sound run directories is the body's own, and goes on as it is. A study's folder has nobody to check it,
    but is made anew from its journal.
    """
    try:
        yield
    except (DesimError, BrokenPipeError):  # whoever reads what is printed has gone: nothing is wrong with the folders
        raise
    except Exception as error:
        for folder in folders:
            if (folder / "study.toml").exists():
                raise RunDirectoryError(
                    f"{folder} cannot be shown ({type(error).__name__}: {error}): a file of it may be damaged; conduct the "
                    "study once more into this folder, which makes all but its journal anew"
                ) from error
            found = verify(folder)
            if found:
                raise RunDirectoryError(
                    f"{folder} is damaged: {found[0]}; desim-fl verify tells more ({len(found)} in all)"
                ) from error
        raise
