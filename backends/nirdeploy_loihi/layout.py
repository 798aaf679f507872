"""Tiles on cores: what a core holds together, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.resources import Excess, Tile, excess, index_bits
from nirdeploy_loihi.traffic import Bundles, on_cores

__all__ = ["Layout"]

Integers = NDArray[np.int64]


class Layout:
    """The tiles of a network, their bundles and the limits of a core.

    Args:
        tiles: of all populations.
        found: all source neurons.
        table: the target's limits.
        separate: whether a core may hold tiles of one population alone.
    """

    def __init__(self, tiles: Sequence[Tile], found: Bundles, table: Mapping[str, Any], *, separate: bool) -> None:
        self.tiles = tiles
        self.bundles = found
        self.limits: Mapping[str, Any] = table["cores"]
        self.separate = separate
        self.low, self.high = (int(bits) for bits in table["synapses"]["index_bits"])

    def degree(self, core_of: Integers) -> Integers:
        """Output axons of a neuron of each bundle: cores it reaches, its own included."""
        found, _ = on_cores(self.bundles, core_of, int(core_of.max(initial=0)) + 1)
        reached: Integers = (found > 0).sum(axis=0)
        return reached

    def index(self, members: Sequence[int]) -> int:
        """Where `Tile.synapse_bits` has the memory of tiles that share a core."""
        return index_bits(sum(self.tiles[number].neurons for number in members), self.low, self.high) - self.low

    def resources(self, members: Sequence[int], degree: Integers) -> dict[str, int]:
        """What tiles take of one core: neurons and memory add up, axons and configurations are a union.

        Args:
            members: tile numbers.
            degree: output axons of a neuron of each bundle.
        """
        return {**self._added(members), **self._united(members, degree)}

    def _added(self, members: Sequence[int]) -> dict[str, int]:
        index = self.index(members)
        return {
            "neurons": sum(self.tiles[number].neurons for number in members),
            "synapse_bits": sum(self.tiles[number].synapse_bits[index] for number in members),
        }

    def _united(self, members: Sequence[int], degree: Integers) -> dict[str, int]:
        tiles = [self.tiles[number] for number in members]
        heard = self.bundles.hits[list(members)].any(axis=0)
        sent = np.isin(self.bundles.source, members)
        return {
            "in_axons": int(self.bundles.neurons[heard].sum()),
            "out_axons": int((self.bundles.neurons[sent] * degree[sent]).sum()),
            "compartment_configs": len(frozenset().union(*(tile.compartments for tile in tiles))),
            "threshold_configs": len(frozenset().union(*(tile.thresholds for tile in tiles))),
            "synapse_configs": len(frozenset().union(*(tile.formats for tile in tiles))),
        }

    def overfull(self, members: Sequence[int]) -> Excess | None:
        """What a core that holds these tiles has too much of wherever all others are; most groups are refused by it.

        Neurons and memory; 'tiles' where it holds two of one population, 'populations' where it is to hold one alone.
        """
        names = {self.tiles[number].population for number in members}
        if len(names) < len(members):
            return Excess("tiles", len(members), len(names))
        if self.separate and len(names) > 1:
            return Excess("populations", len(names), 1)
        return excess(self._added(members), self.limits)

    def misfit(self, members: Sequence[int], degree: Integers) -> Excess | None:
        """What a core that holds these tiles has too much of."""
        return self.overfull(members) or excess(self._united(members, degree), self.limits)

    def fill(self, members: Sequence[int], degree: Integers) -> float:
        """The largest used part of any limit."""
        found = self.resources(members, degree)
        return max(used / max(1, int(self.limits[name])) for name, used in found.items() if name in self.limits)

    def members(self, core_of: Integers) -> dict[int, list[int]]:
        """Core -> its tiles, cores in the order of their first tile."""
        found: dict[int, list[int]] = {}
        for number, core in enumerate(core_of.tolist()):
            found.setdefault(core, []).append(number)
        return found

    def first_misfit(self, core_of: Integers) -> tuple[int, Excess] | None:
        """The first core that holds too much, and of what."""
        degree = self.degree(core_of)
        for core, members in self.members(core_of).items():
            if found := self.misfit(members, degree):
                return core, found
        return None
