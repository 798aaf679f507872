"""A program as the kernels read it: flat tables of integers.

A population behind a convolution is held channel last, so that what a spike adds to all channels of a pixel lies
side by side; everything else is held in the order of its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import GraphError, QuantizationError
from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.program import LONGEST_DELAY, AlwaysOn, Compartments, Program, Synapses
from nirdeploy_loihi.registers import registers_of
from nirdeploy_loihi.run_kernels import ALWAYS, GIVEN, POPULATION, Tables
from nirdeploy_loihi.synapse_kernels import BY_SOURCE, BY_TARGET, EACH, UNIFORM

__all__ = ["CONNECTION", "POPULATIONS", "Packed", "pack"]


_POPULATION_FIELDS = ("first", "size", "room", "slots", "sums_at", "refractory", "ordered")
_CONNECTION_FIELDS = (
    *("kind", "source", "start", "target", "targets"),
    *("width", "apart", "weights_at", "delayed", "delay", "delays_at", "longest"),
    *("apart_from_sums", "sums_at", "slots", "room"),
    *("area", "across", "sources_a_group", "kernel_y", "kernel_x", "stride_y", "stride_x"),
    *("padding_y", "padding_x", "dilation_y", "dilation_x", "to_down", "to_across", "pixels_apart"),
)
POPULATIONS = np.dtype([(name, np.int64) for name in _POPULATION_FIELDS])
CONNECTION = np.dtype([(name, np.int64) for name in _CONNECTION_FIELDS])

Integers = NDArray[np.int64]
Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Packed:
    """A program, or some populations of it, for the kernels.

    Attributes:
        populations: those run, in order.
        given: sources outside, whose spikes a run is given, with their sizes.
        axons: the most axons of one constant source.
        tables: what the kernels read.
    """

    populations: tuple[Compartments, ...]
    given: Mapping[str, int]
    axons: int
    tables: Tables


_packed: WeakKeyDictionary[Program, Packed] = WeakKeyDictionary()


def pack(program: Program, only: tuple[str, ...] | None = None) -> Packed:
    """Tables of a program, kept as long as the program is.

    Args:
        program: the network.
        only: pack these populations alone; their other sources but the constant ones are then given, in the program
            or not.

    Raises:
        QuantizationError: integers beyond 32 bits, a delay beyond `LONGEST_DELAY`, a register out of its range.
        GraphError: shapes that disagree, or an unknown source.
    """
    if only is not None:
        sizes = {**{s.source: s.n_sources for s in program.synapses}, **program.sizes}
        return _pack(program, tuple(program.population(name) for name in only), {}, sizes)
    if program not in _packed:
        inputs = {program.input: program.sizes[program.input]}
        _packed[program] = _pack(program, program.populations, inputs, program.sizes)
    return _packed[program]


def _pack(
    program: Program, populations: tuple[Compartments, ...], given: dict[str, int], sizes: Mapping[str, int]
) -> Packed:
    numbers = {p.name: k for k, p in enumerate(populations)}
    synapses = [s for s in program.synapses if s.target in numbers]
    always = {axons.name: axons for axons in program.always_on}
    for s in synapses:
        _check(s, sizes)
        if s.source not in numbers and s.source not in always:
            given.setdefault(s.source, sizes[s.source])
    orders = [_order(p, synapses) for p in populations]
    table = _populations(populations, synapses, orders)
    rows = np.zeros(len(synapses), CONNECTION)
    weights: list[Integers] = []
    delays: list[Integers] = []
    for row, s in zip(rows, synapses, strict=True):
        k = numbers[s.target]
        row["target"], row["targets"] = k, s.n_targets
        row["kind"], row["source"], row["start"] = _source(s.source, numbers, always, list(given))
        row["weights_at"], row["delays_at"] = sum(w.size for w in weights), sum(d.size for d in delays)
        weights.append(_matrix(row, s, orders[k]) if s.window is None else _kernel(row, s, orders[k] is not None))
        delays.append(_delays(row, s, orders[k]))
        row["apart_from_sums"] = row["delayed"] == BY_TARGET or _wraps(s)
        for name in ("sums_at", "slots", "room"):
            row[name] = table[name][k]
    cells = int((table["slots"] * table["room"]).sum())
    for row in (row for row in rows if row["apart_from_sums"]):
        row["sums_at"], row["slots"] = cells, row["longest"] + 1
        cells += int(row["slots"] * row["room"])
    wide = _largest_sum(populations, synapses) >= 1 << 31
    registers = _registers(populations, orders)
    tables = Tables(
        table,
        rows,
        _joined(weights, np.int32),
        _joined(delays, np.uint8),
        _joined([_padded(p, np.arange(p.size) if o is None else o) for p, o in zip(populations, orders, strict=True)]),
        *registers,
        np.zeros(cells, np.int64 if wide else np.int32),
    )
    return Packed(populations, given, max([axons.count for axons in program.always_on], default=0), tables)


def _check(s: Synapses, sizes: Mapping[str, int]) -> None:
    if s.source not in sizes:
        raise GraphError(f"connection {s.name!r} comes from {s.source!r}, which does not exist", node=s.target)
    found, expected = (s.n_targets, s.n_sources), (sizes[s.target], sizes[s.source])
    if found != expected:
        raise GraphError(
            f"connection {s.name!r} has {found[0]} targets and {found[1]} sources, expected {expected[0]} and "
            f"{expected[1]}",
            node=s.target,
        )
    if s.window is not None:
        w = s.window
        expected_kernel = (w.target_shape[0], w.source_shape[0] // w.groups, *s.weight.shape[2:])
        if s.weight.ndim != 4 or s.weight.shape != expected_kernel or w.target_shape[0] % w.groups:
            raise GraphError(
                f"connection {s.name!r} has a kernel of shape {s.weight.shape} for {w.source_shape[0]} channels, "
                f"{w.target_shape[0]} of its target and {w.groups} groups",
                node=s.target,
            )
    if s.delay.ndim != 2 or any(n not in (1, full) for n, full in zip(s.delay.shape, expected, strict=True)):
        raise GraphError(
            f"connection {s.name!r} has delays of shape {s.delay.shape}, expected each axis of {expected} or 1",
            node=s.target,
        )
    if s.delay.size and (s.delay.min() < 0 or s.delay.max() > LONGEST_DELAY):
        worst = int(s.delay.min() if s.delay.min() < 0 else s.delay.max())
        raise QuantizationError(
            f"connection {s.name!r} has a delay of {worst} steps, expected 0 to {LONGEST_DELAY}", node=s.target
        )
    if s.weight.size and (largest := int(np.abs(s.weight).max())) >= 1 << 31:
        raise QuantizationError(f"connection {s.name!r} has a weight of {largest}, beyond 32 bits", node=s.target)


def _order(p: Compartments, synapses: list[Synapses]) -> Integers | None:
    """Channel last, as places in the population's shape, where all its convolutions agree on the shape."""
    shapes = {s.window.target_shape for s in synapses if s.target == p.name and s.window is not None}
    if len(shapes) != 1:
        return None
    channels, down, across = next(iter(shapes))
    if channels == 1 or down * across == 1:
        return None
    return np.arange(p.size).reshape(channels, -1).T.reshape(-1)


