"""Data sets from files: IDX, what torchvision reads, images in folders, arrays of one's own."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path  # noqa: TC003

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from desim_fl import data
from desim_fl.cli import app
from desim_fl.datasets import idx, statistics
from desim_fl.errors import DataError, ScenarioError
from desim_fl.learning import vision
from desim_fl.scenario import Scenario

TINY = """
from torchvision.datasets import CIFAR10
class Tiny(CIFAR10):
    train_list = [(f"data_batch_{n}", None) for n in (1, 2)]
    test_list = [("test_batch", None)]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}
"""


def table(**entries):
    """A scenario's ``[data]``."""
    return Scenario.model_validate({"data": entries, "clients": {"count": 2}, "run": {"max_updates": 1}}).data


def write_idx(path: Path, array: np.ndarray, *, zipped: bool = False) -> None:
    """One IDX file."""
    raw = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(path.name + ".gz" * zipped).write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.fixture
def digits(tmp_path: Path) -> dict[str, np.ndarray]:
    """Twelve training and four test images of 3x2 pixels, plain files where torchvision looks for MNIST."""
    arrays = {
        "train_images": np.arange(72, dtype=np.uint8).reshape(12, 3, 2),
        "train_labels": np.array([1, 0, 2] * 4, np.uint8),
        "test_images": np.arange(100, 124, dtype=np.uint8).reshape(4, 3, 2),
        "test_labels": np.array([2, 1, 0, 9], np.uint8),
    }
    for role, array in arrays.items():
        write_idx(tmp_path / "MNIST" / "raw" / idx.FILES[role], array)
    return arrays


def cifar(folder: Path) -> tuple[np.ndarray, list[int]]:
    """Write batches of the format of CIFAR-10: pickled rows of 3 x 32 x 32 bytes; returns images and labels."""
    rng = np.random.Generator(np.random.Philox(1))
    rows, labels = rng.integers(0, 256, (9, 3072)).astype(np.uint8), [3, 1, 4, 1, 5, 2, 0, 5, 3]
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name, part in (("data_batch_1", slice(0, 4)), ("data_batch_2", slice(4, 6)), ("test_batch", slice(6, 9))):
        (place / name).write_bytes(pickle.dumps({"data": rows[part], "labels": labels[part]}))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind {n}" for n in range(10)]}))
    return rows.reshape(9, 3, 32, 32).transpose(0, 2, 3, 1), labels


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, list[int]]:
    """A working folder with a user's own class, which reads tiny files through torchvision's own code."""
    (tmp_path / "tinycifar.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "tinycifar", raising=False)
    return cifar(tmp_path / "data")


# ---- IDX


def test_idx_sets_are_read_from_either_place_plain_or_gzipped(tmp_path, digits):
    """Torchvision's folder with plain files and a bare folder with gzipped ones give the same set, without torchvision."""
    for role, array in digits.items():
        write_idx(tmp_path / "bare" / idx.FILES[role], array, zipped=True)
    one, two = (data.whole(table(name="MNIST", folder=str(place)), 0) for place in (tmp_path, tmp_path / "bare"))
    assert one.sha256 == two.sha256
    assert np.array_equal(one.train_images, digits["train_images"])
    assert (one.mean, one.std, one.classes, one.shape) == ((0.1307,), (0.3081,), 10, (1, 3, 2))
    assert not one.train_images.flags.writeable
    known = data.labels(table(name="MNIST", folder=str(tmp_path), examples=5, test_examples=2), 0)
    assert known.train.tolist() == [1, 0, 2, 1, 0]
    assert known.test.tolist() == [2, 1]
    assert (known.shape, known.class_names[3]) == ((1, 3, 2), "3 - three")


@pytest.mark.parametrize(
    ("role", "content", "why"),
    [
        (
            "train_images",
            b"\0\0\x08\x03\0\0\0\x0c\0\0\0\x03\0\0\0\x02abc",
            "holds 3 bytes after its header, which says 72",
        ),
        ("train_images", b"\0\0\x08\x03\0\0", "ends within its header"),
        ("test_labels", b"GIF89a", "not an IDX file"),
        ("test_labels", b"\0\0\x08\x01\0\0\0\x01\x03", "do not go with"),
        ("train_labels", b"\0\0\x08\x01\0\0\0\x0c" + bytes([1] * 11 + [10]), "has 10 classes, these labels more"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, digits, role, content, why):
    """Each kind of damage is a DataError that names the file or the set."""
    path = tmp_path / "MNIST" / "raw" / idx.FILES[role]
    path.write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        data.whole(table(name="MNIST", folder=str(tmp_path)), 0)
    assert str(tmp_path) in str(caught.value)


def test_a_damaged_gzip_file_is_named(tmp_path, digits):
    """A gzipped file that breaks off is a DataError."""
    path = tmp_path / "MNIST" / "raw" / idx.FILES["train_labels"]
    packed = gzip.compress(path.read_bytes())
    path.with_name(path.name + ".gz").write_bytes(packed[:-6])
    path.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: cannot be read"):
        data.labels(table(name="MNIST", folder=str(tmp_path)), 0)


# ---- torchvision


def test_what_torchvision_reads_comes_through_and_labels_are_remembered(tiny, tmp_path, monkeypatch):
    """Images and labels are those of the files; plan's labels come from a child once, and again when a file changes."""
    images, labels = tiny
    named = table(name="tinycifar:Tiny", folder="data")
    found = data.whole(named, 0)
    assert np.array_equal(found.train_images, images[:6])
    assert np.array_equal(found.test_images, images[6:])
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == (labels[:6], labels[6:])
    assert (found.shape, found.classes, found.class_names[2]) == ((3, 32, 32), 10, "kind 2")
    assert (found.mean, found.std) == statistics.computed(images[:6])
    known = data.labels(named, 0)
    assert (known.train.tolist(), known.test.tolist(), known.shape) == (labels[:6], labels[6:], (3, 32, 32))
    child = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    assert np.array_equal(data.labels(named, 1).train, known.train)
    monkeypatch.setattr(subprocess, "run", child)
    batch = tmp_path / "data" / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [7, 7]}))
    assert data.labels(named, 0).train.tolist() == [3, 1, 4, 1, 7, 7]


