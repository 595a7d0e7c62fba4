"""A data set as tensors in memory: normalised once, indexed directly, no loader with a generator of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WHITE = 255.0
IMAGE_DIMENSIONS = 4  # (count, channels, height, width)


def normalised(images: NDArray, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Return float32 inputs on ``device``.

    Features ``(n, features)`` stay as they are. Images ``(n, h, w)`` or ``(n, h, w, c)`` become ``(pixel / 255 - mean)
    / std``, shape ``(n, c, h, w)``, stored channels last: that is the memory format of every executor.
    """
    writable = torch.from_numpy(np.array(images, copy=True))
    if images.dtype != np.uint8:
        return writable.to(device, torch.float32)
    pixels = writable.reshape(*images.shape[:3], -1).to(device, torch.float32).div_(WHITE)
    pixels.sub_(torch.tensor(mean, device=device)).div_(torch.tensor(std, device=device))
    return pixels.permute(0, 3, 1, 2)


class Samples(NamedTuple):
    """Inputs (float32, first dimension = samples) and labels (int64) on one device."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> bool:
        """Whether the samples are images, so that the model is kept channels last too."""
        return self.inputs.ndim == IMAGE_DIMENSIONS

    def chosen(self, indices: NDArray[np.int64]) -> Samples:
        """Copy the samples at ``indices``, in that order and in the same memory format."""
        where = torch.from_numpy(np.ascontiguousarray(indices)).to(self.labels.device)
        return Samples(self._rows(where), self.labels.index_select(0, where))

    def _rows(self, where: Tensor) -> Tensor:
        """Copy inputs as they lie in memory: ``index_select`` would make images channels first."""
        if not self.images:
            return self.inputs.index_select(0, where)
        return self.inputs.permute(0, 2, 3, 1).index_select(0, where).permute(0, 3, 1, 2)

    def slices(self, size: int) -> Iterator[Samples]:
        """Yield all samples in order, ``size`` at a time."""
        for start in range(0, len(self.labels), size):
            yield Samples(self.inputs[start : start + size], self.labels[start : start + size])
