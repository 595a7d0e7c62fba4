"""The built-in models, and anyone's own ``torch.nn.Module`` by ``"pkg.mod:factory"``.

A model maps a batch (``(n, channels, height, width)`` for images, ``(n, features)`` otherwise) to one score a class,
shape ``(n, classes)``: logits, or log-probabilities (cross entropy gives the same for both).
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from desim_fl.errors import DesimError, ScenarioError
from desim_fl.learning import networks, sizes
from desim_fl.learning.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


def mlp(shape: Sequence[int], classes: int, hidden: Sequence[int] = (64,)) -> nn.Module:
    """Build fully connected layers of the widths ``hidden`` with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    before = sizes.flat_size(shape)
    for width in hidden:
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


def cnn(shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16)) -> nn.Module:
    """Build a small convolutional net: 3x3 convolution, ReLU, 2x2 max pooling for each entry, then one linear layer."""
    features = sizes.cnn_features(shape, channels)
    layers: list[nn.Module] = []
    before = shape[0]
    for depth in channels:
        layers += [nn.Conv2d(before, depth, sizes.KERNEL, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        before = depth
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "cnn_gap": networks.cnn_gap,
    "lenet5": networks.lenet5,
    "resnet20": networks.resnet20,
}


@contextmanager
def working_folder_importable() -> Iterator[None]:
    """Let the body import modules that lie in the current folder, also where an installed command runs it."""
    folder = os.getcwd()  # noqa: PTH109  (sys.path holds strings)
    before = list(sys.path)
    if folder not in before and "" not in before:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path and folder not in before:
            sys.path.remove(folder)


def imported(name: str, place: str = "[model] name") -> Callable[..., Any]:
    """Import what ``"pkg.mod:factory"`` in a table names; raises ``ScenarioError`` saying why it cannot be used."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        known = ", ".join(BUILT_IN)
        raise ScenarioError(f'{place} = "{name}": known are {known}, or your own as "package.module:factory"')
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        hint = "run from the folder that holds it, or install it" if error.name == module else "install what it imports"
        raise ScenarioError(f'{place} = "{name}": {error}; {hint}') from error
    except AttributeError as error:
        raise ScenarioError(f'{place} = "{name}": {module} could not give {attribute!r} ({error})') from error
    except Exception as error:
        raise ScenarioError(f'{place} = "{name}": importing {module} raised {error!r}') from error
    if not callable(found):
        raise ScenarioError(f'{place} = "{name}": {attribute} is a {type(found).__name__}, not a factory')
    return found


def made(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Call a user's factory with ``args``; whatever goes wrong is a ``ScenarioError`` that names it."""
    with working_folder_importable():
        factory = imported(name)
        try:
            module = factory(**args)
        except DesimError:
            raise
        except Exception as error:
            raise ScenarioError(f'[model] name = "{name}": calling it with {dict(args)} raised {error!r}') from error
    if not isinstance(module, nn.Module):
        raise ScenarioError(f'[model] name = "{name}" returned a {type(module).__name__}, not a torch.nn.Module')
    return module


def named(name: str) -> Any:
    """Import a class of one's own again, in another process."""
    with working_folder_importable():
        return imported(name, "[training] task")


def own_task(name: str, own: Mapping[str, Any], **arguments: Any) -> Any:
    """Make a task of anyone's own class; raises ``ScenarioError`` where that fails or gives something else."""
    place = "[training] task"
    with working_folder_importable():
        make = imported(name, place)
        try:
            made = make(**arguments, **own)
        except DesimError:
            raise
        except Exception as error:
            raise ScenarioError(f'{place} = "{name}": calling it with {dict(own)} raised {error!r}') from error
    if not isinstance(made, Task):
        missing = [method for method in _METHODS if not hasattr(made, method)]
        raise ScenarioError(f'{place} = "{name}" gave a {type(made).__name__} without {", ".join(missing)}')
    return made


_METHODS = ("initial", "train", "evaluate", "average", "tensors")


def factory(name: str, args: Mapping[str, Any], shape: Sequence[int], classes: int) -> Callable[[], nn.Module]:
    """Return what builds a new module as a scenario names it; it can be pickled to worker processes.

    Built-in models and torchvision's get ``shape``, ``classes`` and ``args``; a user's factory gets ``args`` alone.
    """
    if name in BUILT_IN:
        return partial(BUILT_IN[name], tuple(shape), classes, **args)
    if name.isidentifier():
        return partial(networks.vision_model, name, tuple(shape), classes, dict(args))
    return partial(made, name, dict(args))
