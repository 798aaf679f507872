"""Integers of a population at a scale, and the largest scale at which every register fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.exact import round_half_even
from nirdeploy.quantization import QuantizedNeuron, QuantizedWeight
from nirdeploy_loihi.bounds import STATE_LIMIT, Reach, reach
from nirdeploy_loihi.linear import integer_apply
from nirdeploy_loihi.problem import Problem
from nirdeploy_loihi.weights import always_on, coding, filling, round_weights, sign_mode, spacing

__all__ = [
    "Layers",
    "ceiling",
    "contained",
    "first_mantissa",
    "integers",
    "largest_scale",
    "misfit",
    "never",
    "reach_of",
    "strict_mantissa",
    "with_mantissa",
    "worst_sums",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Layers = dict[str, QuantizedWeight | QuantizedNeuron]
COARSEST = 32  # largest weight below which a scale is not lowered for the sake of inputs that never come


# ---------------------------------------------------------------- integers for a given scale


def _nearest_if_close(value: Floats) -> Floats:
    """`value`, or the integer it is within rounding of float32 parameters."""
    whole = np.rint(value)
    found: Floats = np.where(np.abs(value - whole) <= 1e-6 * np.maximum(1.0, np.abs(value)), whole, value)
    return found


def never(problem: Problem) -> int:
    """Threshold mantissa of a population that only integrates: the largest there is."""
    return int(problem.table["registers"]["threshold_mantissa"][1])


def strict_mantissa(problem: Problem, scale: float) -> Integers:
    """Largest mantissa the float threshold still exceeds or meets: strict floor(k th), inclusive ceil(k th) - 1.

    Exact while v is a multiple of 64, as without decay.
    """
    if not problem.layer.fires:
        return np.array(never(problem))
    value = _nearest_if_close(_scaled_threshold(problem, scale))
    whole = np.ceil(value) - 1 if problem.inclusive else np.floor(value)
    return round_half_even(whole)


def first_mantissa(problem: Problem, scale: float) -> Integers:
    """Threshold mantissa of `max`: round(k th), or for an inclusive crossing ceil(k th) - 1."""
    if problem.inclusive or not problem.layer.fires:
        return strict_mantissa(problem, scale)
    return round_half_even(_scaled_threshold(problem, scale))


def _scaled_threshold(problem: Problem, scale: float) -> Floats:
    # far beyond the register is as good as further, and stays an integer
    with np.errstate(over="ignore"):
        return np.clip(scale * np.asarray(problem.step.threshold), -(2.0**62), 2.0**62)


def _rounded(problem: Problem, scale: float) -> tuple[Integers, ...]:
    """Weights of the connections, then of the constants' axons."""
    limits = problem.table["weights"]
    synapses = (round_weights(scale * weight, limits, problem.weight_bits) for weight in problem.weights)
    return (*synapses, *(always_on(scale * value, limits) for value in problem.constants))


def worst_sums(problem: Problem, weights: tuple[Integers, ...]) -> tuple[Integers, Integers]:
    """Most negative and most positive synaptic sum of a step, when every source of such a weight spikes; flat."""
    connections = problem.layer.connections
    found = []
    for part in (np.minimum, np.maximum):
        total = np.zeros(problem.bias.size, dtype=np.int64)
        for connection, weight in zip(connections, weights, strict=False):
            ones = np.ones((1, *connection.source_shape), dtype=np.int64)
            total += integer_apply(connection, part(weight, 0), ones).reshape(-1)
        for weight in weights[len(connections) :]:
            total += part(weight, 0).sum(1)
        found.append(total)
    return found[0], found[1]


def _bias_exponent(problem: Problem, scale: float) -> int | None:
    """Smallest exponent with which every bias mantissa fits; None: there is none."""
    highest = problem.table["registers"]["bias_mantissa"][1]
    low, high = problem.table["registers"]["bias_exponent"]
    register = 64 * scale * float(np.abs(problem.bias).max())
    for exponent in range(low, high + 1):
        if round(register / (1 << exponent)) <= highest:
            return exponent
    return None


