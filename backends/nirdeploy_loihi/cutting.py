"""Populations cut into tiles: the fewest that fit a core each, among those the tiling that least spikes must reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError
from nirdeploy.once import once
from nirdeploy_loihi.program import Compartments, Program
from nirdeploy_loihi.reach import Block, Fan, widest_neuron
from nirdeploy_loihi.resources import REMEDIES, Excess, Tile, excess, tile_of
from nirdeploy_loihi.tiles import tilings

__all__ = ["Activity", "Cut", "cut_program"]

Integers = NDArray[np.int64]
_ALONE = {  # what helps where one neuron alone is too much
    "synapse_bits": "Prune its weights, or put a smaller population between.",
    "in_axons": "Reduce its fan-in: prune its weights, or put a smaller population between.",
    "out_axons": "Make the populations it feeds smaller, or let it feed fewer.",
    "synapse_configs": "Give its connections one sign and one use of delays.",
}
Activity = Mapping[str, NDArray[np.float64]]  # spikes a step of every source, one a neuron


@dataclass(frozen=True)
class Cut:
    """A population in tiles.

    Attributes:
        tiles: one a core.
        bound: what did not fit with one tile less; None: nothing, or the user chose their number.
    """

    tiles: tuple[Tile, ...]
    bound: Excess | None = None


class Misfit(NamedTuple):
    """A tile that does not fit: its number in the tiling, and what it has too much of."""

    number: int
    excess: Excess


def cut_program(
    program: Program, table: Mapping[str, Any], activity: Activity, given: Mapping[str, tuple[int, ...]]
) -> dict[str, Cut]:
    """Every population in the fewest tiles that fit a core each.

    Targets come before sources, as a neuron takes an output axon for every tile it reaches. In a loop of
    populations there is no such order: those that no longer fit are cut again into more tiles, until all fit.

    Args:
        program: the network.
        table: the target's limits.
        activity: spikes a step of every source.
        given: population -> cores that the user chose, one a tile.

    Raises:
        PlacementError: a population that does not fit; naming resource, amount, limit and remedy.
    """
    cutters = {
        p.name: Cutter(p, [Fan(s, p.shape) for s in program.into(p.name)], table, activity) for p in program.populations
    }
    cuts: dict[str, Cut] = {}
    asked = Counter(core for cores in given.values() for core in cores)
    pending = [p.name for p in reversed(program.populations)]
    for _ in range(2 * int(table["cores"]["count"])):  # only populations the user cut could go on changing places
        for name in pending:
            axons = _out_axons(name, program.sizes[name], [cut for other, cut in cuts.items() if other != name])
            least = len(cuts[name].tiles) + 1 if name in cuts else 1
            shared = any(asked[core] > 1 for core in given.get(name, ()))
            cuts[name] = cutters[name].cut(axons, given.get(name), least, even=shared)
        pending = [
            name
            for name, cut in cuts.items()
            if cutters[name].sending(cut.tiles, _out_axons(name, program.sizes[name], cuts.values()))
        ]
        if not pending:
            return {p.name: cuts[p.name] for p in program.populations}
    raise PlacementError(
        f"no cut of {' and '.join(map(repr, pending))} was found whose output axons fit their cores",
        node=pending[0],
        remedy=REMEDIES["out_axons"],
    )


def _out_axons(name: str, size: int, cuts: Any) -> Integers:
    """Tiles that each neuron of a population reaches."""
    found = np.zeros(size, dtype=np.int64)
    for cut in cuts:
        for tile in cut.tiles:
            if name in tile.sources:
                found[tile.sources[name]] += 1
    return found


class Cutter:
    """Cuts one population.

    Args:
        population: its registers.
        fans: the connections into it.
        table: the target's limits.
        activity: spikes a step of every source.
    """

    def __init__(
        self, population: Compartments, fans: Sequence[Fan], table: Mapping[str, Any], activity: Activity
    ) -> None:
        self.population = population
        self.fans = fans
        self.table = table
        self.limits: Mapping[str, Any] = table["cores"]
        self.activity = activity
        self._tiles: dict[Block, Tile] = {}

    def tile(self, block: Block) -> Tile:
        """A block with what it takes."""
        if block not in self._tiles:
            self._tiles[block] = tile_of(self.population, self.fans, block, self.table)
        return self._tiles[block]

    def received(self, tiles: Sequence[Tile]) -> float:
        """Messages a step to tiles of which each has a core for itself."""
        found = (item for tile in tiles for item in tile.sources.items())
        return sum(float(self.activity[name][sources].sum()) for name, sources in found)

    def sending(self, tiles: Sequence[Tile], axons: Integers) -> Misfit | None:
        """The first tile with too many output axons.

        Args:
            tiles: of this population.
            axons: of each neuron.
        """
        if "out_axons" not in self.limits:
            return None
        shaped = axons.reshape(self.population.shape)
        for number, tile in enumerate(tiles):
            used = int(shaped[tuple(slice(*axis) for axis in tile.block)].sum())
            if found := excess({"out_axons": used}, self.limits):
                return Misfit(number, found)
        return None

    def misfit(self, blocks: Sequence[Block], axons: Integers) -> Misfit | None:
        """The first tile of a tiling that does not fit, and why; the middle one, often the fullest, comes first."""
        middle = len(blocks) // 2
        for number in sorted(range(len(blocks)), key=lambda i: (abs(i - middle), i)):
            if found := excess(self.tile(blocks[number]).resources(self.table["synapses"]), self.limits):
                return Misfit(number, found)
        cut = Cut(tuple(self.tile(block) for block in blocks))
        return self.sending(cut.tiles, axons + _out_axons(self.population.name, len(axons), [cut]))

    def cut(self, axons: Integers, cores: tuple[int, ...] | None, least: int, *, even: bool = False) -> Cut:
        """The tiling with the fewest tiles, or as many as given, that least spikes must reach.

        Args:
            axons: output axons of each neuron, without those to its own population.
            cores: as many tiles as these; None: the fewest.
            least: as many tiles at least.
            even: whether small tiles matter more than few spikes, as others are to fit beside them.

        Raises:
            PlacementError: it does not fit.
        """
        if cores is not None:
            found = self._best(len(cores), axons, even=even)
            if isinstance(found, Misfit):
                raise self._refusal(found.excess, f"core {cores[found.number]}")
            return Cut(found)
        most = min(int(self.limits["count"]), self.population.size)
        where = f"a core, even split over {most} core{'s'[: most - 1]}"
        self._require_neuron(axons, where)
        bound: Excess | None = None
        for parts in range(least, most + 1):
            if (short := self._short(parts, axons)) is not None:
                bound = short
                continue
            found = self._best(parts, axons)
            if not isinstance(found, Misfit):
                return Cut(found, bound)
            bound = found.excess
        raise self._refusal(bound or Excess("cores", least, most), where)

    def _best(self, parts: int, axons: Integers, *, even: bool = False) -> tuple[Tile, ...] | Misfit:
        """The best tiling that fits; where none does, what the one that lacks least has too much of."""
        best: tuple[tuple[float, float], tuple[Tile, ...]] | None = None
        why: Misfit | None = None
        for blocks in tilings(self.population.shape, parts):
            self._tiles.clear()  # source neurons of every tile ever asked for would take gigabytes
            if (refused := self.misfit(blocks, axons)) is not None:
                why = refused if why is None or refused.excess.share < why.excess.share else why
                continue
            tiles = tuple(self.tile(block) for block in blocks)
            largest = max(tile.neurons for tile in tiles) if even else 0
            cost = float(largest), self.received(tiles)
            if best is None or cost < best[0]:
                best = cost, tiles
        if best is None:
            return why or Misfit(0, Excess("cores", parts, self.population.size))
        return best[1]

    @property
    def _totals(self) -> dict[str, int]:
        """What all tiles together take at least, however they are cut: indices, headers and copies are left out."""
        return once(self, "_all", self._added)

    def _added(self) -> dict[str, int]:
        whole = tuple((0, n) for n in self.population.shape)
        tile = self.tile(whole)
        synapses = sum(int(fan.reach(whole).synapses.sum()) for fan in self.fans)
        return {
            "neurons": tile.neurons,
            "synapse_bits": int(self.table["synapses"]["weight_bits"]) * synapses,
            "compartment_configs": len(tile.compartments),
            "threshold_configs": len(tile.thresholds),
        }

    def _short(self, parts: int, axons: Integers) -> Excess | None:
        """What so many cores cannot hold, however the population is cut: an average share beyond the limit."""
        totals = {**self._totals, "out_axons": int(axons.sum())}
        return excess({resource: -(-used // parts) for resource, used in totals.items()}, self.limits)

    def _require_neuron(self, axons: Integers, where: str) -> None:
        """Refuse a population of which one neuron alone is too much."""
        block = widest_neuron(self.fans, self.population.shape)
        place = ", ".join(str(first) for first, _ in block)
        used = int(axons.max(initial=0))
        for found in (
            excess(self.tile(block).resources(self.table["synapses"]), self.limits),
            excess({"out_axons": used}, self.limits),
        ):
            if found is not None:
                what = f"{where}: neuron ({place}) alone takes {found.used}"
                raise self._refusal(found, what, _ALONE.get(found.resource))

    def _refusal(self, found: Excess, where: str, remedy: str | None = None) -> PlacementError:
        remedy = REMEDIES.get(found.resource) if remedy is None else remedy
        return PlacementError(f"{found} of {where}", node=self.population.name, remedy=remedy)
