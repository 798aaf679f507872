"""Spikes between cores: neurons that send to the same tiles as one bundle, and the messages an assignment costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.reach import block_rows
from nirdeploy_loihi.resources import Tile

__all__ = ["OUTSIDE", "Bundles", "activity_of", "bundles", "messages", "on_cores"]

Integers = NDArray[np.int64]
OUTSIDE = -1  # the tile, and the core, of what is not on the chip: the Input and always-on axons
_GRAIN = 2.0**-32  # activities are multiples of it, so that sums are exact in whatever order, up to 2**21


@dataclass(frozen=True, eq=False)
class Bundles:
    """Source neurons of one tile (or from outside) with synapses on the same tiles.

    Attributes:
        source: tile number, or `OUTSIDE`.
        neurons: how many.
        spikes: their spikes a step, summed.
        hits: whether they have a synapse on a tile, [tile, bundle].
    """

    source: Integers
    neurons: Integers
    spikes: NDArray[np.float64]
    hits: NDArray[np.bool_]


def activity_of(program: Program, measured: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Spikes a step of every source, one a neuron: as measured, else 1; always-on axons 1.

    Raises:
        PlacementError: a measurement of wrong length, negative or not finite.
    """
    constant = {axons.name for axons in program.always_on}
    found = {}
    for name, size in program.sizes.items():
        values = np.asarray(measured.get(name, ()), dtype=np.float64).reshape(-1)
        if name in constant or not values.size:
            found[name] = np.ones(size)
            continue
        if len(values) != size:
            raise PlacementError(f"activity of {len(values)} neurons, it has {size}", node=name)
        if not np.isfinite(values).all() or values.min() < 0:
            raise PlacementError("activity that is negative or not finite", node=name, remedy="Calibrate again.")
        found[name] = np.rint(values / _GRAIN) * _GRAIN
    return found


def bundles(program: Program, tiles: Sequence[Tile], activity: Mapping[str, NDArray[np.float64]]) -> Bundles:
    """All source neurons of a program that have synapses, in bundles.

    Args:
        program: the network.
        tiles: of all populations.
        activity: spikes a step of every source.
    """
    parts = [_bundles_of(program, name, tiles, activity[name]) for name in program.sizes]
    return Bundles(
        source=np.concatenate([part.source for part in parts]),
        neurons=np.concatenate([part.neurons for part in parts]),
        spikes=np.concatenate([part.spikes for part in parts]),
        hits=np.concatenate([part.hits for part in parts], axis=1),
    )


def _bundles_of(program: Program, name: str, tiles: Sequence[Tile], spikes: NDArray[np.float64]) -> Bundles:
    size = program.sizes[name]
    own = np.full(size, OUTSIDE, dtype=np.int64)
    for number, tile in enumerate(tiles):
        if tile.population == name:
            own[block_rows(tile.block, program.population(name).shape)] = number
    reached = [number for number, tile in enumerate(tiles) if name in tile.sources]
    # one bit a tile: a row of bytes is a neuron's set of tiles
    keys = np.zeros((size, 8 + -(-len(reached) // 8)), dtype=np.uint8)
    keys[:, :8] = own[:, None].view(np.uint8)
    for bit, number in enumerate(reached):
        keys[tiles[number].sources[name], 8 + bit // 8] |= np.uint8(1 << bit % 8)
    sending = np.flatnonzero(keys[:, 8:].any(axis=1))
    rows = np.ascontiguousarray(keys[sending]).view(np.dtype((np.void, keys.shape[1]))).reshape(-1)
    _, first, group = np.unique(rows, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    hits = np.zeros((len(tiles), len(first)), dtype=np.bool_)
    for bit, number in enumerate(reached):
        hits[number] = keys[sending[first], 8 + bit // 8] >> bit % 8 & 1
    return Bundles(
        source=own[sending[first]],
        neurons=np.bincount(group, minlength=len(first)).astype(np.int64),
        spikes=np.bincount(group, weights=spikes[sending], minlength=len(first)).astype(np.float64),
        hits=hits,
    )


def on_cores(found: Bundles, core_of: Integers, count: int) -> tuple[NDArray[np.int16], Integers]:
    """Tiles that each bundle has on each core, [core, bundle], and its own core, `OUTSIDE` where it has none.

    Args:
        found: the bundles.
        core_of: core of every tile.
        count: cores.
    """
    tiles = np.zeros((count, found.hits.shape[1]), dtype=np.int16)
    for number, core in enumerate(core_of):
        tiles[core] += found.hits[number]
    own = np.where(found.source == OUTSIDE, OUTSIDE, core_of[found.source])
    return tiles, own


def messages(found: Bundles, core_of: Integers) -> dict[str, float]:
    """Spikes a step that an assignment sends, one message for every core other than a neuron's own.

    Returns:
        'from_outside', 'between_cores' and their sum, 'messages_per_step'.
    """
    tiles, own = on_cores(found, core_of, int(core_of.max(initial=0)) + 1)
    reached = (tiles > 0).sum(axis=0)
    inside = own != OUTSIDE
    reached[inside] -= tiles[own[inside], np.flatnonzero(inside)] > 0
    sent = found.spikes * reached
    outside, between = float(sent[~inside].sum()), float(sent[inside].sum())
    totals = {"messages_per_step": outside + between, "from_outside": outside, "between_cores": between}
    return {name: round(value, 6) for name, value in totals.items()}  # the grain is finer
