"""A bounded folder of small results by content key, safe with several processes, where any loss only costs time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size
_LOOK_EVERY = 0.02  # of the bound: so much is written between looks at how large the folder has become
_TRIM_TO = 0.9
_BEHIND = 16  # contents on their way to the disk


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
        self._unseen = self.limit_bytes  # written since the last look, which the first put takes

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
        if not self._written(self._path(key), content):
            return
        self._unseen += len(content)
        if self._unseen >= _LOOK_EVERY * self.limit_bytes:
            self._unseen = 0
            self.trim()

    def _written(self, path: Path, content: bytes) -> bool:
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
            return False
        return True

    def tried(self, content: bytes) -> bool:
        """Write something where nothing is yet and remove it again; tells whether that worked."""
        path = self.folder / f".trial-{os.getpid()}" / "content"
        worked = self._written(path, content)
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()
        return worked

    def close(self) -> None:
        """There is nothing to give back."""

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


class Behind:
    """A store that is written to by a thread of its own; what is on its way to the disk is found all the same."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._writer = ThreadPoolExecutor(1, "desim-fl store")
        self._underway: dict[str, tuple[bytes, Future[None]]] = {}

    def get(self, key: str) -> bytes | None:
        """Content of a key, or ``None``."""
        underway = self._underway.get(key)
        return self.store.get(key) if underway is None else underway[0]

    def put(self, key: str, content: bytes) -> None:
        """Hand the content to the thread; waits where that is far behind, so that memory stays bounded."""
        for known in [known for known, (_, future) in self._underway.items() if future.done()]:
            del self._underway[known]
        while len(self._underway) >= _BEHIND:
            self._underway.pop(next(iter(self._underway)))[1].result()
        self._underway[key] = content, self._writer.submit(self.store.put, key, content)

    def close(self) -> None:
        """Wait until everything is on the disk, and end the thread."""
        self._writer.shutdown()
        self._underway.clear()
