"""Every limit of a Loihi chip that a graph breaks, and everything the chip computes differently."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from nirdeploy import exact
from nirdeploy import graph as graphs
from nirdeploy.errors import NirdeployError
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.dynamics import DECAY_UNITY, dynamics, needs_dt
from nirdeploy_loihi.linear import MATRIX_LIMIT, float_weight
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import LINEAR, Connection, Network

__all__ = ["MAP_LIMIT", "WEIGHT_LIMIT", "findings"]

MAP_LIMIT = 1 << 22  # cells of one map: 32 MB in float64, four times the neurons of a chip
WEIGHT_LIMIT = 1 << 25  # values of one parameter: 256 MB in float64, more than all synapses of a chip

_SUPPORTED = ("IF", "Input", "LIF", "Output", *LINEAR)
# field -> (values the pipeline of the chip has, why the others are not possible, remedy)
_CONVENTION: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "reset": (
        ("v_reset", "zero"),
        "the chip sets v to 0 and cannot subtract (nengo-loihi PR 276)",
        "Train with reset='zero', or deploy to a target that subtracts.",
    ),
    "spikes_per_step": (("one",), "a compartment spikes once a step at most", "Use spikes_per_step='one'."),
    "v_min": ((None,), "v has no lower bound but its register's", "Use v_min=None and train without a clamp."),
    "integrator": (
        ("euler", "exponential"),
        "the chip multiplies by a fixed decay once a step",
        "Use integrator='euler' or 'exponential'.",
    ),
    "fires": (("after_update",), "the chip compares after the update", "Use fires='after_update'."),
    "population_delay": (
        (0,),
        "not supported yet; the chip's own delay of a step a connection is in the records' lag",
        "Use population_delay=0.",
    ),
    "v_start": (("zero",), "v starts at 0", "Use v_start='zero'."),
    "reset_time": (("same_step",), "the chip resets in the step of the spike", "Use reset_time='same_step'."),
}


def findings(graph: nir.NIRGraph, target: Target, convention: Convention) -> list[Finding]:
    """Every finding on a graph, in execution order of the nodes; never raises for what it finds."""
    found = list(_structure(graph))
    values = list(_value_rules(graph))
    found.extend(values)
    bad = {f.node for f in values}
    for name in _neurons(graph):
        found.extend(_convention_rules(graph, name, convention))
        if name not in bad:
            found.extend(_parameter_rules(graph, name, convention))
    if not bad and not any(f.code in ("type", "cycle", "input") for f in found):
        found.extend(_lowered_rules(graph, target, convention))
    paths = {name: graphs.torch_path(graph, name) for name in graph.nodes}
    return [replace(f, torch_path=paths.get(f.node)) for f in found]


def _lowered_rules(graph: nir.NIRGraph, target: Target, convention: Convention) -> Iterator[Finding]:
    """Findings on shapes, then on sizes, then on the network; each only where the one before had none."""
    try:
        shapes = graphs.shapes(graph)
    except NirdeployError as error:
        remedy = error.remedy or "Correct the shapes of the graph."
        yield Finding("shape", _node_of(error), _sentence(error), remedy)
        return
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"the shapes cannot be told: {type(error).__name__}: {error}"
        yield Finding("shape", "", problem, "Check options and parameters of every node.")
        return
    sizes = list(_size_rules(graph, shapes, target))
    if sizes:
        yield from sizes
        return
    try:
        network = lower(graph, convention)
    except NirdeployError as error:
        code = "output" if isinstance(graph.nodes.get(error.node or ""), nir.Output) else "graph"
        yield Finding(code, error.node or "", _sentence(error), error.remedy or "Change the graph.")
    else:
        yield from _network_rules(graph, network)


def _size_rules(graph: nir.NIRGraph, shapes: Mapping[str, graphs.Shapes], target: Target) -> Iterator[Finding]:
    """Maps and populations far beyond a chip, found before anything of their size is allocated."""
    total = 0
    for name in sorted(graph.nodes):
        size = math.prod(shapes[name].output)
        total += size if graphs.is_neuron(graph.nodes[name]) else 0
        if size > MAP_LIMIT:
            problem = f"its map {shapes[name].output} has {size} cells, at most {MAP_LIMIT} are possible"
            yield Finding("size", name, problem, "Use a smaller map.", value=size, limit=MAP_LIMIT)
    limit = int(target.table["cores"]["count"]) * int(target.table["cores"]["neurons"])
    if total > limit:
        yield Finding(
            "neurons", "", f"{total} neurons, the chip has {limit}", "Use fewer neurons.", value=total, limit=limit
        )


def _node_of(error: NirdeployError) -> str:
    # an error that only adds to another one has the node of that
    return error.node or getattr(error.__cause__, "node", None) or ""


def _sentence(error: NirdeployError) -> str:
    text = str(error).removeprefix(f"node {_node_of(error)!r}: ")
    return text.removesuffix(f". {error.remedy}") if error.remedy else text


def _neurons(graph: nir.NIRGraph) -> list[str]:
    return [name for name in sorted(graph.nodes) if graphs.type_name(graph.nodes[name]) in ("IF", "LIF")]


def _structure(graph: nir.NIRGraph) -> Iterator[Finding]:
    for name in sorted(graph.nodes):
        kind = graphs.type_name(graph.nodes[name])
        if kind not in _SUPPORTED:
            remedy = f"Replace it; supported are {', '.join(sorted(_SUPPORTED))}."
            yield Finding("type", name, f"type {kind} is not supported", remedy, value=kind)
    whole = not any(isinstance(node, nir.NIRGraph) for node in graph.nodes.values())
    for source, entry in graphs.feedback_edges(graph) if whole else ():
        yield Finding(
            "cycle",
            entry,
            f"the edge from {source!r} closes a cycle, and recurrence is not supported",
            "Remove the edge.",
            value=source,
        )
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        problem = f"{len(inputs)} Inputs ({', '.join(inputs)}), 1 is supported"
        yield Finding("input", inputs[-1] if inputs else "", problem, "Join them.", value=len(inputs), limit=1)


def _convention_rules(graph: nir.NIRGraph, name: str, convention: Convention) -> Iterator[Finding]:
    node = graph.nodes[name]
    used = convention.for_node(name, graphs.type_name(node))
    for field, (possible, why, remedy) in _CONVENTION.items():
        value = getattr(used, field)
        if field == "v_start" and graphs.starts_at_zero(node, value):
            continue
        if value not in possible:
            limit = " or ".join(repr(p) for p in possible)
            yield Finding(
                field, name, f"{field} is {value!r}, {limit} is possible: {why}", remedy, value=value, limit=limit
            )
    if needs_dt(node, used) and used.dt is None:
        why = "its time constant" if graphs.type_name(node) == "LIF" else "its input gain r dt"
        yield Finding("dt", name, f"{why} needs dt, and the convention has none", "Give the convention a dt.")


def _parameter_rules(graph: nir.NIRGraph, name: str, convention: Convention) -> Iterator[Finding]:
    node = graph.nodes[name]
    values = {k: np.asarray(v, dtype=np.float64) for k, v in graphs.parameters(node).items()}
    used = convention.for_node(name, graphs.type_name(node))
    if used.reset == "v_reset" and np.any(values["v_reset"] != 0):
        worst = float(values["v_reset"].flat[np.argmax(np.abs(values["v_reset"]))])
        yield Finding(
            "v_reset",
            name,
            f"v_reset is {worst}, the chip resets to 0",
            "Shift the variables: subtract v_reset from v_threshold, v_leak and v_reset.",
            value=worst,
            limit=0,
        )
    for field in ("tau", "r", "v_threshold"):
        distinct = len(np.unique(values[field])) if field in values else 1
        if distinct > 1:
            yield Finding(
                "heterogeneous",
                name,
                f"{field} has {distinct} different values, 1 a population is supported in this version",
                f"Give the population one {field}, or split it into one population a value.",
                value=distinct,
                limit=1,
            )
    if np.any(values["v_threshold"] <= 0):
        low = float(values["v_threshold"].min())
        yield Finding("threshold", name, f"v_threshold is {low}, it must be above 0", "Raise it.", value=low, limit=0)
    if "tau" in values and np.any(values["tau"] <= 0):
        low = float(values["tau"].min())
        yield Finding("tau", name, f"tau is {low} s, it must be above 0", "Raise it.", value=low, limit=0)
        return
    if used.integrator == "exact" or (needs_dt(node, used) and used.dt is None):
        return
    yield from _decay_rules(name, node, convention)


def _decay_rules(name: str, node: nir.NIRNode, convention: Convention) -> Iterator[Finding]:
    step = dynamics(name, node, convention)
    if step.decay_v > DECAY_UNITY:
        yield Finding(
            "decay",
            name,
            f"dt/tau is {step.loss:.4g}, so v would lose {step.decay_v} of {DECAY_UNITY} a step",
            "Use a smaller dt or a larger tau.",
            value=step.decay_v,
            limit=DECAY_UNITY,
        )
    elif step.loss > 0 and step.decay_v == 0:
        yield Finding(
            "decay",
            name,
            f"v loses {step.loss:.3g} a step, which rounds to 0 of {DECAY_UNITY}: it does not leak",
            "Use a larger dt.",
            severity="warning",
            value=step.loss,
            limit=1 / DECAY_UNITY,
        )
    if step.gain == 0:
        yield Finding("gain", name, "its input gain is 0", "Check r.", value=0.0)


def _value_rules(graph: nir.NIRGraph) -> Iterator[Finding]:
    """Weights, biases and neuron parameters that are no finite real numbers, or too many of them."""
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
        weights = isinstance(node, nir.Affine | nir.Linear | nir.Conv2d)
        if not weights and not isinstance(node, nir.IF | nir.LIF):
            continue
        for field, value in graphs.parameters(node).items():
            size = np.size(value)
            if weights and field not in ("weight", "bias"):
                continue
            limit = WEIGHT_LIMIT if weights else MAP_LIMIT
            if size > limit:
                problem = f"{field} has {size} values, at most {limit} are possible"
                yield Finding("size", name, problem, "Use a smaller layer.", value=size, limit=limit)
            elif found := exact.fault(value):
                code, words, count = found
                yield Finding(code, name, f"{field} {words}", "Check the training.", value=count, limit=0)
            elif weights and not isinstance(value, np.ndarray):
                problem = f"{field} is a {type(value).__name__}, expected an array"
                yield Finding("dtype", name, problem, "Use a NumPy array.")
            elif np.asarray(value).dtype.itemsize > 8 and exact.fault(_in_64_bits(value)):
                problem = f"{field} is beyond 64-bit floats"
                yield Finding("finite", name, problem, "Rescale the network.")


def _in_64_bits(value: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64)


def _network_rules(graph: nir.NIRGraph, network: Network) -> Iterator[Finding]:
    for layer in network.layers:
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
            elif not _any_weight(graph, connection):
                yield Finding(
                    "zero_weights",
                    connection.name if connection.name in graph.nodes else layer.name,
                    f"all weights from {connection.source!r} are 0, which Lava cannot scale",
                    "Remove the connection.",
                    value=0,
                )
        if np.any(layer.bias) or _leaks(graph.nodes[layer.name]):
            yield Finding(
                "bias_start",
                layer.name,
                f"its bias acts from step 0, its spikes arrive {layer.lag} steps later than in the graph",
                "Expect the first spikes of this population early.",
                severity="warning",
                value=layer.lag,
                limit=0,
            )


def _any_weight(graph: nir.NIRGraph, connection: Connection) -> bool:
    if connection.kernel is not None and connection.kernel.kind != "pool":
        return bool(np.any(np.asarray(graph.nodes[connection.kernel.node].weight)))
    return bool(np.any(float_weight(graph, connection)))


def _leaks(node: nir.NIRNode) -> bool:
    return bool(np.any(np.asarray(getattr(node, "v_leak", 0.0)) != 0))
