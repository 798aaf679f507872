"""By how many whole steps a chip's run is later, found from the records themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nirdeploy.comparison.align import Aligned, Alignment, pair_up
from nirdeploy.comparison.metrics import ErrorSums, SpikeSums, error_sums, spike_sums
from nirdeploy.comparison.sides import Misfit
from nirdeploy.comparison.text import number, percent, several, shown

__all__ = ["MOST_LAG", "Found", "find_lags"]

MOST_LAG = 16  # steps to either side of the declared lag
_MOST_ENTRIES = 1 << 21  # of a node that are looked at for one lag: 33 lags of it take a quarter of a second


class Found(NamedTuple):
    """The lag of one node.

    Attributes:
        lag: steps by which the chip is later.
        note: what speaks for it, one sentence.
    """

    lag: int
    note: str


def find_lags(alignment: Alignment, names: tuple[str, str]) -> dict[str, Found]:
    """For each node the whole-step lag at which the two sides agree best.

    Spikes decide by their agreement (`metrics.agreement`), where none are compared v_mem, i_syn or the output by the
    square of their difference in parts of their variance over time, both over the steps in common. A lag that only
    cuts off what differs is none: more spikes must meet than at the declared one, and values must vary and differ less.
    Looked at are `MOST_LAG` steps to either side of the declared lag, of big records in the first samples alone; what
    is found there is held against the whole. Equal ones go to the lag nearest to the declared one, so that a silent or
    a constant node keeps that.
    """
    return {node: _find(pairs, names) for node, pairs in alignment.by_node().items()}


class _Score(NamedTuple):
    """How well the sides agree at a lag: more is better.

    Attributes:
        worth: agreement of spikes, or the negative square of the difference in parts of the variance.
        shared: spikes that meet; of values 0.
        rmse: of values.
    """

    worth: float
    shared: int = 0
    rmse: float = 0.0


def _find(pairs: Mapping[str, Aligned], names: tuple[str, str]) -> Found:
    spikes = pairs.get("spikes")
    leading = spikes or next(pairs[v] for v in ("v_mem", "i_syn", "output") if v in pairs)
    declared = leading.lag
    most = max(1, _MOST_ENTRIES // max(1, leading.steps * leading.count))
    scores = {lag: _score(pair, most) for lag, pair in _shifted(leading, names)}
    usual = scores[declared]

    def better(score: _Score) -> bool:
        return score.worth > usual.worth and (score.shared > usual.shared if spikes else score.rmse < usual.rmse)

    best = max(
        (lag for lag, score in scores.items() if lag == declared or better(score)),
        key=lambda lag: (scores[lag].worth, -abs(lag - declared), -lag),
    )
    found = scores[best]
    if best != declared and most < leading.reference.batch:
        whole = dict(_shifted(leading, names, (declared, best)))
        usual, found = (_score(whole[lag], None) for lag in (declared, best))
    if best == declared or not better(found):
        return Found(declared, "")
    if spikes:
        gain = f"{percent(found.worth)} of spikes agree, {percent(usual.worth)} at the declared {declared}"
        outside = sum(_outside(pair) for _, pair in _shifted(spikes, names, (best,)))
        gain += f"; {several(outside, 'spike')} outside the steps in common" if outside else ""
    else:
        gain = f"RMS {number(found.rmse)}, {number(usual.rmse)} at the declared {declared}"
    return Found(best, f"{shown(leading.node)}: found a lag of {best} ({gain})")


def _shifted(pair: Aligned, names: tuple[str, str], lags: Iterable[int] | None = None) -> Iterator[tuple[int, Aligned]]:
    """The pair at every lag that fits."""
    stride = pair.when.step
    shortest = min(len(pair.reference.steps), len(pair.chip.steps))
    # at least half of the steps stay in common: two short ends agree by chance
    reach = min(MOST_LAG, (shortest - 1) // 2) * stride
    for lag in range(pair.lag - reach, pair.lag + reach + 1, stride) if lags is None else lags:
        try:
            yield lag, pair_up((pair.node, pair.variable), pair.reference, pair.chip, lag, names)
        except Misfit:
            continue


def _outside(pair: Aligned) -> int:
    """Spikes of both sides before and behind the compared steps."""
    found = 0
    for side, rows, columns in zip((pair.reference, pair.chip), pair.rows(0, pair.steps), pair.columns, strict=True):
        for cut in (slice(0, rows.start), slice(rows.stop, len(side.steps))):
            found += int(side.block(cut, slice(None), columns).sum(dtype=np.int64))
    return found


def _score(pair: Aligned, most: int | None) -> _Score:
    """Of the first samples, or of all."""
    if pair.variable == "spikes":
        sums = sum((spike_sums(a, b) for _, _, a, b in pair.blocks(most)), SpikeSums())
        return _Score(sums.agreement, sums.shared)
    errors, batch = ErrorSums(), pair.reference.batch
    moments = np.zeros((2, 2, batch if most is None else min(most, batch), pair.count))  # power, side, sample, neuron
    for _, sample, *sides in pair.blocks(most):
        errors = errors + error_sums(*sides)
        for k, side in enumerate(sides):
            values = side.astype(np.float64)
            samples = slice(sample, sample + values.shape[1])
            moments[0, k, samples] += values.sum(axis=0)
            moments[1, k, samples] += np.square(values).sum(axis=0)
    with np.errstate(invalid="ignore"):
        variance = float((moments[1] - np.square(moments[0]) / pair.steps).sum())
    known = np.isfinite(errors.rmse) and variance > 1e-12 * float(moments[1].sum())  # not of rounding alone
    if not known:
        return _Score(-np.inf, rmse=errors.rmse)
    return _Score(-errors.squares / variance, rmse=errors.rmse)
