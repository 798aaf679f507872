"""Quantisation: one scale a population, shared by weights, threshold, leak and bias.

For scale k (weight integers a model unit of v) and input gain g:
    weight = k g f W (f: factor of the average pools before it), even for mixed signs
    threshold = mantissa << 6, mantissa = round(k v_threshold)
    bias = mantissa << exponent = 64 k (g b + leak)
so one integer of v stands for 1 / (64 k) model units. `max` takes k = 254 / max |g f W|, lowered until every
register fits; `calibrated` searches k and the threshold against the float reference on data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import QuantizationError
from nirdeploy.exact import round_half_even
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, require_calibration
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_loihi.dynamics import Dynamics, dynamics
from nirdeploy_loihi.linear import bias_of, float_weight, integer_apply
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Layer
from nirdeploy_loihi.weights import round_weights

__all__ = ["Problem", "integers", "largest_scale", "problem_of", "quantize_graph"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LARGEST_WEIGHT = 254  # largest magnitude that mixed and single signs share


@dataclass(frozen=True)
class Problem:
    """One population in float, ready to be scaled.

    Attributes:
        layer: the population.
        step: its coefficients.
        inclusive: whether it fires at the threshold itself.
        weights: of each connection, gain and pool factors included.
        bias: input gain times bias plus leak, added to v each step; the shape of the population.
        node_biases: own bias of a weight node times the gain, by node.
        table: limits of the target.
    """

    layer: Layer
    step: Dynamics
    inclusive: bool
    weights: tuple[Floats, ...]
    bias: Floats
    node_biases: Mapping[str, Floats]
    table: Mapping[str, Any]


def quantize_graph(
    graph: nir.NIRGraph, target: Target, convention: Convention, *, quantizer: str, calibration: Any
) -> Quantized:
    """Integers of every layer.

    `QuantizedWeight.weight` has the node's own shape, or [target neurons, source neurons] where a chain was
    composed. An integer of it stands for `scale` = 1/k model units of v, per spike of the connection's source;
    behind an AvgPool2d over n cells the 1/n is inside the integer, so that of the node's own weight (per
    unit of the pool's output) an integer stands for n/(k g). `bias` is the node's own bias (composed: the
    population's), bias * 2**bias_exponent * scale model units of v a step. `QuantizedNeuron.bias` is what the
    chip adds to v: all biases and the leak, mantissa << bias_exponent.

    Args:
        graph: checked without errors.
        target: the chip.
        convention: what the graph is run with.
        quantizer: 'max' or 'calibrated'.
        calibration: raster of 0 and 1, [step, batch, ...]; only 'calibrated' reads it.

    Raises:
        QuantizationError: no calibration, weights that are or become all zero, a threshold below one
            integer, or registers that no scale fits; naming the population.
        RasterError: calibration counts other than 0 and 1.
    """
    require_calibration(quantizer, calibration)
    network = lower(graph, convention)
    problems = [problem_of(graph, layer, convention, target) for layer in network.layers]
    layers: dict[str, QuantizedWeight | QuantizedNeuron] = {}
    notes: list[str] = []
    for problem in problems:
        scale, reason = largest_scale(problem)
        layers.update(integers(problem, scale, first_mantissa(problem, scale)))
        if reason:
            notes.append(f"{problem.layer.name}: {reason}")
    if quantizer == "calibrated":
        from nirdeploy_loihi.calibrate import calibrate

        layers, found = calibrate(graph, network, problems, layers, convention, calibration)
        notes.extend(found)
    return Quantized(graph, target, convention, quantizer, layers, tuple(notes))


def problem_of(graph: nir.NIRGraph, layer: Layer, convention: Convention, target: Target) -> Problem:
    """A population in float.

    Raises:
        QuantizationError: a connection whose weights are all zero.
    """
    node = graph.nodes[layer.name]
    step = dynamics(layer.name, node, convention)
    weights = []
    for connection in layer.connections:
        weight = step.gain * float_weight(graph, connection)
        if not np.any(weight):
            raise QuantizationError(
                f"all weights from {connection.source!r} are 0", node=connection.name, remedy="Remove the connection."
            )
        weights.append(weight)
    biases: dict[str, Floats] = {}
    for connection in layer.connections:
        own = bias_of(graph.nodes[connection.name]) if connection.name in graph.nodes else None
        if connection.kernel is not None and connection.kernel.node == connection.name and own is not None:
            biases[connection.name] = step.gain * own
        elif connection.kernel is None and len(layer.connections) == 1:
            biases[connection.name] = step.gain * layer.bias.reshape(-1)
    used = convention.for_node(layer.name, graphs.type_name(node))
    return Problem(
        layer=layer,
        step=step,
        inclusive=used.crossing == "inclusive",
        weights=tuple(weights),
        bias=step.gain * layer.bias + np.broadcast_to(step.leak, layer.shape),
        node_biases=biases,
        table=target.table,
    )


# ---------------------------------------------------------------- integers for a given scale


def _nearest_if_close(value: float) -> float:
    """`value`, or the integer it is within rounding of float32 parameters."""
    whole = round(value)
    return float(whole) if abs(value - whole) <= 1e-6 * max(1.0, abs(value)) else value


def strict_mantissa(problem: Problem, scale: float) -> int:
    """Largest mantissa the float threshold still exceeds or meets: strict floor(k th), inclusive ceil(k th) - 1.

    Exact while v is a multiple of 64, as without decay.
    """
    value = _nearest_if_close(scale * problem.step.threshold)
    return math.ceil(value) - 1 if problem.inclusive else math.floor(value)


def first_mantissa(problem: Problem, scale: float) -> int:
    """Threshold mantissa of `max`: round(k th), or for an inclusive crossing ceil(k th) - 1."""
    if problem.inclusive:
        return strict_mantissa(problem, scale)
    return round(scale * problem.step.threshold)


def _rounded(problem: Problem, scale: float) -> tuple[Integers, ...]:
    return tuple(round_weights(scale * w, problem.table["weights"]) for w in problem.weights)


def _worst_sum(problem: Problem, weights: tuple[Integers, ...]) -> int:
    """Largest synaptic sum of one step, of positive or of negative weights alone, when every source spikes."""
    worst = 0
    for part in (np.maximum, np.minimum):
        total = np.zeros(problem.layer.shape, dtype=np.int64)
        for connection, weight in zip(problem.layer.connections, weights, strict=True):
            ones = np.ones((1, *connection.source_shape), dtype=np.int64)
            total += integer_apply(connection, part(weight, 0), ones)[0]
        worst = max(worst, int(np.abs(total).max()))
    return worst


def _bias_exponent(problem: Problem, scale: float) -> int | None:
    """Smallest exponent with which every bias mantissa fits; None: there is none."""
    highest = problem.table["registers"]["bias_mantissa"][1]
    low, high = problem.table["registers"]["bias_exponent"]
    register = 64 * scale * float(np.abs(problem.bias).max())
    for exponent in range(low, high + 1):
        if round(register / (1 << exponent)) <= highest:
            return exponent
    return None


def misfit(problem: Problem, scale: float) -> tuple[str, float] | None:
    """What does not fit at a scale, and the factor that brings the scale near a fit; None: everything fits."""
    registers = problem.table["registers"]
    highest = registers["threshold_mantissa"][1]
    mantissa = first_mantissa(problem, scale)
    if mantissa > highest:
        return f"threshold mantissa {mantissa} exceeds {highest}", highest / (mantissa + 1)
    if _bias_exponent(problem, scale) is None:
        limit = registers["bias_mantissa"][1] << registers["bias_exponent"][1]
        value = 64 * scale * float(np.abs(problem.bias).max())
        return f"bias register {value:.0f} exceeds {limit}", limit / (value + 1)
    worst, limit = _worst_sum(problem, _rounded(problem, scale)), registers["synaptic_sum"]
    if worst >= limit:
        return f"worst synaptic sum of a step {worst} exceeds {limit - 1}", (limit - 1) / (worst + 1)
    return None


def largest_scale(problem: Problem) -> tuple[float, str]:
    """The largest scale at which everything fits, at most 254 / max |weight|, and why it is not that.

    Raises:
        QuantizationError: at no scale do threshold and weights both keep a non-zero integer.
    """
    largest = max(float(np.abs(w).max()) for w in problem.weights)
    start = scale = LARGEST_WEIGHT / largest
    reasons: dict[str, str] = {}  # the first message of each limit met on the way down
    while (found := misfit(problem, scale)) is not None:
        reasons.setdefault(found[0].split()[0], found[0])
        scale *= min(found[1], 1 - 1e-3)
        _require_integers(problem, scale, "; ".join(reasons.values()))
    reason = "; ".join(reasons.values())
    _require_integers(problem, scale, reason)
    return scale, f"scale lowered from {start:.6g} to {scale:.6g}: {reason}" if reason else ""


def _require_integers(problem: Problem, scale: float, reason: str) -> None:
    name = problem.layer.name
    why = f" once the scale is lowered ({reason})" if reason else ""
    for connection, weight in zip(problem.layer.connections, _rounded(problem, scale), strict=True):
        if not weight.any():
            raise QuantizationError(
                f"all weights from {connection.source!r} become 0{why}",
                node=name,
                remedy="Make weights, threshold and bias of one population more alike in size.",
            )
    lowest = problem.table["registers"]["threshold_mantissa"][0]
    mantissa = first_mantissa(problem, scale)
    if mantissa < lowest:
        raise QuantizationError(
            f"v_threshold {problem.step.threshold:.4g} becomes mantissa {mantissa}, at least {lowest} is possible{why}",
            node=name,
            remedy="Raise v_threshold, or clip the largest weight.",
        )


def integers(problem: Problem, scale: float, mantissa: int) -> dict[str, QuantizedWeight | QuantizedNeuron]:
    """Integers of a population and of the weight nodes that feed it, at a scale that fits."""
    exponent = _bias_exponent(problem, scale)
    if exponent is None:
        raise QuantizationError(f"no bias exponent fits at scale {scale:.4g}", node=problem.layer.name)
    unit = 64 * scale / (1 << exponent)
    shift = int(problem.table["registers"]["threshold_exponent"])
    found: dict[str, QuantizedWeight | QuantizedNeuron] = {}
    for connection, weight in zip(problem.layer.connections, _rounded(problem, scale), strict=True):
        own = problem.node_biases.get(connection.name)
        bias = None if own is None or not own.any() else round_half_even(unit * own)
        found[connection.name] = QuantizedWeight(weight, bias, 1.0 / scale, exponent - shift if bias is not None else 0)
    found[problem.layer.name] = QuantizedNeuron(
        threshold=mantissa << shift,
        v_min=None,
        scale=1.0 / (scale * (1 << shift)),
        reset="zero",
        decay_v=problem.step.decay_v,
        decay_u=4096,
        bias=round_half_even(unit * problem.bias) if problem.bias.any() else None,
        bias_exponent=exponent if problem.bias.any() else 0,
        mantissa=mantissa,
        exponent=shift,
    )
    return found
