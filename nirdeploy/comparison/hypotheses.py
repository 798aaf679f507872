"""Hypotheses of why a node departs, each a function from a part of its records to sentences, where they bear it out.

One about spikes is told where it makes at least 80 % of them agree and leaves at most a third of the disagreement. One
about v_mem names what one side does and the other does not; its rule stands in its docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.text import number, percent, several, shown

__all__ = ["LEAST", "Pair", "Part", "bound", "counted", "factor", "permuted", "reset", "shifted", "turned"]

LEAST = 8  # spikes, or entries of v, below which nothing is told
_IMAGES = 1 << 16  # entries of maps that are turned or reordered
_PRODUCTS = 1 << 21  # multiplications spent on which channel is which
_MOST_CHANNELS = 1 << 14
_CHANNELS = 128  # more that are equal to none of the other side are not assigned
_LONGEST = 4  # steps of a shift that is tried
_SIDES = ("the reference", "the chip")

Floats = NDArray[np.float32]
Pair = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """What is looked at of a node's records.

    Attributes:
        node: its name.
        step: of the divergence.
        stride: steps from one entry to the next.
        spikes: of reference and chip, float32 [step, sample, neuron], of some neurons if there are many.
        trains: likewise, since the divergence: before it nothing differs.
        maps: likewise, of all neurons in the order of `shape`, of a few steps if there are many.
        shape: the node's; (neurons,) where only some are compared.
        v_mem: of the entries of `spikes`, in model units; None: not compared at the same steps and neurons.
        quantum: model units of an integer of the chip's v.
        sources: nodes that feed it.
    """

    node: str
    step: int
    stride: int
    spikes: Pair
    trains: Pair
    maps: Pair
    shape: tuple[int, ...]
    v_mem: Pair | None
    quantum: float
    sources: tuple[str, ...]


# ---------------------------------------------------------------- spikes


def _agreement(reference: Floats, chip: Floats) -> float:
    """`metrics.spike_agreement`, as 1 - sum |r - c| / sum (r + c), which is the same."""
    total = float(reference.sum()) + float(chip.sum())
    return 1 - float(np.abs(reference - chip).sum()) / total if total else 1.0


def _explains(before: float, after: float) -> bool:
    """Whether a hypothesis is worth telling: see the top of the file."""
    return after > before and after >= 0.8 and 1 - after <= (1 - before) / 3


def _agree(part: Part, before: float, after: float) -> str:
    since = f" from step {part.step} on" if len(part.spikes[0]) > len(part.trains[0]) else ""
    return f"{percent(after)} of {shown(part.node)}'s spikes{since} agree ({percent(before)} as they are)"


def shifted(part: Part) -> Iterator[str]:
    """The chip a few steps later or earlier than its lag says; more spikes meet then, not only fewer are looked at."""
    reference, chip = part.trains
    meet = float(np.minimum(reference, chip).sum())
    best = (0.0, 0, 0.0)
    for shift in sorted(range(-_LONGEST, _LONGEST + 1), key=abs):
        if not shift or len(reference) - abs(shift) < 2:
            continue
        rows = slice(max(0, -shift), len(reference) - max(0, shift))
        there = slice(rows.start + shift, rows.stop + shift)
        after = _agreement(reference[rows], chip[there])
        gains = after > best[0] and float(np.minimum(reference[rows], chip[there]).sum()) > meet
        if gains and reference[rows].sum() >= LEAST:
            best = (after, shift, _agreement(reference[rows], chip[rows]))
    after, shift, before = best
    if shift and _explains(before, after):
        steps, more = several(abs(shift) * part.stride, "step"), "more" if shift > 0 else "less"
        into = f" from {' or '.join(map(shown, part.sources))}" if part.sources else ""
        yield (
            f"shifted by {'-' if shift < 0 else ''}{steps}, {_agree(part, before, after)}: "
            f"what leads there{into} costs {steps} {more} than the records say"
        )


_TURNS: tuple[tuple[str, bool, Callable[[NDArray[Any]], NDArray[Any]]], ...] = (
    ("y and x exchanged", True, lambda x: np.swapaxes(x, -1, -2)),
    ("y mirrored", False, lambda x: x[..., ::-1, :]),
    ("x mirrored", False, lambda x: x[..., ::-1]),
    ("y and x mirrored", False, lambda x: x[..., ::-1, ::-1]),
)


def turned(part: Part) -> Iterator[str]:
    """The map of a layer of images transposed or mirrored."""
    side = part.shape[-2:]
    if len(side) < 2 or min(side) < 2:
        return
    images = [x.reshape(-1, *side) for x in part.maps]
    every = max(1, images[0].size // _IMAGES)
    reference, chip = (x[::every] for x in images)
    before = _agreement(reference, chip)
    for name, square, turn in _TURNS:
        if square and side[0] != side[1]:
            continue
        after = _agreement(reference, turn(chip))
        if _explains(before, after):
            yield f"with {name}, {_agree(part, before, after)}: the map is addressed in another order"


def permuted(part: Part) -> Iterator[str]:
    """Channels, or neurons of a layer without a map, in another order: the assignment with most spikes in common."""
    if part.shape[0] > _MOST_CHANNELS:
        return
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

    entries = max(LEAST, _PRODUCTS // len(left) ** 2)
    a, b = ((side[:, :entries] > 0).astype(np.float32) for side in (reference[left], chip[rest]))
    common = np.einsum("ie,je->ij", a, b)  # a product by BLAS waits for threads, longer than it takes
    _, order = linear_sum_assignment(common, maximize=True)
    there[left] = np.array(rest)[order]
    return there


def _by_channel(side: NDArray[Any], count: int) -> NDArray[Any]:
    """As [channel, entry], not all entries of a large map."""
    every = max(1, side.size // _IMAGES)
    rows = np.moveaxis(side.reshape(*side.shape[:2], count, -1)[..., ::every], 2, 0)
    return np.ascontiguousarray(rows).reshape(count, -1)


def _order(moved: NDArray[np.int64], there: NDArray[np.int64]) -> str:
    if moved.size == 2:
        return f"{moved[0]} and {moved[1]} exchanged"
    listed = [f"{i} at {there[i]}" for i in moved[:6]]
    return f"reordered ({', '.join(listed)}{', ...' if moved.size > 6 else ''})"


def counted(part: Part) -> Iterator[str]:
    """Several spikes of a neuron in a step on one side only; told where the other has one in 90 % of those entries."""
    for side, other in ((0, 1), (1, 0)):
        single, many = part.trains[side], part.trains[other]
        several_there = many > 1
        if single.max() != 1 or several_there.sum() < LEAST or np.mean(single[several_there] == 1) < 0.9:
            continue
        yield (
            f"{_SIDES[side]} never spikes more than once a step, {_SIDES[other]} up to {int(many.max())} times: "
            "for each threshold that v holds, or after each event"
        )


# ---------------------------------------------------------------- v_mem


def factor(part: Part, v_mem: Pair) -> Iterator[str]:
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
    if reference.size < LEAST:
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


def reset(part: Part, v_mem: Pair) -> Iterator[str]:
    """v after spikes the same value on one side; on the other above it, and that value in less than 10 % of cases.

    A chip that goes on within the step after a reset, event by event, ends it below the value, too, or often at it.
    """
    after = [v[spikes > 0] for v, spikes in zip(v_mem, part.spikes, strict=True)]
    if min(values.size for values in after) < LEAST:
        return
    for side, other in ((0, 1), (1, 0)):
        value = float(after[side][0])
        if not math.isfinite(value) or not (after[side] == value).all():
            continue
        if (after[other] == after[other][0]).all() and abs(float(after[other][0]) - value) > part.quantum:
            values = [number(float(after[k][0])) for k in (side, other)]
            yield (
                f"after a spike {_SIDES[side]}'s v_mem is always {values[0]}, {_SIDES[other]}'s always {values[1]}: "
                "each is reset to its own value, or v is shown with another offset"
            )
            return
        share = float(np.mean(after[other] == value))
        above = np.mean(after[other] >= value - part.quantum)
        if share < 0.1 and above >= 0.98:
            yield (
                f"after a spike {_SIDES[side]}'s v_mem is always {number(value)}, {_SIDES[other]}'s in "
                f"{percent(share, 0)} of cases: one is reset to a value, the other loses its threshold, or is reset "
                "before the step has ended"
            )


def _arrivals(there: NDArray[np.bool_]) -> int:
    """How often, of all samples and neurons, an entry is there that was not a step before."""
    return int(np.count_nonzero(there[0]) + np.count_nonzero(there[1:] & ~there[:-1]))


def bound(part: Part, v_mem: Pair) -> Iterator[str]:
    """v of one side held at its least (or largest) value, and the other beyond it.

    Told where, as long as a neuron's spikes agree, the one stands there at least 8 times, and the other is clearly
    beyond it (by 2 % and an integer of the chip), at three or more values, in 90 % of those entries. Not of 0, where v
    rests, nor where it got there less than three times: a neuron that nothing drives stays where it is.
    """
    alike = ~np.logical_or.accumulate(part.spikes[0] != part.spikes[1], axis=0)
    for side, other in ((0, 1), (1, 0)):
        held, free = v_mem[side], v_mem[other]
        for lower in (True, False):
            edge = float(held.min() if lower else held.max())
            if not math.isfinite(edge) or edge == 0:
                continue
            there, clear = free[(held == edge) & alike], 0.02 * abs(edge) + part.quantum
            beyond = there < edge - clear if lower else there > edge + clear
            if (
                there.size >= LEAST
                and _arrivals(held == edge) >= 3
                and np.mean(beyond) >= 0.9
                and np.unique(there[beyond][:4096]).size >= 3
            ):
                falls, what = ("falls below", "a lower bound (v_min)") if lower else ("rises above", "an upper bound")
                yield (
                    f"{_SIDES[side]}'s v_mem never {falls} {number(edge)}, where it stands "
                    f"{several(int((held == edge).sum()), 'time')}, {_SIDES[other]}'s does: {what} on one side only"
                )
