"""Checkpoints hold any value of a run exactly, notice every damage, and never lose the last good one."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from desim_fl import checkpoint, durable
from desim_fl.algebra import Null
from desim_fl.core import Job, Model, Work
from desim_fl.errors import CheckpointError


class Buffer(NamedTuple):
    """A state as strategies have it."""

    total: object
    count: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """A frozen dataclass."""

    name: str
    values: tuple[float, ...]


def plain(value):
    """A value as nested tuples that compare equal exactly where types, bits, shapes and strides are equal."""
    if isinstance(value, torch.Tensor):
        content = value.contiguous().numpy().tobytes()
        return "tensor", value.dtype, tuple(value.shape), value.stride(), content
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(plain, value))
    if isinstance(value, dict):
        return dict, tuple((plain(key), plain(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return type(value), tuple(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    return type(value), repr(value)


def same(left, right) -> bool:
    """Equality in every respect."""
    return plain(left) == plain(right)


arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.uint8]), hnp.array_shapes(min_dims=0, min_side=0)
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(Null), arrays, arrays.map(torch.tensor)
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
        st.builds(Buffer, inner, st.integers()),
        st.builds(Fact, st.text(), st.lists(st.floats(), max_size=3).map(tuple)),
    ),
    max_leaves=12,
)


@given(values)
def test_any_value_comes_back(value):
    """Type by type, bit by bit, whatever is nested in what."""
    assert same(checkpoint.decoded(checkpoint.encoded(value)), value)


def test_memory_order_comes_back():
    """Strides tell kernels how to round: channels-last weights stay channels last, views become small."""
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    window = torch.arange(100.0)[10:30:2]
    one, two = checkpoint.decoded(checkpoint.encoded((weights, window)))
    assert same(one, weights)
    assert one.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(two, window)
    assert two.untyped_storage().nbytes() < 300


def test_what_is_shared_is_stored_once_and_shared_again():
    """Ten jobs from one version cost one version, and hold one tensor afterwards; CASES CK-01."""
    params, buffers = torch.randn(10_000), {"mean": torch.zeros(3)}
    model = Model(3, params, buffers)
    jobs = [Job(n, n, 0, 3, params, buffers, Work(1, 2, 0.1)) for n in range(10)]
    content = checkpoint.encoded({"model": model, "jobs": jobs, "base": params})
    assert len(content) < 50_000
    found = checkpoint.decoded(content)
    assert all(job.params is found["model"].params and job.buffers is found["model"].buffers for job in found["jobs"])
    assert found["base"] is found["model"].params
    found["base"].add_(1)  # writable, and memory of its own
    assert torch.equal(params + 1, found["model"].params)


def test_tensors_of_an_accelerator_go_where_the_run_is():
    """What lay on a GPU is stored as plain bytes and loads on the device of the resumed run, here the CPU; CASES CK-03."""
    encoder = checkpoint.Encoder()
    node = encoder.node(torch.arange(3.0))
    node["on"] = "device"
    found = checkpoint.Decoder(encoder.arrays, "cpu").value(node)
    assert found.device.type == "cpu"
    assert found.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(NotImplementedError):  # to a device without data it cannot go: the device asked for is used
        checkpoint.Decoder(encoder.arrays, "meta").value(node).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_checkpoint_of_a_gpu_loads_on_both():
    """Stored from CUDA it loads on CUDA and on the CPU; what lay on the CPU stays there; CASES CK-03."""
    content = checkpoint.encoded((torch.arange(4.0, device="cuda"), torch.arange(2)))
    for device in ("cuda", "cpu"):
        moved, stayed = checkpoint.decoded(content, device)
        assert (moved.device.type, stayed.device.type) == (device, "cpu")
        assert moved.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("value", [{1, 2}, object(), open, np.array(["a"]), 1j, {"k": range(3)}])
def test_what_has_no_form_is_refused(value):
    """A state that a checkpoint cannot hold is an error that shows it, not a surprise at the resume."""
    with pytest.raises(CheckpointError, match="cannot be kept"):
        checkpoint.encoded({"state": (1, value)})


def test_local_types_are_refused():
    """A type that could not be found again is refused when it is written."""

    class Local(NamedTuple):
        x: int

    with pytest.raises(CheckpointError, match="define it in a module"):
        checkpoint.encoded(Local(1))


def test_no_type_but_records_is_made(tmp_path):
    """A file cannot name a class or function that does more than hold fields, nor a module that is not loaded; CASES CK-03."""
    good = checkpoint.encoded(Buffer(1, 2))
    for name in ("subprocess:Popen", "builtins:list", "os:system", "antigravity:x", "pathlib:Path"):
        bad = good.replace(b"test_checkpoint:Buffer", name.ljust(22).encode())
        header = int.from_bytes(bad[:8], "little")
        assert len(bad) == len(good), header
        with pytest.raises(CheckpointError):
            checkpoint.decoded(bad)
    assert "antigravity" not in sys.modules


@given(st.data())
def test_every_damage_is_noticed(tmp_path_factory, data):
    """Cut off anywhere, or with any bit flipped, the newest file is passed over for the one before it; CASES CK-04."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoint.store(folder, 1, {"good": torch.arange(5.0)})
    path = checkpoint.store(folder, 2, {"newer": torch.arange(6.0)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, 8 * len(content) - 1))
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    found, faults = checkpoint.latest(folder)
    assert list(found) == ["good"]
    assert len(faults) == 1
    assert str(path) in faults[0]


