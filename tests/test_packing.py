"""What travels between processes arrives as it was."""

from __future__ import annotations

import numpy as np
import torch
from training_world import equal_buffers

from desim_fl.core import Model
from desim_fl.executors.packing import packed, unpacked
from desim_fl.executors.shelf import Shelf


def test_parcels_bring_every_kind_of_value_back():
    """Types, bits and the order in memory survive, through shared memory and without it."""
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    buffers = {"count": torch.tensor(4), "seen": torch.tensor([True, False]), "image": image, "no": torch.zeros(0, 2)}
    value = [
        1.5,
        Model(3, torch.randn(5).to(torch.bfloat16), buffers),
        np.arange(6).reshape(2, 3),
        torch.arange(9)[::2],
    ]
    gray = torch.randn(2, 4, 5, 1).permute(0, 3, 1, 2)  # one channel: contiguous, and channels last as well
    buffers["gray"] = gray
    shelf = Shelf.fitting(5000)
    for room in (None, shelf.room(shelf.take())):
        number, model, array, strided = unpacked(packed(value, room), room)
        assert (number, model.version) == (1.5, 3)
        assert torch.equal(model.params, value[1].params)
        assert model.params.dtype == torch.bfloat16
        assert equal_buffers(model.buffers, buffers)
        assert model.buffers["image"].stride() == image.stride()
        assert model.buffers["gray"].stride() == gray.stride()
        assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert strided.tolist() == [0, 2, 4, 6, 8]
        model.params.zero_()
        assert value[1].params.any()  # it has memory of its own
    shelf.close()


def test_a_shelf_grows_and_keeps_what_lies_in_it():
    """Places keep their content while others are made; a place given back is used again."""
    shelf = Shelf.fitting(100)
    for number in range(50):
        place = shelf.take()
        shelf.room(place)[:4] = number.to_bytes(4, "little")
    assert [int.from_bytes(shelf.room(place)[:4], "little") for place in range(50)] == list(range(50))
    shelf.give(17)
    assert shelf.used == 49
    assert shelf.take() == 17
    shelf.close()
