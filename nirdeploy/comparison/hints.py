"""What could explain a diverging node: hypotheses, each tried on the records and told only where it fits them.

A hypothesis about spikes (a shift, a turned map, exchanged channels) is told where it makes at least 80 % of the spikes
agree and leaves at most a third of the disagreement. One about v_mem names what one side does and the other does not;
its rule stands in its function. All look at no more than a part of the records around the first divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.text import number, percent, several, shown
from nirdeploy.outline import Outline

if TYPE_CHECKING:
    from nirdeploy.comparison.align import Aligned
    from nirdeploy.comparison.result import Divergence

__all__ = ["hints"]

_ENTRIES = 1 << 16  # entries of one variable that are looked at
_NEURONS = 1 << 11  # neurons of which a while is looked at; of all of them only as many steps as are within bounds
_PRODUCTS = 1 << 22  # multiplications spent on which channel is which
_CHANNELS = 128  # more that are equal to none of the other side are not assigned
_SHIFTS = (1, -1, 2, -2, 3, -3, 4, -4)
_LEAST = 8  # spikes, or entries of v, below which nothing is told
_SIDES = ("the reference", "the chip")

Floats = NDArray[np.float32]
Pair = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a node's records that is looked at.

    Attributes:
        node: its name.
        spikes: of reference and chip, float32 [step, sample, neuron], of some neurons if there are many.
        maps: likewise, of all neurons in the order of `shape`, of a few steps if there are many.
        shape: the node's; (neurons,) where only some are compared.
        v_mem: of the entries of `spikes`, in model units; None: not compared at the same steps and neurons.
        quantum: model units of an integer of the chip's v.
        sources: nodes that feed it.
    """

    node: str
    spikes: Pair
    maps: Pair
    shape: tuple[int, ...]
    v_mem: Pair | None
    quantum: float
    sources: tuple[str, ...]


