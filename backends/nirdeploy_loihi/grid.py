"""Values that a population's parameters have on Loihi, chosen before training; `exact_values` reads them off after it.

The network that is simulated has the chip's own neurons: an input gain of 1, decays of 4096 and a threshold that is a
mantissa above the reset, all in units of a weight's integer. What the graph's neurons multiply their inputs with is
folded into the weights; the floats behind the integers stay in the graph's own units, so that gradients do, too.
Rounding of the chip's u and v, where they decay, is not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import QuantizationError
from nirdeploy.quantization import Grid, QuantizedNeuron, TrainingGrid, require_bits
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_loihi.dynamics import DECAY_UNITY, plain
from nirdeploy_loihi.float_nodes import steps_of_decay
from nirdeploy_loihi.linear import bias_of, float_weight
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Connection
from nirdeploy_loihi.problem import Problem, of_outputs, problem_of, scales_behind
from nirdeploy_loihi.quantize import quantize_graph
from nirdeploy_loihi.scaling import first_mantissa, integers, largest_scale, never, worst_sums
from nirdeploy_loihi.trainable import require_trainable
from nirdeploy_loihi.weights import Coding, coding, sign_mode, spacing

__all__ = ["training_grid"]

Floats = NDArray[np.float64]
# Of a unit: a threshold of 17 bits is then exact in float32, as is v, whose 24 bits end 6 below a weight
_UNIT_BITS = 7
_BIAS_BITS = 6  # with a bias where nothing decays
_EXACT_EXPONENT = 5  # of such a bias: half a weight's integer


@dataclass(frozen=True)
class _Chosen:
    """What a population counts in.

    Attributes:
        unit: model units of v that an integer of a weight stands for.
        spacings: of the weights of each connection.
        exponent: of the bias register.
        halvings: how often 'exact' can halve all integers, should weights grow until u could wrap.
    """

    unit: float
    spacings: tuple[int, ...]
    exponent: int
    halvings: int


def training_grid(
    graph: nir.NIRGraph, target: Target, convention: Convention, *, weight_bits: int | None, calibration: Any
) -> TrainingGrid:
    """The values that parameters may have: weights of `weight_bits`, biases, and one value for all others.

    The unit of a population is the one that quantisation after training would take: with calibration data the
    calibrated quantiser's, with its threshold; without, the one at which the largest weight fills its bits. It is
    rounded up to at most 7 significant bits. Where weights that grow to their ends could make u wrap, thresholds and
    biases are multiples of a power of 2, as weights of few bits are, so that 'exact' can halve them all. A matrix of
    one sign keeps it, as the chip's coding then has no sign.

    Args:
        graph: a graph the target's rules accept.
        target: the chip.
        convention: what the graph is run with.
        weight_bits: bits of a weight, 2 to 8; None: 8.
        calibration: raster [step, batch, ...], or None.

    Raises:
        QuantizationError: bits the chip does not have, or what has no exact integers (`trainable`); naming the node.
    """
    bits = 8 if weight_bits is None else weight_bits
    require_bits(bits)
    network = lower(graph, convention)
    problems = [problem_of(graph, layer, convention, target, weight_bits=bits) for layer in network.layers]
    for problem in problems:
        require_trainable(graph, problem, convention)
    found = None
    if calibration is not None:
        found = quantize_graph(
            graph, target, convention, quantizer="calibrated", calibration=calibration, weight_bits=bits
        )
    trained: dict[str, Mapping[str, Grid]] = {}
    fixed: dict[str, Mapping[str, Any]] = {
        name: {"scale": 1.0} for name, node in graph.nodes.items() if graphs.type_name(node) == "Scale"
    }
    neurons: dict[str, QuantizedNeuron] = {}
    owner: dict[str, str] = {}
    for problem in problems:
        name = problem.layer.name
        start = cast("QuantizedNeuron", found[name]) if found is not None else None
        chosen, neuron = _choose(problem, start)
        neurons[name] = neuron
        fixed[name] = _fixed(graph.nodes[name], problem, neuron, convention)
        for node, own in _of_weights(graph, problem, chosen, neuron).items():
            if node in owner:
                raise QuantizationError(
                    f"its weights are read by {owner[node]!r} and {name!r}, which have scales of their own",
                    node=node,
                    remedy="Give each population weights of its own.",
                )
            owner[node] = name
            trained[node] = own
    return TrainingGrid(trained, fixed, _chips(convention), neurons)


def _chips(convention: Convention) -> Convention:
    """What the chip does, with an input gain of 1 and v that starts at 0."""
    return Convention(
        dt=convention.dt,
        gain="unit",
        reset="v_reset",
        population_delay=convention.population_delay,
        feedback_start=convention.feedback_start,
        feedback_edges=convention.feedback_edges,
    )


# ---------------------------------------------------------------- units


def _choose(problem: Problem, start: QuantizedNeuron | None) -> tuple[_Chosen, QuantizedNeuron]:
    """Unit and registers of a population; `start` has those of the calibrated quantiser."""
    first = largest_scale(problem)[0] if start is None else 1.0 / (start.scale * (1 << start.exponent))
    codes = _codes(problem)
    spacings = tuple(spacing(first * w, code) for w, code in zip(problem.weights, codes, strict=True))
    halvings = _halvings(problem, codes, spacings)
    in_weights = not np.any(problem.step.loss_v) and bool(np.all(np.asarray(problem.step.loss_u) == 1))
    biased = bool(problem.bias.any())
    unit = _rounded_up(1.0 / first, _BIAS_BITS if biased and in_weights else _UNIT_BITS)
    exponent = max(_exponent(problem, 1.0 / unit, _EXACT_EXPONENT if in_weights else 0), halvings)
    chosen = _Chosen(unit, spacings, exponent, halvings)
    return chosen, _registers(problem, chosen, None if start is None else np.asarray(start.mantissa) / (first * unit))


def _registers(problem: Problem, chosen: _Chosen, threshold: Any) -> QuantizedNeuron:
    """Registers without trained biases, all but decays multiples of what they may be halved by.

    `threshold` is the mantissa before it is rounded, None: that of `max`.
    """
    scale = 1.0 / chosen.unit
    grain = 1 << chosen.halvings
    mantissa = np.asarray(first_mantissa(problem, scale) if threshold is None else threshold)
    if problem.layer.fires:
        mantissa = np.maximum(1, np.rint(mantissa / grain).astype(np.int64)) * grain
    else:
        mantissa = np.array(never(problem))
    neuron = cast("QuantizedNeuron", integers(problem, scale, mantissa)[problem.layer.name])
    leak = np.rint(64 * scale * np.asarray(problem.step.leak) / (1 << chosen.exponent)).astype(np.int64)
    begin = np.rint(scale * np.asarray(problem.step.v_start) / grain).astype(np.int64) * (grain << neuron.exponent)
    return replace(
        neuron,
        bias=np.broadcast_to(leak, problem.layer.shape) if leak.any() else None,
        bias_exponent=chosen.exponent if leak.any() else 0,
        v_start=int(begin.flat[0]) if begin.size == 1 else np.broadcast_to(begin, problem.layer.shape),
    )


def _codes(problem: Problem) -> tuple[Coding, ...]:
    codes = (coding(sign_mode(weight), problem.weight_bits) for weight in problem.weights)
    return tuple(code._replace(lowest=max(code.lowest, -127)) if problem.weight_bits == 8 else code for code in codes)


def _halvings(problem: Problem, codes: tuple[Coding, ...], spacings: tuple[int, ...]) -> int:
    """How often the integers must be halved for sums of a step to fit, every weight being at its end; as far as can be.

    At least once, as -256 is no weight of a matrix that has lost its positive ones. Weights of 8 bits, which have no
    coarser spacing, cannot.
    """
    worst = _worst(problem, codes, spacings)
    wanted = max(1, (worst // int(problem.table["registers"]["synaptic_sum"])).bit_length())
    return min(wanted, *((s // code.finest).bit_length() - 1 for s, code in zip(spacings, codes, strict=True)))


def _worst(problem: Problem, codes: tuple[Coding, ...], spacings: tuple[int, ...]) -> int:
    """The largest sum of a step once every weight is at its end."""
    ends = []
    for pick in (min, max):
        extremes = [step * pick(code.lowest, code.highest) for code, step in zip(codes, spacings, strict=True)]
        weights = tuple(np.full(w.shape, end) for w, end in zip(problem.weights, extremes, strict=True))
        low, high = worst_sums(problem, weights)
        ends.append(max(int(-low.min()), int(high.max())))
    return max(ends)


def _rounded_up(unit: float, bits: int) -> float:
    """The next number of few significant bits; up, so that no integer grows."""
    mantissa, exponent = math.frexp(unit)
    return math.ldexp(math.ceil(math.ldexp(mantissa, bits)), exponent - bits)


def _exponent(problem: Problem, scale: float, least: int) -> int:
    """Exponent of the bias register that leaves it room to double, where there is one."""
    highest = problem.table["registers"]["bias_mantissa"][1]
    largest = problem.table["registers"]["bias_exponent"][1]
    wanted = 2 * 64 * scale * float(np.abs(problem.bias).max())
    fits = (e for e in range(least, largest + 1) if wanted <= highest << e)
    return next(fits, int(largest))


# ---------------------------------------------------------------- fields of a population


def _fixed(
    node: nir.NIRNode, problem: Problem, neuron: QuantizedNeuron, convention: Convention
) -> dict[str, float | Floats]:
    """A population's fields with which its equations are the chip's."""
    given = graphs.parameters(node)
    unit = neuron.scale * (1 << neuron.exponent)
    # v starts at 0, so that it is reset to what it starts above
    rest = np.asarray(neuron.v_start) / -(1 << neuron.exponent)
    found: dict[str, Any] = {"r": 1.0, "w_in": 1.0, "v_reset": rest * unit}
    if neuron.fires:
        found["v_threshold"] = (np.asarray(neuron.mantissa) + rest) * unit
    if "tau" in given or "tau_mem" in given:
        decay = np.asarray(neuron.decay_v, dtype=np.float64)
        dt = cast("float", convention.dt)
        found["tau"] = found["tau_mem"] = steps_of_decay(decay) * dt
        found["tau_syn"] = steps_of_decay(np.asarray(neuron.decay_u, dtype=np.float64)) * dt
        found["v_leak"] = rest * unit + _v_leak(problem, neuron, decay, unit)
    return {field: plain(found[field]) for field in given if field in found}


def _v_leak(problem: Problem, neuron: QuantizedNeuron, decay: Floats, unit: float) -> Floats:
    """What v leaks towards above its reset, so that it adds the register in each step."""
    register = np.zeros(1) if neuron.bias is None else np.asarray(neuron.bias << neuron.bias_exponent)
    if np.any((register != 0) & (decay == 0)):
        raise QuantizationError(
            "its v loses less than 1 of 4096 a step, yet v_leak adds to it",
            node=problem.layer.name,
            remedy="Use v_leak = 0, or an IF population with a bias.",
        )
    added = register * unit / (1 << neuron.exponent)
    return np.asarray(added * DECAY_UNITY / np.maximum(decay, 1.0))


# ---------------------------------------------------------------- grids of the weight nodes


def _of_weights(
    graph: nir.NIRGraph, problem: Problem, chosen: _Chosen, neuron: QuantizedNeuron
) -> dict[str, dict[str, Grid]]:
    """Grids of the nodes that feed a population, by node; copies of a kernel share one."""
    found: dict[str, dict[str, Grid]] = {}
    biased = {c.name for c in problem.layer.connections if _bias(graph, c).any()}
    for connection, code, step in zip(problem.layer.connections, _codes(problem), chosen.spacings, strict=True):
        if connection.name in found:
            continue
        factor = _factor(graph, problem, connection)
        unit = chosen.unit / connection.factor
        low, high = code.lowest * step, code.highest * step
        found[connection.name] = {"weight": Grid(plain(chosen.unit / factor), low, high, step, unit)}
        if connection.name in biased:
            found[connection.name]["bias"] = _of_bias(graph, problem, connection, chosen, neuron, len(biased))
    return found


def _bias(graph: nir.NIRGraph, connection: Connection) -> Floats:
    found = bias_of(graph.nodes[connection.name])
    return np.zeros(1) if found is None else found


def _factor(graph: nir.NIRGraph, problem: Problem, connection: Connection) -> Floats:
    """What a weight is multiplied with up to v: input gain, pools and scales; along the weights' first axis."""
    node = graph.nodes[connection.name]
    ones = graphs.make_node(type(node), **{**graphs.parameters(node), "weight": np.ones(np.shape(node.weight))})
    values = float_weight(graphs.make_graph({**graph.nodes, connection.name: ones}, list(graph.edges)), connection)
    values = values * of_outputs(problem.step.gain, connection, values.ndim)
    return _positive(values[tuple([slice(None)] + [slice(0, 1)] * (values.ndim - 1))], connection)


