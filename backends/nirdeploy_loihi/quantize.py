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

from dataclasses import replace
from typing import Any, cast

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.quantization import Quantized, QuantizedWeight, require_calibration
from nirdeploy.raster import check_raster
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.lower_program import lower_program
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.problem import Problem, problem_of
from nirdeploy_loihi.scaling import Layers, ceiling, first_mantissa, integers, largest_scale, reach_of
from nirdeploy_loihi.states import Found, run_program

__all__ = ["quantize_graph"]

Ints = NDArray[np.int32]


def quantize_graph(
    graph: nir.NIRGraph, target: Target, convention: Convention, *, quantizer: str, calibration: Any
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
        quantizer: 'max' or 'calibrated'.
        calibration: raster of 0 and 1, [step, batch, ...]. 'calibrated' fits the integers to it; with 'max' only
            activity and overflows are measured on it, where it is given.

    Raises:
        QuantizationError: no calibration, weights that are or become all zero, a threshold below one
            integer, registers that no scale fits, or u that wraps at every scale; naming the population.
        RasterError: calibration counts other than 0 and 1.
    """
    require_calibration(quantizer, calibration)
    network = lower(graph, convention)
    problems = [problem_of(graph, layer, convention, target) for layer in network.layers]
    layers: Layers = {}
    notes: list[str] = []
    for problem in problems:
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
    flat = np.ascontiguousarray(data, dtype=np.int32).reshape(*data.shape[:2], -1)
    if quantizer == "calibrated":
        from nirdeploy_loihi.calibrate import calibrate, reference_of

        layers, more = calibrate(network, problems, found, flat, reference_of(graph, network, convention, data))
        found, notes = replace(found, layers=layers), [*notes, *more]
    measured = run_program(lower_program(network, found), flat)
    spikes = {network.input: flat, **measured.spikes}
    return replace(
        found,
        notes=(*_overflow_notes(problems, found, measured), *notes),
        activity={name: values.mean(axis=(0, 1), dtype=np.float64) for name, values in spikes.items()},
    )


def _overflow_notes(problems: list[Problem], quantized: Quantized, measured: Found | None) -> list[str]:
    """Registers that could leave their 24 bits if every source spiked in every step, beside what the data did."""
    notes = []
    for problem in problems:
        name = problem.layer.name
        bound = reach_of(problem, quantized)
        if bound.u > STATE_LIMIT:
            seen = _seen(measured and measured.peak_u[name], measured and measured.wraps[name], "wraps")
            notes.append(f"{name}: {_far('u', bound.u, STATE_LIMIT)}, beyond which it wraps{seen}")
        if not problem.layer.fires and bound.v >= ceiling(problem):
            seen = _seen(measured and measured.peak_v[name], 0, "")
            notes.append(f"{name}: {_far('v', bound.v, ceiling(problem))}, where it is reset{seen}")
        if measured and measured.clips[name]:
            notes.append(f"{name}: v is clipped to 24 bits {measured.clips[name]} times on the calibration data")
    return notes


def _far(register: str, bound: float, limit: int) -> str:
    return f"{register} could " + (f"reach {bound:.0f} of {limit}" if np.isfinite(bound) else f"grow beyond {limit}")


def _seen(peak: int | None, count: int | None, what: str) -> str:
    if peak is None:
        return ""
    return f"; on the calibration data at most {peak}" + (f", it {what} {count} times" if count else "")
