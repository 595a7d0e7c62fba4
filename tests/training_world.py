"""Small training problems that several test modules share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from desim_fl import datasets
from desim_fl.core import Job, Model, Work
from desim_fl.learning import models
from desim_fl.learning.classification import ClassificationTask

BLOBS = datasets.load("blobs", seed=5, examples=400, test_examples=120, classes=4, features=6)
IMAGES = datasets.load("fashion_mnist_6k", seed=0, examples=300)
PARTS = [np.arange(0, 100), np.arange(100, 133), np.arange(133, 138), np.arange(138, 139)]


class NoisyNet(nn.Module):
    """Dropout, BatchNorm, and an integer and a boolean buffer of its own."""

    def __init__(self, features: int = 6, classes: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(features, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(16, classes)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.bool))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Count training passes by binding a new buffer, as users do."""
        if self.training:
            self.calls = self.calls + 1
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


def mlp_of(dataset=BLOBS, hidden=(16,)):
    """Return a factory of the built-in mlp for a data set."""
    return models.factory("mlp", {"hidden": list(hidden)}, dataset.shape, dataset.classes)


def blob_task(model=None, **options) -> ClassificationTask:
    """Four clients with 100, 33, 5 and 1 samples of the blobs."""
    settings = {"seed": 7, "keys": range(len(PARTS)), "dataset": BLOBS, "parts": PARTS, **options}
    return ClassificationTask(model=model or mlp_of(), **settings)


def job_of(model: Model, client: int = 0, *, nth: int = 0, number: int = 0, memory=None, **work) -> Job:
    """One job from a model; the learning rate is 0.1 unless told."""
    filled = Work(**{"epochs": 1, "lr": 0.1, **work})
    return Job(number, client, nth, model.version, model.params, model.buffers, filled, memory=memory)


def equal_buffers(left, right) -> bool:
    """Whether two buffer dicts hold the same bits under the same names."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
