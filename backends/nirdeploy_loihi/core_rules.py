"""What of a lowered network a core cannot hold, and what its populations compute differently at the start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.errors import NirdeployError, QuantizationError
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.dynamics import Numbers, dynamics
from nirdeploy_loihi.linear import MATRIX_LIMIT, float_weight
from nirdeploy_loihi.network import Connection, Layer, Network
from nirdeploy_loihi.problem import Problem, problem_of
from nirdeploy_loihi.scaling import first_mantissa
from nirdeploy_loihi.weights import sign_mode

__all__ = ["core_rules"]

_LARGEST_WEIGHT = 254
_COARSE = 8  # largest weight below which a connection has less than 4 bits and a sign


def core_rules(graph: nir.NIRGraph, network: Network, target: Target, convention: Convention) -> Iterator[Finding]:
    """Findings on every population of a lowered network, in execution order."""
    for layer in network.layers:
        too_large = list(_matrix_rules(layer))
        weights = [] if too_large else [float_weight(graph, connection) for connection in layer.connections]
        zero = list(_zero_rules(graph, layer, weights))
        yield from (*too_large, *zero)
        if too_large or zero or not np.any(_gain(graph, layer, convention)):
            continue
        try:
            problem = problem_of(graph, layer, convention, target, weights)
        except QuantizationError as error:
            words = str(error).removeprefix(f"node {error.node!r}: ").removesuffix(f". {error.remedy}")
            yield Finding("finite", layer.name, words, error.remedy or "Rescale the network.")
            continue
        for rule in (_start_rules, _register_rules, _source_rules, _configuration_rules):
            yield from rule(problem)
        yield from _kernel_rules(graph, problem)


def _matrix_rules(layer: Layer) -> Iterator[Finding]:
    for connection in layer.connections:
        if connection.matrix_size > MATRIX_LIMIT:
            yield Finding(
                "matrix",
                layer.name,
                f"composing the path from {connection.source!r} takes {connection.matrix_size} weights, "
                f"at most {MATRIX_LIMIT}",
                "Put a population between the layers, or pool without overlap before the weights.",
                value=connection.matrix_size,
                limit=MATRIX_LIMIT,
            )


def _zero_rules(graph: nir.NIRGraph, layer: Layer, weights: Sequence[np.ndarray]) -> Iterator[Finding]:
    for connection, weight in zip(layer.connections, weights, strict=False):
        if not np.any(weight):
            yield Finding(
                "zero_weights",
                connection.name if connection.name in graph.nodes else layer.name,
                f"all weights from {connection.source!r} are 0, which Lava cannot scale",
                "Remove the connection.",
                value=0,
            )


def _gain(graph: nir.NIRGraph, layer: Layer, convention: Convention) -> Numbers:
    """Input gain of a population; 0 where it cannot be told, which has a finding of its own."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return dynamics(layer.name, graph.nodes[layer.name], convention).gain
    except NirdeployError:
        return 0.0


def _start_rules(problem: Problem) -> Iterator[Finding]:
    """What happens before the first spikes can arrive, `lag` steps after step 0."""
    layer, step = problem.layer, problem.step
    moved = problem.bias - step.loss_v * np.asarray(step.v_start)
    near = 1e-9 * (np.abs(problem.bias) + np.abs(step.loss_v * np.asarray(step.v_start)))
    if layer.lag == 0 or not np.any(np.abs(moved) > near):
        return
    late = f"{layer.lag} step{'s' * (layer.lag != 1)}"
    if np.any(step.v_start):
        start = float(np.asarray(step.v_start + step.offset).flat[0])
        yield Finding(
            "v_start",
            layer.name,
            f"v starts at {start:.4g}, where it does not stay: it drifts from step 0, its spikes arrive {late} "
            "later than in the graph",
            "Start it at rest (v_start='v_leak'), or expect its first spikes early.",
            severity="warning",
            value=layer.lag,
            limit=0,
        )
        return
    yield Finding(
        "bias_start",
        layer.name,
        f"its bias acts from step 0, its spikes arrive {late} later than in the graph",
        "Expect the first spikes of this population early.",
        severity="warning",
        value=layer.lag,
        limit=0,
    )


# ---------------------------------------------------------------- registers


def _register_rules(problem: Problem) -> Iterator[Finding]:
    """Weights and thresholds that one scale cannot bring into their registers together (the quantiser's own limits)."""
    largest = [float(np.abs(weight).max()) for weight in problem.weights]
    scale, reason = _scale(problem, max(largest))
    name = problem.layer.name
    remedy = "Make weights, threshold and bias of one population more alike in size."
    for connection, weight, most in zip(problem.layer.connections, problem.weights, largest, strict=True):
        one = 1.0 if sign_mode(weight) == "mixed" else 0.5  # at or below this all round to 0
        if scale * most <= one:
            words = f"all weights from {connection.source!r} become 0, the largest is {scale * most:.3g}{reason}"
            yield Finding("weights", name, words, remedy, value=scale * most, limit=one)
        elif scale * most < _COARSE:
            words = f"the largest weight from {connection.source!r} is the integer {scale * most:.0f}{reason}"
            yield Finding("weights", name, words, remedy, "warning", value=scale * most, limit=_COARSE)
    lowest = int(problem.table["registers"]["threshold_mantissa"][0])
    least = scale * float(np.min(problem.step.threshold))
    if 0 < least <= (lowest if problem.inclusive else lowest - 0.5):
        threshold = float(np.min(problem.step.threshold))
        words = f"v_threshold {threshold:.4g} becomes mantissa 0, at least {lowest} is possible{reason}"
        yield Finding("threshold", name, words, "Raise it, or clip the largest weight.", value=least, limit=1)


