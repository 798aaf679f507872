"""Every limit of a Loihi chip that a graph breaks, and everything the chip computes differently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.errors import NirdeployError
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_loihi.dynamics import DECAY_UNITY, dynamics, needs_dt
from nirdeploy_loihi.linear import MATRIX_LIMIT, float_weight
from nirdeploy_loihi.network import LINEAR, Network, lower

__all__ = ["findings"]

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
    "reset_time": (("same_step",), "the chip resets in the step of the spike", "Use reset_time='same_step'."),
}


def findings(graph: nir.NIRGraph, target: Target, convention: Convention) -> list[Finding]:
    """Every finding on a graph, in execution order of the nodes; never raises for what it finds."""
    found = list(_structure(graph))
    for name in _neurons(graph):
        found.extend(_convention_rules(graph, name, convention))
        found.extend(_parameter_rules(graph, name, convention))
    found.extend(_weight_rules(graph))
    if not any(f.code in ("type", "cycle", "input") for f in found):
        try:
            network = lower(graph)
        except NirdeployError as error:
            code = "output" if isinstance(graph.nodes.get(error.node or ""), nir.Output) else "graph"
            found.append(Finding(code, error.node or "", _sentence(error), error.remedy or "Change the graph."))
        else:
            found.extend(_network_rules(graph, network, target))
    paths = {name: graphs.torch_path(graph, name) for name in graph.nodes}
    return [replace(f, torch_path=paths.get(f.node)) for f in found]


def _sentence(error: NirdeployError) -> str:
    text = str(error)
    if error.node is not None:
        text = text.removeprefix(f"node {error.node!r}: ")
    return text.removesuffix(f". {error.remedy}") if error.remedy else text


def _neurons(graph: nir.NIRGraph) -> list[str]:
    return [name for name in sorted(graph.nodes) if graphs.type_name(graph.nodes[name]) in ("IF", "LIF")]


def _structure(graph: nir.NIRGraph) -> Iterator[Finding]:
    for name in sorted(graph.nodes):
        kind = graphs.type_name(graph.nodes[name])
        if kind not in _SUPPORTED:
            remedy = f"Replace it; supported are {', '.join(sorted(_SUPPORTED))}."
            yield Finding("type", name, f"type {kind} is not supported", remedy, value=kind)
    for source, entry in graphs.feedback_edges(graph):
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
        if value not in possible:
            limit = " or ".join(repr(p) for p in possible)
            yield Finding(
                field, name, f"{field} is {value!r}, {limit} is possible: {why}", remedy, value=value, limit=limit
            )
    v_reset = np.asarray(graphs.parameters(node)["v_reset"], dtype=np.float64)
    if used.reset == "v_reset" and np.any(v_reset != 0):
        worst = float(v_reset.flat[np.argmax(np.abs(v_reset))])
        yield Finding(
            "v_reset",
            name,
            f"v_reset is {worst}, the chip resets to 0",
            "Shift the variables: subtract v_reset from v_threshold, v_leak and v_reset.",
            value=worst,
            limit=0,
        )
    if needs_dt(node, used) and used.dt is None:
        why = "its time constant" if graphs.type_name(node) == "LIF" else "its input gain r dt"
        yield Finding("dt", name, f"{why} needs dt, and the convention has none", "Give the convention a dt.")


def _parameter_rules(graph: nir.NIRGraph, name: str, convention: Convention) -> Iterator[Finding]:
    node = graph.nodes[name]
    values = {k: np.asarray(v, dtype=np.float64) for k, v in graphs.parameters(node).items()}
    for field, array in values.items():
        if not np.isfinite(array).all():
            yield Finding("finite", name, f"{field} is not finite", "Check the training.", value=field)
            return
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
    used = convention.for_node(name, graphs.type_name(node))
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


def _weight_rules(graph: nir.NIRGraph) -> Iterator[Finding]:
    for name in sorted(graph.nodes):
        node = graph.nodes[name]
        if not isinstance(node, nir.Affine | nir.Linear | nir.Conv2d):
            continue
        for field in ("weight", "bias"):
            array = np.asarray(getattr(node, field, 0.0), dtype=np.float64)
            if not np.isfinite(array).all():
                count = int((~np.isfinite(array)).sum())
                problem = f"{count} values of {field} are not finite"
                yield Finding("finite", name, problem, "Check the training.", value=count, limit=0)


def _network_rules(graph: nir.NIRGraph, network: Network, target: Target) -> Iterator[Finding]:
    total = 0
    for layer in network.layers:
        total += int(np.prod(layer.shape))
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
            elif not np.any(float_weight(graph, connection)):
                yield Finding(
                    "zero_weights",
                    connection.name if connection.name in graph.nodes else layer.name,
                    f"all weights from {connection.source!r} are 0, which Lava cannot scale",
                    "Remove the connection.",
                    value=0,
                )
        if layer.earliest != layer.lag:
            yield Finding(
                "unequal_delays",
                layer.name,
                f"its inputs are {layer.earliest} to {layer.lag} connections from the Input, and each costs a step",
                "Make all paths equally long.",
                severity="warning",
                value=layer.lag,
                limit=layer.earliest,
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
    limit = int(target.table["cores"]["count"]) * int(target.table["cores"]["neurons"])
    if total > limit:
        yield Finding(
            "neurons", "", f"{total} neurons, the chip has {limit}", "Use fewer neurons.", value=total, limit=limit
        )


def _leaks(node: nir.NIRNode) -> bool:
    return bool(np.any(np.asarray(getattr(node, "v_leak", 0.0)) != 0))
