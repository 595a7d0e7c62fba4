"""A bounded folder of small results by content key, safe with several processes, where any loss only costs time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size
_TRIM_EVERY = 256  # puts between looks at how large the folder has become
_TRIM_TO = 0.9


def default_folder() -> Path:
    """Where results are kept between runs: ``XDG_CACHE_HOME``, else ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "desim-fl" / "outcomes"


class Store:
    """Bytes by key (hexadecimal text). A file holds the sha256 of its content first, so that damage is noticed.

    ``limit_bytes`` bounds the folder: the files not used for longest go first. ``failed`` counts reads and writes
    that did not work; they are as good as absent.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.failed = 0
        self._puts = 0

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> bytes | None:
        """Content of a key, or ``None``; a damaged file is removed."""
        path = self._path(key)
        try:
            whole = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            self.failed += 1
            return None
        digest, content = whole[:_DIGEST], whole[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            self.failed += 1
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep the content whole or not at all."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as aside:
                try:
                    aside.write(hashlib.sha256(content).digest() + content)
                except BaseException:
                    Path(aside.name).unlink(missing_ok=True)
                    raise
            Path(aside.name).replace(path)
        except OSError:
            self.failed += 1
            return
        self._puts += 1
        if self._puts % _TRIM_EVERY == 1:
            self.trim()

    def trim(self) -> None:
        """Remove what was not used for longest until the folder is well below its bound."""
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        size = sum(size for _, size, _ in found)
        if size <= self.limit_bytes:
            return
        for _, bytes_freed, path in sorted(found):
            if size <= _TRIM_TO * self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            size -= bytes_freed
