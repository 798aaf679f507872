"""Files from snnTorch's exporter, repaired, and graphs for its importer (snntorch/export_nir.py, import_nir.py at 1.0).

Both count a step as 1e-4 s. What the importer makes is reset to zero in the same step, with one threshold a layer.
"""

from __future__ import annotations

import math
from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.convert.frameworks.framework import Repair
from nirdeploy.convert.frameworks.snntorch_numbers import time_constant
from nirdeploy.convert.primitives import NODES, BuildContext
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.nodes import make_graph, make_node, parameters, stored_shape
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.presets import convention as preset
from nirdeploy.schedule import dotted, schedule
from nirdeploy.shapes import conv2d_options, output_shape

__all__ = ["adapt", "repair"]

DT = 1e-4
Shape = tuple[int, ...]
_TAUS = {"tau": "r", "tau_mem": "r", "tau_syn": "w_in"}  # time constant -> what the exporter sets to tau / dt
_NO_LEAK = DT * 2.0**54
_PLAIN = (nir.Input, nir.Output, nir.Affine, nir.Linear)


# ---------------------------------------------------------------- from its exporter


def repair(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, tuple[Repair, ...]]:
    """What a file of snnTorch's exporter stands for: batch axes, missing shapes and decays beyond [0, 1] put right.

    Returns:
        The graph, and what was changed.
    """
    nodes, found = dict(graph.nodes), list[Repair]()
    for name in graphs.input_names(graph):
        nodes[name] = _without_batch(graph, name, found)
    for name in graph.nodes:
        nodes[name] = _clamped(name, nodes[name], found)
    known: dict[tuple[str, ...], Shape | None] = {}
    plan = schedule(graph)
    for path in plan.order:
        given = [known[source] for source in plan.sources[path] if known.get(source) is not None]
        node = nodes[path[0]] if len(path) == 1 else plan.nodes[path]
        shape = given[0] if given else None
        if len(path) == 1 and shape is not None:
            node = nodes[path[0]] = _shaped(path[0], node, shape, found)
        if isinstance(node, nir.Input):
            stored = stored_shape(node, "input")
            known[path] = None if stored is None else tuple(int(n) for n in stored)
        else:
            passes = shape is not None and not isinstance(node, nir.Output)
            known[path] = output_shape(dotted(path), node, shape or ()) if passes else None
    return make_graph(nodes, list(graph.edges), graph.metadata), tuple(found)


def _without_batch(graph: nir.NIRGraph, name: str, found: list[Repair]) -> nir.NIRNode:
    """An Input whose shape has one axis more than what it feeds takes: the batch of the sample data."""
    node = graph.nodes[name]
    stored = stored_shape(node, "input")
    ranks = {rank for target in graphs.successors(graph)[name] if (rank := _rank(graph.nodes[target])) is not None}
    if stored is None or len(ranks) != 1 or stored.size != ranks.pop() + 1:
        return node
    text = f"its shape {stored.tolist()} holds the batch of the sample data; it is {stored[1:].tolist()}"
    found.append(Repair(name, text))
    return make_node(nir.Input, input_type={"input": stored[1:]})


def _rank(node: nir.NIRNode) -> int | None:
    """Axes of a sample that a node takes; None where it does not say."""
    if isinstance(node, nir.Affine | nir.Linear):
        return 1
    if isinstance(node, nir.Conv2d | nir.AvgPool2d | nir.SumPool2d):
        return 3
    values = graphs.parameters(node) if graphs.is_neuron(node) else {}
    rank = max((np.ndim(value) for value in values.values()), default=0)
    return rank or None


def _clamped(name: str, node: nir.NIRNode, found: list[Repair]) -> nir.NIRNode:
    """Decays of 1 and more, and of less than 0, which snnTorch clamps in each step and exports as they are."""
    if not graphs.is_neuron(node):
        return node
    values, changed = dict(parameters(node)), False
    for tau, gain in _TAUS.items():
        if tau not in values:
            continue
        array = np.asarray(values[tau])
        rests, gone = ~np.isfinite(array) | (array <= 0), (array > 0) & (array < DT * (1 - 1e-5))
        for which, decay, to in ((rests, "1 or more", _NO_LEAK), (gone, "less than 0", DT)):
            if not which.any():
                continue
            changed = True
            values[tau] = np.where(which, to, values[tau]).astype(array.dtype)
            values[gain] = np.where(which, to / DT, values[gain]).astype(array.dtype)
            text = f"{tau} of {int(which.sum())} neurons comes from a decay of {decay}, which the layer clamps"
            found.append(Repair(name, f"{text}; it is {to:.6g} s"))
    return make_node(type(node), **values) if changed else node


