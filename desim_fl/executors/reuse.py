"""Never train twice: an executor in front of another that takes outcomes it already has from a store.

An outcome is kept under everything it depends on (see :mod:`desim_fl.learning.identity`): a job whose base model,
data, stream, work, code and machine are the same gives the same bits, so it need not be trained again. Only exact
executors write.
"""

from __future__ import annotations

import json
import math
import statistics
from time import perf_counter  # decides whether outcomes are kept, and nothing that the run computes
from typing import TYPE_CHECKING, Any

from safetensors.torch import load, save

from desim_fl.core import Outcome, Promise, Score
from desim_fl.learning.identity import digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Executor, Job, Model
    from desim_fl.executors.store import Behind, Store
    from desim_fl.learning.classification import ClassificationTask
    from desim_fl.learning.identity import Identity

_PLAIN = ("examples", "steps", "stopped", "loss", "bad")


def packed(outcome: Outcome) -> bytes | None:
    """An outcome as bytes; ``None`` for one whose memory or extra holds more than buffers and control variates."""
    memory, extra = outcome.memory, outcome.extra
    known = memory is None or (isinstance(memory, dict) and set(memory) <= {"buffers", "control"})
    if not known or not (extra is None or (isinstance(extra, dict) and set(extra) == {"control"})):
        return None
    tensors = {"params": outcome.params}
    tensors |= {f"buffers.{name}": value for name, value in (outcome.buffers or {}).items()}
    tensors |= {f"memory.{name}": value for name, value in (memory or {}).get("buffers", {}).items()}
    tensors |= {f"control.{name}": each["control"] for name, each in _controls(outcome)}
    plain = {name: getattr(outcome, name) for name in _PLAIN}
    plain |= {"has_buffers": outcome.buffers is not None, "has_memory": sorted(memory) if memory is not None else None}
    solid = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    return save(solid, metadata={"outcome": json.dumps(plain)})


def _controls(outcome: Outcome) -> list[tuple[str, dict[str, Any]]]:
    """Where an outcome holds control variates (SCAFFOLD)."""
    places = (("memory", outcome.memory), ("extra", outcome.extra))
    return [(name, each) for name, each in places if each is not None and "control" in each]


def unpacked(content: bytes, device: Any) -> Outcome:
    """The outcome again, on ``device``."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    plain = json.loads(header["__metadata__"]["outcome"])
    tensors = {name: value.to(device) for name, value in load(content).items()}

    def under(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    controls = under("control.")
    memory = {name: under("memory.") if name == "buffers" else controls["memory"] for name in plain["has_memory"] or ()}
    return Outcome(
        tensors["params"],
        under("buffers.") if plain["has_buffers"] else None,
        extra={"control": controls["extra"]} if "extra" in controls else None,
        memory=memory if plain["has_memory"] is not None else None,
        **{name: plain[name] for name in _PLAIN},
    )


def keeping_s(task: ClassificationTask, store: Store) -> float:
    """Real seconds that keeping an outcome of a task costs here: hashing its base, packing and writing; the median of five.

    Infinite where the store cannot be written to.
    """
    model, seconds = task.initial(), []
    for _ in range(5):
        begin = perf_counter()
        digest(model.params, model.buffers)
        content = packed(Outcome(model.params, model.buffers))
        if content is None or not store.tried(content):
            return math.inf
        seconds.append(perf_counter() - begin)
    return statistics.median(seconds)


class ReuseExecutor:
    """Asks ``store`` before ``inner``; ``reused`` and ``trained`` count jobs, ``rescored`` reused evaluations."""

    def __init__(self, inner: Executor, store: Store | Behind, identity: Identity, device: Any) -> None:
        self.inner, self.store, self.identity, self.device = inner, store, identity, device
        self.name = inner.name
        self.reused = self.trained = self.rescored = 0
        self._known: dict[int, Outcome] = {}
        self._due: dict[int, int] = {}
        self._models: dict[tuple[int, int], list[Any]] = {}  # ids -> [parameters, buffers, digest, jobs that use it]

    @property
    def wall(self) -> list[Any]:
        """Real seconds of the jobs that were trained."""
        return getattr(self.inner, "wall", [])

    def _model(self, job: Job, change: int) -> str:
        """Digest of a job's base model, computed once while any job uses it."""
        place = (id(job.params), id(job.buffers))
        entry = self._models.get(place)
        if entry is None:
            entry = [job.params, job.buffers, self.identity.model_digest(job.params, job.buffers), 0]
            self._models[place] = entry
        entry[3] += change
        if entry[3] <= 0:
            del self._models[place]
        return entry[2]

    def _found(self, key: str | None) -> Outcome | None:
        content = None if key is None else self.store.get(key)
        return None if content is None else unpacked(content, self.device)

    def submit(self, job: Job, due: int) -> None:
        """Look the job up; pass it on only if its outcome is not there."""
        model = self._model(job, +1)
        self._due[job.id] = due
        found = self._found(self.identity.job_key(model, job, job.work.steps or 0))
        if found is not None:
            self._known[job.id] = found
        else:
            self.inner.submit(job, due)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return the outcome from the store, or from training; exact ones are kept."""
        key = self.identity.job_key(self._model(job, 0), job, steps)
        known = self._known.pop(job.id, None)
        if known is not None and steps != job.work.steps:  # it reports early: look for that, or train it after all
            known = self._found(key)
            if known is None:
                self.inner.submit(job, self._due[job.id])
        if known is not None:
            self.reused += 1
            return known
        outcome = self.inner.collect(job, steps)
        self.trained += 1
        content = packed(outcome) if key is not None and getattr(self.inner, "exact", False) else None
        if key is not None and content is not None:
            self.store.put(key, content)
        return outcome

    def release(self, job: Job) -> None:
        """Forget the job."""
        if self._due.pop(job.id, None) is None:
            return
        self._known.pop(job.id, None)
        self._model(job, -1)
        self.inner.release(job)

    def evaluate(self, model: Model) -> Promise:
        """Return a promise of the scores: those kept, or those of the inner executor, which are then kept."""
        key = self.identity.score_key(self.identity.model_digest(model.params, model.buffers), model.version)
        content = self.store.get(key)
        if content is not None:
            self.rescored += 1
            scores = tuple(Score(*row) for row in json.loads(content))
            return Promise(lambda: scores)
        promise = self.inner.evaluate(model)

        def kept() -> Sequence[Score]:
            fresh = promise()
            if getattr(self.inner, "exact", False):
                self.store.put(key, json.dumps(fresh).encode())
            return fresh

        return Promise(kept, promise.ready)

    def close(self) -> None:
        """Close the inner executor; what is kept stays, and is on the disk then."""
        self._known.clear()
        self._models.clear()
        try:
            self.inner.close()
        finally:
            self.store.close()
