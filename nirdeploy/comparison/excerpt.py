"""What the page shows of a run: for a node one sample, a window of steps, the neurons that matter most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from nirdeploy.comparison.align import Aligned
    from nirdeploy.comparison.divergence import Divergence
    from nirdeploy.comparison.result import Comparison

__all__ = ["PAPER", "Excerpt", "Limits", "Trace", "excerpt"]

_VALUES = ("v_mem", "i_syn", "output")  # what a trace may show, the first that is compared
_BLOCK = 1 << 22  # entries read at once, and most that are looked at
_SPIKE_BYTES = 4  # of a spike in the page's JSON: the distance to the one before, and a comma
_VALUE_BYTES = 11  # of a value: six digits, sign, point, comma


class Limits(NamedTuple):
    """How much of a node is shown.

    Attributes:
        neurons: rows of the raster.
        traces: neurons whose values are shown.
        steps: length of the window.
        size: bytes of the page, roughly.
    """

    neurons: int
    traces: int
    steps: int
    size: int


PAPER = Limits(neurons=48, traces=1, steps=96, size=30_000)


@dataclass(frozen=True, eq=False)
class Trace:
    """Values of one neuron over the window.

    Attributes:
        flat: flat index of the neuron in its node.
        neuron: the same in the node's own shape.
        values: reference and chip [step], in model units; NaN where not compared.
        thresholds: of reference and chip in model units, where recorded.
        differs: reference step of its first different spike count inside the window, or None.
    """

    flat: int
    neuron: tuple[int, ...]
    values: tuple[NDArray[Any], NDArray[Any]]
    thresholds: tuple[float | None, float | None]
    differs: int | None


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A part of one node's run.

    Attributes:
        node: name in the original graph.
        sample: index in the batch.
        first: reference step of the first row.
        compared: all compared steps of the reference.
        neurons: flat index of each neuron shown, ascending; empty where spikes are not compared.
        total: compared neurons of the node.
        shape: the node's shape.
        reference: spike counts [step, neuron]; no neuron where spikes are not compared.
        chip: likewise.
        variable: what the traces show; '' where there is none.
        traces: neurons that differ first, earliest first; where none differs, the most active.
        divergence: the node's first difference where it is in this sample.
    """

    node: str
    sample: int
    first: int
    compared: range
    neurons: tuple[int, ...]
    total: int
    shape: tuple[int, ...]
    reference: NDArray[Any]
    chip: NDArray[Any]
    variable: str
    traces: tuple[Trace, ...]
    divergence: Divergence | None

    @property
    def steps(self) -> range:
        """Reference steps shown."""
        return range(self.first, self.first + len(self.reference))

    @property
    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Where [step, neuron] both sides spike, the reference spikes more, the chip spikes more."""
        return np.minimum(self.reference, self.chip) > 0, self.reference > self.chip, self.chip > self.reference

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many entries each mask has."""
        both, ours, theirs = (int(np.count_nonzero(mask)) for mask in self.masks)
        return both, ours, theirs