def misfit(problem: Problem, scale: float, weights: tuple[Integers, ...] | None = None) -> tuple[str, float] | None:
    """What does not fit at a scale, and the factor that brings the scale near a fit; None: everything fits.

    `weights` are those of connections and axons where they are not to be rounded.
    """
    registers = problem.table["registers"]
    highest = registers["threshold_mantissa"][1]
    mantissa = int(first_mantissa(problem, scale).max())
    if problem.layer.fires and mantissa > highest:
        return f"threshold mantissa {mantissa} exceeds {highest}", highest / (mantissa + 1)
    if _bias_exponent(problem, scale) is None:
        limit = registers["bias_mantissa"][1] << registers["bias_exponent"][1]
        value = 64 * scale * float(np.abs(problem.bias).max())
        return f"bias register {value:.0f} exceeds {limit}", limit / (value + 1)
    start, most = 64 * scale * float(np.abs(problem.step.v_start).max()), STATE_LIMIT - 1
    if start > most:
        return f"start of v {start:.0f} exceeds {most}", most / (start + 1)
    limit = registers["synaptic_sum"]
    current = scale * max((float(np.abs(value).max()) for value in problem.constants), default=0.0)
    if current >= limit:  # before any axons are made for it
        return f"constant current {current:.0f} exceeds {limit - 1}", (limit - 1) / (current + 1)
    low, high = worst_sums(problem, _rounded(problem, scale) if weights is None else weights)
    worst = max(int(-low.min()), int(high.max()))
    if worst >= limit:
        return f"worst synaptic sum of a step {worst} exceeds {limit - 1}", (limit - 1) / (worst + 1)
    return None


# ---------------------------------------------------------------- the largest scale


def largest_scale(problem: Problem) -> tuple[float, str]:
    """The largest scale at which everything fits, at most 254 / max |weight|, and why it is not that.

    With fewer bits than 8 it is at most that at which the first weight fills its bits (`weights.filling`), and is
    halved while that halves the spacing of weights: they then still fill their bits.

    A population that only integrates must not reach the largest threshold either: its scale is lowered until no
    input can bring it there, unless that would leave its largest weight below 32 (`contained` tells).

    Raises:
        QuantizationError: at no scale do threshold and weights both keep a non-zero integer.
    """
    start = scale = min(filling(weight, problem.weight_bits) for weight in problem.weights)
    reasons: dict[str, str] = {}  # the first message of each limit met on the way down
    while (found := misfit(problem, scale)) is not None:
        reasons.setdefault(found[0].split()[0], found[0])
        scale *= 0.5 if _finer(problem, scale) else min(found[1], 1 - 1e-3)
        _require_integers(problem, scale, "; ".join(reasons.values()))
    if not problem.layer.fires:
        scale, reason = _below_threshold(problem, scale)
        reasons |= {"v": reason} if reason else {}
    reason = "; ".join(reasons.values())
    _require_integers(problem, scale, reason)
    return scale, f"scale lowered from {start:.6g} to {scale:.6g}: {reason}" if reason else ""


def _finer(problem: Problem, scale: float) -> bool:
    """Whether every matrix of few bits can count at half its spacing."""
    codes = [coding(sign_mode(weight), problem.weight_bits) for weight in problem.weights]
    return all(spacing(scale * weight, code) > code.finest for weight, code in zip(problem.weights, codes, strict=True))


def _largest(problem: Problem) -> float:
    return max(float(np.abs(w).max()) for w in problem.weights)


def _below_threshold(problem: Problem, scale: float) -> tuple[float, str]:
    """A scale at which v of a population that only integrates stays below its threshold, and why; else the same."""
    limit = ceiling(problem)
    bound = first = _bound(problem, scale).v
    lowered = scale
    while limit <= bound < np.inf and lowered * _largest(problem) >= COARSEST:
        lowered *= min(limit / (bound + 1), 1 - 1e-3)
        bound = _bound(problem, lowered).v
    if lowered == scale or bound >= limit or lowered * _largest(problem) < COARSEST:
        return scale, ""
    return lowered, f"v could reach {first:.0f} of {limit}"


def ceiling(problem: Problem) -> int:
    """What v of a population that only integrates must stay below: the largest threshold, where it is reset."""
    return never(problem) << int(problem.table["registers"]["threshold_exponent"])


def contained(problem: Problem, layers: Any) -> bool:
    """Whether no input can bring v of a population that only integrates to its threshold."""
    return reach_of(problem, layers).v < ceiling(problem)


def _bound(problem: Problem, scale: float) -> Reach:
    return reach_of(problem, integers(problem, scale, first_mantissa(problem, scale)))


