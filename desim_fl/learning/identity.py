"""What a trained result depends on besides the job: the task, the software and the machine, as hashes."""

from __future__ import annotations

import hashlib
import platform
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from desim_fl.errors import RefusedError
from desim_fl.learning.facts import kernel_settings, own_sources, source_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from desim_fl.learning.classification import ClassificationTask

_PACKAGE = Path(__file__).resolve().parent.parent
_USUAL = (
    "seed",
    "keys",
    "batch_size",
    "threads",
    "parts",
    "optimizer",
    "device",
    "local_buffers",
    "own_start",
    "patience",
    "model",
    "classes",
    "training",
    "splits",
    "module",
    "state",
    "steps",
    "draws_random",
    "own_thread",
    "_initial",
)
_CODE = ("learning/*.py", "draws.py", "algebra.py", "core.py")


def digest(*parts: Any) -> str:
    """sha256 over a nested value of numbers, text, tensors, tuples, lists and dicts, types and shapes included.

    Raises ``TypeError`` for anything else, which then has no identity.
    """
    state = hashlib.sha256()
    for piece in _pieces(parts):
        state.update(len(piece).to_bytes(8, "little"))
        state.update(piece)
    return state.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"tensor {plain.dtype} {tuple(plain.shape)}".encode()
        yield plain.view(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    elif isinstance(value, dict):
        yield f"dict {len(value)}".encode()
        for key in sorted(value):
            yield from _pieces(key)
            yield from _pieces(value[key])
    elif isinstance(value, (tuple, list)):
        yield f"list {len(value)}".encode()
        for item in value:
            yield from _pieces(item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        raise TypeError(f"a {type(value).__name__} has no stable identity")


def machine(device: torch.device) -> dict[str, str]:
    """What decides the last bits of a result on this machine: builds, processor, kernels, flags."""
    facts = {
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "numpy": metadata.version("numpy"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "machine": platform.machine(),
        "precision": torch.get_float32_matmul_precision(),
        "mkldnn": str(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "dtype": str(torch.get_default_dtype()),
        "device": device.type,
        "kernels": kernel_settings(),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return facts


def _processor() -> str:
    """The processor's model where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def code() -> str:
    """Hash of the source that trains, and of every loaded source file that is neither ours nor installed."""
    files = sorted(path for pattern in _CODE for path in _PACKAGE.glob(pattern))
    own = own_sources()
    users = {path: content for path, content in own.items() if not path.startswith(str(_PACKAGE))}
    return digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in files], users)


def _factory(model: Any) -> Any:
    """What builds the module: its function and arguments; an own one's source file too, installed or not."""
    if not isinstance(model, partial):
        return f"{model.__module__}.{getattr(model, '__qualname__', model)}"
    names = [argument.partition(":")[0] for argument in model.args if isinstance(argument, str) and ":" in argument]
    files = [found for found in map(source_file, names) if found]
    sources = [hashlib.sha256(Path(found).read_bytes()).hexdigest() for found in files if Path(found).is_file()]
    return [f"{model.func.__module__}.{model.func.__qualname__}", list(model.args), dict(model.keywords), sources]


def _kind(task: ClassificationTask) -> list[Any]:
    """The class of the task: name and source file; and what a class of one's own keeps beside the usual attributes."""
    kind = type(task)
    if kind.__module__.startswith("desim_fl."):
        return [kind.__qualname__]
    file = source_file(kind.__module__)
    content = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
    usual = vars(task).keys() & set(_USUAL)
    return [kind.__module__, kind.__qualname__, content, {k: v for k, v in vars(task).items() if k not in usual}]


class Identity:
    """The identity of a task; ``job_key`` and ``model_key`` add what differs from job to job."""

    def __init__(self, task: ClassificationTask) -> None:
        optimizer = task.optimizer
        facts = (
            code(),
            machine(task.device),
            _factory(task.model),
            _kind(task),
            dict(task.module.named_buffers()),
            [repr(task.module), {name: tuple(value.shape) for name, value in task.module.state_dict().items()}],
            [task.seed, task.batch_size, task.threads, task.local_buffers],
            [optimizer.each_epoch, task.own_start, task.patience],
            [optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.proximal_mu],
            list(task.training),
        )
        try:
            self.task = digest(*facts)
        except TypeError as error:
            raise RefusedError(f"[executor] reuse = true: [training] task keeps {error}; set reuse = false") from error
        self.scored = digest(self.task, {name: list(samples) for name, samples in task.splits.items()})
        self._keys = task.keys
        self._clients = [hashlib.sha256(part.astype("<i8").tobytes()).hexdigest() for part in task.parts]

    def model_digest(self, params: Any, buffers: Any) -> str:
        """Hash of a version's content."""
        return digest(params, buffers)

    def job_key(self, model: str, job: Any, steps: int) -> str | None:
        """Key of a job's outcome after ``steps`` steps; ``None`` where something in it has no identity."""
        try:
            return digest(
                self.task, model, self._keys[job.client], self._clients[job.client], job.nth,
                [job.work.epochs, job.work.steps, job.work.lr, job.work.decay, job.work.part, steps, *(["probe"] if job.work.probe else [])],
                job.extra, job.memory,
            )  # fmt: skip
        except TypeError:
            return None

    def score_key(self, model: str, version: int) -> str:
        """Key of an evaluation; the version counts because it names the evaluation's random stream."""
        return digest("scores", self.scored, model, version)