def _populations(
    populations: tuple[Compartments, ...], synapses: list[Synapses], orders: list[Integers | None]
) -> NDArray[np.void]:
    table = np.zeros(len(populations), POPULATIONS)
    first = cells = 0
    for row, p, order in zip(table, populations, orders, strict=True):
        # sums that are delayed a target wait in the connection's own ring
        longest = [int(s.delay.max()) for s in synapses if s.target == p.name and not _apart(s) and s.delay.size]
        room, slots = -(-p.size // 8) * 8, 1 + max(longest, default=0)
        values = (first, p.size, room, slots, cells, max(1, p.refractory), order is not None)
        for name, value in zip(_POPULATION_FIELDS, values, strict=True):
            row[name] = value
        first += room
        cells += room * slots
    return table


def _source(name: str, numbers: Mapping[str, int], always: Mapping[str, AlwaysOn], given: list[str]) -> tuple[int, ...]:
    if name in numbers:
        return POPULATION, numbers[name], 0
    if name in always:
        return ALWAYS, always[name].count, always[name].start
    return GIVEN, given.index(name), 0


def _matrix(row: np.void, s: Synapses, order: Integers | None) -> Integers:
    row["width"], row["apart"] = s.n_targets, 1
    return (s.weight if order is None else s.weight[order]).T


def _kernel(row: np.void, s: Synapses, channel_last: bool) -> Integers:
    """The kernel as [source channel, y, x, target channel of its group]."""
    window = s.window
    if window is None:
        raise GraphError(f"connection {s.name!r} is no convolution", node=s.target)
    channels, down, across = window.target_shape
    shape, width = window.source_shape, channels // window.groups
    values = {
        **{"width": width, "apart": 1 if channel_last else down * across, "area": shape[1] * shape[2]},
        **{"across": shape[2], "sources_a_group": shape[0] // window.groups, "to_down": down, "to_across": across},
        **{"pixels_apart": channels if channel_last else 1},
        **dict(zip(("kernel_y", "kernel_x"), s.weight.shape[2:], strict=True)),
        **dict(zip(("stride_y", "stride_x"), window.stride, strict=True)),
        **dict(zip(("padding_y", "padding_x"), window.padding, strict=True)),
        **dict(zip(("dilation_y", "dilation_x"), window.dilation, strict=True)),
    }
    for name, value in values.items():
        row[name] = value
    split = s.weight.reshape(window.groups, width, *s.weight.shape[1:])  # group, out, in, y, x
    return split.transpose(0, 2, 3, 4, 1)


def _uniform(delay: Integers) -> Integers:
    """Delays with an axis of 1 where they do not differ along it."""
    for axis in (0, 1):
        if (delay == delay.take([0], axis)).all():
            delay = delay.take([0], axis)
    return delay


def _kind(delay: Integers) -> int:
    """Of delays that `_uniform` has been through: which synapses share one."""
    return {(False, False): UNIFORM, (False, True): BY_SOURCE, (True, False): BY_TARGET, (True, True): EACH}[
        delay.shape[0] > 1, delay.shape[1] > 1
    ]


def _delays(row: np.void, s: Synapses, order: Integers | None) -> Integers:
    delay = _uniform(s.delay)
    row["delayed"], row["longest"] = _kind(delay), delay.max()
    if row["delayed"] == UNIFORM:
        row["delay"] = delay[0, 0]
        return np.zeros(0, np.int64)
    if order is not None and delay.shape[0] > 1:
        delay = delay[order]
    return delay.T  # [source, target]


def _wraps(s: Synapses) -> bool:
    """Whether sums of a convolution without delays may pass the signed 24 bits that Lava's Conv has."""
    return s.window is not None and not s.delay.any() and s.largest_sum >= STATE_LIMIT  # below it no sum wraps


def _apart(s: Synapses) -> bool:
    return _kind(_uniform(s.delay)) == BY_TARGET or _wraps(s)


def _largest_sum(populations: tuple[Compartments, ...], synapses: list[Synapses]) -> int:
    return max((sum(s.largest_sum for s in synapses if s.target == p.name) for p in populations), default=0)


def _joined(parts: list[Integers], kind: type[np.generic] = np.int32) -> Array:
    flat = [np.zeros(0, kind), *(np.ascontiguousarray(part, dtype=kind).reshape(-1) for part in parts)]
    return np.concatenate(flat)


def _padded(p: Compartments, values: Integers) -> Integers:
    room = -(-p.size // 8) * 8
    return np.concatenate([values, np.zeros(room - p.size, values.dtype)])


def _registers(
    populations: tuple[Compartments, ...], orders: list[Integers | None]
) -> tuple[Array, Array, Array, Array, Array]:
    found = []
    for p, order in zip(populations, orders, strict=True):
        each = registers_of(p)
        found.append([_padded(p, values if order is None else values[order]) for values in each])
    u, v, threshold, bias, start = (_joined([each[k] for each in found]) for k in range(5))
    return u, v, threshold, bias, start
