"""What the page's pictures show: one sample, a window of steps, the neurons that matter most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.align import Aligned
from nirdeploy.comparison.result import Comparison, Divergence

__all__ = ["Excerpt", "RasterPanel", "TracePanel", "excerpt"]

MAX_NEURONS = 80
MAX_LAYERS = 8
MAX_TRACES = 3
MAX_STEPS = 120


@dataclass(frozen=True, eq=False)
class RasterPanel:
    """Spikes of one node in the window.

    Attributes:
        node: name in the original graph.
        neurons: flat index of each neuron shown.
        total: neurons there are.
        first: reference step of the first row.
        reference: counts [step, neuron].
        chip: counts [step, neuron].
    """

    node: str
    neurons: tuple[int, ...]
    total: int
    first: int
    reference: NDArray[Any]
    chip: NDArray[Any]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Entries with a spike on both sides, with more on the reference, with more on the chip."""
        both = np.count_nonzero(np.minimum(self.reference, self.chip))
        more = np.count_nonzero(self.reference > self.chip), np.count_nonzero(self.chip > self.reference)
        return int(both), int(more[0]), int(more[1])


@dataclass(frozen=True, eq=False)
class TracePanel:
    """v_mem and spikes of one neuron in the window.

    Attributes:
        node: name in the original graph.
        neuron: index in the node's own shape.
        sample: index in the batch.
        first: reference step of the first value.
        voltages: reference and chip, [step], model units.
        thresholds: reference and chip in model units, where recorded.
        spikes: reference and chip, counts [step], where compared, each from `spikes_first`.
        spikes_first: reference step of the first count.
        divergence: the node's first difference, where it has one.
    """

    node: str
    neuron: tuple[int, ...]
    sample: int
    first: int
    voltages: tuple[NDArray[Any], NDArray[Any]]
    thresholds: tuple[float | None, float | None]
    spikes: tuple[NDArray[Any], NDArray[Any]] | None
    spikes_first: int
    divergence: Divergence | None


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Everything the pictures of one comparison show.

    Attributes:
        sample: the sample of the raster.
        window: first and last reference step shown.
        n_steps: steps compared.
        rasters: one panel a node.
        n_layers: nodes with compared spikes.
        traces: one panel a node, the first difference of the run first.
        divergence: the first difference of the run.
    """

    sample: int
    window: tuple[int, int]
    n_steps: int
    rasters: tuple[RasterPanel, ...]
    n_layers: int
    traces: tuple[TracePanel, ...]
    divergence: Divergence | None


def excerpt(comparison: Comparison) -> Excerpt:
    """Choose the sample of the first difference (else 0), a window around it, and the neurons to show."""
    divergence = comparison.first_divergence
    sample = divergence.sample if divergence else 0
    pairs = [pair for (_, variable), pair in comparison.pairs.items() if variable in ("spikes", "v_mem")]
    first = min((pair.start for pair in pairs), default=0)
    end = max((pair.when[-1] + 1 for pair in pairs), default=0)
    window = _window(first, end, divergence.step if divergence else first)
    spiking = [pair for pair in pairs if pair.variable == "spikes" and sample < pair.reference.batch]
    differing = [p for p in spiking if comparison.per_node[p.node].differing_entries]
    chosen = sorted(spiking, key=lambda p: p not in differing)[:MAX_LAYERS]  # stable: order of recording
    return Excerpt(
        sample=sample,
        window=window,
        n_steps=end - first,
        rasters=tuple(_raster(pair, sample, window) for pair in spiking if pair in chosen),
        n_layers=len(spiking),
        traces=tuple(_traces(comparison, sample, window)),
        divergence=divergence,
    )


def _window(first: int, end: int, centre: int) -> tuple[int, int]:
    """At most MAX_STEPS steps, a third of them before the centre."""
    if end - first <= MAX_STEPS:
        return first, end - 1
    start = max(first, min(centre - MAX_STEPS // 3, end - MAX_STEPS))
    return start, start + MAX_STEPS - 1


def _cut(pair: Aligned, sample: int, window: tuple[int, int]) -> tuple[int, NDArray[Any], NDArray[Any]]:
    """Steps of the window of one sample: the first step there is, reference and chip [step, neuron]."""
    reference, chip = (_every_step(pair, side) for side in pair.sample(sample))
    low, high = max(0, window[0] - pair.start), max(0, window[1] + 1 - pair.start)
    return pair.start + low, reference[low:high], chip[low:high]


def _every_step(pair: Aligned, values: NDArray[Any]) -> NDArray[Any]:
    """[step, neuron] of all steps from the first compared one on: no spike, or NaN, between those compared."""
    if pair.when.step == 1:
        return values
    spikes = pair.variable == "spikes"
    shape = (pair.when[-1] + 1 - pair.start, values.shape[1])
    found = np.zeros(shape, values.dtype) if spikes else np.full(shape, np.nan)
    found[:: pair.when.step] = values
    return found


def _raster(pair: Aligned, sample: int, window: tuple[int, int]) -> RasterPanel:
    """The neurons that differ most, then those that spike most, in order of their index."""
    first, reference, chip = _cut(pair, sample, window)
    differing, active = (reference != chip).sum(axis=0), (reference + chip).sum(axis=0)
    order = np.lexsort((-active, -differing))[:MAX_NEURONS]
    order.sort()
    return RasterPanel(
        node=pair.node,
        neurons=tuple(pair.flat(int(i)) for i in order),
        total=pair.count,
        first=first,
        reference=reference[:, order],
        chip=chip[:, order],
    )


def _traces(comparison: Comparison, sample: int, window: tuple[int, int]) -> Iterator[TracePanel]:
    """The neurons that differ first, in order of time; where none differs, the most active of each node."""
    nodes = [node for node in comparison.per_node.values() if (node.node, "v_mem") in comparison.pairs]
    diverging = sorted((n for n in nodes if n.first_divergence), key=_step_of)
    for node in (diverging or nodes)[:MAX_TRACES]:
        v_mem, spikes = comparison.pairs[node.node, "v_mem"], comparison.pairs.get((node.node, "spikes"))
        divergence = node.first_divergence
        if divergence:
            flat = int(np.ravel_multi_index(divergence.neuron, spikes.shape)) if spikes else 0
            panel = _trace((v_mem, spikes), flat, divergence.sample, window, divergence)
        else:
            measure = spikes or v_mem
            position = int(np.abs(measure.sample(sample)[0]).sum(axis=0).argmax())
            panel = _trace((v_mem, spikes), measure.flat(position), sample, window, None)
        if panel:
            yield panel


def _step_of(node: Any) -> int:
    return int(node.first_divergence.step)


def _trace(
    pairs: tuple[Aligned, Aligned | None],
    flat: int,
    sample: int,
    window: tuple[int, int],
    divergence: Divergence | None,
) -> TracePanel | None:
    v_mem, spikes = pairs
    position = v_mem.position(flat)
    if position is None or sample >= v_mem.reference.batch:
        return None
    first, reference, chip = _cut(v_mem, sample, window)
    if not len(reference):
        return None
    counts, counts_first = None, first
    where = spikes.position(flat) if spikes else None
    if spikes is not None and where is not None and sample < spikes.reference.batch:
        counts_first, ours, theirs = _cut(spikes, sample, window)
        counts = ours[:, where], theirs[:, where]
    own, its = (None if t is None else float(t[0] if t.size == 1 else t[position]) for t in v_mem.thresholds())
    return TracePanel(
        node=v_mem.node,
        neuron=v_mem.neuron(position),
        sample=sample,
        first=first,
        voltages=(reference[:, position], chip[:, position]),
        thresholds=(own, its),
        spikes=counts,
        spikes_first=counts_first,
        divergence=divergence,
    )
