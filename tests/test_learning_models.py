"""Models and their sizes: formulas against torch, factories by name, and the cache of facts."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_world import BLOBS, IMAGES, blob_task

from desim_fl.errors import ScenarioError
from desim_fl.learning import facts, models, sizes
from desim_fl.learning.classification import ClassificationTask
from desim_fl.learning.vectors import ModuleState
from desim_fl.scenario.models import VISION_MODELS

FACTORY = """
from torch import nn
from nethelper import WIDTH

def net(width=WIDTH, classes=4, *, frozen=False):
    print("a factory may print")
    first = nn.Linear(6, width)
    first.requires_grad_(not frozen)
    return nn.Sequential(first, nn.BatchNorm1d(width), nn.Linear(width, classes))

def broken():
    raise ZeroDivisionError("no net today")

def text():
    return "not a module"

number = 3
"""


def counted(module: torch.nn.Module) -> sizes.ModelFacts:
    """Count a real module."""
    state = ModuleState(module)
    return sizes.ModelFacts(
        len(state.vector()), 4 * len(state.vector()), sum(b.nbytes for b in state.buffers().values())
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a working folder with a user's own module, and a cache of its own."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "usernet.py").write_text(FACTORY)
    (tmp_path / "work" / "nethelper.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("usernet", "nethelper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(4, 20), st.integers(4, 20)),
    classes=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 20), max_size=3),
    channels=st.lists(st.integers(1, 8), min_size=1, max_size=2),
)
def test_formulas_equal_torch(shape, classes: int, hidden: list[int], channels: list[int]) -> None:
    """The formulas give what torch counts, and the models map a batch to one score a class."""
    batch = torch.zeros(2, *shape)
    cases = [("mlp", {"hidden": hidden}), ("cnn", {"channels": channels})]
    cases += [("cnn_gap", {"width": hidden[0] if hidden else 3, "layers": len(channels)})]
    cases += [("lenet5", {})] if min(shape[1:]) > 11 else []
    for name, args in cases:
        module = models.factory(name, args, shape, classes)()
        assert sizes.model_facts(name, args, shape, classes) == counted(module)
        assert module(batch).shape == (2, classes)


@pytest.mark.parametrize(("name", "parameters"), [("mlp", 50_890), ("cnn", 9_098)])
def test_default_sizes_worked_by_hand(name: str, parameters: int) -> None:
    """On 28 x 28 grey images: mlp 785 x 64 + 65 x 10, cnn 10 x 8 + 73 x 16 + 785 x 10 parameters of 4 bytes."""
    found = sizes.model_facts(name, {}, IMAGES.shape, IMAGES.classes)
    assert (found.parameters, found.total_bytes) == (parameters, 4 * parameters)


def test_the_task_knows_its_real_size() -> None:
    """What the task counts is what the formula promised."""
    expected = sizes.model_facts("mlp", {"hidden": [16]}, BLOBS.shape, BLOBS.classes)
    assert blob_task().facts == expected


@pytest.mark.parametrize(
    ("shape", "channels", "why"),
    [
        ((20,), [8], '"cnn" needs images'),
        ((1, 4, 4), [2, 2, 2], "too many halvings of 4x4"),
        ((1, 4, 4), [], "at least one"),
    ],
)
def test_cnn_on_impossible_samples_is_refused_without_torch(
    shape: tuple[int, ...], channels: list[int], why: str
) -> None:
    """Features, images halved away, or no convolution: the formula refuses them as the model does."""
    for build in (sizes.cnn_facts, models.cnn):
        with pytest.raises(ScenarioError, match=why):
            build(shape, 10, channels)


@pytest.mark.usefixtures("folder")
def test_a_users_factory_is_built_from_the_working_folder() -> None:
    """A module beside the scenario is found, gets its args, and the import path is as before."""
    before = list(sys.path)
    build = models.factory("usernet:net", {"width": 5}, BLOBS.shape, BLOBS.classes)
    assert counted(build()).parameters == 7 * 5 + 2 * 5 + 6 * 4
    assert sys.path == before
    task = blob_task(build)
    assert set(task.initial().buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_factory_travels_to_worker_processes() -> None:
    """What builds a model can be pickled."""
    build = pickle.loads(pickle.dumps(models.factory("mlp", {"hidden": [3]}, (6,), 4)))  # noqa: S301
    assert counted(build()).parameters == 7 * 3 + 4 * 4


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "args", "why"),
    [
        ("res:", {}, "known are mlp, cnn, cnn_gap, lenet5, resnet20, or your own"),
        ("nowhere:net", {}, "run from the folder that holds it"),
        ("usernet:nett", {}, "nett"),
        ("usernet:net", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("usernet:broken", {}, "no net today"),
        ("usernet:text", {}, "returned a str"),
        ("usernet:number", {}, "not a factory"),
    ],
)
def test_factories_that_cannot_be_used_are_named(name: str, args: dict[str, int], why: str) -> None:
    """Each way to go wrong is a ScenarioError that names the factory and says what to do."""
    with pytest.raises(ScenarioError, match=why) as caught:
        models.made(name, args)
    assert name in str(caught.value)


@pytest.mark.usefixtures("folder")
def test_a_module_whose_import_fails_says_what_is_missing() -> None:
    """A missing dependency of the user's module is told apart from a missing module."""
    Path("needy.py").write_text("import a_package_that_is_not_there\n")
    Path("faulty.py").write_text("1 / 0\n")
    with pytest.raises(ScenarioError, match=r"a_package_that_is_not_there.*install what it imports"):
        models.made("needy:net", {})
    with pytest.raises(ScenarioError, match="ZeroDivisionError"):
        models.made("faulty:net", {})


