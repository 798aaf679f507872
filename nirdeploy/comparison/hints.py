"""What could explain a diverging node: hypotheses, each tried on the records and told only where it fits them.

Each looks at no more than a part of the records around the first divergence. `hypotheses` has them, and their rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.hypotheses import (
    LEAST,
    Pair,
    Part,
    bound,
    counted,
    factor,
    permuted,
    reset,
    shifted,
    turned,
)
from nirdeploy.comparison.text import number, shown
from nirdeploy.outline import Outline

if TYPE_CHECKING:
    from nirdeploy.comparison.align import Aligned
    from nirdeploy.comparison.divergence import Divergence

__all__ = ["hints"]

_ENTRIES = 1 << 16  # entries of one variable that are looked at
_LEAST_STEPS = 24
_NEURONS = 1 << 11  # neurons of which a while is looked at; of all of them only as many steps as are within bounds


def hints(
    pairs: Mapping[tuple[str, str], Aligned],
    outline: Outline | None,
    divergence: Divergence | None,
    counters: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """Hypotheses for the node of a divergence that its records bear out, a sentence each.

    Args:
        pairs: (node, variable) -> both sides, of `Comparison.pairs`.
        outline: of the graph, for the node's shape and what feeds it; None: not known.
        divergence: the first of all nodes; None: nothing diverges, and there is nothing to say.
        counters: what the chip's run counted at the node.
    """
    spikes = None if divergence is None else pairs.get((divergence.node, "spikes"))
    if divergence is None or spikes is None:
        return ()
    part = _part(divergence, spikes, pairs.get((divergence.node, "v_mem")), outline)
    found: list[str] = []
    for guess, seen in ((shifted, part.trains), (counted, part.trains), (turned, part.maps), (permuted, part.maps)):
        if min(float(side.sum()) for side in seen) >= LEAST:
            found += guess(part)
    if part.v_mem is not None:
        for rule in (factor, reset, bound):
            found += rule(part, part.v_mem)
    return (*found, *_saturated(divergence.node, counters or {}))


# ---------------------------------------------------------------- what is looked at


def _part(divergence: Divergence, spikes: Aligned, v_mem: Aligned | None, outline: Outline | None) -> Part:
    known = outline.nodes.get(divergence.node) if outline else None
    shape = spikes.shape or (1,)
    if known is not None and known.shape and math.prod(known.shape) == math.prod(shape):
        shape = known.shape
    whole = math.prod(shape)
    if spikes.neurons is not None and not np.array_equal(spikes.neurons, np.arange(whole)):
        shape = (spikes.count,)
    some = _some_neurons(spikes, divergence)
    rows, samples = _window(spikes, divergence, spikes.count if some is None else some.size, past=True)
    alike = v_mem is not None and _same_entries(spikes, v_mem)
    seen = _counts(_read(spikes, rows, samples, some))
    since = spikes.when.index(divergence.step) - rows.start
    trains = seen[0][since:], seen[1][since:]
    if some is None:
        maps = trains
    else:
        maps = _counts(_read(spikes, *_window(spikes, divergence, spikes.count, past=False), None))
    return Part(
        divergence.node,
        divergence.step,
        spikes.when.step,
        seen,
        trains,
        maps,
        shape,
        _read(v_mem, rows, samples, some) if alike and v_mem is not None else None,
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


def _window(pair: Aligned, divergence: Divergence, neurons: int, *, past: bool) -> tuple[range, slice]:
    """Entries of `Aligned.when` around the divergence, or from it on, and samples, its own among them.

    Of records that are no arrays, whose steps are unpacked or read whole, fewer steps.
    """
    batch = pair.reference.batch
    held = all(isinstance(part.storage, np.ndarray) for side in (pair.reference, pair.chip) for part in side.parts)
    most = pair.steps if held else max(_LEAST_STEPS, _ENTRIES // (pair.count * batch))
    kept = min(batch, max(1, _ENTRIES // (neurons * min(most, 128))))
    stride = -(-batch // kept)
    length = min(pair.steps, most, max(1, _ENTRIES // (neurons * kept)))
    before = length // 2 if past else 0
    first = min(max(pair.when.index(divergence.step) - before, 0), pair.steps - length)
    return range(first, first + length), slice(divergence.sample % stride, None, stride)


def _same_entries(a: Aligned, b: Aligned) -> bool:
    same = (a.when, a.lag, a.count, a.reference.batch) == (b.when, b.lag, b.count, b.reference.batch)
    if a.neurons is None or b.neurons is None:
        return same and a.neurons is b.neurons
    return same and np.array_equal(a.neurons, b.neurons)


def _read(pair: Aligned, rows: range, samples: slice, some: NDArray[np.int64] | None) -> Pair:
    """Both sides, of several trials the first ones'."""
    ours, theirs = pair.rows(rows.start, rows.stop)
    own, its = pair.columns
    if some is not None:
        own, its = (some if columns is None else columns[some] for columns in pair.columns)
    return pair.reference.block(ours, samples, own), pair.chip.block(theirs, samples, its)


def _counts(pair: Pair) -> Pair:
    return pair[0].astype(np.float32), pair[1].astype(np.float32)  # sums of small integers are several times slower


def _saturated(node: str, counters: Mapping[str, int]) -> Iterator[str]:
    for what, register in (("saturations", "v"), ("wraps", "u")):
        count = int(counters.get(what, 0))
        if count:
            noun = what if count > 1 else what[:-1]
            yield (
                f"the chip's run counts {number(count)} {noun} of {register} at {shown(node)}: "
                "sums that its register does not hold"
            )
