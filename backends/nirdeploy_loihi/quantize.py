"""Quantisation: one scale a population, shared by weights, threshold, leak and bias.

For scale k (weight integers a model unit of v) and input gain g (of synapse and membrane together):
    weight = k g f W (f: factor of the average pools before it), even for mixed signs
    threshold = mantissa << 6, mantissa = round(k (v_threshold - v_reset))
    bias = mantissa << exponent = 64 k (g b + leak)
    decay = round(4096 loss)
so one integer of v stands for 1 / (64 k) model units above v_reset. `max` takes k = 254 / max |g f W|, lowered until
every register fits; `calibrated` searches k and the threshold against the float reference on data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.quantization import Quantized, QuantizedWeight, require_bits
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.exact_values import exact_layers
from nirdeploy_loihi.execute import execute
from nirdeploy_loihi.lower_program import lower_program
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.problem import Problem, problem_of
from nirdeploy_loihi.program import Program
from nirdeploy_loihi.scaling import Layers, ceiling, contained, first_mantissa, integers, largest_scale, reach_of

__all__ = ["quantize_graph"]

Ints = NDArray[np.int32]
_VALUES = 1 << 24  # spikes and v held at once


@dataclass(frozen=True)
class _Measured:
    """What the chip does on the calibration data.

    Attributes:
        activity: mean spikes a step of every population and the Input, [neuron].
        counters: as `execute.Executed`.
        peak_u: of every population, the largest |u| before it wraps.
        peak_v: of those watched, the largest |v|.
    """

    activity: Mapping[str, NDArray[np.float64]]
    counters: Mapping[str, Mapping[str, int]]
    peak_u: Mapping[str, int]
    peak_v: Mapping[str, int]


def quantize_graph(
    graph: nir.NIRGraph,
    target: Target,
    convention: Convention,
    *,
    quantizer: str,
    calibration: Any,
    weight_bits: int = 8,
) -> Quantized:
    """Integers of every layer.

    `QuantizedWeight.weight` has the node's own shape, or [target neurons, source neurons] where a chain was
    composed. An integer of it stands for `scale` = 1/k model units of v, per spike of the connection's source;
    behind an AvgPool2d over n cells the 1/n is inside the integer, so that of the node's own weight (per
    unit of the pool's output) an integer stands for n/(k g). `bias` is the node's own bias (composed: the
    population's), bias * 2**bias_exponent * scale model units of v a step. `QuantizedNeuron.bias` is what the
    chip adds to v: all biases and the leak, mantissa << bias_exponent. Behind a synaptic filter biases are the
    weights of axons that are always on instead, [target neurons, axons] under the constant's name.

    Args:
        graph: checked without errors.
        target: the chip.
        convention: what the graph is run with.
        quantizer: 'max', 'calibrated', or 'exact' (values that are integers times a number already).
        calibration: raster of 0 and 1, [step, batch, ...]. 'calibrated' fits the integers to it; with the others only
            activity and overflows are measured on it, where it is given.
        weight_bits: bits of a weight, 2 to 8. Always-on axons, which are biases, keep 8.

    Raises:
        QuantizationError: no calibration, weights that are or become all zero, a threshold below one
            integer, registers that no scale fits, or u that wraps at every scale; naming the population.
        RasterError: calibration counts other than 0 and 1.
    """
    require_bits(weight_bits)
    network = lower(graph, convention)
    problems = [problem_of(graph, layer, convention, target, weight_bits=weight_bits) for layer in network.layers]
    layers: Layers = {}
    notes: list[str] = []
    for problem in problems:
        if quantizer == "exact":
            layers.update(exact_layers(problem))
            continue
        scale, reason = largest_scale(problem)
        layers.update(integers(problem, scale, first_mantissa(problem, scale)))
        if reason:
            notes.append(f"{problem.layer.name}: {reason}")
        lost = [c.name for c in problem.layer.constants if not cast("QuantizedWeight", layers[c.name]).weight.any()]
        notes.extend(f"{name}: the constant current is below half an integer, and lost" for name in lost)
    found = Quantized(graph, target, convention, quantizer, layers)
    if calibration is None:
        return replace(found, notes=(*notes, *_overflow_notes(problems, found, None)))
    data, _ = check_raster(calibration, network.input_shape, integer=True, maximum=1)
    if quantizer == "calibrated":
        from nirdeploy_loihi.agreement import reference_of
        from nirdeploy_loihi.calibrate import calibrate

        layers, more = calibrate(network, problems, found, data, reference_of(graph, network, convention, data))
        found, notes = replace(found, layers=layers), [*notes, *more]
    measured = _measure(lower_program(network, found), data, [p for p in problems if _resettable(p, found)])
    notes = [*_overflow_notes(problems, found, measured), *notes]
    return replace(found, notes=tuple(notes), activity=measured.activity)


def _measure(program: Program, raster: Ints, watched: list[Problem]) -> _Measured:
    """Run the data a few samples at a time; v is looked at in the populations `watched`."""
    steps, batch = raster.shape[:2]
    keep = {p.name: ["spikes"] for p in program.populations}
    for problem in watched:
        keep[problem.layer.name].append("v_mem")
    samples = max(1, _VALUES // max(1, steps * sum(p.size * len(keep[p.name]) for p in program.populations)))
    counts: dict[str, Any] = {program.input: raster.reshape(steps, batch, -1).sum((0, 1))}
    counters = {name: Counter[str]() for name in keep}
    peak_u, peak_v = dict.fromkeys(keep, 0), dict.fromkeys((p.layer.name for p in watched), 0)
    for first in range(0, batch, samples):
        run = execute(program, raster[:, first : first + samples], keep)
        for name in keep:
            spikes = run.traces[name, "spikes"]
            counts[name] = counts.get(name, 0) + spikes.reshape(-1, spikes[0, 0].size).sum(0)
            counters[name].update(run.counters[name])
            peak_u[name] = max(peak_u[name], run.peaks[name])
        for name in peak_v:
            peak_v[name] = max(peak_v[name], int(np.abs(run.traces[name, "v_mem"]).max(initial=0)))
    activity = {name: found / (steps * batch) for name, found in counts.items()}
    return _Measured(activity, counters, peak_u, peak_v)


def _resettable(problem: Problem, quantized: Quantized) -> bool:
    """Whether it only integrates, but some input brings it to the largest threshold."""
    return not problem.layer.fires and not contained(problem, quantized)


def _overflow_notes(problems: list[Problem], quantized: Quantized, measured: _Measured | None) -> list[str]:
    """Registers that could leave their 24 bits if every source spiked in every step, beside what the data did."""
    notes = []
    for problem in problems:
        name = problem.layer.name
        bound = reach_of(problem, quantized)
        if bound.u > STATE_LIMIT:
            notes.append(f"{name}: {_far('u', bound.u, STATE_LIMIT)}, beyond which it wraps{_seen_u(name, measured)}")
        if _resettable(problem, quantized):
            seen = _seen_v(name, measured)
            notes.append(f"{name}: {_far('v', bound.v, ceiling(problem))}, where it is reset{seen}")
        if measured and (clipped := measured.counters[name]["saturations"]):
            notes.append(f"{name}: v is clipped to 24 bits {clipped} times on the calibration data")
    return notes


def _far(register: str, bound: float, limit: int) -> str:
    return f"{register} could " + (f"reach {bound:.0f} of {limit}" if np.isfinite(bound) else f"grow beyond {limit}")


def _seen_u(name: str, measured: _Measured | None) -> str:
    if measured is None:
        return ""
    wraps = measured.counters[name]["wraps"]
    often = f", it wraps {wraps} times" if wraps else ""
    return f"; on the calibration data at most {measured.peak_u[name]}{often}"


def _seen_v(name: str, measured: _Measured | None) -> str:
    if measured is None:
        return ""
    resets = measured.counters[name]["spikes"]
    return f"; on the calibration data {f'{resets} times' if resets else f'at most {measured.peak_v[name]}'}"
