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
from nirdeploy.errors import ConventionError, NirdeployError
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.core_rules import core_rules
from nirdeploy_loihi.integer_rules import integer_findings
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import INTEGRATORS, SUPPORTED
from nirdeploy_loihi.register_rules import convention_rules, parameter_rules
from nirdeploy_loihi.timing import steps_of

__all__ = ["MAP_LIMIT", "WEIGHT_LIMIT", "findings", "integer_findings"]

MAP_LIMIT = 1 << 22  # cells of one map: 32 MB in float64, four times the neurons of a chip
WEIGHT_LIMIT = 1 << 25  # values of one parameter: 256 MB in float64, more than all synapses of a chip
_WEIGHTED = ("Affine", "Conv1d", "Conv2d", "Linear")
_REPLACED = {
    "NIRGraph": "Dissolve the subgraph.",
    "Threshold": "Use an IF population, which compares with a threshold and resets.",
}


def findings(graph: nir.NIRGraph, target: Target, convention: Convention) -> list[Finding]:
    """Every finding on a graph, in execution order of the nodes; never raises for what it finds."""
    found = list(_structure(graph))
    values = list(_value_rules(graph))
    found.extend(values)
    bad = {f.node for f in values}
    for name in _populations(graph):
        found.extend(convention_rules(graph, name, convention))
        if name not in bad:
            found.extend(parameter_rules(graph, name, convention))
    if not bad and not any(f.code in ("type", "input") for f in found):
        seen = {(f.code, f.node) for f in found}
        found.extend(f for f in _lowered_rules(graph, target, convention) if (f.code, f.node) not in seen)
    paths = {name: graphs.torch_path(graph, name) for name in graph.nodes}
    return [replace(f, torch_path=paths.get(f.node)) for f in found]


def _populations(graph: nir.NIRGraph) -> list[str]:
    return [name for name in sorted(graph.nodes) if graphs.type_name(graph.nodes[name]) in graphs.MEMBRANES]


def _structure(graph: nir.NIRGraph) -> Iterator[Finding]:
    for name in sorted(graph.nodes):
        kind = graphs.type_name(graph.nodes[name])
        if kind not in SUPPORTED:
            remedy = _REPLACED.get(kind, f"Replace it; supported are {', '.join(sorted(SUPPORTED))}.")
            yield Finding("type", name, f"type {kind} is not supported", remedy, value=kind)
    inputs = graphs.input_names(graph)
    if len(inputs) != 1:
        problem = f"{len(inputs)} Inputs ({', '.join(inputs)}), 1 is supported"
        yield Finding("input", inputs[-1] if inputs else "", problem, "Join them.", value=len(inputs), limit=1)


# ---------------------------------------------------------------- values


def _value_rules(graph: nir.NIRGraph) -> Iterator[Finding]:
    """Weights, biases and neuron parameters that are no finite real numbers, or too many of them."""
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
        kind = graphs.type_name(node)
        if kind not in (*_WEIGHTED, *graphs.MEMBRANES, "Delay", "Scale"):
            continue
        for field, value in graphs.parameters(node).items():
            if kind in _WEIGHTED and field not in ("weight", "bias"):
                continue
            yield from _numbers(name, field, value, kind in _WEIGHTED)


def _numbers(name: str, field: str, value: Any, weights: bool) -> Iterator[Finding]:
    size = np.size(value)
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
        yield Finding("finite", name, f"{field} is beyond 64-bit floats", "Rescale the network.")


def _in_64_bits(value: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(value, dtype=np.float64)


# ---------------------------------------------------------------- shapes, sizes, lowering


def _lowered_rules(graph: nir.NIRGraph, target: Target, convention: Convention) -> Iterator[Finding]:
    """Findings on shapes, then sizes, delays and analogue values, then the network; each where none was before."""
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
    before = [*_size_rules(graph, shapes, target)]
    before += [] if before else [*_delay_rules(graph, convention), *_analogue_rules(graph)]
    yield from before
    if before:
        return
    try:
        network = lower(graph, convention)
    except NirdeployError as error:
        yield Finding(_code(graph, error), error.node or "", _sentence(error), error.remedy or "Change the graph.")
    else:
        yield from core_rules(graph, network, target, convention)


def _size_rules(graph: nir.NIRGraph, shapes: Mapping[str, graphs.Shapes], target: Target) -> Iterator[Finding]:
    """Maps and populations far beyond a chip, found before anything of their size is allocated."""
    total = 0
    for name in sorted(graph.nodes):
        size = math.prod(shapes[name].output)
        total += size if graphs.type_name(graph.nodes[name]) in graphs.MEMBRANES else 0
        if size > MAP_LIMIT:
            problem = f"its map {shapes[name].output} has {size} cells, at most {MAP_LIMIT} are possible"
            yield Finding("size", name, problem, "Use a smaller map.", value=size, limit=MAP_LIMIT)
    limit = int(target.table["cores"]["count"]) * int(target.table["cores"]["neurons"])
    if total > limit:
        yield Finding(
            "neurons", "", f"{total} neurons, the chip has {limit}", "Use fewer neurons.", value=total, limit=limit
        )


def _delay_rules(graph: nir.NIRGraph, convention: Convention) -> Iterator[Finding]:
    """Delays that are no whole steps, or have no dt; too long ones are found with the way they lie on."""
    for name in sorted(graph.nodes):
        if graphs.type_name(graph.nodes[name]) != "Delay":
            continue
        try:
            steps_of(name, graph.nodes[name], convention)
        except ConventionError as error:
            yield Finding("delay", name, _sentence(error), error.remedy or "Choose a dt that divides every delay.")


def _analogue_rules(graph: nir.NIRGraph) -> Iterator[Finding]:
    try:
        found = graphs.populations(graph, integrators=True)
    except NirdeployError:
        return  # lowering meets and names it
    read: dict[str, str] = {}
    for population in found:
        if not isinstance(graph.nodes[population.name], nir.Output):
            read |= {path.source: population.name for path in population.paths}
    for source in sorted(read):
        kind = graphs.type_name(graph.nodes[source])
        if kind in INTEGRATORS:
            yield Finding(
                "analogue",
                source,
                f"{kind} gives analogue values to {read[source]!r}, synapses carry spikes alone",
                "Let it spike, or show it by an Output alone.",
                value=kind,
            )


def _code(graph: nir.NIRGraph, error: NirdeployError) -> str:
    node = graph.nodes.get(error.node or "")
    if isinstance(node, nir.Output):
        return "output"
    if isinstance(node, nir.Delay) or "are delayed by" in str(error):
        return "delay"
    if "the loop " in str(error):
        return "loop"
    return "convention" if isinstance(error, ConventionError) else "graph"


def _node_of(error: NirdeployError) -> str:
    # an error that only adds to another one has the node of that
    return error.node or getattr(error.__cause__, "node", None) or ""


def _sentence(error: NirdeployError) -> str:
    text = str(error).removeprefix(f"node {_node_of(error)!r}: ")
    return text.removesuffix(f". {error.remedy}") if error.remedy else text
