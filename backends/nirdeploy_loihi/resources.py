"""What neurons take of their core: synaptic memory, axons and configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.program import Compartments, Synapses
from nirdeploy_loihi.reach import Block, Fan, Reach, block_rows
from nirdeploy_loihi.weights import sign_mode

__all__ = ["REMEDIES", "Excess", "Tile", "axon_bits", "excess", "index_bits", "synapse_bits", "tile_of", "weight_bits"]

Integers = NDArray[np.int64]
Configuration = tuple[Any, ...]
REMEDIES = {
    "neurons": "Make the population smaller or give it more cores.",
    "synapse_bits": "Prune or shrink its weights, or give it more cores.",
    "in_axons": "Reduce its fan-in, or give it more cores.",
    "out_axons": "Give it more cores, or the populations it feeds fewer.",
    "compartment_configs": "Give its neurons fewer different decays, or give it more cores.",
    "threshold_configs": "Give its neurons fewer different thresholds, or give it more cores.",
    "synapse_configs": "Give its connections one sign and one use of delays, or give it more cores.",
}


@dataclass(frozen=True, eq=False)
class Tile:
    """A block of one population, which goes to one core, and what it takes there.

    Attributes:
        population: its name.
        block: [first, last) along each axis of the population's shape.
        neurons: compartments.
        synapse_bits: synaptic memory for each number of index bits from the target's lowest to its highest.
        sources: source -> its flat neurons with a synapse here, ascending.
        compartments: different (decay_u, decay_v, bias exponent, refractory) (nengo-loihi CompartmentConfig).
        thresholds: different thresholds.
        formats: different (sign mode, whether delays are used) of its synapses.
    """

    population: str
    block: Block
    neurons: int
    synapse_bits: tuple[int, ...]
    sources: Mapping[str, NDArray[np.int32]]
    compartments: frozenset[Configuration]
    thresholds: frozenset[int]
    formats: frozenset[Configuration]

    @property
    def in_axons(self) -> int:
        """Source neurons with a synapse here: one axon each, whatever connections it comes through."""
        return sum(len(found) for found in self.sources.values())

    def resources(self, synapses: Mapping[str, Any]) -> dict[str, int]:
        """What it takes of a core it has for itself, but for output axons."""
        low, high = synapses["index_bits"]
        return {
            "neurons": self.neurons,
            "synapse_bits": self.synapse_bits[index_bits(self.neurons, low, high) - low],
            "in_axons": self.in_axons,
            "compartment_configs": len(self.compartments),
            "threshold_configs": len(self.thresholds),
            "synapse_configs": len(self.formats),
        }


@dataclass(frozen=True)
class Excess:
    """A resource that does not fit.

    Attributes:
        resource: its name in the target's table.
        used: amount taken.
        limit: amount there is.
    """

    resource: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """Used part of the limit, above 1."""
        return self.used / self.limit if self.limit else math.inf

    def __str__(self) -> str:
        return f"{self.resource} {self.used} exceeds {self.limit}"


def excess(resources: Mapping[str, int], limits: Mapping[str, Any]) -> Excess | None:
    """The first resource beyond its limit; resources that the target's table leaves out are not checked."""
    for resource, used in resources.items():
        if resource in limits and used > int(limits[resource]):
            return Excess(resource, used, int(limits[resource]))
    return None


# ---------------------------------------------------------------- memory


def axon_bits(n_weights: Any, bits_per_weight: int, synapses: Mapping[str, Any]) -> Any:
    """Memory of one axon with `n_weights` weights on a core, in bits; an array gives an array.

    Entries of up to `group` weights, each with `header_bits`, rounded up to words (nengo-loihi block.py,
    bits_per_axon).
    """
    group, header, word = (int(synapses[k]) for k in ("group", "header_bits", "word_bits"))

    def rounded(bits: Any) -> Any:
        return (bits + word - 1) // word * word

    count = np.asarray(n_weights, dtype=np.int64)
    full, rest = count // group, count % group
    return full * rounded(group * bits_per_weight + header) + np.where(
        rest > 0, rounded(rest * bits_per_weight + header), 0
    )


def index_bits(n_neurons: int, low: int, high: int) -> int:
    """Bits of a sparse synapse's target index that reach a core's last neuron."""
    return min(max(low, math.ceil(math.log2(max(2, n_neurons)))), high)


def weight_bits(synapses: Synapses, table: Mapping[str, Any]) -> int:
    """Bits of one weight of a connection; those of the delay where one of its synapses has any."""
    found = sum(int(table["synapses"][k]) for k in ("weight_bits", "delay_bits", "tag_bits"))
    return found + (int(table["delays"]["bits"]) if synapses.delay.any() else 0)


def synapse_bits(reach: Reach, n_neurons: int, bits: int, index: int, synapses: Mapping[str, Any]) -> int:
    """Memory of a connection's axons on a core: each dense (every neuron) or sparse (with target index), what is less.

    Args:
        reach: its synapses there.
        n_neurons: neurons of its target there.
        bits: of one weight.
        index: bits of a target index.
        synapses: the target's [synapses] table.
    """
    times = np.bincount(reach.synapses)
    counts = np.flatnonzero(times)
    dense = axon_bits(n_neurons, bits, synapses)
    least = np.minimum(dense, axon_bits(counts, bits + index, synapses))
    return int((times[counts] * least).sum())


# ---------------------------------------------------------------- tiles


def sources_of(fans: Sequence[Fan], reaches: Sequence[Reach]) -> dict[str, NDArray[np.int32]]:
    """Source -> its neurons with a synapse there, over all connections."""
    found: dict[str, NDArray[np.int32]] = {}
    for fan, reach in zip(fans, reaches, strict=True):
        source = fan.synapses.source
        found[source] = np.union1d(found[source], reach.sources) if source in found else reach.sources
    return found


def tile_of(population: Compartments, fans: Sequence[Fan], block: Block, table: Mapping[str, Any]) -> Tile:
    """A block of a population with what it takes.

    Args:
        population: its registers.
        fans: the connections into it.
        block: [first, last) along each axis of its shape.
        table: the target's limits.
    """
    size = math.prod(last - first for first, last in block)
    reaches = [fan.reach(block) for fan in fans]
    low, high = table["synapses"]["index_bits"]
    needed = index_bits(size, low, high)
    memory = [0] * (high - low + 1)
    for fan, reach in zip(fans, reaches, strict=True):
        bits = weight_bits(fan.synapses, table)
        for index in range(needed, high + 1):
            memory[index - low] += synapse_bits(reach, size, bits, index, table["synapses"])
    return Tile(
        population=population.name,
        block=block,
        neurons=size,
        synapse_bits=tuple(memory),
        sources=sources_of(fans, reaches),
        compartments=_compartment_configurations(population, block),
        thresholds=frozenset(int(x) for x in np.unique(_of(population.threshold, population, block))),
        formats=frozenset(
            (sign_mode(fan.synapses.weight), bool(fan.synapses.delay.any()))
            for fan, reach in zip(fans, reaches, strict=True)
            if len(reach.sources)
        ),
    )


def _of(values: Integers, population: Compartments, block: Block) -> Integers:
    return values if len(values) == 1 else values[block_rows(block, population.shape)]


def _compartment_configurations(population: Compartments, block: Block) -> frozenset[Configuration]:
    decays = np.broadcast_arrays(*(_of(d, population, block) for d in (population.decay_u, population.decay_v)))
    pairs = np.unique(np.stack(decays), axis=1).T
    return frozenset((int(u), int(v), population.bias_exponent, population.refractory) for u, v in pairs)