@given(st.binary(max_size=200))
def test_other_files_are_no_checkpoints(content):
    """Any bytes are refused with one kind of error; CASES CK-03."""
    with pytest.raises(CheckpointError):
        checkpoint.decoded(content)


def test_two_are_kept(tmp_path):
    """The newest and the one before it stay; positions order them, not times or digests."""
    folder = tmp_path / "checkpoints"
    for position in (5, 50, 7_000, 123_456_789):
        checkpoint.store(folder, position, {"at": position})
    assert [int(path.name.split("-")[1]) for path in checkpoint.files(folder)] == [7_000, 123_456_789]
    assert checkpoint.latest(folder)[0] == {"at": 123_456_789}


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
def test_a_write_that_fails_changes_nothing(tmp_path, monkeypatch, fails):
    """Whatever step of writing fails, the file that stood there is whole and nothing is left beside it; CASES CK-04."""
    path = tmp_path / "file"
    durable.write(path, b"old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if fails == "fsync":
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr(f"pathlib.Path.{fails}", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    """Kill -9 between any two steps of writing leaves the old file or the new one, whole; CASES CK-04."""
    code = (
        "import os, sys, pathlib\nfrom desim_fl import durable\n"
        "path, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])\n"
        "count = 0\n"
        "def trap(frame, event, arg):\n"
        "    global count\n"
        "    if event == 'line':\n"
        "        count += 1\n"
        "        if count == step: os.kill(os.getpid(), 9)\n"
        "    return trap\n"
        "sys.settrace(lambda f, e, a: trap if f.f_code.co_filename.endswith('durable.py') else None)\n"
        "durable.write(path, b'new' * 1000)\n"
    )
    seen = set()
    for step in range(1, 30):
        path = tmp_path / str(step) / "file"
        path.parent.mkdir()
        path.write_bytes(b"old" * 1000)
        done = subprocess.run([sys.executable, "-c", code, str(path), str(step)], check=False)
        content = path.read_bytes()
        assert content in {b"old" * 1000, b"new" * 1000}
        seen.add((done.returncode, content[:3]))
        durable.sweep(path.parent)
        assert list(path.parent.iterdir()) == [path]
        if done.returncode == 0:
            break
    assert seen == {(-9, b"old"), (-9, b"new"), (0, b"new")}


def test_rs_01_what_was_encoded_or_decoded_is_let_go_at_once():
    """Neither an encoder nor a decoder is in a cycle: the tensors it saw die with their last user, without a collection; CASES RS-01."""
    mine = {"state": (torch.zeros(3), [Buffer(torch.ones(2))]), "array": np.arange(3.0)}
    content = checkpoint.encoded(mine)
    gc.disable()
    try:
        checkpoint.encoded(mine)
        theirs = checkpoint.decoded(content)
        seen = [weakref.ref(value) for each in (mine, theirs) for value in (each["state"][0], each["array"])]
        del mine, theirs
        assert [reference() for reference in seen] == [None] * 4
    finally:
        gc.enable()