def test_facts_of_a_factory_come_from_a_child_and_then_from_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts equal torch's, frozen parameters travel as buffers, and the second question starts no child."""
    assert facts.factory_facts("usernet:net", {"frozen": True}) == counted(models.made("usernet:net", {"frozen": True}))
    plain = facts.factory_facts("usernet:net", {})
    assert plain == sizes.ModelFacts(7 * 8 + 2 * 8 + 9 * 4, 4 * 108, 2 * 8 * 4 + 8)
    assert len(list((folder / "cache" / "desim-fl" / "facts").glob("*.json"))) == 2
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    assert facts.factory_facts("usernet:net", {}) == plain


@pytest.mark.usefixtures("folder")
def test_facts_follow_every_source_they_came_from() -> None:
    """A change in the factory's file or in a module that it imports is noticed."""
    assert facts.factory_facts("usernet:net", {}).parameters == 108
    Path("nethelper.py").write_text("WIDTH = 10\n")
    assert facts.factory_facts("usernet:net", {}).parameters == 7 * 10 + 2 * 10 + 11 * 4
    Path("usernet.py").write_text(FACTORY.replace("classes=4", "classes=5"))
    assert facts.factory_facts("usernet:net", {}).parameters == 7 * 10 + 2 * 10 + 11 * 5


def test_an_unusable_cache_costs_time_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is a file, or holds rubbish, still gives the right facts."""
    (folder / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    expected = facts.factory_facts("usernet:net", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert facts.factory_facts("usernet:net", {}) == expected
    (entry,) = (folder / "cache" / "desim-fl" / "facts").glob("*.json")
    for rubbish in ("{", "[]", json.dumps({"facts": "many", "sources": {}}), json.dumps({"facts": [1, 2, 3]})):
        entry.write_text(rubbish)
        assert facts._remembered(entry) is None
    assert facts.factory_facts("usernet:net", {}) == expected


@pytest.mark.usefixtures("folder")
def test_a_childs_refusal_reaches_the_user() -> None:
    """Whatever stops the child is a ScenarioError here, with the same words; odd args never reach it."""
    with pytest.raises(ScenarioError, match="no net today"):
        facts.factory_facts("usernet:broken", {})
    with pytest.raises(ScenarioError, match="nowhere"):
        facts.factory_facts("nowhere:net", {})
    with pytest.raises(ScenarioError, match="args of usernet:net"):
        facts.factory_facts("usernet:net", {"when": object()})


def test_sources_are_found_without_importing_their_packages(folder: Path) -> None:
    """Looking for a module's file runs none of its packages' code."""
    package = folder / "work" / "boobytrap"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit\n")
    (package / "inner.py").write_text("")
    assert facts.source_file("boobytrap.inner") == str(package / "inner.py")
    assert facts.source_file("boobytrap.absent") is None
    assert facts.source_file("absent.inner") is None


@pytest.mark.usefixtures("folder")
def test_sizes_need_no_torch() -> None:
    """Formulas, batch plans and the quadratic task import neither torch nor NumPy's friends of it."""
    code = (
        "import sys; from desim_fl.learning import batches, facts, quadratic, sizes, task;"
        "from desim_fl.executors import inline, null;"
        "sizes.model_facts('cnn', {}, (1, 28, 28), 10); sizes.model_facts('usernet:net', {}, (6,), 4);"
        "assert not {'torch', 'torchvision', 'polars', 'usernet'} & set(sys.modules)"
    )
    path = str(Path(sizes.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path, "HOME": ".", "PATH": ""})


