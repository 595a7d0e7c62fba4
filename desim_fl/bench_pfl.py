"""The bench's client jobs done by pfl-research (Apple's simulator, the package ``pfl``), where that is installed.

Each process is a simulation of its own with one user a job, the model's default local SGD, federated averaging and no
evaluation: less than a whole simulation does, which also joins the processes' results.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from desim_fl.draws import Purpose, stream

if TYPE_CHECKING:
    from collections.abc import Callable


def jobs_of(inputs: Any, labels: Any, module: Any, *, batch: int, lr: float) -> Callable[[int], Any]:
    """Make what does so many jobs (an epoch each, on a new permutation), and returns pfl's sum of their updates.

    Images, labels and module are tensors and a network as anyone would hold them.
    """
    import torch  # noqa: PLC0415

    cross_entropy = torch.nn.functional.cross_entropy
    module.loss = lambda images, targets: cross_entropy(module(images), targets)
    module.metrics = lambda *_: {}
    pfl = import_module("pfl.model.pytorch")
    wrapped = pfl.PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))

    def user(number: int) -> Any:
        order = torch.from_numpy(stream(0, Purpose.BATCH_ORDER, 0, number).permutation(len(labels)))
        return import_module("pfl.data.dataset").Dataset([inputs[order], labels[order]], user_id=str(number))

    numbers = iter(range(1 << 62))
    users = import_module("pfl.data.federated_dataset").FederatedDataset(user, lambda: next(numbers))
    backend = import_module("pfl.aggregate.simulate").SimulatedBackend(users, users)
    algorithm = import_module("pfl.algorithm.federated_averaging").FederatedAveraging()

    def work(count: int) -> Any:
        return backend.gather_results(wrapped, algorithm, central_context=_context(count, batch, lr))[0]

    return work


def _context(count: int, batch: int, lr: float) -> Any:
    """A round of so many users, each with one epoch."""
    context, types = import_module("pfl.context"), import_module("pfl.common_types")
    local = import_module("pfl.hyperparam").NNTrainHyperParams(
        local_batch_size=batch, local_num_epochs=1, local_learning_rate=lr
    )
    rounds = import_module("pfl.algorithm.base").NNAlgorithmParams(
        central_num_iterations=1, evaluation_frequency=0, train_cohort_size=count, val_cohort_size=0
    )
    return context.CentralContext(
        current_central_iteration=0,
        do_evaluation=False,
        cohort_size=count,
        population=types.Population.TRAIN,
        algorithm_params=rounds,
        model_train_params=local,
        seed=0,
    )
