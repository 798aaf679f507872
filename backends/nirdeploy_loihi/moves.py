"""Local moves: a tile to another core, or two that change places, as long as fewer messages are sent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.layout import Layout
from nirdeploy_loihi.traffic import OUTSIDE, on_cores

__all__ = ["improve"]

Integers = NDArray[np.int64]
_EXCHANGES = 2000  # pairs that are tried in all, so that large networks take seconds


class _Moves:
    """An assignment that is being changed."""

    def __init__(self, layout: Layout, core_of: Integers) -> None:
        self.layout = layout
        self.core_of = core_of
        self.count = int(core_of.max(initial=0)) + 1
        self.on_core, self.own = on_cores(layout.bundles, core_of, self.count)

    def touched(self, *tiles: int) -> Integers:
        """Bundles that these tiles send or receive."""
        found = self.layout.bundles
        return np.flatnonzero(found.hits[list(tiles)].any(axis=0) | np.isin(found.source, tiles))

    def cost(self, which: Integers) -> float:
        """Messages a step of some bundles."""
        reached = self.on_core[:, which] > 0
        own = self.own[which]
        inside = np.flatnonzero(own != OUTSIDE)
        cores = reached.sum(axis=0)
        cores[inside] -= reached[own[inside], inside]
        return float(self.layout.bundles.spikes[which] @ cores)

    def put(self, tile: int, core: int) -> None:
        """Move a tile."""
        found = self.layout.bundles
        self.on_core[self.core_of[tile]] -= found.hits[tile]
        self.on_core[core] += found.hits[tile]
        self.own[found.source == tile] = core
        self.core_of[tile] = core

    def fits(self, *tiles: int) -> bool:
        """Whether all cores fit that these tiles are on, or that send to them."""
        members = self.layout.members(self.core_of)
        if any(self.layout.overfull(members[int(self.core_of[tile])]) for tile in tiles):
            return False
        found = self.layout.bundles
        numbers = np.array(tiles)
        if "out_axons" in self.layout.limits:
            senders = found.source[found.hits[list(tiles)].any(axis=0)]
            numbers = np.concatenate([numbers, senders[senders != OUTSIDE]])
        reached: Integers = (self.on_core > 0).sum(axis=0)
        cores = np.unique(self.core_of[numbers]).tolist()
        return all(self.layout.misfit(members[core], reached) is None for core in cores)

    def move(self, tile: int) -> bool:
        """The best move of a tile, if one helps."""
        which, start = self.touched(tile), int(self.core_of[tile])
        costs = np.full(self.count, self.cost(which))
        for core in np.unique(self.core_of).tolist():
            if core != start:
                self.put(tile, core)
                costs[core] = self.cost(which)
        self.put(tile, start)
        for core in np.argsort(costs, kind="stable").tolist():
            if costs[core] >= costs[start]:
                break
            self.put(tile, core)
            if self.fits(tile):
                return True
            self.put(tile, start)
        return False

    def exchange(self, a: int, b: int) -> bool:
        """Two tiles change cores, if that helps."""
        which, (first, second) = self.touched(a, b), self.core_of[[a, b]].tolist()
        before = self.cost(which)
        self.put(a, second)
        self.put(b, first)
        if self.cost(which) < before and self.fits(a, b):
            return True
        self.put(a, first)
        self.put(b, second)
        return False


def improve(layout: Layout, core_of: Integers, fixed: set[int]) -> Integers:
    """An assignment that sends at most as many messages, on no more cores.

    Args:
        layout: the tiles.
        core_of: core of every tile; everything fits.
        fixed: tiles that stay.
    """
    moves = _Moves(layout, core_of.copy())
    tiles = [tile for tile in range(len(layout.tiles)) if tile not in fixed]
    left, changed = _EXCHANGES, True
    while changed:
        changed = False
        for tile in tiles:
            changed |= moves.move(tile)
        for number, a in enumerate(tiles):
            for b in tiles[number + 1 :]:
                if left > 0 and moves.core_of[a] != moves.core_of[b]:
                    left -= 1
                    changed |= moves.exchange(a, b)
    return moves.core_of
