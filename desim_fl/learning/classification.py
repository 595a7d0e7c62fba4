"""Real classification training, one job at a time in this process: the definition that other executors must match."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from desim_fl.core import Job, Model, Outcome, Score
from desim_fl.draws import Purpose, stream
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.learning import average as averaging
from desim_fl.learning import batches, controls, corrections, evaluate, gradients, local, models, probe, randomness
from desim_fl.learning import replica as replicas
from desim_fl.learning.device import resolve
from desim_fl.learning.optimizers import OptimizerSettings
from desim_fl.learning.samples import Samples, normalised
from desim_fl.learning.sizes import ModelFacts
from desim_fl.learning.steps import Steps, batch_loss
from desim_fl.learning.vectors import ModuleState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from desim_fl.datasets import Dataset

BUFFER_RULES = ("average", "local")
_BUILT = ("module", "state", "steps", "draws_random", "own_thread", "_initial")  # by ``_build``, in each process anew


class ClassificationTask:
    """Trains one model on the parts of one data set; see :class:`desim_fl.learning.task.Task`.

    ``keys`` and ``parts`` name each client's random streams and its indices into the training samples. ``model``
    builds a new module. ``validation_indices`` are training samples that no client holds. ``device`` is "cpu", "cuda"
    or "auto"; ``threads`` intra-op threads are set around every call, because their number changes last bits.

    With ``buffers = "local"`` (FedBN, Li et al., ICLR 2021) buffers stay with their client, through
    ``Outcome.memory``; the global ones remain the initial ones, and since no client would ever use that mixture, a
    model that has buffers is not scored: ``evaluate`` returns no scores. With ``start = "own"`` every client goes on with its
    own last model instead of the server's.

    A class of one's own (``[training] task``) takes these arguments and its own, and overrides ``batch_loss``, ``score``
    or whatever else differs.

    Raises ``ScenarioError`` where model and data do not fit, found by a dry step on two samples.
    """

    own_thread: replicas.OwnThread | None = None  # a replica's: it is used in one thread, beside others

    def __init__(
        self,
        *,
        seed: int,
        keys: Sequence[int],
        model: Callable[[], nn.Module],
        dataset: Dataset,
        parts: Sequence[NDArray[np.int64]],
        validation_indices: NDArray[np.int64] | None = None,
        batch_size: int = 32,
        optimizer: OptimizerSettings | None = None,
        buffers: str = "average",
        start: str = "server",
        patience: int | None = None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        if len(keys) != len(parts):
            raise ScenarioError(f"{len(keys)} client keys, but the data is split in {len(parts)} parts")
        if buffers not in BUFFER_RULES:
            raise ScenarioError(f'[training] buffers = "{buffers}": known are {", ".join(BUFFER_RULES)}')
        self.seed, self.keys, self.batch_size, self.threads = seed, tuple(keys), batch_size, threads
        self.parts = [np.asarray(part, np.int64) for part in parts]
        self.optimizer = optimizer or OptimizerSettings()
        self.device = resolve(device)
        self.local_buffers, self.own_start, self.patience = buffers == "local", start == "own", patience
        self.model, self.classes = model, dataset.classes
        self.training, self.splits = self._samples(dataset, validation_indices)
        self._build(model, dataset.classes)

    def __reduce__(self) -> tuple[Callable[..., ClassificationTask], tuple[Any, dict[str, Any]]]:
        """Pickle as a recipe: samples (which torch maps into other processes) and the model's factory, no module."""
        kind = type(self)
        own = kind is not ClassificationTask
        return _rebuilt, (f"{kind.__module__}:{kind.__qualname__}" if own else kind, self._facts())

    def _facts(self) -> dict[str, Any]:
        """What a task is made of again, attributes of a class of one's own included."""
        return {name: value for name, value in vars(self).items() if name not in _BUILT}

    def _samples(self, data: Dataset, validation: NDArray[np.int64] | None) -> tuple[Samples, dict[str, Samples]]:
        """Put training and test samples on the device; validation samples are a copied part of the former."""

        def whole(images: NDArray, labels: NDArray[np.int64]) -> Samples:
            inputs = normalised(images, data.mean, data.std, self.device)
            return Samples(inputs, torch.tensor(labels, device=self.device))

        training = whole(data.train_images, data.train_labels)
        splits = {"test": whole(data.test_images, data.test_labels)}
        if validation is not None and len(validation):
            splits["validation"] = training.chosen(np.asarray(validation, np.int64))
        return training, splits

    def _made(self, model: Callable[[], nn.Module]) -> nn.Module:
        """Build a module with version 0's parameters (drawn on the CPU, so that every device starts alike)."""
        with (
            randomness.guarded("[model] when built"),
            randomness.keyed(self.seed, Purpose.MODEL_INIT, 0, 0, torch.device("cpu")),
        ):
            module = model()
        if self.training.images:
            return module.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return module.to(self.device)

    def _build(self, model: Callable[[], nn.Module], classes: int) -> None:
        with self._controlled(Purpose.MODEL_INIT, 0, 0):
            two = Samples(*(values[:2] for values in self.training))
            self.draws_random = probe.draws_random(self._made(model), two, classes, self.seed)
            self.lends_copies = probe.check_repeatable(self._made(model), two, self.seed)
            self.module = self._made(model)
            self.state, self.steps = ModuleState(self.module), Steps(self.module, self._loss_of())
            self._initial = Model(0, self.state.vector(), self.state.buffers())

    def _loss_of(self) -> Callable[[nn.Module, Samples], Tensor]:
        """The loss of steps: the plain function where nobody overrides it, so that no task is held by its own steps."""
        usual = type(self).batch_loss is ClassificationTask.batch_loss
        return batch_loss if usual else self.batch_loss

    @contextmanager
    def _controlled(self, purpose: Purpose, key: int, nth: int) -> Iterator[None]:
        """Pin threads, key torch's generators and fix kernels around a computation; restore them all."""
        with ExitStack() as stack:
            if self.own_thread is not None:
                stack.enter_context(self.own_thread.quiet())
            else:
                stack.enter_context(randomness.pinned(self.threads))
                stack.enter_context(randomness.repeatable(self.device))
                stack.enter_context(randomness.keyed(self.seed, purpose, key, nth, self.device))
            stack.enter_context(torch.enable_grad())
            yield

    def replica(self, halted: Callable[[], bool]) -> ClassificationTask:
        """Make the same task for one other thread, on the same samples; ``halted`` is asked before each step.

        Raises ``RefusedError`` for a model that draws random numbers or whose modules share a layer, and off the CPU.
        """
        replicas.check_device(self.device)
        other = _rebuilt(type(self), self._facts())
        two = Samples(*(values[:2] for values in self.training))
        with self._controlled(Purpose.EVALUATION, 0, 0):
            replicas.check_quiet(other.module, two, self.seed, draws_random=self.draws_random)
        replicas.check_apart(self.module, other.module)
        other._initial = self._initial  # noqa: SLF001  (one class)
        other.own_thread = replicas.OwnThread(self.threads, halted)
        return other

    @property
    def facts(self) -> ModelFacts:
        """The model's real size; ``sizes.model_facts`` must agree."""
        beside = sum(value.numel() * value.element_size() for value in self._initial.buffers.values())
        return ModelFacts(sum(self.state.sizes), 4 * sum(self.state.sizes), beside)

    def initial(self) -> Model:
        """Return version 0, drawn from ``Purpose.MODEL_INIT``."""
        return self._initial

    def train(self, job: Job, steps: int) -> Outcome:
        """Train one job for ``steps`` steps; batch order and Dropout masks depend on seed, client key and nth only.

        The outcome shares no memory with the job, nor with the module. A client's memory is kept as it was if the
        job ends with a value that is not finite.
        """
        if job.work.probe:
            return self.probed(job)
        params, before = self.begun_from(job)
        todo = self.sequence(job, steps)
        if self.own_thread is not None:
            todo = self.own_thread.until_halted(todo)
        with self._controlled(Purpose.TRAINING, self.keys[job.client], job.nth):
            self.state.load(params, before)
            rule = self._rule(job)
            done = local.train(
                self.steps,
                self.state,
                self.training,
                sequence=todo,
                steps=steps,
                work=job.work,
                settings=self.optimizer,
                patience=self.patience,
                correction=rule,
            )
            params, after = self.state.vector(), self.state.buffers()
            bad = self.state.first_bad(params, after, before)
            past = rule.told(self.state.parameters) if isinstance(rule, corrections.Balance) else None
        outcome = self.outcome(job, done, params, after, bad)
        return outcome if self.optimizer.gradient_decay is None else gradients.kept(outcome, job, past)

    def probed(self, job: Job) -> Outcome:
        """Score the model that a job brought on all samples of its client, with the client's own buffers under FedBN."""
        part = self.parts[job.client]
        if not len(part):
            return Outcome(job.params, job.buffers)
        with self._controlled(Purpose.EVALUATION, self.keys[job.client], job.nth):
            self.state.load(job.params, self.client_buffers(job))
            found = self.score(self.module, "probe", self.training.chosen(part))
        return Outcome(job.params, job.buffers, len(part), loss=found.loss)

    def _rule(self, job: Job) -> corrections.Correction | corrections.Balance | None:
        """What is done to the gradients of a job's steps."""
        settings = self.optimizer
        usual = corrections.correction(self.state, settings.proximal_mu, job.params, controls.shift(job))
        if settings.gradient_decay is None:
            return usual
        return corrections.Balance(self.state, settings.gradient_decay, job, usual)

    def sequence(self, job: Job, steps: int) -> Iterable[tuple[int, NDArray[np.int64]]]:
        """Yield ``(epoch, indices of one batch)`` of a job, at least ``steps`` times; see :mod:`batches`.

        Raises ``RefusedError`` for a part of the model and ``LawError`` for steps that the client cannot do.
        """
        if job.work.part is not None:
            raise RefusedError("work.part: training a part of the model is not available")
        part = self.parts[job.client]
        if not batches.trainable(job.client, len(part), steps):
            return ()
        return batches.sequence(
            part, self.batch_size, stream(self.seed, Purpose.BATCH_ORDER, self.keys[job.client], job.nth)
        )

    def outcome(
        self, job: Job, done: local.Trained, params: Tensor, after: dict[str, Tensor], bad: str | None
    ) -> Outcome:
        """Say what training gave; ``params`` and ``after`` must share no memory with anything."""
        examples = len(self.parts[job.client])
        outcome = Outcome(
            params, after, examples=examples, steps=done.steps, stopped=done.stopped, loss=done.loss, bad=bad
        )
        if self.own_start:
            outcome = outcome._replace(memory=job.memory if bad else {"params": params, "buffers": after})
        if self.local_buffers:
            memory = outcome.memory if self.own_start else job.memory if bad else {"buffers": after}
            outcome = outcome._replace(buffers=job.buffers, memory=memory)
        if job.extra is None:
            return outcome
        return controls.answered(outcome, job, controls.path(job.work, examples, self.batch_size, done.steps))

    def begun_from(self, job: Job) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the parameters and buffers that a job starts from: the server's, or, with ``start = "own"``, the client's.

        A client's own first model is drawn anew for it, as scripts do that never send the server's down.
        """
        if not self.own_start:
            return job.params, self.client_buffers(job)
        if job.memory:
            return job.memory["params"], job.memory["buffers"]
        purpose, key = Purpose.MODEL_INIT, self.keys[job.client]
        with (
            randomness.guarded("[model] when built"),
            randomness.keyed(self.seed, purpose, key, 1, torch.device("cpu")),
        ):
            own = self.model()
        state = ModuleState(own.to(self.device))
        return state.vector(), state.buffers()

    def client_buffers(self, job: Job) -> dict[str, Tensor]:
        """Return what the job starts from: the model's buffers, or under FedBN the client's own from last time."""
        return job.memory["buffers"] if self.local_buffers and job.memory else job.buffers

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """Score a version on the test split, and on the validation split if there is one."""
        if self.local_buffers and self.state.sites:
            return ()
        with self._controlled(Purpose.EVALUATION, 0, model.version):
            self.state.load(model.params, model.buffers)
            return tuple(self.score(self.module, split, samples) for split, samples in self.splits.items())

    def score_parts(self, model: Model, parts: Sequence[NDArray[np.int64]]) -> list[Score | None]:
        """Score a version on each of these parts of the training samples; ``None`` for a part that is empty.

        Under FedBN a model that has buffers is not scored: all are ``None``.
        """
        if self.local_buffers and self.state.sites:
            return [None for _ in parts]
        with self._controlled(Purpose.EVALUATION, 0, model.version):
            self.state.load(model.params, model.buffers)
            chosen = (self.training.chosen(part) if len(part) else None for part in parts)
            return [samples and self.score(self.module, "held out", samples) for samples in chosen]

    def batch_loss(self, module: nn.Module, batch: Samples) -> Tensor:
        """Return the loss of one batch, a number that has gradients: mean cross entropy. Override for another loss."""
        return batch_loss(module, batch)

    def score(self, module: nn.Module, split: str, samples: Samples) -> Score:
        """Score a model in place: mean cross entropy and accuracy. Override for other metrics."""
        return evaluate.score(module, split, samples, lend_copies=self.lends_copies)

    def average(self, base: Any, members: Sequence[tuple[float, Any]]) -> Any:
        """Join buffers by the rule of :mod:`desim_fl.learning.average`; under FedBN they stay ``base``."""
        return base if self.local_buffers else averaging.average(base, members)

    def tensors(self, model: Model) -> dict[str, np.ndarray]:
        """Return named arrays, parameters first, then buffers; copies."""
        named = self.state.split(model.params) | dict(model.buffers)
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
            for name, value in named.items()
        }


def _rebuilt(kind: type[ClassificationTask] | str, facts: dict[str, Any]) -> ClassificationTask:
    """Make the task that a pickle describes; its module is built anew, so nothing trainable is shared.

    A class of one's own goes by its name, since where it stands may not be importable without the working folder.
    """
    made: Any = models.named(kind) if isinstance(kind, str) else kind
    task: ClassificationTask = made.__new__(made)
    for name, value in facts.items():
        setattr(task, name, value)
    task._build(task.model, task.classes)  # noqa: SLF001  (the other half of __reduce__)
    return task
