"""Classification sets of ``torchvision.datasets``, and anyone's own class of the same make, as arrays.

torchvision does the reading (its checks of content included); nothing is unpickled here. ``python -m
desim_fl.learning.vision`` answers for :mod:`desim_fl.learning.vision_labels` in a process of its own.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.datasets.files import MOST_CLASSES, stacked
from desim_fl.errors import DataError, DesimError
from desim_fl.learning.facts import file_digest, listing, own_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_TRAIN, _TEST = ("train", "trainval"), ("test", "val", "valid", "validation")
_RESERVED = ("root", "train", "transform", "target_transform", "transforms", "download")


class Source(NamedTuple):
    """A set as a scenario names it."""

    name: str
    folder: str
    args: dict[str, Any]
    image_size: int | None = None
    download: bool = False


class Whole(NamedTuple):
    """Images (empty where only labels were asked for) and int64 labels; ``test_*`` is ``None`` where there is no such part."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8] | None
    test_labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    shape: tuple[int, ...]


def read(source: Source, *, images: bool = True) -> Whole:
    """Read a set; without ``images`` only labels and the shape of one sample.

    Raises ``DataError`` where files are missing (naming them, the folder, and ways to get them), where the class does
    not exist, or is not one of images with class numbers.
    """
    train = _part(source, "train")
    test = _part(source, "test")
    labels = [_labels(source, part) for part in (train, test) if part is not None]
    pixels = [_images(source, part, images=images) for part in (train, test) if part is not None]
    if len(pixels) > 1 and pixels[0].ndim != pixels[1].ndim:
        pixels = [each if each.ndim == 4 else np.repeat(each[..., None], 3, axis=3) for each in pixels]  # noqa: PLR2004
    classes = max(int(each.max()) for each in labels) + 1
    return Whole(
        pixels[0] if images else pixels[0][:0],
        labels[0],
        (pixels[1] if images else pixels[1][:0]) if test is not None else None,
        labels[1] if test is not None else None,
        _class_names(train, classes),
        (pixels[0].shape[3] if pixels[0].ndim == 4 else 1, *pixels[0].shape[1:3]),  # noqa: PLR2004
    )


# ---- making one part


def _made_by(name: str) -> Callable[..., Any]:
    """Find the class."""
    if ":" in name:
        from desim_fl.learning.models import imported, working_folder_importable  # noqa: PLC0415

        with working_folder_importable():
            return imported(name, "[data] name")
    import torchvision  # noqa: PLC0415
    from torchvision import datasets  # noqa: PLC0415

    found = getattr(datasets, name, None)
    if not (isinstance(found, type) and issubclass(found, datasets.VisionDataset)):
        guess = get_close_matches(name, datasets.__all__, 1)
        hint = f"; did you mean {guess[0]}?" if guess else "; desim-fl data list names those that are known"
        raise DataError(f'[data] name = "{name}": torchvision {torchvision.__version__} has no such set{hint}')
    return found