def test_missing_files_are_named_with_folder_and_ways_out(tmp_path):
    """Nothing is fetched unasked: the error lists the files, where they belong, and how to get them."""
    for name, file in (("CIFAR10", "cifar-10-batches-py/data_batch_1"), ("MNIST", "MNIST/raw/t10k-labels-idx1-ubyte")):
        with pytest.raises(DataError) as caught:
            vision.read(vision.Source(name, str(tmp_path), {}))
        for part in (file, str(tmp_path), f"desim-fl data fetch {name}", "--download"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("FashionMNIS", {}, "did you mean FashionMNIST"),
        ("CocoDetection", {}, "annFile"),
        ("FakeData", {"root": 1}, "must not hold root"),
        ("FakeData", {"sizz": 1}, "sizz"),
        ("FakeData", {"size": 0}, "no samples"),
        ("nowhere:Set", {}, r"\[data\] name = \"nowhere:Set\""),
    ],
)
def test_what_is_no_classification_set_is_refused_by_name(tmp_path, name, args, why):
    """Unknown classes, other tasks and arguments that do not fit are errors that name the set."""
    with pytest.raises(ScenarioError, match=why) as caught:
        vision.read(vision.Source(name, str(tmp_path), args))
    assert name in str(caught.value) or "args" in str(caught.value)


def test_a_set_without_a_test_part_is_split_the_same_way_for_every_seed(tmp_path):
    """A share becomes the test part; both parts together are the set, whatever the seed."""
    args = {"size": 20, "image_size": [1, 4, 4], "num_classes": 3}
    whole = vision.read(vision.Source("FakeData", str(tmp_path), args))
    assert whole.test_labels is None
    one, two = (data.whole(table(name="FakeData", args=args, test_share=0.25), seed) for seed in (0, 5))
    assert one.sha256 == two.sha256
    assert (len(one.train_labels), len(one.test_labels)) == (15, 5)
    rows = sorted(image.tobytes() for image in (*one.train_images, *one.test_images))
    assert rows == sorted(image.tobytes() for image in np.asarray(whole.train_images))