def _scale(problem: Problem, largest: float) -> tuple[float, str]:
    """About the largest scale, and which register keeps it from that of 8-bit weights."""
    registers = problem.table["registers"]
    found, words = _LARGEST_WEIGHT / largest, ""
    bias = float(np.abs(problem.bias).max())
    limits = {
        f"v_threshold in {registers['threshold_mantissa'][1]}": (
            (registers["threshold_mantissa"][1] + 0.5),
            float(np.max(problem.step.threshold)) if problem.layer.fires else 0.0,
        ),
        f"the bias in {registers['bias_mantissa'][1]} << {registers['bias_exponent'][1]}": (
            (registers["bias_mantissa"][1] + 0.5) * 2 ** registers["bias_exponent"][1],
            64 * bias,
        ),
        f"the constant current in {registers['synaptic_sum'] - 1}": (
            float(registers["synaptic_sum"]),
            max((float(np.abs(value).max()) for value in problem.constants), default=0.0),
        ),
        f"the start of v in {registers['state_bits']} bits": (
            2.0 ** (registers["state_bits"] - 1),
            64 * float(np.abs(problem.step.v_start).max()),
        ),
    }
    for register, (limit, value) in limits.items():
        if value > 0 and limit / value < found:
            found, words = limit / value, f" at the scale that holds {register}"
    return found, words


# ---------------------------------------------------------------- cores


def _source_rules(problem: Problem) -> Iterator[Finding]:
    """Sources of one neuron, which share its core's axons and memory however a population is split."""
    layer, table = problem.layer, problem.table
    cores, synapses = table["cores"], table["synapses"]
    most = sum(math.prod(connection.source_shape) for connection in layer.connections)
    bits = sum(int(synapses[key]) for key in ("weight_bits", "delay_bits", "tag_bits", "header_bits"))
    word = int(synapses["word_bits"])
    delayed = any(connection.delay.any() for connection in layer.connections)
    entry = -(-(bits + (int(table["delays"]["bits"]) if delayed else 0)) // word) * word
    limits = {"in_axons": (1, "input axons"), "synapse_bits": (entry, "bits of synapses")}
    if all(most * each <= int(cores.get(key, most * each)) for key, (each, _) in limits.items()):
        return
    pairs = zip(layer.connections, problem.weights, strict=True)
    sources = max(1, int(np.max(sum(_fan_in(c, w) for c, w in pairs))))
    for key, (each, what) in limits.items():
        limit = int(cores.get(key, sources * each))
        if sources * each > limit:
            yield Finding(
                key,
                layer.name,
                f"a neuron has {sources} sources, which take {sources * each} {what}, a core has {limit}",
                "Prune its weights, or put a smaller population between.",
                value=sources * each,
                limit=limit,
            )


def _configuration_rules(problem: Problem) -> Iterator[Finding]:
    """Registers that a core has only a few sets of; thresholds as at the largest scale, where they differ most."""
    name, step, cores = problem.layer.name, problem.step, problem.table["cores"]
    scale, _ = _scale(problem, max(float(np.abs(weight).max()) for weight in problem.weights))
    pairs = np.stack(np.broadcast_arrays(np.asarray(step.decay_u), np.asarray(step.decay_v)), axis=-1).reshape(-1, 2)
    for resource, count, what in (
        ("compartment_configs", len(np.unique(pairs, axis=0)), "pairs of decays"),
        ("threshold_configs", len(np.unique(first_mantissa(problem, scale))), "thresholds"),
    ):
        limit = int(cores.get(resource, count))
        if count > limit:
            possible = limit * int(cores["count"])
            beyond = count > possible
            words = f"its neurons have {count} different {what}, a core holds {limit}"
            yield Finding(
                "configurations",
                name,
                words + (f" and the chip {possible}" if beyond else ": it will be split"),
                f"Give neurons the same {what}, or accept the cores.",
                severity="error" if beyond else "warning",
                value=count,
                limit=possible if beyond else limit,
            )


def _fan_in(connection: Connection, weight: np.ndarray) -> int:
    """Most sources of one neuron: weights other than zero, times the cells of the pools before a kernel."""
    used = np.count_nonzero(weight.reshape(len(weight), -1), axis=1)
    kernel = connection.kernel
    if kernel is None:
        return int(used.max())
    pools = [stage.kernel for stage in connection.stages if stage.kind == "pool" and stage is not kernel]
    cells = math.prod(y * x for y, x in pools)
    return min(int(used.max()) * cells, math.prod(connection.source_shape))


def _kernel_rules(graph: nir.NIRGraph, problem: Problem) -> Iterator[Finding]:
    """Convolutions that become matrices as gains differ within an output channel."""
    if isinstance(problem.step.gain, float):
        return
    for connection in problem.layer.connections:
        kinds = [graphs.type_name(graph.nodes[stage.node]) for stage in connection.stages]
        convolved = [kind for kind in kinds if kind in ("Conv1d", "Conv2d", "AvgPool2d", "SumPool2d")]
        if connection.kernel is None and len(convolved) == 1 and not {"Affine", "Linear"} & set(kinds):
            yield Finding(
                "kernel_gain",
                problem.layer.name,
                f"its input gains differ within a channel, so {convolved[0]} {connection.name!r} becomes a matrix of "
                f"{connection.matrix_size} weights",
                "Give the neurons of a channel one r and one time constant.",
                severity="warning",
                value=connection.matrix_size,
            )
