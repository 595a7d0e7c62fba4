"""How the server joins the buffers that clients return.

Float entries are averaged with the convex shares that the strategy stated, in double precision, in the order given;
what the shares leave to 1 stays with the server's own. Integer and boolean entries take the maximum over the server's
and the clients'. A member with share 0 leaves no trace (its values may not be finite), and an entry that nobody
changed keeps its exact bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FULL = 1e-12  # shares that add up to 1 within this leave nothing for the server's own buffers


def join(base: torch.Tensor, members: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """Join one entry by the rule above; the type stays ``base``'s, and the result may be ``base`` itself."""
    if all(value.shape == base.shape and torch.equal(value, base) for _, value in members):
        return base
    if not (base.dtype.is_floating_point or base.dtype.is_complex):
        return torch.stack([base, *(value for _, value in members)]).amax(dim=0)
    wide = torch.promote_types(base.dtype, torch.float64)
    rest = 1.0 - sum(share for share, _ in members)
    shares = members if abs(rest) <= _FULL else [(rest, base), *members]
    total = torch.zeros_like(base, dtype=wide)
    for share, value in shares:
        total += share * value.to(wide)
    return total.to(base.dtype)


@torch.no_grad()
def average(
    base: Mapping[str, torch.Tensor], members: Sequence[tuple[float, Mapping[str, torch.Tensor]]]
) -> Mapping[str, torch.Tensor]:
    """Join all entries; without members of positive share the result is ``base`` itself."""
    counted = [(share, buffers) for share, buffers in members if share != 0]
    if not counted:
        return base
    return {name: join(value, [(share, buffers[name]) for share, buffers in counted]) for name, value in base.items()}