def test_a_test_share_for_a_set_with_a_test_part_is_refused(tmp_path, digits):
    """A key without effect is an error."""
    with pytest.raises(DataError, match="test part of its own"):
        data.labels(table(name="MNIST", folder=str(tmp_path), test_share=0.1), 0)
    with pytest.raises(DataError, match=r"examples = 13: MNIST has 12"):
        data.labels(table(name="MNIST", folder=str(tmp_path), examples=13), 0)


# ---- images in folders, files of one's own


def png(array: np.ndarray) -> bytes:
    """An encoded image."""
    content = io.BytesIO()
    Image.fromarray(array).save(content, "png")
    return content.getvalue()


def test_images_in_folders_get_their_classes_from_the_training_part(tmp_path):
    """A test part that lacks a class keeps the training part's numbers; sizes are made equal only if asked."""
    for place, value in (("train/a/1", 0), ("train/b/1", 50), ("train/c/1", 90), ("test/b/1", 60), ("test/c/2", 70)):
        path = tmp_path / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((4, 6 if place == "train/c/1" else 4, 3), value, np.uint8)))
    with pytest.raises(DataError, match=r"image 2 4x6; \[data\] image_size = 4"):
        data.whole(table(name="ImageFolder", folder=str(tmp_path)), 0)
    found = data.whole(table(name="ImageFolder", folder=str(tmp_path), image_size=4), 0)
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == ([0, 1, 2], [1, 2])
    assert found.class_names == ("a", "b", "c")
    assert found.train_images[:, 0, 0, 0].tolist() == [0, 50, 90]


def test_a_npz_and_a_parquet_file_give_the_same_set(tmp_path):
    """Arrays in .npz, numbers and encoded images in Parquet: the same content, the same hash."""
    rng = np.random.Generator(np.random.Philox(2))
    images, labels = rng.integers(0, 256, (6, 5, 4, 3)).astype(np.uint8), np.array([0, 2, 1, 1, 0, 2])
    np.savez(tmp_path / "a.npz", train_images=images[:4], train_labels=labels[:4], x_test=images[4:], y_test=labels[4:])
    split = ["train"] * 4 + ["test"] * 2
    frame = {"label": labels, "split": split, "index": range(6)}
    pl.DataFrame(frame | {"image": [png(one) for one in images]}).write_parquet(tmp_path / "b.parquet")
    pl.DataFrame(frame | {"image": images.tolist()}).write_parquet(tmp_path / "c.parquet")
    sets = [
        data.whole(table(name="file", path=str(tmp_path / name)), 0) for name in ("a.npz", "b.parquet", "c.parquet")
    ]
    assert len({each.sha256 for each in sets}) == 1
    for name in ("a.npz", "b.parquet"):
        known = data.labels(table(name="file", path=str(tmp_path / name)), 0)
        assert (known.train.tolist(), known.test.tolist(), known.shape) == ([0, 2, 1, 1], [0, 2], (3, 5, 4))


def test_features_of_one_s_own_are_kept_as_they_are(tmp_path):
    """Rows of numbers become float32 features, which nothing normalises."""
    rows = np.arange(20.0).reshape(10, 2)
    np.savez(tmp_path / "a.npz", images=rows, labels=np.arange(10) % 2)
    found = data.whole(table(name="file", path=str(tmp_path / "a.npz")), 0)
    assert (found.train_images.dtype, found.shape, found.mean, found.std) == (np.float32, (2,), (0.0,), (1.0,))
    assert sorted(found.train_images[:, 0].tolist() + found.test_images[:, 0].tolist()) == rows[:, 0].tolist()