def _shaped(name: str, node: nir.NIRNode, shape: Shape, found: list[Repair]) -> nir.NIRNode:
    """A population whose parameters are one number, or an Output of another shape, given the shape that comes in."""
    if isinstance(node, nir.Output):
        stored = stored_shape(node, "output")
        if stored is None or tuple(stored) != shape:
            found.append(Repair(name, f"its shape is missing or wrong; it is {list(shape)}"))
            return make_node(nir.Output, output_type={"output": np.array(shape)})
        return node
    values = parameters(node) if graphs.is_neuron(node) else {}
    if (
        not values
        or any(np.size(v) != 1 for v in values.values())
        or all(np.shape(v) == shape for v in values.values())
    ):
        return node
    full = {key: np.full(shape, np.asarray(v).reshape(()), np.asarray(v).dtype) for key, v in values.items()}
    found.append(Repair(name, f"its parameters are one number for all neurons; there are {list(shape)}"))
    return make_node(type(node), **full)


# ---------------------------------------------------------------- for its importer


def adapt(graph: nir.NIRGraph, convention: Convention | None) -> nir.NIRGraph:
    """The graph that snnTorch's importer makes the same network of: time constants for its step of 1e-4 s.

    Input gains are folded into thresholds, an IF becomes a LIF without leak, Flatten counts from the end.

    Raises:
        UnsupportedError: what the importer would refuse or make something else of, naming the node.
        ConventionError: there is none.
    """
    if convention is None:
        raise ConventionError(
            "what a graph for snnTorch does depends on its convention, and none is known",
            remedy="Pass convention= to write.",
        )
    graph = graphs.dissolved(graph)
    _check_graph(graph)
    found = graphs.shapes(graph)
    nodes = {name: _adapted(name, node, found[name].input, convention) for name, node in graph.nodes.items()}
    adapted = make_graph(nodes, list(graph.edges), graph.metadata)
    return graphs.with_metadata(adapted, convention=preset("snntorch", dt=DT).to_dict())


def _refuse(name: str, problem: str, remedy: str) -> UnsupportedError:
    return UnsupportedError(f"snnTorch's importer {problem}", node=name, remedy=remedy)


def _check_graph(graph: nir.NIRGraph) -> None:
    for kind, names in (("Input", graphs.input_names(graph)), ("Output", graphs.output_names(graph))):
        if len(names) > 1:
            raise _refuse(names[1], f"takes one {kind}, there are {len(names)}", "Split the graph.")
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            raise _refuse(name, "cannot take subgraphs (nirtorch 2.6)", "Take apart what needs one.")
    for source, target in graphs.feedback_edges(graph):
        raise _refuse(
            source, f"sends what enters {target!r} through its recurrent weights", "Build the recurrent layer by hand."
        )
    for name in graphs.output_names(graph):
        sources = graphs.predecessors(graph)[name]
        if len(sources) > 1:
            raise _refuse(name, f"returns the {len(sources)} sources of an Output one by one", "Feed it from one node.")
    plain: dict[str, str] = {}
    for name in graph.nodes:
        other = plain.setdefault(name.replace(".", "_"), name)
        if other != name:
            raise _refuse(name, f"gives it the name that {other!r} has, too", "Rename one of them.")


def _adapted(name: str, node: nir.NIRNode, shape: Shape, convention: Convention) -> nir.NIRNode:
    if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF):
        return _neuron(name, node, shape, convention.for_node(name, graphs.type_name(node)))
    if isinstance(node, nir.Conv2d):
        options = conv2d_options(node, name)
        if options["groups"] != 1:
            raise _refuse(name, f"has no groups, this Conv2d {options['groups']}", "Write its weights out in full.")
        kernel = tuple(np.asarray(node.weight).shape[2:])
        if isinstance(options["padding"], str):
            raise _refuse(name, f"reads padding {options['padding']!r} wrongly", "Give it as numbers.")
        sides = (kernel, *(options[key] for key in ("stride", "padding", "dilation")))
        if any(a != b for a, b in sides):
            raise _refuse(name, "gets it from nir, which takes height for width (up to 1.0.8)", "Use square kernels.")
        return node
    if isinstance(node, nir.SumPool2d) and np.any(np.asarray(node.padding) != 0):
        raise _refuse(name, "leaves out the padding of a SumPool2d", "Pool without padding.")
    if isinstance(node, nir.Flatten):
        # it would count the batch as an axis of the sample
        rank = len(shape)
        start, end = (int(dim) - rank if dim >= 0 else int(dim) for dim in (node.start_dim, node.end_dim))
        return make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=start, end_dim=end)
    if isinstance(node, (*_PLAIN, nir.AvgPool2d, nir.SumPool2d)):
        return node
    raise _refuse(name, f"has no layer for {graphs.type_name(node)}", "Leave it out, or build it by hand.")


