"""A module's state as a flat vector of trainable floats plus a dict of everything else.

**Vector.** The parameters with ``requires_grad``, in the order of ``named_parameters``, each in row-major order; a
shared (tied) parameter stands there once, under its first name. All must be float32.

**Buffers.** Persistent buffers and frozen parameters, by name. They travel with the model and never pass through a
strategy. Non-persistent buffers are the module's own scratch: they never travel and are reset to their initial values
at each load, so that no client sees another's. State outside parameters and buffers is not carried; a module that
declares some (``get_extra_state``) is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping

Buffers = dict[str, torch.Tensor]


class Site(NamedTuple):
    """Every place (module, attribute) where one buffer is registered; more than one where it is shared."""

    name: str
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def tensor(self) -> torch.Tensor:
        """The buffer as it is now: a module may have bound a new one."""
        owner, attribute = self.places[0]
        return getattr(owner, attribute)

    def bind(self, value: torch.Tensor) -> None:
        """Make ``value`` the buffer in every place."""
        for owner, attribute in self.places:
            setattr(owner, attribute, value)


def _sites(module: nn.Module) -> tuple[list[Site], list[Site]]:
    """Find persistent and non-persistent buffers; a shared one is persistent if one of its places is."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for prefix, owner in module.named_modules():
        for attribute, buffer in owner.named_buffers(recurse=False):
            places.setdefault(id(buffer), []).append((f"{prefix}.{attribute}".lstrip("."), owner, attribute))
    saved = module.state_dict(keep_vars=True).keys()
    kept, scratch = [], []
    for found in places.values():
        persistent = any(name in saved for name, _, _ in found)
        site = Site(found[0][0], tuple((owner, attribute) for _, owner, attribute in found))
        (kept if persistent else scratch).append(site)
    return kept, scratch


def _checked(module: nn.Module) -> None:
    """Refuse state that could not be carried faithfully."""
    for name, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            raise ScenarioError(f"[model] {name or type(part).__name__} keeps extra state, which cannot be carried")
    trainable = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    if not trainable:
        raise ScenarioError("[model] has no trainable parameter")
    for name, value in trainable:
        if value.dtype != torch.float32:
            raise ScenarioError(f"[model] parameter {name} is {value.dtype}; trainable parameters must be float32")


class ModuleState:
    """Reads and writes the state of one module; what it hands out never shares memory with the module.

    Raises ``ScenarioError`` for a module without trainable parameters, with trainable ones that are not float32, or
    with extra state.
    """

    def __init__(self, module: nn.Module) -> None:
        _checked(module)
        named = dict(module.named_parameters())
        trainable = {name: value for name, value in named.items() if value.requires_grad}
        self.names = tuple(trainable)
        self.parameters: tuple[nn.Parameter, ...] = tuple(trainable.values())
        self.frozen = {name: value for name, value in named.items() if not value.requires_grad}
        self.sizes = [value.numel() for value in self.parameters]
        self.sites, scratch = _sites(module)
        self.scratch = [(site, site.tensor.detach().clone()) for site in scratch]

    def vector(self) -> torch.Tensor:
        """Return the trainable parameters as a new flat float32 tensor."""
        return torch.cat([value.detach().reshape(-1) for value in self.parameters])

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of a flat vector, shaped and named as the parameters."""
        parts = vector.split(self.sizes)
        return {
            name: part.view(value.shape) for name, part, value in zip(self.names, parts, self.parameters, strict=True)
        }

    @torch.no_grad()
    def load(self, vector: torch.Tensor, buffers: Mapping[str, torch.Tensor]) -> None:
        """Copy a model into the module; ``vector`` and ``buffers`` stay as they are."""
        for value, part in zip(self.parameters, self.split(vector).values(), strict=True):
            value.copy_(part)
        for name, value in self.frozen.items():
            value.copy_(buffers[name])
        for site in self.sites:
            site.bind(buffers[site.name].clone())
        for site, initial in self.scratch:
            site.bind(initial.clone())

    def buffers(self) -> Buffers:
        """Return copies of the persistent buffers and frozen parameters."""
        found = {site.name: site.tensor for site in self.sites} | self.frozen
        return {name: value.detach().clone() for name, value in found.items()}

    def first_bad(self, vector: torch.Tensor, buffers: Buffers, base: Mapping[str, torch.Tensor]) -> str | None:
        """Name the first entry that is not finite (a buffer's infinity that was there before, as in a mask, is)."""
        if (
            not math.isfinite(vector.sum()) and not torch.isfinite(vector).all()
        ):  # a finite sum, ten times as fast, has no other
            return next(name for name, part in self.split(vector).items() if not torch.isfinite(part).all())
        for name, value in buffers.items():
            if value.dtype.is_floating_point and bool((~torch.isfinite(value)).any()):
                before = base[name]
                if before.shape != value.shape or bool((~torch.isfinite(value) & torch.isfinite(before)).any()):
                    return name
        return None