def hints(
    pairs: Mapping[tuple[str, str], Aligned],
    outline: Outline | None,
    divergence: Divergence | None,
    counters: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[str, ...]:
    """Hypotheses for the node of a divergence that its records bear out, a sentence each.

    Args:
        pairs: (node, variable) -> both sides, of `Comparison.pairs`.
        outline: of the graph, for the node's shape and what feeds it; None: not known.
        divergence: the first of all nodes; None: nothing diverges, and there is nothing to say.
        counters: of the chip's run.
    """
    spikes = None if divergence is None else pairs.get((divergence.node, "spikes"))
    if divergence is None or spikes is None:
        return ()
    part = _part(divergence, spikes, pairs.get((divergence.node, "v_mem")), outline)
    found: list[str] = []
    for guess, seen in ((_shifted, part.spikes), (_turned, part.maps), (_permuted, part.maps)):
        if min(float(side.sum()) for side in seen) >= _LEAST:
            found += guess(part)
    if part.v_mem is not None:
        for rule in (_factor, _reset, _bound):
            found += rule(part, part.v_mem)
    return (*found, *_saturated(divergence.node, spikes, counters or {}))


# ---------------------------------------------------------------- what is looked at


def _part(divergence: Divergence, spikes: Aligned, v_mem: Aligned | None, outline: Outline | None) -> _Part:
    known = outline.nodes.get(divergence.node) if outline else None
    shape = spikes.shape
    if known is not None and known.shape is not None and math.prod(known.shape) == math.prod(shape):
        shape = known.shape
    if spikes.neurons is not None:
        shape = (spikes.count,)
    some = _some_neurons(spikes, divergence)
    window = _window(spikes, divergence, spikes.count if some is None else some.size)
    alike = v_mem is not None and _same_entries(spikes, v_mem)
    seen = _counts(_read(spikes, *window, some))
    return _Part(
        divergence.node,
        seen,
        seen if some is None else _counts(_read(spikes, *_window(spikes, divergence, spikes.count), None)),
        shape,
        _read(v_mem, *window, some) if alike and v_mem is not None else None,
        max((part.scale for part in v_mem.chip.parts if part.dtype.kind in "iu"), default=0.0) if v_mem else 0.0,
        tuple(outline.sources(divergence.node)) if outline and known else (),
    )


def _some_neurons(pair: Aligned, divergence: Divergence) -> NDArray[np.int64] | None:
    """Positions of evenly spread neurons, the diverging one among them; None: all."""
    if pair.count <= _NEURONS:
        return None
    flat = int(np.ravel_multi_index(divergence.neuron, pair.shape))
    stride = pair.count // _NEURONS | 1  # odd, so that it meets all channels and rows of a usual map
    return np.arange((pair.position(flat) or 0) % stride, pair.count, stride)


def _window(pair: Aligned, divergence: Divergence, neurons: int) -> tuple[slice, slice]:
    """Reference steps around the divergence, and samples, its own among them."""
    batch = pair.reference.batch
    kept = min(batch, max(1, _ENTRIES // (neurons * min(pair.steps, 128))))
    stride = -(-batch // kept)
    length = min(pair.steps, max(1, _ENTRIES // (neurons * kept)))
    first = min(max(divergence.step - length // 2, pair.start), pair.start + pair.steps - length)
    return slice(first, first + length), slice(divergence.sample % stride, None, stride)


def _same_entries(a: Aligned, b: Aligned) -> bool:
    same = (a.start, a.steps, a.lag, a.count) == (b.start, b.steps, b.lag, b.count)
    if a.neurons is None or b.neurons is None:
        return same and a.neurons is b.neurons
    return same and np.array_equal(a.neurons, b.neurons)


def _read(pair: Aligned, steps: slice, samples: slice, some: NDArray[np.int64] | None) -> Pair:
    later = slice(steps.start + pair.lag, steps.stop + pair.lag)
    own, its = (some if columns is None or some is None else columns[some] for columns in pair.columns)
    if some is None:
        own, its = pair.columns
    return pair.reference.block(steps, samples, own), pair.chip.block(later, samples, its)


def _counts(pair: Pair) -> Pair:
    return pair[0].astype(np.float32), pair[1].astype(np.float32)  # sums of small integers are several times slower


# ---------------------------------------------------------------- spikes


def _agreement(reference: Floats, chip: Floats) -> float:
    """`metrics.spike_agreement`, as 1 - sum |r - c| / sum (r + c), which is the same."""
    total = float(reference.sum()) + float(chip.sum())
    return 1 - float(np.abs(reference - chip).sum()) / total if total else 1.0


def _explains(before: float, after: float) -> bool:
    """Whether a hypothesis is worth telling: see the top of the file."""
    return after >= 0.8 and 1 - after <= (1 - before) / 3


def _agree(part: _Part, before: float, after: float) -> str:
    return f"{percent(after)} of {shown(part.node)}'s spikes agree ({percent(before)} as they are)"


def _shifted(part: _Part) -> Iterator[str]:
    """The chip a few steps later or earlier than its lag says."""
    reference, chip = part.spikes
    best = (0.0, 0, 0.0)
    for shift in _SHIFTS:
        if len(reference) - abs(shift) < 2:
            continue
        rows = slice(max(0, -shift), len(reference) - max(0, shift))
        there = slice(rows.start + shift, rows.stop + shift)
        after = _agreement(reference[rows], chip[there])
        if after > best[0] and reference[rows].sum() >= _LEAST:
            best = (after, shift, _agreement(reference[rows], chip[rows]))
    after, shift, before = best
    if shift and _explains(before, after):
        more = "more" if shift > 0 else "less"
        into = f" from {' or '.join(map(shown, part.sources))}" if part.sources else ""
        yield (
            f"shifted by {several(shift, 'step')}, {_agree(part, before, after)}: "
            f"what leads there{into} costs {several(abs(shift), 'step')} {more} than the records say"
        )


_TURNS: tuple[tuple[str, bool, Callable[[NDArray[Any]], NDArray[Any]]], ...] = (
    ("y and x exchanged", True, lambda x: np.swapaxes(x, -1, -2)),
    ("y mirrored", False, lambda x: x[..., ::-1, :]),
    ("x mirrored", False, lambda x: x[..., ::-1]),
    ("y and x mirrored", False, lambda x: x[..., ::-1, ::-1]),
)


def _turned(part: _Part) -> Iterator[str]:
    """The map of a layer of images transposed or mirrored."""
    side = part.shape[-2:]
    if len(side) < 2 or min(side) < 2:
        return
    images = [x.reshape(-1, *side) for x in part.maps]
    every = max(1, images[0].size // _ENTRIES)
    reference, chip = (x[::every] for x in images)
    before = _agreement(reference, chip)
    for name, square, turn in _TURNS:
        if square and side[0] != side[1]:
            continue
        after = _agreement(reference, turn(chip))
        if _explains(before, after):
            yield f"with {name}, {_agree(part, before, after)}: the map is addressed in another order"


def _permuted(part: _Part) -> Iterator[str]:
    """Channels, or neurons of a layer without a map, in another order: the assignment with most spikes in common."""
    reference, chip = (_by_channel(side, part.shape[0]) for side in part.maps)
    there = _assigned(reference, chip)
    moved = np.flatnonzero((there != np.arange(len(there))) & reference.any(axis=1))
    if moved.size < 2 or reference[moved].sum() < 3 * moved.size:
        return  # so few spikes could agree by chance
    before, after = _agreement(reference, chip), _agreement(reference, chip[there])
    if _explains(before, after):
        noun = "channels" if len(part.shape) > 1 else "neurons"
        yield f"with {noun} {_order(moved, there)}, {_agree(part, before, after)}: {noun} are in another order"


def _assigned(reference: NDArray[Any], chip: NDArray[Any]) -> NDArray[np.int64]:
    """For each row of the reference one of the chip: the equal one, at its place or elsewhere, else the best one left.

    The best are those that together have most entries with spikes in common (Kuhn 1955, as scipy solves it).
    """
    there = np.arange(len(reference))
    differs = np.flatnonzero((reference != chip).any(axis=1))
    waiting: dict[bytes, list[int]] = {}
    for row in differs[::-1].tolist():
        waiting.setdefault(chip[row].tobytes(), []).append(row)
    left = []
    for row in differs.tolist():
        equal = waiting.get(reference[row].tobytes())
        if equal:
            there[row] = equal.pop()
        else:
            left.append(row)
    rest = sorted(row for rows in waiting.values() for row in rows)
    if not 2 <= len(left) <= _CHANNELS:
        there[left] = rest
        return there
    from scipy.optimize import linear_sum_assignment

    entries = max(_LEAST, _PRODUCTS // len(left) ** 2)
    a, b = ((side[:, :entries] > 0).astype(np.float32) for side in (reference[left], chip[rest]))
    _, order = linear_sum_assignment(a @ b.T, maximize=True)
    there[left] = np.array(rest)[order]
    return there


def _by_channel(side: NDArray[Any], count: int) -> NDArray[Any]:
    """As [channel, entry]."""
    return np.ascontiguousarray(np.moveaxis(side.reshape(*side.shape[:2], count, -1), 2, 0).reshape(count, -1))


def _order(moved: NDArray[np.int64], there: NDArray[np.int64]) -> str:
    if moved.size == 2:
        return f"{moved[0]} and {moved[1]} exchanged"
    listed = [f"{i} at {there[i]}" for i in moved[:6]]
    return f"reordered ({', '.join(listed)}{', ...' if moved.size > 6 else ''})"


# ---------------------------------------------------------------- v_mem


def _factor(part: _Part, v_mem: Pair) -> Iterator[str]:
    """v of the chip as a multiple of the reference's, before either spikes or comes to its least value.

    Told where one factor fits 90 % of the entries to 2 % and an integer of the chip, and as many differ from the
    reference by more than that as not 30 % do not.
    """
    disturbed = (part.spikes[0] > 0) | (part.spikes[1] > 0)
    for side in v_mem:
        disturbed |= side <= side.min()  # a bound there may be
    quiet = ~np.logical_or.accumulate(disturbed, axis=0)
    reference, chip = (np.asarray(side, dtype=np.float64)[quiet] for side in v_mem)
    known = np.isfinite(reference) & np.isfinite(chip) & (np.abs(reference) > part.quantum) & (reference != 0)
    reference, chip = reference[known], chip[known]
    if reference.size < _LEAST:
        return
    factor = float(np.median(chip / reference))
    if not math.isfinite(factor) or abs(factor) < 1e-3:
        return

    def fits(k: float) -> float:
        return float(np.mean(np.abs(chip - k * reference) <= 0.02 * np.abs(k * reference) + part.quantum))

    share = fits(factor)
    if share >= 0.9 and fits(1.0) <= 0.3:
        yield (
            f"before any spike the chip's v_mem is {number(factor)} times the reference's, in {percent(share, 0)} of "
            f"{number(int(chip.size))} entries: a gain, the step dt or the scale of v differs"
        )


def _reset(part: _Part, v_mem: Pair) -> Iterator[str]:
    """v after spikes the same value on one side; on the other above it, and that value in less than 10 % of cases.

    A chip that goes on within the step after a reset, event by event, ends it below the value, too, or often at it.
    """
    after = [v[spikes > 0] for v, spikes in zip(v_mem, part.spikes, strict=True)]
    if min(values.size for values in after) < _LEAST:
        return
    for side, other in ((0, 1), (1, 0)):
        value = float(after[side][0])
        if not math.isfinite(value) or not (after[side] == value).all():
            continue
        share = float(np.mean(after[other] == value))
        above = np.mean(after[other] >= value - part.quantum)
        if share < 0.1 and above >= 0.98:
            yield (
                f"after a spike {_SIDES[side]}'s v_mem is always {number(value)}, {_SIDES[other]}'s in "
                f"{percent(share, 0)} of cases: one is reset to a value, the other loses its threshold, or is reset "
                "before the step has ended"
            )


def _bound(part: _Part, v_mem: Pair) -> Iterator[str]:
    """v of one side held at its least (or largest) value, and the other beyond it.

    Told where the one stands there at least 8 times, and the other is clearly beyond it (by 2 % and an integer of the
    chip), at three or more values, in 90 % of those entries. Not of 0, where v rests.
    """
    for side, other in ((0, 1), (1, 0)):
        held, free = v_mem[side], v_mem[other]
        for lower in (True, False):
            edge = float(held.min() if lower else held.max())
            if not math.isfinite(edge) or edge == 0:
                continue
            there, clear = free[held == edge], 0.02 * abs(edge) + part.quantum
            beyond = there < edge - clear if lower else there > edge + clear
            if there.size >= _LEAST and np.mean(beyond) >= 0.9 and np.unique(there[beyond][:4096]).size >= 3:
                falls, what = ("falls below", "a lower bound (v_min)") if lower else ("rises above", "an upper bound")
                yield (
                    f"{_SIDES[side]}'s v_mem never {falls} {number(edge)}, where it stands "
                    f"{several(int(there.size), 'time')}, {_SIDES[other]}'s does: {what} on one side only"
                )


def _saturated(node: str, pair: Aligned, counters: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    names = {part.node for part in pair.chip.parts} | {node}
    for what, register in (("saturations", "v saturates"), ("wraps", "u wraps")):
        count = sum(int(counters.get(name, {}).get(what, 0)) for name in names)
        if count:
            yield f"{register}: the chip's run counts that {several(count, 'time')} at {shown(node)}"
