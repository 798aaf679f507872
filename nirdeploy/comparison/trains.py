"""Measures that forgive a spike for being early or late: matches within a window, distances, cosines of rates."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.align import Aligned
from nirdeploy.comparison.metrics import cosine
from nirdeploy.errors import ComparisonError, UnavailableError
from nirdeploy.native import compiler

__all__ = ["Distances", "WindowMatch", "distances", "rate_cosine", "window_match"]

_kernel = compiler([Path(__file__)])
_ENTRIES = 1 << 20  # of as many samples as are looked at together
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class WindowMatch:
    """Spikes that find a partner of the same neuron at most `window` steps away, each at most one.

    Attributes:
        window: steps.
        matched: pairs; as many as there can be.
        reference: spikes of the reference.
        chip: spikes of the chip.
    """

    window: int
    matched: int
    reference: int
    chip: int

    def __add__(self, other: WindowMatch) -> WindowMatch:
        if other.window != self.window:
            raise ValueError(f"windows of {self.window} and {other.window} steps")
        sums = (getattr(self, n) + getattr(other, n) for n in ("matched", "reference", "chip"))
        return WindowMatch(self.window, *sums)

    @property
    def precision(self) -> float:
        """Share of the chip's spikes that have a partner; 1 where it has none."""
        return self.matched / self.chip if self.chip else 1.0

    @property
    def recall(self) -> float:
        """Share of the reference's spikes that have a partner; 1 where it has none."""
        return self.matched / self.reference if self.reference else 1.0


@dataclass(frozen=True, eq=False)
class Distances:
    """Distances of two spike trains, neuron by neuron, as elephant computes them.

    Attributes:
        victor_purpura: [sample, neuron]; adding or removing a spike costs 1, moving it by n steps n * cost
            (Victor and Purpura, J. Neurophysiol. 76, 1996).
        van_rossum: [sample, neuron]; the L2 distance of the trains filtered by exp(-t / tau), where one spike more is
            a distance of 1 (van Rossum, Neural Computation 13, 2001, times sqrt(2)).
        cost: of moving a spike by a step.
        tau: time constant of the filter, in steps.
    """

    victor_purpura: NDArray[np.float64]
    van_rossum: NDArray[np.float64]
    cost: float
    tau: float


def window_match(pair: Aligned, window: int) -> WindowMatch:
    """Matches of all neurons and samples of a node.

    Args:
        pair: both sides' spikes.
        window: steps, 0 or more; 0 counts spikes of the same neuron in the same step.

    Raises:
        ComparisonError: a window that is no whole number from 0 on.
    """
    if isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 0:
        raise ComparisonError(f"window is {window!r}, expected a whole number of steps from 0 on")
    matched = ours = theirs = 0
    batch = pair.reference.batch
    together = max(1, _ENTRIES // (pair.steps * pair.count))
    for sample in range(0, batch, together):
        sides = pair.samples(slice(sample, min(batch, sample + together)))
        reference, chip = (_events(side.reshape(len(side), -1)) for side in sides)
        matched += int(_matches(*reference, *chip, int(window)))
        ours, theirs = ours + len(reference[0]), theirs + len(chip[0])
    return WindowMatch(int(window), matched, ours, theirs)


def _events(counts: NDArray[Any]) -> tuple[Steps, Steps]:
    """Neuron and step of every spike of [step, neuron], by neuron, then step; a count of two is two spikes."""
    neuron, step = np.nonzero(counts.T)
    times = counts[step, neuron].astype(np.int64)
    if (times != 1).any():
        neuron, step = np.repeat(neuron, times), np.repeat(step, times)
    return neuron, step


@_kernel
def _matches(n: Steps, s: Steps, m: Steps, t: Steps, window: int) -> int:
    # sorted trains: taking the earliest partner that is left gives the most pairs
    i = j = found = 0
    while i < len(n) and j < len(m):
        if n[i] < m[j] or (n[i] == m[j] and s[i] < t[j] - window):
            i += 1
        elif n[i] > m[j] or t[j] < s[i] - window:
            j += 1
        else:
            found += 1
            i += 1
            j += 1
    return found


def rate_cosine(pair: Aligned) -> float:
    """Cosine of both sides' spike counts over all compared steps, an entry a neuron and sample."""
    counts = np.zeros((2, pair.reference.batch, pair.count), dtype=np.int64)
    for _, sample, *sides in pair.blocks():
        for mine, side in zip(counts, sides, strict=True):
            mine[sample : sample + side.shape[1]] += side.sum(axis=0, dtype=np.int64)
    return cosine(counts[0], counts[1])


def distances(pair: Aligned, *, cost: float, tau: float) -> Distances:
    """Victor-Purpura and van Rossum distances of every neuron and sample of a node.

    Args:
        pair: both sides' spikes.
        cost: of moving a spike by a step, above 0; 2 / cost steps are as far as a spike is moved at all.
        tau: time constant of van Rossum's filter, in steps.

    Raises:
        ComparisonError: a cost or a tau that is not above 0.
        UnavailableError: elephant is not installed.
    """
    for name, value in (("cost", cost), ("tau", tau)):
        if not (np.isfinite(value) and value > 0):
            raise ComparisonError(f"{name} is {value!r}, expected a number above 0")
    if importlib.util.find_spec("elephant") is None:
        raise UnavailableError(
            "spike-train distances need elephant, which is not installed",
            remedy="Run `pip install 'nirdeploy[metrics]'`.",
        )
    shape = (pair.reference.batch, pair.count)
    found = np.zeros((2, *shape))
    for sample in range(shape[0]):
        reference, chip = pair.sample(sample)
        for neuron in np.flatnonzero((reference != chip).any(axis=0)):
            found[:, sample, neuron] = _distance(reference[:, neuron], chip[:, neuron], cost, tau)
    return Distances(found[0], found[1], float(cost), float(tau))


def _distance(reference: NDArray[Any], chip: NDArray[Any], cost: float, tau: float) -> tuple[float, float]:
    import neo
    import quantities as pq
    from elephant.spike_train_dissimilarity import van_rossum_distance, victor_purpura_distance

    end = float(len(reference))  # a step stands for a second
    trains = [neo.SpikeTrain(times, units=pq.s, t_stop=end) for times in _times(reference, chip)]
    moved = victor_purpura_distance(trains, cost_factor=cost / pq.s)[0, 1]
    filtered = van_rossum_distance(trains, time_constant=tau * pq.s)[0, 1]
    return float(moved), float(filtered)


def _times(*trains: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    for counts in trains:
        yield np.repeat(np.arange(len(counts), dtype=np.float64), counts.astype(np.int64))