def _positive(factors: Any, connection: Connection) -> Floats:
    found: Floats = np.asarray(factors, dtype=np.float64)
    if (found <= 0).any():
        raise QuantizationError(
            f"its weights are multiplied with {float(found.min()):.6g} on their way to {connection.target!r}",
            node=connection.name,
            remedy="Use a positive r, w_in and scale.",
        )
    return found


def _of_bias(
    graph: nir.NIRGraph,
    problem: Problem,
    connection: Connection,
    chosen: _Chosen,
    neuron: QuantizedNeuron,
    sharing: int,
) -> Grid:
    """Biases of several nodes add up in one register, beside the leak; behind a synaptic filter, in axons."""
    factors = scales_behind(graph, connection) * np.asarray(of_outputs(problem.step.gain, connection, 1))
    factor = _positive(factors, connection)
    registers = problem.table["registers"]
    if problem.layer.constants:
        most = int(registers["synaptic_sum"]) // (8 * sharing)
        every = 2 << chosen.halvings  # sums of mixed signs are even
        most -= most % every
        return Grid(plain(chosen.unit / factor), -most, most, every, chosen.unit)
    exponent = chosen.exponent - neuron.exponent
    unit = math.ldexp(chosen.unit, exponent)
    leak = 0 if neuron.bias is None else int(np.abs(neuron.bias).max())
    share = (int(registers["bias_mantissa"][1]) - leak) // sharing
    return Grid(plain(unit / factor), -share, share, 1, unit, exponent)
