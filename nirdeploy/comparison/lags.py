"""By how many whole steps a chip's run is later, found from the records themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from nirdeploy.comparison.align import Aligned, Alignment, pair_up
from nirdeploy.comparison.metrics import ErrorSums, SpikeSums, error_sums, spike_sums
from nirdeploy.comparison.sides import Misfit
from nirdeploy.comparison.text import number, percent, shown

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

    Spikes decide by their agreement (`metrics.agreement`), where none are compared v_mem, i_syn or the output by their
    RMS difference, over the steps in common. Looked at are `MOST_LAG` steps to either side of the declared lag, and of
    big records the first samples alone. Equal ones go to the lag nearest to the declared one, so that a silent or a
    constant node keeps that.
    """
    by_node: dict[str, dict[str, Aligned]] = {}
    for (node, variable), pair in alignment.pairs.items():
        by_node.setdefault(node, {})[variable] = pair
    return {node: _find(pairs, names) for node, pairs in by_node.items()}


def _find(pairs: Mapping[str, Aligned], names: tuple[str, str]) -> Found:
    spikes = pairs.get("spikes")
    leading = spikes or next(pairs[v] for v in ("v_mem", "i_syn", "output") if v in pairs)
    scores = dict(_scores(leading, names))
    declared = leading.lag
    best = max(scores, key=lambda lag: (scores[lag], -abs(lag - declared), -lag))
    if best == declared:
        return Found(best, "")
    if spikes:
        gain = f"{percent(scores[best])} of spikes agree, {percent(scores[declared])} at the declared {declared}"
    else:
        gain = f"RMS {number(-scores[best])}, {number(-scores[declared])} at the declared {declared}"
    return Found(best, f"{shown(leading.node)}: found a lag of {best} ({gain})")


def _scores(pair: Aligned, names: tuple[str, str]) -> Iterator[tuple[int, float]]:
    """Every lag that fits, and how well the sides agree at it: more is better."""
    stride = pair.when.step
    shortest = min(len(pair.reference.steps), len(pair.chip.steps))
    # at least half of the steps stay in common: two short ends agree by chance
    reach = min(MOST_LAG, (shortest - 1) // 2) * stride
    for lag in range(pair.lag - reach, pair.lag + reach + 1, stride):
        try:
            shifted = pair_up((pair.node, pair.variable), pair.reference, pair.chip, lag, names)
        except Misfit:
            continue
        yield lag, _score(shifted)


def _score(pair: Aligned) -> float:
    most = max(1, _MOST_ENTRIES // max(1, pair.steps * pair.count))
    if pair.variable == "spikes":
        return sum((spike_sums(a, b) for _, _, a, b in pair.blocks(most)), SpikeSums()).agreement
    rmse = sum((error_sums(a, b) for _, _, a, b in pair.blocks(most)), ErrorSums()).rmse
    return -rmse if np.isfinite(rmse) else -np.inf