def _accepts(make: Callable[..., Any]) -> set[str]:
    """Names of arguments, those of parent classes included where a class passes more on."""
    makes = [kind.__init__ for kind in make.__mro__[:-1]] if isinstance(make, type) else [make]
    names: set[str] = set()
    for each in makes:
        parameters = inspect.signature(each).parameters
        names |= set(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _part(source: Source, part: str) -> Any:
    """Make the training or the test part; ``None`` for the test part of a set that has none."""
    reserved = [key for key in source.args if key in _RESERVED]
    if reserved:
        raise DataError(f"[data] args must not hold {reserved[0]}, which is set here")
    if source.name == "ImageFolder":
        return _image_folder(source, part)
    make = _made_by(source.name)
    names, args = _accepts(make), dict(source.args)
    if "root" in names:
        args["root"] = source.folder
    if "download" in names:
        args["download"] = source.download
    elif source.download:
        raise DataError(
            f'[data] name = "{source.name}": torchvision cannot fetch this set; put its files there by hand'
        )
    if "train" in names:
        return _called(source, make, {**args, "train": part == "train"})
    if "split" in names and "split" not in args:
        return _first_split(source, make, args, _TRAIN if part == "train" else _TEST)
    return _called(source, make, args) if part == "train" else None


def _first_split(source: Source, make: Callable[..., Any], args: dict[str, Any], splits: tuple[str, ...]) -> Any:
    """Make the first of the splits that the class knows."""
    for split in splits:
        try:
            return _called(source, make, {**args, "split": split})
        except _UnknownSplitError:
            continue
    raise DataError(f'[data] name = "{source.name}": has none of the splits {", ".join(splits)}')


class _UnknownSplitError(Exception):
    """The class has no such split."""


def _called(source: Source, make: Callable[..., Any], args: dict[str, Any]) -> Any:
    try:
        with redirect_stdout(sys.stderr):
            made = make(**args)
            count = len(made)
    except DesimError:
        raise
    except ModuleNotFoundError as error:
        raise DataError(
            f'[data] name = "{source.name}": {error}; install it, torchvision needs it for this set'
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and "split" in args and "split" not in source.args:
            raise _UnknownSplitError from error
        if isinstance(error, (RuntimeError, OSError)):
            raise DataError(_missing(source, make, error)) from error
        raise DataError(f'[data] name = "{source.name}": {make.__name__}({args}) raised {error!r}') from error
    if not count:
        raise DataError(f'[data] name = "{source.name}": {args} gives no samples')
    return made


def _missing(source: Source, make: Any, error: Exception) -> str:
    """Say which files belong where, and how they get there."""
    folder = Path(source.folder).absolute()
    names = expected_files(make)
    what = f"it needs {', '.join(names)}" if names else str(error).splitlines()[0]
    if source.download:
        return f'[data] name = "{source.name}": could not be fetched to {folder}: {error!r}'
    ways = f"desim-fl data fetch {source.name} --folder {source.folder}" if ":" not in source.name else "its own way"
    return (
        f'[data] name = "{source.name}": not found, or not whole, in {folder}: {what}. Put the files there, or let '
        f"torchvision fetch them: {ways}, or --download, or [data] download = true"
    )


def expected_files(make: Any) -> list[str]:
    """Files that a class of torchvision says it reads, below its folder; empty where it does not say."""
    if hasattr(make, "resources"):
        names = [str(url).rpartition("/")[2].removesuffix(".gz") for url, _ in make.resources]
        return [f"{make.__name__}/raw/{name}" for name in names]
    if hasattr(make, "base_folder"):
        lists = [*getattr(make, "train_list", ()), *getattr(make, "test_list", ())]
        return [f"{make.base_folder}/{entry[0]}" for entry in lists]
    if isinstance(getattr(make, "split_list", None), dict):
        return [str(entry[1]) for entry in make.split_list.values() if isinstance(entry, (list, tuple))]
    return []


def _image_folder(source: Source, part: str) -> Any:
    from torchvision import datasets  # noqa: PLC0415

    root = Path(source.folder)
    if (root / "train").is_dir():
        place = next((root / name for name in (part, *_TEST) if (root / name).is_dir()), None)
        if place is None:
            return None
    elif part == "test":
        return None
    else:
        place = root
    try:
        made = datasets.ImageFolder(str(place))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"[data] folder {place.absolute()}: {str(error).splitlines()[0]}; images belong in train/CLASS/ and test/CLASS/"
        ) from error
    if part == "test":
        known = _image_folder(source, "train").classes
        if [name for name in made.classes if name not in known]:
            raise DataError(f"[data] folder {place.absolute()} has classes that the training part has not")
        made = datasets.ImageFolder(
            str(place), target_transform=[known.index(name) for name in made.classes].__getitem__
        )
        made.targets = [known.index(made.classes[label]) for label in made.targets]
    return made


# ---- labels and images of a part


def _labels(source: Source, part: Any) -> NDArray[np.int64]:
    """Class numbers: the attribute that holds them, if it agrees with the samples, else one by one."""
    for name in ("targets", "labels", "_labels", "y"):
        held = getattr(part, name, None)
        try:
            found = None if held is None else np.asarray(held)
        except (ValueError, RuntimeError):
            continue
        if found is not None and found.shape == (len(part),) and found.dtype.kind in "iu":
            ends = (0, len(part) - 1)
            if all(_class_of(source, part[at][1]) == found[at] for at in ends):
                return _bounded(source, found.astype(np.int64))
    return _bounded(source, np.array([_class_of(source, part[at][1]) for at in range(len(part))], np.int64))


def _class_of(source: Source, value: Any) -> int:
    try:
        number = value.__index__()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        raise DataError(
            f'[data] name = "{source.name}": a sample has the label {str(value)[:50]!r}; only sets with one class number a '
            "sample can be used"
        ) from None
    return int(number)


def _bounded(source: Source, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    if int(labels.min()) < 0 or int(labels.max()) >= MOST_CLASSES:
        raise DataError(f'[data] name = "{source.name}": labels run from {labels.min()} to {labels.max()}, not from 0')
    return labels


def _images(source: Source, part: Any, *, images: bool) -> NDArray[np.uint8]:
    """All images; the first one alone where only the shape is asked for."""
    what = f'[data] name = "{source.name}"'
    held: Any = getattr(part, "data", None)
    array = held.numpy() if hasattr(held, "numpy") else held
    if isinstance(array, np.ndarray) and array.dtype == np.uint8 and len(array) == len(part) and array.ndim in {3, 4}:
        ordered = _as_shown(part, array)
        if ordered is not None and source.image_size in {None, *ordered.shape[1:3]}:
            return ordered
    return stacked(_shown(source, part, len(part) if images else 1), what, source.image_size)


def _as_shown(part: Any, array: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The array with channels last, if it shows what the samples do; only the first and the last are compared."""
    candidates = [array, array.transpose(0, 2, 3, 1)] if array.ndim == 4 else [array]  # noqa: PLR2004
    for candidate in candidates:
        if all(np.array_equal(np.asarray(part[at][0]), candidate[at]) for at in (0, -1 % len(part))):
            return candidate
    return None


def _shown(source: Source, part: Any, count: int) -> Iterator[Any]:
    for number in range(count):
        image = part[number][0]
        if not hasattr(image, "convert"):
            raise DataError(f'[data] name = "{source.name}": a sample is a {type(image).__name__}, not an image')
        yield image


def _class_names(part: Any, classes: int) -> tuple[str, ...]:
    names = getattr(part, "classes", None)
    if isinstance(names, (list, tuple)) and len(names) >= classes and all(isinstance(name, str) for name in names):
        return tuple(names)
    return tuple(str(number) for number in range(classes))


# ---- the child


def _watched(folder: str) -> tuple[set[str], set[str]]:
    """Take note of files opened and folders listed below ``folder`` from now on."""
    root, files, folders = os.path.realpath(folder), set[str](), set[str]()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.listdir", "os.scandir"} and arguments and isinstance(arguments[0], (str, os.PathLike)):
            path = os.path.realpath(arguments[0])
            if path.startswith(root):
                (files if event == "open" else folders).add(path)

    sys.addaudithook(note)
    return files, folders


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Read the labels, write them to the file that is named, and say what they came from."""
    source = Source(*request["source"])
    files, folders = _watched(source.folder)
    whole = read(source, images=False)
    arrays = {"train": whole.train_labels}
    if whole.test_labels is not None:
        arrays["test"] = whole.test_labels
    np.savez_compressed(request["target"], allow_pickle=False, **arrays)
    return {
        "class_names": whole.class_names,
        "shape": whole.shape,
        "files": {path: file_digest(path) for path in sorted(files) if os.path.isfile(path)},  # noqa: PTH113
        "folders": {path: listing(path) for path in sorted(folders) if os.path.isdir(path)},  # noqa: PTH112
        "sources": own_sources(),
    }


def main() -> None:
    """Answer the question on standard input, as JSON on standard output."""
    request = json.load(sys.stdin)
    try:
        with redirect_stdout(sys.stderr):
            answer = _answer(request)
    except DesimError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
