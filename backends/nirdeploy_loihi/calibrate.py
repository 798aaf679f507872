"""The calibrated quantiser: scale and threshold of each population, chosen by spikes on data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.quantization import QuantizedNeuron, QuantizedWeight, best
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy_loihi.emulator import drive
from nirdeploy_loihi.network import Layer, Network
from nirdeploy_loihi.quantize import Problem, first_mantissa, integers, largest_scale, misfit, strict_mantissa
from nirdeploy_loihi.registers import scan

__all__ = ["calibrate", "disagreement"]

Ints = NDArray[np.int32]
Layers = dict[str, QuantizedWeight | QuantizedNeuron]
# below 1 other roundings of the weights are tried, above 1 the largest weights are clipped
FACTORS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.75, 0.7, 0.6, 0.5, 1.05, 1.12, 1.25, 1.4)
OFFSETS = (0, -1, 1, -2, 2)


def calibrate(
    graph: nir.NIRGraph,
    network: Network,
    problems: list[Problem],
    start: Layers,
    convention: Convention,
    raster: Any,
) -> tuple[Layers, list[str]]:
    """Integers that follow the reference's spikes best, population by population.

    Each population is fed the spikes of the populations already quantised. The cost is the number of spikes
    by which it differs from the reference run of the same raster, shifted by its lag. `start`, the choice of
    `max`, is among the candidates of every population. At the end each population goes back to `start`'s if
    that helps the whole network, which is kept only if it differs no more than `start`'s: on this data the
    result is never worse.

    Args:
        graph: the graph.
        network: its lowering.
        problems: one a population, in execution order.
        start: integers by `max`.
        convention: what the reference is run with.
        raster: 0 and 1, [step, batch, ...].

    Returns:
        The integers, and a sentence on what was found.
    """
    data, _ = check_raster(raster, network.input_shape, integer=True, maximum=1)
    wanted = _reference(graph, convention, data)
    given = np.ascontiguousarray(data, dtype=np.int32)
    spikes = {network.input: given}
    chosen = dict(start)
    for problem in problems:
        layer = problem.layer

        def cost(candidate: tuple[Layers, Ints], layer: Layer = layer) -> float:
            return _difference(candidate[1], wanted[layer.name], layer.lag)

        (found, emitted), _ = best(_candidates(problem, start, spikes), cost)
        chosen.update(found)
        spikes[layer.name] = emitted
    before = disagreement(network, start, given, wanted)
    after = disagreement(network, chosen, given, wanted)
    for problem in problems:
        # a population better by itself may be worse for those behind it
        trial = {**chosen, **{name: start[name] for name in _names(problem)}}
        found_with = disagreement(network, trial, given, wanted)
        if found_with < after:
            chosen, after = trial, found_with
    better = after <= before
    if not better:
        chosen, after = dict(start), before
    verb = "kept" if better else "dropped for those of 'max'"
    cells = sum(int(w.sum()) for w in wanted.values())
    return chosen, [
        f"calibrated integers {verb}: {after} spikes differ from the reference's {cells} on the calibration "
        f"data, {before} with 'max'"
    ]


def _reference(graph: nir.NIRGraph, convention: Convention, data: NDArray[Any]) -> Mapping[str, Ints]:
    from nirdeploy.reference.executor import run

    trajectory = run(graph, data, convention=convention, record=("spikes",))
    return {n: np.asarray(r.data, dtype=np.int32) for (n, v), r in trajectory.records.items() if v == "spikes"}


def _difference(found: Ints, wanted: Ints, lag: int) -> int:
    """Spikes more or fewer, `found` being `lag` steps later; the steps that only one run has are left out."""
    steps = max(0, len(wanted) - lag)
    return int(np.abs(found[lag:].astype(np.int64) - wanted[:steps]).sum())


def _names(problem: Problem) -> set[str]:
    return {problem.layer.name, *(c.name for c in problem.layer.connections)}


def _candidates(problem: Problem, start: Layers, spikes: Mapping[str, Ints]) -> Iterator[tuple[Layers, Ints]]:
    layer = problem.layer
    names = _names(problem)
    base, _ = largest_scale(problem)
    low, high = problem.table["registers"]["threshold_mantissa"]
    for factor in FACTORS:
        scale = base * factor
        if factor != 1 and misfit(problem, scale) is not None:
            continue
        near = (first_mantissa(problem, scale), strict_mantissa(problem, scale))
        tried = list(dict.fromkeys(m + offset for offset in OFFSETS for m in near))
        a: Ints | None = None
        for mantissa in tried:
            if not low <= mantissa <= high:
                continue
            found = integers(problem, scale, mantissa)
            if not all(q.weight.any() for q in found.values() if isinstance(q, QuantizedWeight)):
                break
            if factor == 1.0 and mantissa == near[0]:
                found = {name: start[name] for name in names}
            if a is None:
                a = drive(layer, found, spikes)
            yield found, _emit(layer, found, a)


def _emit(layer: Layer, layers: Layers, a: Ints) -> Ints:
    neuron = cast("QuantizedNeuron", layers[layer.name])
    size = int(np.prod(layer.shape))
    return scan(a.reshape(len(a), -1), neuron, size, keep_u=False, keep_v=False).s.reshape(a.shape)


def disagreement(network: Network, layers: Layers, raster: Ints, wanted: Mapping[str, Ints]) -> int:
    """Spikes by which all populations together differ from the reference's, each shifted by its lag."""
    spikes = {network.input: raster}
    total = 0
    for layer in network.layers:
        spikes[layer.name] = _emit(layer, layers, drive(layer, layers, spikes))
        total += _difference(spikes[layer.name], wanted[layer.name], layer.lag)
    return total
