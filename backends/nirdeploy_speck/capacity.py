"""What fits where: the three memories of each core, layers whole or split by output channels, and who gets which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nirdeploy.target import Target
from nirdeploy_speck.layers import Layer, Network, log2_ceil

__all__ = ["Demand", "assign", "cut", "demands", "memories", "most_channels"]

Memory = Mapping[str, int]


def memories(target: Target) -> list[dict[str, int]]:
    """Words of each memory of each core."""
    table = target.table["cores"]
    return [
        {"kernel_memory": 1024 * kernel, "neuron_memory": 1024 * neuron, "bias_memory": bias}
        for kernel, neuron, bias in zip(
            table["kernel_memory_ki"], table["neuron_memory_ki"], table["bias_memory"], strict=True
        )
    ]


@dataclass(frozen=True)
class Demand:
    """What a layer asks of cores.

    Attributes:
        layer: the layer.
        most_parts: cores it can be split over; every source needs a destination a part.
        bound_by: the source that allows no more.
        spread: features of the chip a channel of it, for the readout's erratum.
    """

    layer: Layer
    most_parts: int
    bound_by: str
    spread: int = 1

    @property
    def outputs(self) -> int:
        """Channels of it."""
        return self.layer.output_shape[0]

    def needs(self, outputs: int) -> dict[str, int]:
        """Words that so many of its channels take."""
        return self.layer.memory_of((outputs - 1) * self.spread + 1)

    def lacking(self, have: Memory, outputs: int | None = None) -> list[str]:
        """Each memory that is too small, with words needed and words there."""
        needs = self.needs(self.outputs if outputs is None else outputs)
        return [f"{resource} {n} of {have[resource]}" for resource, n in needs.items() if n > have[resource]]

    def room(self, have: Memory) -> int:
        """How many of its channels a core holds: the largest number whose memories fit (`memory_words`)."""
        _, height, width = self.layer.output_shape
        per_channel = self.layer.input_shape[0] << log2_ceil(self.layer.weight.shape[2] ** 2)
        rows = have["kernel_memory"] // per_channel
        most = [
            1 << (rows.bit_length() - 1) if rows else 0,  # clog2(outputs) steps at powers of two
            have["neuron_memory"] >> (log2_ceil(height) + log2_ceil(width)),
        ]
        if self.layer.bias is not None:
            most.append(have["bias_memory"])
        return min(self.outputs, max(0, (min(most) - 1) // self.spread + 1))


def most_channels(demand: Demand, cores: Sequence[Memory]) -> int:
    """Channels of a layer that as many of these cores as it can be split over hold together."""
    rooms = sorted((demand.room(have) for have in cores), reverse=True)
    return sum(rooms[: demand.most_parts])


def demands(network: Network, target: Target, readout: Mapping[str, Any] | None = None) -> dict[str, Demand]:
    """What every layer of a network asks for, by population.

    Args:
        network: the layers.
        target: the chip.
        readout: the readout's checked options, where it is in use.
    """
    limit = int(target.table["limits"]["destinations"])
    cores = len(target.table["cores"]["kernel_memory_ki"])
    feeds = [(feed.source, layer.name) for layer in network.layers for feed in layer.feeds]
    found = {}
    for layer in network.layers:
        most, bound_by = cores, ""
        spread = 1
        for source in dict.fromkeys(feed.source for feed in layer.feeds):
            if source == network.input_name and network.dvs is None:
                continue  # the host writes an event as often as need be
            own = feeds.count((source, layer.name))
            others = sum(1 for s, name in feeds if s == source and name != layer.name)
            others += readout is not None and readout["node"] == source
            parts = max(1, (limit - others) // own)
            if parts < most:
                most, bound_by = parts, source
        if readout is not None and readout["node"] == layer.name:
            most, bound_by, spread = 1, layer.name, int(readout["spread"])
        found[layer.name] = Demand(layer, most, bound_by, spread)
    return found


def cut(outputs: int, rooms: Sequence[int]) -> tuple[int, ...]:
    """Channels of each part, as even as the cores' rooms allow; `rooms` add up to `outputs` at least."""
    found: list[int] = []
    for index, room in enumerate(rooms):
        left = outputs - sum(found)
        later = rooms[index + 1 :]
        even = -(-left // (1 + len(later)))
        found.append(max(min(room, even), left - sum(later)))
    return tuple(found)


def _options(demand: Demand, allowed: Sequence[int], available: Sequence[Memory]) -> Iterator[tuple[int, ...]]:
    """Sets of cores that hold a layer, none of which would do with one core less; fewer cores first."""
    rooms = {core: demand.room(available[core]) for core in allowed}
    useful = [core for core in allowed if rooms[core]]
    for count in range(1, min(demand.most_parts, len(useful)) + 1):
        for cores in combinations(useful, count):
            total = sum(rooms[core] for core in cores)
            if total >= demand.outputs > total - min(rooms[core] for core in cores):
                yield cores


def assign(
    wanted: Mapping[str, Demand],
    allowed: Sequence[int],
    available: Sequence[Memory],
    fixed: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, tuple[int, ...]] | None:
    """Cores of every layer, or None where no assignment exists.

    A bipartite matching of layers and cores; where there is none, the assignment with the fewest cores in all among
    those that split layers. Of equals, the one with the lowest core numbers; the same in every process.

    Args:
        wanted: what each layer asks for.
        allowed: cores that may be used.
        available: memories of each core of the chip.
        fixed: cores that are given already.
    """
    fixed = fixed or {}
    free = [core for core in allowed if core not in {c for cores in fixed.values() for c in cores}]
    open_ones = {name: demand for name, demand in wanted.items() if name not in fixed}
    whole = {name: [c for c in free if not d.lacking(available[c])] for name, d in open_ones.items()}
    matched = _match(whole)
    if len(matched) < len(open_ones):
        options = {name: list(_options(d, free, available)) for name, d in open_ones.items()}
        split = _fewest(options)
        if split is None:
            return None
        matched = split
    return {name: fixed.get(name) or matched[name] for name in wanted}


def _match(allowed: Mapping[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """The largest matching of layers to one core each, of those the one with the lowest core numbers."""
    from scipy.optimize import linear_sum_assignment

    names = list(allowed)
    cores = sorted({core for options in allowed.values() for core in options})
    if not cores:
        return {}
    forbidden = 1 + len(names) * (1 + max(cores))  # worth more than all allowed choices together
    cost = [[core if core in allowed[name] else forbidden for core in cores] for name in names]
    rows, columns = linear_sum_assignment(cost)
    return {names[r]: (cores[c],) for r, c in zip(rows, columns, strict=True) if cost[r][c] < forbidden}


def _fewest(options: Mapping[str, list[tuple[int, ...]]]) -> dict[str, tuple[int, ...]] | None:
    """Disjoint sets of cores, one a layer, few in all and low in number: the best of each set of cores taken so far."""
    best: dict[int, tuple[tuple[int, int], tuple[tuple[int, ...], ...]]] = {0: ((0, 0), ())}
    for name in options:
        after: dict[int, tuple[tuple[int, int], tuple[tuple[int, ...], ...]]] = {}
        for taken, ((count, numbers), chosen) in best.items():
            for cores in options[name]:
                mask = sum(1 << core for core in cores)
                if taken & mask:
                    continue
                candidate = ((count + len(cores), numbers + sum(cores)), (*chosen, cores))
                known = after.get(taken | mask)
                if known is None or candidate < known:
                    after[taken | mask] = candidate
        best = after
    if not best:
        return None
    return dict(zip(options, min(best.values())[1], strict=True))