def reach_of(problem: Problem, layers: Any) -> Reach:
    """How far u and v of a population can go with its integers (a mapping that has them by name)."""
    neuron = layers[problem.layer.name]
    low, high = worst_sums(problem, tuple(layers[name].weight for name in problem.sources))
    bias: Any = 0 if neuron.bias is None else np.asarray(neuron.bias).reshape(-1) << neuron.bias_exponent
    decay_u, decay_v, start = (np.asarray(x).reshape(-1) for x in (neuron.decay_u, neuron.decay_v, neuron.v_start))
    return reach(low, high, decay_u, decay_v, bias, start, neuron.exponent)


def _require_integers(problem: Problem, scale: float, reason: str) -> None:
    name = problem.layer.name
    why = f" once the scale is lowered ({reason})" if reason else ""
    for connection, weight in zip(problem.layer.connections, _rounded(problem, scale), strict=False):
        if not weight.any():
            raise QuantizationError(
                f"all weights from {connection.source!r} become 0{why}",
                node=name,
                remedy="Make weights, threshold and bias of one population more alike in size.",
            )
    lowest = problem.table["registers"]["threshold_mantissa"][0]
    mantissa = int(first_mantissa(problem, scale).min())
    if mantissa < lowest:
        threshold = float(np.min(problem.step.threshold))
        raise QuantizationError(
            f"v_threshold {threshold:.4g} becomes mantissa {mantissa}, at least {lowest} is possible{why}",
            node=name,
            remedy="Raise v_threshold, or clip the largest weight.",
        )


# ---------------------------------------------------------------- what is stored


def integers(problem: Problem, scale: float, mantissa: Any, weights: tuple[Integers, ...] | None = None) -> Layers:
    """Integers of a population and of the weights that feed it, at a scale that fits.

    Args:
        problem: the population.
        scale: k.
        mantissa: of the threshold, one number or the population's shape.
        weights: of connections and axons, where they are not to be rounded.
    """
    exponent = _bias_exponent(problem, scale)
    if exponent is None:
        raise QuantizationError(f"no bias exponent fits at scale {scale:.4g}", node=problem.layer.name)
    layer, step = problem.layer, problem.step
    unit = 64 * scale / (1 << exponent)
    shift = int(problem.table["registers"]["threshold_exponent"])
    found: Layers = {}
    for name, weight in zip(problem.sources, weights or _rounded(problem, scale), strict=True):
        own = problem.node_biases.get(name)
        bias = None if own is None or not own.any() else round_half_even(unit * own)
        found[name] = QuantizedWeight(weight, bias, 1.0 / scale, exponent - shift if bias is not None else 0)
    one = 1.0 / (scale * (1 << shift))
    offset = step.offset
    gain = step.membrane_gain
    found[layer.name] = QuantizedNeuron(
        threshold=_shared(np.asarray(mantissa) << shift, layer.shape),
        v_min=None,
        scale=one,
        reset="zero",
        decay_v=_shared(step.decay_v, layer.shape),
        decay_u=_shared(step.decay_u, layer.shape),
        bias=round_half_even(unit * problem.bias) if problem.bias.any() else None,
        bias_exponent=exponent if problem.bias.any() else 0,
        mantissa=_shared(mantissa, layer.shape),
        exponent=shift,
        v_start=_shared(round_half_even(np.asarray(step.v_start) / one), layer.shape),
        offset=offset if isinstance(offset, float) else np.broadcast_to(offset, layer.shape),
        scale_u=one / gain if isinstance(gain, float) and gain else None,
        fires=layer.fires,
    )
    return found


def with_mantissa(problem: Problem, layers: Layers, mantissa: Any) -> Layers:
    """The same integers with another threshold."""
    neuron = cast("QuantizedNeuron", layers[problem.layer.name])
    threshold = _shared(np.asarray(mantissa) << neuron.exponent, problem.layer.shape)
    changed = replace(neuron, threshold=threshold, mantissa=_shared(mantissa, problem.layer.shape))
    return {**layers, problem.layer.name: changed}


def _shared(values: Any, shape: tuple[int, ...]) -> int | Integers:
    """One integer where all are equal, else an array in the population's shape."""
    array = np.asarray(values, dtype=np.int64)
    if (array == array.flat[0]).all():
        return int(array.flat[0])
    return np.broadcast_to(array, shape)
