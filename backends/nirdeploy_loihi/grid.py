"""Values that a population's parameters have on Loihi, chosen before training; `exact_values` reads them off after it.

The network that is simulated has the chip's own neurons: an input gain of 1, decays of 4096 and a threshold that is a
mantissa above the reset, all in units of a weight's integer. What the graph's neurons multiply their inputs with is
folded into the weights; the floats behind the integers stay in the graph's own units, so that gradients do, too.
Rounding of the chip's u and v, where they decay, is not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from nirdeploy_loihi.trainable import require_trainable
from nirdeploy_loihi.units import Chosen, choose, codes_of

__all__ = ["training_grid"]

Floats = NDArray[np.float64]


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
        chosen, neuron = choose(problem, start)
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
    graph: nir.NIRGraph, problem: Problem, chosen: Chosen, neuron: QuantizedNeuron
) -> dict[str, dict[str, Grid]]:
    """Grids of the nodes that feed a population, by node; copies of a kernel share one."""
    found: dict[str, dict[str, Grid]] = {}
    biased = {c.name for c in problem.layer.connections if _bias(graph, c).any()}
    for connection, code, step in zip(problem.layer.connections, codes_of(problem), chosen.spacings, strict=True):
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
    chosen: Chosen,
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
    share = max(1, (int(registers["bias_mantissa"][1]) - leak) // sharing)
    return Grid(plain(unit / factor), -share, share, 1, unit, exponent)