def test_a_task_takes_images_for_an_mlp() -> None:
    """The built-in mlp flattens images by itself."""
    build = models.factory("mlp", {}, IMAGES.shape, IMAGES.classes)
    task = ClassificationTask(seed=0, keys=[0], model=build, dataset=IMAGES, parts=[range(10)])  # pyright: ignore[reportArgumentType]
    assert task.facts.parameters == 50_890


@pytest.mark.parametrize(
    ("name", "args", "shape", "parameters", "beside"),
    [
        ("cnn_gap", {}, (1, 28, 28), 19_146, 0),  # 9 * 32 + 32, twice 9 * 32 * 32 + 32, 33 * 10
        ("lenet5", {}, (1, 28, 28), 61_706, 0),  # 156 + 2416 + 48120 + 10164 + 850
        ("lenet5", {}, (3, 32, 32), 62_006, 0),
        ("resnet20", {}, (3, 32, 32), 272_474, 21 * 8 + 8 * 784),
        ("resnet20", {"norm": "group", "groups": 4}, (3, 32, 32), 272_474, 0),
        ("resnet20", {}, (1, 28, 28), 272_186, 21 * 8 + 8 * 784),
    ],
)
def test_networks_of_the_literature_have_their_known_sizes(name, args, shape, parameters, beside):
    """Published parameter counts hold, in the formula and in torch; statistics of normalisation are counted apart."""
    found = sizes.model_facts(name, args, shape, 10)
    assert (found.parameters, found.parameter_bytes, found.buffer_bytes) == (parameters, 4 * parameters, beside)
    module = models.factory(name, args, shape, 10)()
    assert counted(module) == found
    assert module(torch.zeros(2, *shape)).shape == (2, 10)


def test_convolutions_averaged_over_all_places_start_as_published():
    """Xavier-uniform weights (within sqrt(6 / (fan in + fan out))) and no bias."""
    first, second, _ = (part for part in models.factory("cnn_gap", {}, (1, 8, 8), 10)() if isinstance(part, nn.Conv2d))
    for convolution, fans in ((first, 9 + 288), (second, 288 + 288)):
        assert not convolution.bias.any()
        assert 0.95 * (6 / fans) ** 0.5 < float(convolution.weight.detach().abs().max()) <= (6 / fans) ** 0.5


VIT = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}


@pytest.mark.parametrize(
    ("name", "args"), [("mobilenet_v2", {}), ("mobilenet_v3_small", {}), ("resnet18", {}), ("VisionTransformer", VIT)]
)
def test_models_of_torchvision_fit_the_data(name, args):
    """Grey images of 32 pixels and four classes: the first convolution and the last layer are made for them."""
    module = models.factory(name, args, (1, 32, 32), 4)()
    assert module.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert sizes.ModelFacts(*facts._measured(name, args, (1, 32, 32), 4)["facts"]) == counted(module)
    plain = getattr(torchvision.models, name)(**({"image_size": 32} if args else {}), **args, num_classes=4)
    colours = sum(value.numel() for value in plain.parameters())
    first = next(part for part in plain.modules() if isinstance(part, nn.Conv2d))
    assert counted(module).parameters == colours - 2 * first.weight[:, 0].numel()


@pytest.mark.usefixtures("folder")
def test_the_size_of_a_torchvision_model_comes_from_a_child_and_then_from_the_cache(monkeypatch):
    """``plan`` asks a child once, by name, arguments, shape and classes."""
    found = sizes.model_facts("VisionTransformer", VIT, (3, 32, 32), 4)
    assert found == counted(models.factory("VisionTransformer", VIT, (3, 32, 32), 4)())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a child was started"))
    assert sizes.model_facts("VisionTransformer", VIT, (3, 32, 32), 4) == found


@pytest.mark.parametrize(
    ("name", "args", "shape", "why"),
    [
        ("resnet18", {"weights": "DEFAULT"}, (3, 32, 32), "must not hold weights"),
        ("resnet18", {"depth": 3}, (3, 32, 32), "depth"),
        ("resnet18", {}, (20,), '"resnet18" needs images'),
        ("lenet5", {}, (1, 8, 8), "8x8 pixels are too small"),
        ("resnet20", {}, (20,), '"resnet20" needs images'),
        ("cnn_gap", {}, (20,), '"cnn_gap" needs images'),
    ],
)
def test_networks_that_cannot_be_built_are_refused(name, args, shape, why):
    """Trained weights (which would be fetched), unknown arguments and samples of the wrong kind are named errors."""
    with pytest.raises(ScenarioError, match=why):
        models.factory(name, args, shape, 10)()


def test_the_list_of_torchvision_models_is_torchvisions():
    """Every name that a scenario may give exists, and every classifier of torchvision may be named."""
    offered = set(torchvision.models.list_models(module=torchvision.models)) | {"VisionTransformer"}
    assert set(VISION_MODELS) == offered