@pytest.mark.parametrize(
    ("name", "arrays", "why"),
    [
        ("a.npz", {"labels": np.arange(3)}, "has no array train_images"),
        ("a.npz", {"images": np.zeros((3, 2, 2), np.uint8), "labels": np.arange(2)}, "3 train_images, but 2"),
        ("a.npz", {"images": np.zeros((2, 2, 2), np.uint8), "labels": np.array([0.5, 1])}, "whole numbers"),
        ("a.npz", {"images": np.zeros((2, 2, 2), np.uint8), "labels": np.array([-1, 1])}, "from -1 to 1"),
        ("a.npz", {"images": np.zeros((2, 2, 2), np.uint8), "labels": np.array([0, 10**9])}, "up to 65,535"),
        ("a.npz", {"images": np.zeros((2, 2, 2), np.float64), "labels": np.arange(2)}, "images are uint8"),
        ("a.npz", {"images": np.array([[np.nan, 1]]), "labels": np.arange(1)}, "not finite"),
        ("a.npz", {"images": np.array([{}, {}]), "labels": np.arange(2)}, "cannot be read as .npz"),
        ("a.parquet", {"label": [0, 1]}, "has no column image"),
        ("a.parquet", {"label": [0, None], "image": [b"", b""]}, "empty cells"),
        ("a.parquet", {"label": [0, 1], "image": [b"x", b"y"]}, "image 0 cannot be decoded"),
        ("a.parquet", {"label": [0, 1], "image": [[1, 2], [3]]}, "rows of different lengths"),
        ("a.parquet", {"label": [0], "image": [[1, 2]], "split": ["train"]}, "has no row with split = test"),
        ("a.csv", {}, r"ends in .npz or .parquet"),
    ],
)
def test_files_that_hold_something_else_are_named(tmp_path, name, arrays, why):
    """Each is a DataError that names the file and what it lacks; nothing is unpickled."""
    path = tmp_path / name
    if name.endswith("npz"):
        np.savez(path, **arrays)
    elif name.endswith("parquet"):
        pl.DataFrame(arrays).write_parquet(path)
    else:
        path.write_text("label,image\n")
    with pytest.raises(DataError, match=why) as caught:
        data.whole(table(name="file", path=str(path)), 0)
    assert str(path) in str(caught.value)


# ---- statistics


def test_statistics_worked_by_hand():
    """Pixels 0 and 255 in halves: mean 0.5, deviation 0.5; a channel without variation gets deviation 1."""
    images = np.zeros((2, 1, 2, 2), np.uint8)
    images[:, :, 0, 0] = 255
    images[:, :, :, 1] = 51
    assert statistics.computed(images) == ((0.5, 0.2), (0.5, 1.0))
    assert statistics.of("CIFAR10", images, "half") == ((0.5, 0.5), (0.5, 0.5))
    assert statistics.of("MNIST", images[..., 0], "published") == ((0.1307,), (0.3081,))
    assert statistics.of("MNIST", images[..., 0], "training") == ((0.5,), (0.5,))
    assert statistics.of("CIFAR10", images, "published") == ((0.5, 0.2), (0.5, 1.0))  # two channels: not that set


# ---- the command line


def test_data_check_says_what_a_set_holds(tmp_path, digits):
    """``data check`` reads a set by name or through a scenario; ``data list`` names them; a mistake is exit code 2."""
    asked = CliRunner().invoke(app, ["data", "check", "MNIST", "--folder", str(tmp_path), "--json"])
    facts = json.loads(asked.stdout)
    assert (facts["train"], facts["test"], facts["shape"], facts["classes"]) == (12, 4, [1, 3, 2], 10)
    scenario = tmp_path / "x.toml"
    scenario.write_text(
        f'[data]\nname = "MNIST"\nfolder = "{tmp_path}"\n[clients]\ncount = 2\n[run]\nmax_updates = 1\n'
    )
    again = CliRunner().invoke(app, ["data", "check", str(scenario)])
    assert facts["sha256"] in again.stdout
    assert "12 training and 4 test samples of 10 classes, shape 1x3x2" in again.stdout
    assert "FashionMNIST" in CliRunner().invoke(app, ["data", "list"]).stdout
    wrong = CliRunner().invoke(app, ["data", "check", "mnits"])
    assert isinstance(wrong.exception, ScenarioError)
    assert "must be one of" in str(wrong.exception)
