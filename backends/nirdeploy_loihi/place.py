"""Placement: every population in equal sequential slices over cores, by neurons, memory and axons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError
from nirdeploy.names import suggest
from nirdeploy.placement import Placement, Usage, core_numbers, require_options
from nirdeploy.quantization import Quantized
from nirdeploy_loihi.linear import pattern
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Layer, Network

__all__ = ["axon_bits", "place_network", "slices_of"]

Slice = tuple[int, int]
Counts = NDArray[np.int64]
_REMEDY = {
    "neurons": "Make the population smaller or give it more cores.",
    "synapse_bits": "Prune or shrink its weights, or give it more cores.",
    "in_axons": "Reduce its fan-in, or give it more cores.",
    "out_axons": "Give it more cores, or the populations it feeds fewer.",
}


def place_network(quantized: Quantized, **options: Any) -> Placement:
    """Cores of every population.

    A population is cut into the smallest number of equal sequential slices whose neurons, synaptic memory,
    input axons (source neurons with a synapse on the core) and output axons (a neuron takes one for each
    connection and core it reaches) fit a core, as nengo-loihi's split_blocks does; a core holds one
    population. Resources the target's table leaves out are not checked. Spikes that leave the chip through
    an Output are not counted.

    Args:
        quantized: the network.
        **options: `cores`, {population: [core, ...]}: kept as they are and checked.

    Raises:
        PlacementError: a population that does not fit, too few cores, or cores that cannot be used.
    """
    require_options(options, {"cores": "{population: [core, ...]}"})
    network = lower(quantized.graph, quantized.convention)
    table = quantized.target.table
    limit = int(table["cores"]["count"])
    given = _given_cores({} if options.get("cores") is None else options["cores"], network, limit)
    free = [core for core in range(limit) if core not in {c for cores in given.values() for c in cores}]
    loads = _split(network, quantized, given, max(1, len(free)))
    needed = sum(len(found) for name, found in loads.items() if name not in given)
    if needed > len(free):
        sizes = ", ".join(f"{layer.name}: {len(loads[layer.name])}" for layer in network.layers)
        raise PlacementError(
            f"the network takes {needed} cores ({sizes}), {len(free)} of {limit} are free",
            remedy="Make the largest population smaller.",
        )
    cores: dict[str, tuple[int, ...]] = {}
    for layer in network.layers:
        count = len(loads[layer.name])
        cores[layer.name] = given.get(layer.name) or tuple(free[:count])
        if layer.name not in given:
            free = free[count:]
    return Placement(
        cores=cores,
        usage=tuple(_usage(network, cores, loads, table["cores"])),
        slices={name: tuple(load.slice for load in found) for name, found in loads.items()},
    )


def _usage(
    network: Network,
    cores: Mapping[str, tuple[int, ...]],
    loads: Mapping[str, list[_Load]],
    limits: Mapping[str, Any],
) -> Iterable[Usage]:
    for layer in network.layers:
        for core, load in zip(cores[layer.name], loads[layer.name], strict=True):
            for resource, used in load.resources.items():
                if resource in limits:
                    yield Usage(core, layer.name, resource, used, int(limits[resource]))


def _given_cores(given: Any, network: Network, limit: int) -> dict[str, tuple[int, ...]]:
    if not isinstance(given, Mapping):
        raise PlacementError(f"cores is {given!r}, expected {{population: [core, ...]}}")
    known = {layer.name: int(np.prod(layer.shape)) for layer in network.layers}
    taken: dict[int, str] = {}
    found: dict[str, tuple[int, ...]] = {}
    for name, values in given.items():
        if name not in known:
            raise PlacementError(f"cores names {name!r}, which is no population", remedy=suggest(str(name), known))
        cores = core_numbers(values, limit, option=f"cores[{name!r}]", node=name)
        if not 1 <= len(cores) <= known[name]:
            raise PlacementError(f"{len(cores)} cores for {known[name]} neurons", node=name)
        for core in cores:
            if core in taken:
                raise PlacementError(f"core {core} is already taken by {taken[core]!r}", node=name)
            taken[core] = name
        found[name] = cores
    return found


# ---------------------------------------------------------------- loads


@dataclass(frozen=True)
class _Load:
    """What a slice of a population takes of its core."""

    slice: Slice
    resources: Mapping[str, int]


def slices_of(n_neurons: int, parts: int) -> tuple[Slice, ...]:
    """Equal sequential slices [first, last); the first ones hold one neuron more where it does not divide."""
    size, more = divmod(n_neurons, parts)
    edges = [i * size + min(i, more) for i in range(parts + 1)]
    return tuple(pairwise(edges))


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


def _memory(counts: Counts, n_neurons: int, synapses: Mapping[str, Any]) -> int:
    """Synaptic bits of a core: each axon dense (every neuron) or sparse (with target index), what is less."""
    low, high = synapses["index_bits"]
    index = min(max(low, math.ceil(math.log2(max(2, n_neurons)))), high)
    weight = sum(int(synapses[k]) for k in ("weight_bits", "delay_bits", "tag_bits"))
    used = counts[counts > 0]
    dense = axon_bits(np.full_like(used, n_neurons), weight, synapses)
    return int(np.minimum(dense, axon_bits(used, weight + index, synapses)).sum())


def _split(
    network: Network, quantized: Quantized, given: Mapping[str, tuple[int, ...]], most: int
) -> dict[str, list[_Load]]:
    """Slices of every population; targets before sources, whose output axons depend on them."""
    table = quantized.target.table
    loads: dict[str, list[_Load]] = {}
    reached: dict[str, Counts] = {}  # output axons of each neuron
    for layer in reversed(network.layers):
        size = int(np.prod(layer.shape))
        patterns = [pattern(c, quantized[c.name].weight) for c in layer.connections]
        axons = reached.get(layer.name, np.zeros(size, dtype=np.int64))
        if layer.name in given:
            parts = len(given[layer.name])
            found = _loads(patterns, axons, slices_of(size, parts), table["synapses"])
            _require_fit(layer, found, table["cores"], given[layer.name])
        else:
            found = _smallest_split(layer, patterns, axons, table, min(most, size))
        loads[layer.name] = found
        for connection, matrix in zip(layer.connections, patterns, strict=True):
            count = reached.setdefault(connection.source, np.zeros(matrix.shape[1], dtype=np.int64))
            for load in found:
                count += _per_source(matrix, load.slice) > 0
    return loads


def _smallest_split(
    layer: Layer, patterns: list[Any], axons: Counts, table: Mapping[str, Any], most: int
) -> list[_Load]:
    size = int(np.prod(layer.shape))
    parts = min(most, math.ceil(size / int(table["cores"]["neurons"])))
    while True:
        found = _loads(patterns, axons, slices_of(size, parts), table["synapses"])
        if _first_excess(found, table["cores"]) is None:
            return found
        if parts == most:
            _require_fit(layer, found, table["cores"], None)
        parts += 1


def _per_source(matrix: Any, part: Slice) -> Counts:
    rows = matrix[part[0] : part[1]]
    return np.bincount(rows.indices, minlength=matrix.shape[1]).astype(np.int64)


def _loads(patterns: list[Any], axons: Counts, slices: tuple[Slice, ...], synapses: Mapping[str, Any]) -> list[_Load]:
    found = []
    for part in slices:
        counts = [_per_source(matrix, part) for matrix in patterns]
        resources = {
            "neurons": part[1] - part[0],
            "synapse_bits": sum(_memory(c, part[1] - part[0], synapses) for c in counts),
            "in_axons": sum(int((c > 0).sum()) for c in counts),
            "out_axons": int(axons[part[0] : part[1]].sum()),
        }
        found.append(_Load(part, resources))
    return found


def _first_excess(loads: list[_Load], limits: Mapping[str, Any]) -> tuple[int, str] | None:
    for number, load in enumerate(loads):
        for resource, used in load.resources.items():
            if resource in limits and used > int(limits[resource]):
                return number, resource
    return None


def _require_fit(layer: Layer, loads: list[_Load], limits: Mapping[str, Any], cores: tuple[int, ...] | None) -> None:
    excess = _first_excess(loads, limits)
    if excess is None:
        return
    number, resource = excess
    where = f"core {cores[number]}" if cores else f"a core, even split over {len(loads)} cores"
    raise PlacementError(
        f"{resource} {loads[number].resources[resource]} exceeds {int(limits[resource])} of {where}",
        node=layer.name,
        remedy=_REMEDY[resource],
    )