def _check_neuron(name: str, node: Any, used: Convention) -> None:
    zero_start = graphs.starts_at_zero(node, used.v_start)
    values = parameters(node)
    resets_to_zero = used.reset == "zero" or (used.reset == "v_reset" and not np.any(values["v_reset"]))
    for option, given, fits in (
        ("reset", used.reset if used.reset == "subtract" else "v_reset other than 0", resets_to_zero),
        ("reset_time", used.reset_time, used.reset_time == "same_step"),
        ("crossing", used.crossing, used.crossing == "strict"),
        ("spikes_per_step", used.spikes_per_step, used.spikes_per_step == "one"),
        ("fires", used.fires, used.fires == "after_update"),
        ("v_min", used.v_min, used.v_min is None),
        ("v_start", used.v_start, zero_start),
        ("population_delay", used.population_delay, used.population_delay == 0),
        ("integrator", used.integrator, used.integrator != "exact"),
        ("v_leak", "other than 0", not np.any(values.get("v_leak", 0))),
        ("v_threshold", "below 0", not np.any(np.asarray(values["v_threshold"]) < 0)),
    ):
        if not fits:
            raise _refuse(
                name,
                f"makes neurons that reset to zero in the step of the spike, from v = 0; here {option} is {given}",
                "Build the layer by hand, or train with what it makes.",
            )


def _neuron(name: str, node: Any, shape: Shape, used: Convention) -> nir.NIRNode:
    """LIF or CubaLIF with input gains of 1 in steps of 1e-4 s, the gains folded into the threshold."""
    _check_neuron(name, node, used)
    module: Any = NODES[type(node)].to_torch(node, BuildContext(name, shape, used))
    membrane, synapse = module.membrane(name), module.synapse(name)

    def full(value: Any) -> np.ndarray:
        array = value.detach().numpy() if hasattr(value, "detach") else np.asarray(value, np.float32)
        return np.array(np.broadcast_to(array, shape), dtype=np.float32)

    gain = full(membrane.gain).astype(np.float64) * (1.0 if synapse is None else full(synapse.gain))
    if np.any(gain <= 0):
        raise _refuse(name, f"divides thresholds by the input gain, here {gain.min():.6g}", "Use gains above 0.")
    threshold = (full(module.v_threshold) / gain).astype(np.float32)
    if np.unique(threshold).size > 1:
        low, high = float(threshold.min()), float(threshold.max())
        raise _refuse(
            name,
            f"has one threshold a layer; here threshold / input gain is {low:.6g} to {high:.6g}",
            "Scale the weights before it so that all are equal.",
        )
    tau, zeros = _time_constant(name, full(membrane.decay)), np.zeros(shape, np.float32)
    rest = {"v_leak": zeros, "v_threshold": threshold, "v_reset": zeros, "r": _ratio(tau)}
    if synapse is None:
        return make_node(nir.LIF, tau=tau, **rest)
    tau_syn = _time_constant(name, full(synapse.decay))
    return make_node(nir.CubaLIF, tau_mem=tau, tau_syn=tau_syn, w_in=_ratio(tau_syn), **rest)


def _ratio(tau: np.ndarray) -> np.ndarray:
    return np.asarray(tau.astype(np.float64) / DT).astype(tau.dtype)


def _time_constant(name: str, decay: np.ndarray) -> np.ndarray:
    if np.any(decay < 0) or not math.isfinite(float(decay.max())):
        raise _refuse(name, f"clamps decays to at least 0, here {decay.min():.6g}", "Use a smaller step.")

    def decays(tau: np.ndarray) -> np.ndarray:
        found: np.ndarray = 1 - (DT / tau)  # as the importer has it
        return found

    return time_constant(decay, DT, decays)
