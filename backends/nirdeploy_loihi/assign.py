"""Tiles onto cores, greedily: those that save most messages by sharing a core are joined first, while they fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.layout import Layout
from nirdeploy_loihi.moves import improve
from nirdeploy_loihi.traffic import OUTSIDE, on_cores

__all__ = ["assign", "numbered"]

Integers = NDArray[np.int64]
_NEVER = -1.0  # two cores that cannot be joined


def assign(layout: Layout, fixed: Mapping[int, int], count: int) -> Integers | None:
    """Core of every tile; None where they were not fitted into so many cores.

    Joining two cores never adds a message, so that the result sends at most what one core a tile would send.

    Args:
        layout: the tiles.
        fixed: tile -> core that the user chose.
        count: cores of the chip.
    """
    apart = _apart(layout, fixed)
    joined = _join(layout, apart, set(fixed))
    free = count - len(set(fixed.values()))
    for start in (joined, apart):
        packed = _pack(layout, start, set(fixed), free)
        if packed is not None:
            return numbered(improve(layout, packed, set(fixed)), fixed, count)
    return None


def numbered(slots: Integers, fixed: Mapping[int, int], count: int) -> Integers:
    """The chip's cores for groups of tiles: the user's, and for others the lowest free ones in the order of tiles."""
    core = {int(slots[tile]): number for tile, number in fixed.items()}
    free = (number for number in range(count) if number not in set(fixed.values()))
    return np.array([core[s] if s in core else core.setdefault(s, next(free)) for s in slots.tolist()], dtype=np.int64)


def _apart(layout: Layout, fixed: Mapping[int, int]) -> Integers:
    """Every tile by itself, but for those that the user put together."""
    first: dict[int, int] = {}
    return np.array(
        [first.setdefault(fixed[t], t) if t in fixed else t for t in range(len(layout.tiles))], dtype=np.int64
    )


# ---------------------------------------------------------------- joining


def _join(layout: Layout, start: Integers, fixed: set[int]) -> Integers:
    slots = start.copy()
    reached, own, outside = _state(layout, slots)
    degree = reached.sum(axis=0)
    kept = {int(slots[tile]) for tile in fixed}
    saved = np.stack([_savings(layout, slot, own, outside) for slot in range(len(slots))])
    absent = ~np.isin(np.arange(len(slots)), slots)
    saved[absent], saved[:, absent] = _NEVER, _NEVER
    np.fill_diagonal(saved, _NEVER)
    for a in kept:
        saved[a, list(kept)] = _NEVER
    while (best := int(saved.argmax())) >= 0 and saved.flat[best] > 0:
        a, b = divmod(best, len(slots))
        a, b = (b, a) if b in kept else (a, b)
        after = degree - (reached[a] & reached[b])
        if layout.misfit(np.flatnonzero((slots == a) | (slots == b)).tolist(), after):
            saved[a, b] = saved[b, a] = _NEVER
            continue
        never = (saved[a] == _NEVER) | (saved[b] == _NEVER)
        slots[slots == b] = a
        degree = after
        reached[a] |= reached[b]
        own[own == b] = a
        outside[a] |= outside[b]
        outside[a, own == a] = False
        reached[b] = outside[b] = False
        saved[a] = np.where(never, _NEVER, _savings(layout, a, own, outside))
        saved[b] = saved[:, b] = saved[a, b] = _NEVER
        saved[:, a] = saved[a]
    return slots


def _state(layout: Layout, slots: Integers) -> tuple[NDArray[np.bool_], Integers, NDArray[np.bool_]]:
    """Whether a bundle reaches a slot, [slot, bundle]; its own slot; whether it reaches it from another one."""
    found, own = on_cores(layout.bundles, slots, len(slots))
    reached = found > 0
    outside = reached.copy()
    inside = np.flatnonzero(own != OUTSIDE)
    outside[own[inside], inside] = False
    return reached, own, outside


def _savings(layout: Layout, a: int, own: Integers, outside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Messages a step that are saved by joining slot `a` with each other one.

    One of a bundle that both receive, and those that either sends to the other.
    """
    spikes = layout.bundles.spikes
    here = np.flatnonzero(outside[a] | (own == a))
    found: NDArray[np.float64] = outside[:, here] @ spikes[here]
    sent = np.flatnonzero(outside[a] & (own != OUTSIDE))
    found += np.bincount(own[sent], weights=spikes[sent], minlength=len(found))
    return found


# ---------------------------------------------------------------- packing


def _pack(layout: Layout, start: Integers, fixed: set[int], free: int) -> Integers | None:
    """As many groups as there are cores: where there are more, first fit, the fullest first."""
    kept = {int(start[tile]) for tile in fixed}
    groups = layout.members(start)
    if len(groups) - len(kept) <= free:
        return start
    degree = layout.degree(start)
    order = sorted(groups, key=lambda slot: (slot not in kept, -layout.fill(groups[slot], degree), slot))
    slots, bins = start.copy(), list[int]()
    for slot in order:
        target = slot
        for other in bins if slot not in kept else ():
            if layout.misfit(np.flatnonzero((slots == other) | (slots == slot)).tolist(), degree) is None:
                target = other
                break
        if target == slot:
            bins.append(slot)
            continue
        slots[slots == slot] = target
        degree = layout.degree(slots)
    return slots if len(bins) - len(kept) <= free else None