def excerpt(comparison: Comparison, node: str, sample: int, limits: Limits) -> Excerpt | None:
    """The part of a node around its first difference, or from the start where it has none in this sample.

    A third of the window lies before the difference. None where neither spikes nor values of this sample are
    compared.
    """
    spikes = comparison.pairs.get((node, "spikes"))
    found = (comparison.pairs[node, v] for v in _VALUES if (node, v) in comparison.pairs)
    values = next((pair for pair in found if sample < pair.reference.batch), None)
    leading = spikes or values
    if leading is None or sample >= leading.reference.batch:
        return None
    divergence = comparison.per_node[node].first_divergence
    if divergence is not None and divergence.sample != sample:
        divergence = None
    compared = range(leading.when.start, leading.when[-1] + 1)
    centre = divergence.step if divergence else compared.start
    wide = _around(compared, centre, max(1, min(limits.steps, _BLOCK // leading.count)))
    reference, chip = _cut(leading, sample, wide)
    chosen = _neurons(reference, chip, limits.neurons) if spikes else np.arange(0)
    told = _told(leading, reference, chip, values, limits.traces, divergence)
    if spikes:
        chosen = np.union1d(chosen, [position for _, position in told]).astype(np.int64)
    window = _affordable(wide, centre, _weights(reference, chip, chosen, len(told)), limits.size)
    inside = slice(window.start - wide.start, window.stop - wide.start)
    return Excerpt(
        node=node,
        sample=sample,
        first=window.start,
        compared=compared,
        neurons=tuple(leading.flat(int(position)) for position in chosen),
        total=leading.count,
        shape=leading.shape,
        reference=reference[inside][:, chosen],
        chip=chip[inside][:, chosen],
        variable=values.variable if values and told else "",
        traces=_traces(values, sample, window, told, (reference[inside], chip[inside]) if spikes else None),
        divergence=divergence,
    )


def _around(within: range, centre: int, length: int) -> range:
    """At most `length` steps of a range, a third of them before the centre."""
    if len(within) <= length:
        return within
    start = max(within.start, min(centre - length // 3, within.stop - length))
    return range(start, start + length)


def _cut(pair: Aligned, sample: int, window: range) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both sides of one sample at every step of a window [step, neuron], read a block at a time.

    Where a step is not compared there is no spike, or NaN.
    """
    when = pair.when
    first, last = (
        min(max(0, -((when.start - bound) // when.step)), len(when)) for bound in (window.start, window.stop)
    )
    shape = (2, len(window), pair.count)
    found = np.zeros(shape, np.int64) if pair.variable == "spikes" else np.full(shape, np.nan)
    length = max(1, _BLOCK // (pair.reference.batch * pair.count))
    for a in range(first, last, length):
        b = min(a + length, last)
        rows = slice(when[a] - window.start, when[b - 1] - window.start + 1, when.step)
        found[0, rows], found[1, rows] = pair.sample(sample, a, b)
    return found[0], found[1]


def _neurons(reference: NDArray[Any], chip: NDArray[Any], most: int) -> NDArray[np.int64]:
    """The neurons that differ most, then those that spike most, in order of their index."""
    differing, active = (reference != chip).sum(axis=0), (reference + chip).sum(axis=0)
    return np.sort(np.lexsort((-active, -differing))[:most])


def _told(
    leading: Aligned,
    reference: NDArray[Any],
    chip: NDArray[Any],
    values: Aligned | None,
    most: int,
    divergence: Divergence | None,
) -> list[tuple[int, int]]:
    """Neurons to trace, as their positions in the values and in what leads: earliest difference first."""
    if values is None:
        return []
    apart = reference != chip
    if leading is values:
        with np.errstate(invalid="ignore"):  # of two infinite values
            gap = np.abs(np.nan_to_num(np.subtract(reference, chip, dtype=np.float64))).max(axis=0)
        order = np.argsort(-gap, kind="stable")
    else:
        first = np.where(apart.any(axis=0), apart.argmax(axis=0), len(apart))
        order = np.lexsort((-(reference + chip).sum(axis=0), first))
        if divergence is not None:
            flat = int(np.ravel_multi_index(divergence.neuron, leading.shape))
            position = leading.position(flat)
            order = np.array([position, *order[order != position]]) if position is not None else order
        differing = int((first < len(apart)).sum())
        order = order[: max(1, differing)]
    found: list[tuple[int, int]] = []
    for position in order:
        where = values.position(leading.flat(int(position)))
        if where is not None:
            found.append((where, int(position)))
        if len(found) == most:
            break
    return found


def _weights(reference: NDArray[Any], chip: NDArray[Any], chosen: NDArray[np.int64], traces: int) -> NDArray[np.int64]:
    """Bytes that each step takes on the page."""
    spikes = np.count_nonzero((reference[:, chosen] != 0) | (chip[:, chosen] != 0), axis=1)
    found: NDArray[np.int64] = _SPIKE_BYTES * spikes + 2 * _VALUE_BYTES * traces
    return found


def _affordable(window: range, centre: int, weights: NDArray[np.int64], size: int) -> range:
    """The longest window around the centre whose steps weigh at most `size`; never shorter than one step."""
    total = np.concatenate([[0], np.cumsum(weights)])
    low, high = 1, len(window)
    while low < high:
        length = (low + high + 1) // 2
        found = _around(window, centre, length)
        if total[found.stop - window.start] - total[found.start - window.start] <= size:
            low = length
        else:
            high = length - 1
    return _around(window, centre, low)


def _traces(
    values: Aligned | None,
    sample: int,
    window: range,
    told: list[tuple[int, int]],
    spikes: tuple[NDArray[Any], NDArray[Any]] | None,
) -> tuple[Trace, ...]:
    if values is None or not told:
        return ()
    positions = [where for where, _ in told]
    sides = [side[:, positions] for side in _cut(values, sample, window)]
    thresholds = values.thresholds() if values.variable == "v_mem" else (None, None)
    found = []
    for i, (where, position) in enumerate(told):
        apart = np.flatnonzero(spikes[0][:, position] != spikes[1][:, position]) if spikes else np.arange(0)
        own, its = (None if t is None else float(t[0] if t.size == 1 else t[where]) for t in thresholds)
        found.append(
            Trace(
                flat=values.flat(where),
                neuron=values.neuron(where),
                values=(sides[0][:, i], sides[1][:, i]),
                thresholds=(own, its),
                differs=window.start + int(apart[0]) if apart.size else None,
            )
        )
    return tuple(found)
