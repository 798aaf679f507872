"""Several trials of one thing: bands instead of single values, so that chance is not taken for a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.align import Aligned, Alignment, Lags, Unaligned, align
from nirdeploy.comparison.metrics import SpikeSums, spike_sums
from nirdeploy.comparison.text import number, percent, shown
from nirdeploy.trajectory import Trajectory

__all__ = ["Band", "Banded", "NodeBand", "align_trials", "node_bands"]

Key = tuple[str, str]
Both = tuple[NDArray[Any], NDArray[Any]]


class Band(NamedTuple):
    """Lowest, mean and highest of several trials."""

    lowest: float
    mean: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Band | None:
        """The band of some values; None of none."""
        return cls(min(values), float(np.mean(values)), max(values)) if len(values) else None


@dataclass(frozen=True)
class NodeBand:
    """The spikes of one node over all trials.

    Attributes:
        node: name in the original graph.
        spikes_reference: spikes of a trial of the reference.
        spikes_chip: spikes of a trial of the chip.
        agreement: of every trial of the reference with every trial of the chip.
        among_reference: of the reference's trials with each other; None: there is one.
        among_chip: of the chip's trials with each other; None: there is one.
    """

    node: str
    spikes_reference: Band
    spikes_chip: Band
    agreement: Band
    among_reference: Band | None
    among_chip: Band | None

    def __str__(self) -> str:
        def share(band: Band) -> str:
            return f"{percent(band.lowest)} to {percent(band.highest)}"

        text = f"{shown(self.node)} over all trials: {share(self.agreement)} agree"
        if self.among_reference:
            text += f"; among the reference's trials {share(self.among_reference)}"
        if self.among_chip:
            text += f"; among the chip's {share(self.among_chip)}"
        counts = " and ".join(
            f"{number(int(band.lowest))} to {number(int(band.highest))}"
            for band in (self.spikes_reference, self.spikes_chip)
        )
        return f"{text}; {counts} spikes"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value._asdict() if isinstance(value, Band) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class Banded(Aligned):
    """A pair of several trials, each entry a band from the lowest to the highest of its side.

    Where the two bands of an entry overlap, both sides show one value that is in both; else the ends that are nearest
    to each other. So what lies inside the bands is equal, and what is left is what no trial explains.

    Attributes:
        ours: every trial of the reference with the first one of the chip.
        theirs: the first trial of the reference with every one of the chip.
    """

    ours: tuple[Aligned, ...] = ()
    theirs: tuple[Aligned, ...] = ()

    def blocks(self, most: int | None = None) -> Iterator[tuple[int, int, NDArray[Any], NDArray[Any]]]:
        """As of `Aligned`."""
        together = zip(*(pair.blocks(most) for pair in (*self.ours, *self.theirs)), strict=True)
        for found in together:
            first, sample = found[0][:2]
            a = [one[2] for one in found[: len(self.ours)]]
            b = [one[3] for one in found[len(self.ours) :]]
            yield first, sample, *_nearest(a, b)

    def samples(self, chosen: slice, first: int = 0, last: int | None = None) -> Both:
        """As of `Aligned`."""
        return self._of(lambda pair: pair.samples(chosen, first, last))

    def at(self, step: int, sample: int) -> Both | None:
        """As of `Aligned`."""
        if step not in self.when:
            return None
        return self._of(lambda pair: pair.at(step, sample))

    def _of(self, read: Callable[[Aligned], Any]) -> Both:
        return _nearest([read(pair)[0] for pair in self.ours], [read(pair)[1] for pair in self.theirs])


def _nearest(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> Both:
    """Of two bands a value of each, the same one where they overlap."""
    low_a, high_a = np.minimum.reduce(a), np.maximum.reduce(a)
    low_b, high_b = np.minimum.reduce(b), np.maximum.reduce(b)
    shared = np.maximum(low_a, low_b)
    below, above = high_a < low_b, high_b < low_a
    return np.where(below, high_a, np.where(above, low_a, shared)), np.where(
        below, low_b, np.where(above, high_b, shared)
    )


def align_trials(a: Sequence[Trajectory], b: Sequence[Trajectory], lag: Lags) -> Alignment:
    """Pair every record over all trials; a record that not all trials have alike is listed.

    Raises:
        ComparisonError: as of `align`.
    """
    first = align(a[0], b[0], lag)
    ours = [first, *(align(one, b[0], lag) for one in a[1:])]
    theirs = [first, *(align(a[0], one, lag) for one in b[1:])]
    pairs: dict[Key, Aligned] = {}
    unaligned = list(first.unaligned)
    for key, pair in first.pairs.items():
        found = [[alignment.pairs.get(key) for alignment in side] for side in (ours, theirs)]
        wrong = next((k for side in found for k, one in enumerate(side) if one is None or not _alike(pair, one)), None)
        if wrong is None:
            banded = tuple(tuple(one for one in side if one is not None) for side in found)
            pairs[key] = Banded(**vars(pair), ours=banded[0], theirs=banded[1])
        else:
            unaligned.append(Unaligned(*key, f"trial {wrong} is not recorded as trial 0 is"))
    told = first.pairs.keys() - pairs.keys()
    for alignment in (*ours[1:], *theirs[1:]):  # what one trial alone has, or has more of, is left out as well
        unaligned += [entry for entry in alignment.unaligned if entry[:2] not in told]
    return Alignment(pairs, tuple(dict.fromkeys(unaligned)), first.notes)


def _alike(pair: Aligned, other: Aligned) -> bool:
    same = (pair.shape, pair.lag, pair.when, pair.count) == (other.shape, other.lag, other.when, other.count)
    return same and np.array_equal(_all(pair), _all(other)) and pair.reference.batch == other.reference.batch


def _all(pair: Aligned) -> NDArray[np.int64]:
    return np.arange(pair.count) if pair.neurons is None else pair.neurons


def node_bands(pairs: Mapping[Key, Aligned]) -> dict[str, NodeBand]:
    """The bands of every node whose spikes are compared over several trials."""
    return {node: _band(p) for (node, variable), p in pairs.items() if variable == "spikes" and isinstance(p, Banded)}


def _band(pair: Banded) -> NodeBand:
    a, b = len(pair.ours), len(pair.theirs)
    sums: dict[tuple[int, int], SpikeSums] = {}
    for found in zip(*(one.blocks() for one in (*pair.ours, *pair.theirs)), strict=True):
        trials = [one[2] for one in found[:a]] + [one[3] for one in found[a:]]
        for i, ours in enumerate(trials):
            for j in range(i, a + b):
                sums[i, j] = sums.get((i, j), SpikeSums()) + spike_sums(ours, trials[j])
    counts = [sums[i, i].reference for i in range(a + b)]
    across = [sums[i, j].agreement for i in range(a) for j in range(a, a + b)]
    reference, chip, agreement = Band.of(counts[:a]), Band.of(counts[a:]), Band.of(across)
    if reference is None or chip is None or agreement is None:
        raise ValueError("a pair without trials")
    return NodeBand(
        pair.node,
        reference,
        chip,
        agreement,
        Band.of([sums[i, j].agreement for i in range(a) for j in range(i + 1, a)]),
        Band.of([sums[i, j].agreement for i in range(a, a + b) for j in range(i + 1, a + b)]),
    )
