"""The calibrated quantiser: scale and threshold of each population, chosen by spikes on data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, best
from nirdeploy.reference.convention import Convention
from nirdeploy_loihi.lower_program import lower_program
from nirdeploy_loihi.network import Layer, Network
from nirdeploy_loihi.problem import Problem
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.scaling import (
    Layers,
    ceiling,
    contained,
    first_mantissa,
    integers,
    largest_scale,
    misfit,
    never,
    strict_mantissa,
    with_mantissa,
)
from nirdeploy_loihi.states import Found, components, drive, integrate, run_program

__all__ = ["Cost", "Wanted", "calibrate", "disagreement", "reference_of"]

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Cost = tuple[float, float]
# below 1 other roundings of the weights are tried, above 1 the largest weights are clipped
_FINER = (1.05, 1.12, 1.25, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0)
FACTORS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79, 0.75, 0.7, 0.6, 0.5, *_FINER)
OFFSETS = (0, -1, 1, -2, 2)
MARGIN = 2  # left above the largest v on the data, where no input is known to be the worst
HALVINGS = 8  # of the scale, where u or v is beyond its bits at every other


@dataclass(frozen=True)
class Wanted:
    """The reference's run of the calibration data, [step, batch, neurons].

    Attributes:
        spikes: of every population that fires.
        v: of every population that only integrates, model units.
    """

    spikes: Mapping[str, Ints]
    v: Mapping[str, Floats]


def calibrate(
    network: Network, problems: list[Problem], start: Quantized, raster: Ints, wanted: Wanted
) -> tuple[Layers, list[str]]:
    """Integers that follow the reference's spikes best, population by population.

    Each population is fed the spikes of the populations already quantised, and those of the reference, shifted by
    their lag, of those later in a loop. The cost is the number of spikes by which it differs from the reference,
    shifted by its lag; of a population that only integrates, the mean error of v. Candidates whose u wraps are left
    out, as are those whose v comes near the largest threshold in a population that only integrates. `start`, the
    choice of `max`, is among the candidates. At the end each population goes back to `start`'s if that helps the
    whole network, which is kept only if it differs no more than `start`'s: on this data the result is never worse,
    unless `start` overflows there.

    Args:
        network: the lowered graph.
        problems: one a population, in execution order.
        start: integers by `max`.
        raster: 0 and 1, [step, batch, neurons of the Input].
        wanted: the reference's run of it.

    Returns:
        The integers, and a sentence on what was found.

    Raises:
        QuantizationError: every candidate of a population overflows; naming it.
    """
    by_name = {problem.layer.name: problem for problem in problems}
    chosen: Layers = dict(start.layers)
    spikes = {network.input: raster}
    for names in components(_program(network, start)):
        known = dict(spikes)
        known |= {name: _shifted(wanted.spikes[name], by_name[name].layer.lag) for name in names if len(names) > 1}
        for name in names:
            found, emitted = _best(network, by_name[name], replace(start, layers=chosen), known, wanted)
            chosen.update(found)
            known[name] = emitted
        program = _program(network, replace(start, layers=chosen), names)
        spikes |= integrate(program, names, drive(program, names, spikes)).spikes
    return _never_worse(network, problems, start, chosen, raster, wanted)


def _never_worse(
    network: Network, problems: list[Problem], start: Quantized, chosen: Layers, raster: Ints, wanted: Wanted
) -> tuple[Layers, list[str]]:
    def cost(layers: Mapping[str, Any]) -> tuple[bool, Cost]:
        found = run_program(_program(network, replace(start, layers=layers)), raster, tuple(wanted.v))
        return _overflows(network, found), _difference(network, layers, found, wanted)

    before, after = cost(start.layers), cost(chosen)
    for problem in problems:
        # a population better by itself may be worse for those behind it
        trial = {**chosen, **{name: start.layers[name] for name in problem.names}}
        found = cost(trial)
        if found < after:
            chosen, after = trial, found
    better = after <= before
    if not better:
        chosen, after = dict(start.layers), before
    verb = "kept" if better else "dropped for those of 'max'"
    cells = sum(int(w.sum()) for w in wanted.spikes.values())
    notes = [
        f"calibrated integers {verb}: {after[1][0]:.0f} spikes differ from the reference's {cells} on the calibration "
        f"data, {before[1][0]:.0f} with 'max'"
    ]
    if wanted.v:
        notes.append(
            f"v of {', '.join(sorted(wanted.v))} differs by {after[1][1]:.3g} on average, {before[1][1]:.3g} with 'max'"
        )
    return chosen, notes


# ---------------------------------------------------------------- the reference


def reference_of(graph: nir.NIRGraph, network: Network, convention: Convention, raster: Any) -> Wanted:
    """Spikes and analogue values that the integers are to follow.

    Args:
        graph: the graph.
        network: its lowering.
        convention: what the reference is run with; v is taken in model units whatever its v_unit.
        raster: [step, batch, ...].
    """
    from nirdeploy.reference.executor import run

    steps, batch = raster.shape[:2]
    firing = [layer.name for layer in network.layers if layer.fires]
    analogue = [layer.name for layer in network.layers if not layer.fires]
    spikes = run(graph, raster, convention=convention, record=("spikes",))
    found = {name: np.asarray(spikes[name, "spikes"].data, dtype=np.int32) for name in firing}
    values = {}
    if analogue:
        trace = run(graph, raster, convention=_in_model_units(convention), record=("v_mem",), nodes=analogue)
        values = {name: np.asarray(trace[name, "v_mem"].data, dtype=np.float64) for name in analogue}
    return Wanted(
        {name: array.reshape(steps, batch, -1) for name, array in found.items()},
        {name: array.reshape(steps, batch, -1) for name, array in values.items()},
    )


def _in_model_units(convention: Convention) -> Convention:
    overrides = {
        key: {field: value for field, value in fields.items() if field != "v_unit"}
        for key, fields in convention.overrides.items()
    }
    return replace(convention, v_unit="model", overrides=overrides)


def _shifted(values: Ints, lag: int) -> Ints:
    """`lag` steps later, as the chip is."""
    found = np.zeros_like(values)
    found[lag:] = values[: max(0, len(values) - lag)]
    return found


# ---------------------------------------------------------------- costs


def disagreement(network: Network, quantized: Quantized, raster: Ints, wanted: Wanted) -> Cost:
    """Spikes by which all populations together differ from the reference's, each shifted by its lag; and v's error.

    The second number is the mean |error| of v in populations that only integrate, model units, 0 where there is none.
    """
    found = run_program(_program(network, quantized), raster, tuple(wanted.v))
    return _difference(network, quantized.layers, found, wanted)


def _difference(network: Network, layers: Mapping[str, Any], found: Found, wanted: Wanted) -> Cost:
    total, errors = 0, []
    for layer in network.layers:
        if layer.fires:
            total += _spikes_apart(found.spikes[layer.name], wanted.spikes[layer.name], layer.lag)
        else:
            errors.append(_error_of_v(layer, layers, found, wanted))
    return total, float(np.mean(errors)) if errors else 0.0


def _spikes_apart(found: Ints, wanted: Ints, lag: int) -> int:
    """Spikes more or fewer, `found` being `lag` steps later; the steps that only one run has are left out."""
    steps = max(0, len(wanted) - lag)
    return int(np.abs(found[lag:].astype(np.int64) - wanted[:steps]).sum())


def _error_of_v(layer: Layer, layers: Mapping[str, Any], found: Found, wanted: Wanted) -> float:
    neuron = layers[layer.name]
    offset = np.broadcast_to(neuron.offset, layer.shape).reshape(-1)
    steps = max(0, len(wanted.v[layer.name]) - layer.lag)
    if not steps:
        return 0.0
    v = found.v[layer.name][layer.lag :] * neuron.scale + offset
    return float(np.abs(v - wanted.v[layer.name][:steps]).mean())


def _overflows(network: Network, found: Found) -> bool:
    integrating = {layer.name for layer in network.layers if not layer.fires}
    clipped = any(found.clips[n] or found.spikes[n].any() for n in integrating & set(found.spikes))
    return any(found.wraps.values()) or clipped


# ---------------------------------------------------------------- candidates


def _program(network: Network, quantized: Quantized, names: tuple[str, ...] | None = None) -> Program:
    """The program, or the part of it that ends in some populations."""
    if names is None:
        return lower_program(network, quantized)
    layers = tuple(layer for layer in network.layers if layer.name in names)
    return lower_program(replace(network, layers=layers, readouts=()), quantized)


def _best(
    network: Network, problem: Problem, quantized: Quantized, spikes: Mapping[str, Ints], wanted: Wanted
) -> tuple[Layers, Ints]:
    layer = problem.layer
    alone = replace(network, layers=(layer,), readouts=())

    def cost(candidate: tuple[Layers, Found]) -> float:
        spiking, analogue = _difference(alone, *candidate, wanted)
        return spiking if layer.fires else analogue

    candidates = _candidates(alone, problem, quantized, spikes)
    first = next(candidates, None)
    if first is None:
        raise QuantizationError(
            "u wraps, or v comes near its largest threshold, at every scale on the calibration data",
            node=layer.name,
            remedy="Use calibration data as sparse as later inputs, or smaller weights and biases.",
        )
    (found, states), _ = best(chain([first], candidates), cost)
    return found, states.spikes[layer.name]


def _candidates(
    alone: Network, problem: Problem, quantized: Quantized, spikes: Mapping[str, Ints]
) -> Iterator[tuple[Layers, Found]]:
    """Integers with what they emit, all within their registers on this data."""
    name = problem.layer.name
    base, _ = largest_scale(problem)
    scales = [base * factor for factor in FACTORS]
    fits = False
    for scale in [*scales, *(base * 0.5**n for n in range(2, HALVINGS))]:
        if fits and scale < min(scales):
            return  # halvings are for populations that overflow at every other scale
        if scale != base and misfit(problem, scale) is not None:
            continue
        mantissas = _mantissas(problem, scale)
        found = integers(problem, scale, first_mantissa(problem, scale))
        if not all(q.weight.any() for q in found.values() if isinstance(q, QuantizedWeight)):
            continue
        program = _program(alone, replace(quantized, layers={**quantized.layers, **found}), (name,))
        sums = drive(program, (name,), spikes)
        for mantissa in mantissas:
            tried = with_mantissa(problem, found, mantissa)
            states = integrate(_with(program, tried), (name,), sums, keep_v=not problem.layer.fires)
            if not _overflows(alone, states) and _has_room(problem, base, tried, states):
                fits = True
                yield tried, states


def _has_room(problem: Problem, base: float, layers: Layers, states: Found) -> bool:
    """Whether v of a population that only integrates stays below its threshold: for any input, or twice this one."""
    if problem.layer.fires or contained(problem, layers):
        return True
    bounded = contained(problem, integers(problem, base, first_mantissa(problem, base)))
    return not bounded and MARGIN * states.peak_v[problem.layer.name] < ceiling(problem)


def _mantissas(problem: Problem, scale: float) -> list[NDArray[np.int64]]:
    """Thresholds near the float one, that of `max` first."""
    if not problem.layer.fires:
        return [np.array(never(problem))]
    low, high = problem.table["registers"]["threshold_mantissa"]
    near = (first_mantissa(problem, scale), strict_mantissa(problem, scale))
    tried = {(m + offset).tobytes(): m + offset for offset in OFFSETS for m in near}
    return [m for m in tried.values() if low <= m.min() and m.max() <= high]


def _with(program: Program, layers: Layers) -> Program:
    """The program of one population with another threshold."""
    (population,) = program.populations
    threshold = np.asarray(cast("QuantizedNeuron", layers[population.name]).threshold, dtype=np.int64).reshape(-1)
    return replace(program, populations=(replace(population, threshold=threshold),))
