"""The data sets: what is embedded, how it was made, and made clusters."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from desim_fl import datasets
from desim_fl.datasets import archive
from desim_fl.errors import DataError

README = (Path(datasets.__file__).parent / "README.md").read_text()


def write_idx(path: Path, array: np.ndarray) -> None:
    """One gzipped IDX file."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a tiny whole set of three classes: 12 training and 9 test images."""
    for prefix, count in (("train", 12), ("t10k", 9)):
        write_idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz", np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2)
        )
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.array([2, 0, 1] * (count // 3), np.uint8))
    return tmp_path


def test_the_embedded_file_is_the_documented_one() -> None:
    """File bytes and content have the sha256 that the README beside them states."""
    assert hashlib.sha256(archive.EMBEDDED.read_bytes()).hexdigest() in README
    assert datasets.load("fashion_mnist_6k", seed=0).sha256 in README
    assert archive.EMBEDDED.stat().st_size < 4_000_000


def test_the_embedded_set_is_balanced_and_in_original_order() -> None:
    """600 training and 100 test images of each class, at ascending original positions."""
    data = datasets.load("fashion_mnist_6k", seed=0)
    assert np.bincount(data.train_labels).tolist() == [600] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    assert data.train_images.shape == (6_000, 28, 28)
    assert data.test_images.shape == (1_000, 28, 28)
    for split in ("train", "test"):
        assert np.all(np.diff(archive.member(f"{split}_indices")) > 0)


def test_the_archive_keeps_the_first_of_each_class(source: Path, tmp_path: Path) -> None:
    """The subset is the first samples of each class in original order, and writing it twice gives the same bytes."""
    for name in ("a.npz", "b.npz"):
        archive.make(source, tmp_path / name, {"train": 2, "test": 1})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert archive.member("train_indices", tmp_path / "a.npz").tolist() == [0, 1, 2, 3, 4, 5]
    assert archive.member("test_labels", tmp_path / "a.npz").tolist() == [2, 0, 1]
    assert archive.member("train_images", tmp_path / "a.npz")[4].tolist() == [[16, 17], [18, 19]]


def test_broken_sources_are_named(source: Path, tmp_path: Path) -> None:
    """A missing file, another format, too few samples and an unreadable archive are errors that name the file."""
    with pytest.raises(DataError, match="fewer than 5"):
        archive.make(source, tmp_path / "a.npz", {"train": 5})
    (source / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(DataError, match="train-labels"):
        archive.make(source, tmp_path / "a.npz", {"train": 1})
    with pytest.raises(DataError, match="no such file"):
        archive.read_idx(tmp_path / "none.gz")
    with pytest.raises(DataError, match="reinstall"):
        archive.member("train_labels", tmp_path / "absent.npz")


def test_examples_keeps_the_first() -> None:
    """``examples = n`` keeps the first n training images and all test images."""
    whole, part = (datasets.load("fashion_mnist_6k", seed=0, examples=count) for count in (None, 700))
    assert np.array_equal(part.train_images, whole.train_images[:700])
    assert np.array_equal(part.train_labels, whole.train_labels[:700])
    assert np.array_equal(part.test_labels, whole.test_labels)
    assert part.sha256 != whole.sha256


@pytest.mark.parametrize(
    ("name", "options"),
    [("fashion_mnist_6k", {"examples": 123}), ("blobs", {"examples": 101, "classes": 3, "features": 5})],
)
def test_labels_agree_with_the_whole_set(name: str, options: dict[str, int]) -> None:
    """The cheap labels are those of the loaded set, with its classes and sample shape."""
    data, known = datasets.load(name, seed=4, **options), datasets.labels(name, seed=4, **options)
    assert np.array_equal(known.train, data.train_labels)
    assert np.array_equal(known.test, data.test_labels)
    assert (known.classes, known.class_names, known.shape) == (data.classes, data.class_names, data.shape)


def test_blobs_repeat_and_follow_the_seed() -> None:
    """The same seed gives the same clusters, another seed others, and a larger set begins with the smaller."""
    first, again, other = (datasets.load("blobs", seed=seed, examples=40) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    larger = datasets.load("blobs", seed=1, examples=95)
    assert np.array_equal(larger.train_images[:40], first.train_images)
    assert np.array_equal(larger.train_labels[:40], first.train_labels)


def test_blobs_are_balanced_clusters() -> None:
    """Classes are balanced, and without spread every sample of a class is its centre."""
    data = datasets.load("blobs", seed=0, examples=60, test_examples=9, classes=3, features=4, spread=0)
    assert np.bincount(data.train_labels).tolist() == [20, 20, 20]
    assert data.train_images.dtype == np.float32
    assert len(np.unique(data.train_images, axis=0)) == 3
    assert np.unique(data.test_images, axis=0).tolist() == np.unique(data.train_images, axis=0).tolist()


def test_spread_is_the_standard_deviation_of_a_cluster() -> None:
    """20,000 samples around their centres have the asked standard deviation, to 1 %."""
    tight, wide = (datasets.load("blobs", seed=0, examples=2_000, features=10, spread=spread) for spread in (0, 2.5))
    assert np.std(wide.train_images - tight.train_images) == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnist", {}),
        ("fashion_mnist_6k", {"examples": 6_001}),
        ("fashion_mnist_6k", {"examples": 0}),
        ("blobs", {"classes": 0}),
    ],
)
def test_impossible_requests_are_refused(name: str, options: dict[str, int]) -> None:
    """An unknown name or a count out of range is a DataError, for labels as for the whole set."""
    for ask in (datasets.load, datasets.labels):
        with pytest.raises(DataError):
            ask(name, seed=0, **options)


def test_arrays_cannot_be_changed() -> None:
    """A loaded set is read-only."""
    data = datasets.load("blobs", seed=0, examples=10)
    with pytest.raises(ValueError, match="read-only"):
        data.train_images[0, 0] = 1


def test_labels_need_numpy_only() -> None:
    """Labels come without torch, torchvision or polars being imported."""
    code = (
        "import sys; from desim_fl import datasets; datasets.labels('fashion_mnist_6k', seed=0);"
        "assert not {'torch', 'torchvision', 'polars', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
