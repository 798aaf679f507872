"""Files of sinabs's exporter, and files for its importer (sinabs 3.1.3, nir.py, on nirtorch 2.0.2).

The exporter writes tau in steps and one number for all neurons of a LIF or LI, takes the steps of a sample for an axis
of the input, and leaves min_v_mem, norm_input, tau_syn, spike_fn and reset_fn out. The importer runs the nodes of a
graph in the order in which it meets them, leaves out types that it does not know, and steps cycles over calls: only
chains of what it knows are imported as they are.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import pairwise

import nir
import numpy as np
import torch

from nirdeploy import graph as graphs
from nirdeploy.convert.frameworks.framework import STEP, Repair
from nirdeploy.convert.frameworks.sinabs_neurons import nearest_tau
from nirdeploy.errors import GraphError, UnsupportedError
from nirdeploy.nodes import declared_shape, make_graph, make_node, parameters, stored_shape, type_name
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.dynamics import coefficients
from nirdeploy.reference.presets import convention as preset
from nirdeploy.schedule import dotted, schedule
from nirdeploy.shapes import conv2d_options, output_shape, own_input_shape, pair

__all__ = ["adapt", "repair"]

Shape = tuple[int, ...]
_LOST = (
    "sinabs's exporter leaves out min_v_mem, norm_input, tau_syn, spike_fn and reset_fn; taken are those that its "
    "importer takes: min_v_mem minus the threshold for IF and none for LIF, norm_input=False, no tau_syn, MultiSpike, "
    "MembraneSubtract"
)
_EXECUTOR = ("graph", "stateful_modules", "return_state", "execution_order")  # attributes of nirtorch's executor
_TRACE = "Convert the network itself with torch_to_nir."


# ---------------------------------------------------------------- files of its exporter


def repair(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, tuple[Repair, ...]]:
    """A graph of sinabs's exporter with full shapes, seconds and a convention; and what was changed.

    Raises:
        UnsupportedError: a node that nothing feeds, whose edges the exporter has lost.
    """
    if graphs.metadata(graph).get("convention") is not None:
        return graph, ()  # a file of ours
    repairs: list[Repair] = []
    for name, sources in graphs.predecessors(graph).items():
        if not sources and not isinstance(graph.nodes[name], nir.Input):
            raise UnsupportedError(
                "nothing feeds it: sinabs's exporter loses what is computed outside of modules, such as a + b",
                node=name,
                remedy=_TRACE,
            )
    nodes = _without_steps(graph, repairs)
    meta = getattr(graph, "metadata", None)
    into = _flow(make_graph(nodes, list(graph.edges), meta))
    for name, shape in into.items():
        if isinstance(nodes[name], nir.Output):
            nodes[name] = make_node(nir.Output, output_type={"output": np.array(shape)})
        else:
            nodes[name] = _whole(name, nodes[name], shape, repairs)
    repairs.append(Repair("", _LOST))
    used = preset("sinabs", dt=STEP)
    return graphs.with_metadata(make_graph(nodes, list(graph.edges), meta), convention=used.to_dict()), tuple(repairs)


def _without_steps(graph: nir.NIRGraph, repairs: list[Repair]) -> dict[str, nir.NIRNode]:
    """The nodes, Inputs without the axis of steps, which the exporter takes for one of the sample."""
    nodes, after = dict(graph.nodes), graphs.successors(graph)
    for name in graphs.input_names(graph):
        declared = declared_shape(name, nodes[name], "input")
        wanted = [_own_shape(nodes[target]) for target in after[name]]
        if len(declared) > 1 and declared[1:] in wanted and declared not in wanted:
            nodes[name] = make_node(nir.Input, input_type={"input": np.array(declared[1:])})
            repairs.append(Repair(name, f"its shape {declared} counts the steps of a sample; read as {declared[1:]}"))
    return nodes


def _own_shape(node: nir.NIRNode) -> Shape | None:
    try:
        return own_input_shape("", node)
    except GraphError:
        return None


def _flow(graph: nir.NIRGraph) -> dict[str, Shape]:
    """The shape that goes into each node but the Inputs, in order."""
    into: dict[str, Shape] = {}
    out: dict[str, Shape] = {}
    before = graphs.predecessors(graph)
    for path in schedule(graph).order:
        name = dotted(path)
        node = graph.nodes[name]
        if isinstance(node, nir.Input):
            out[name] = declared_shape(name, node, "input")
            continue
        into[name] = out[before[name][0]]
        out[name] = into[name] if isinstance(node, nir.Output) else output_shape(name, node, into[name])
    return into


def _whole(name: str, node: nir.NIRNode, shape: Shape, repairs: list[Repair]) -> nir.NIRNode:
    """A node with the shape that is missing, and with tau in seconds."""
    values = parameters(node)
    missing = f"the shape of its input is missing; it is {shape}"
    if isinstance(node, nir.Flatten) and stored_shape(node, "input") is None:
        repairs.append(Repair(name, missing))
        return make_node(nir.Flatten, **{**values, "input_type": {"input": np.array(shape)}})
    if isinstance(node, nir.Conv2d) and node.input_shape is None:
        repairs.append(Repair(name, missing))
        return make_node(nir.Conv2d, **{**values, "input_shape": shape[1:]})
    if not isinstance(node, nir.IF | nir.LIF | nir.LI):
        return node
    if np.shape(values["r"]) != shape:
        values = {key: np.array(np.broadcast_to(value, shape), copy=True) for key, value in values.items()}
        repairs.append(Repair(name, f"one number stands for all its neurons; they are {shape}"))
    if "tau" in values:
        steps = np.asarray(values["tau"], np.float32)
        decay = torch.exp(-1.0 / torch.as_tensor(steps)).numpy()
        values["tau"] = nearest_tau((steps.astype(np.float64) * STEP).astype(np.float32), decay, STEP)
        repairs.append(Repair(name, f"its tau of {_shown(steps)} counts steps; read as seconds, of dt={STEP}"))
    return make_node(type(node), **values)


def _shown(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


# ---------------------------------------------------------------- files for its importer


def adapt(graph: nir.NIRGraph, convention: Convention | None) -> nir.NIRGraph:
    """The chain that sinabs's importer makes the same network of, with tau in steps and its own convention.

    Gains go into thresholds, or into a layer of their own before an integrator; pools and grouped convolutions become
    plain convolutions, a scale one, too.

    Raises:
        UnsupportedError: what the importer would make something else of; naming the node.
    """
    names = _chain(graph)
    if convention is None:
        raise UnsupportedError(
            "the graph carries no convention, and sinabs's importer has one of its own",
            remedy="Pass convention=nd.convention('sinabs', dt=...).",
        )
    nodes: dict[str, nir.NIRNode] = {}
    shape: Shape = ()
    for name, node in names.items():
        here = convention.for_node(name, type_name(node))
        if isinstance(node, nir.Input):
            shape = declared_shape(name, node, "input")
            nodes[_safe(name, nodes)] = node
            continue
        for label, made in _adapted(name, node, here, shape):
            nodes[_safe(label, nodes)] = made
        shape = shape if isinstance(node, nir.Output) else output_shape(name, node, shape)
    order = list(nodes)
    found = make_graph(nodes, list(pairwise(order)))
    return graphs.with_metadata(found, convention=preset("sinabs", dt=1.0).to_dict())


def _chain(graph: nir.NIRGraph) -> dict[str, nir.NIRNode]:
    """The nodes by dotted name, in order, subgraphs dissolved.

    Raises:
        UnsupportedError: a node with several sources or targets.
    """
    plan = schedule(graph)
    targets: dict[str, int] = {}
    for path in plan.order:
        sources = plan.sources[path]
        if len(sources) > 1 or (path, path) in plan.feedback:
            several = ", ".join(dotted(source) for source in sources)
            raise UnsupportedError(
                f"{several} lead into it, and sinabs's importer runs chains only: of several it drops what comes too "
                "late in its order, and recurrence steps with its calls",
                node=dotted(path),
                remedy="Build that part in sinabs.",
            )
        for source in sources:
            targets[dotted(source)] = targets.get(dotted(source), 0) + 1
    split = next((name for name, count in targets.items() if count > 1), None)
    if split is not None or len(plan.inputs) > 1 or len(plan.outputs) > 1:
        where = split or dotted((*plan.inputs[1:], *plan.outputs[1:])[0])
        raise UnsupportedError(
            "the graph has several ways, and sinabs's importer runs chains only",
            node=where,
            remedy="Build that part in sinabs.",
        )
    return {dotted(path): plan.nodes[path] for path in plan.order}


def _safe(name: str, taken: Container[str]) -> str:
    """A name that a torch module takes and no other node has."""
    plain = name.replace(".", "_")
    if hasattr(torch.nn.Module, plain) or plain in _EXECUTOR:
        plain += "_"
    while plain in taken:
        plain += "_"
    return plain


def _adapted(name: str, node: nir.NIRNode, here: Convention, shape: Shape) -> Iterator[tuple[str, nir.NIRNode]]:
    if isinstance(node, nir.IF | nir.LIF | nir.LI):
        yield from _population(name, node, here, shape)
    elif isinstance(node, nir.Linear):
        bias = np.zeros(node.weight.shape[0], np.float32)
        yield name, make_node(nir.Affine, weight=np.asarray(node.weight, np.float32), bias=bias)
    elif isinstance(node, nir.Scale):
        yield name, _diagonal(name, np.broadcast_to(np.asarray(node.scale, np.float32), shape))
    elif isinstance(node, nir.Conv2d):
        yield name, _ungrouped(name, node)
    elif isinstance(node, nir.AvgPool2d) or (isinstance(node, nir.SumPool2d) and any(pair(node.padding))):
        yield name, _pool(node, shape)
    elif isinstance(node, nir.Affine | nir.SumPool2d | nir.Flatten | nir.Output):
        yield name, node
    else:
        what = "fails on" if isinstance(node, nir.Conv1d) else "leaves out"
        raise UnsupportedError(
            f"{type_name(node)} is a type that sinabs's importer {what}", node=name, remedy="Build that part in sinabs."
        )


def _population(name: str, node: nir.NIRNode, here: Convention, shape: Shape) -> Iterator[tuple[str, nir.NIRNode]]:
    """IF, LIF or LI with the input gain that the importer knows, 1, and tau in steps."""
    _check_convention(name, node, here)
    values = {key: torch.as_tensor(np.asarray(value, np.float32)) for key, value in parameters(node).items()}
    if bool((values.get("v_leak", torch.zeros(1)) != 0).any()):
        raise UnsupportedError("v_leak is not 0, as sinabs's importer wants it", node=name)
    decay, gain, _ = coefficients(type_name(node), here, r=values["r"], tau=values.get("tau"), node=name)
    gains = np.broadcast_to(np.asarray(gain), np.shape(values["r"]))
    made: dict[str, np.ndarray] = {"r": np.ones_like(gains)}
    if not (gains > 0).all():
        raise UnsupportedError(
            f"its input gain is {float(gains.min())}, and sinabs's importer takes 1", node=name, remedy="Use r > 0."
        )
    if isinstance(node, nir.LI):
        if (gains != 1).any():
            yield f"{name}_gain", _diagonal(name, np.broadcast_to(gains, shape))
    else:
        made["v_threshold"] = np.asarray(values["v_threshold"] / torch.as_tensor(gains.copy()))
    if not isinstance(node, nir.IF):
        made["tau"] = _steps(name, np.asarray(decay), made["r"].shape)
        made["v_leak"] = np.zeros_like(made["r"])
    if len(shape) > 1 and not isinstance(node, nir.IF):
        made = {key: _one(name, key, value) for key, value in made.items()}
    yield name, make_node(type(node), **made)


def _check_convention(name: str, node: nir.NIRNode, here: Convention) -> None:
    wanted = {"population_delay": 0, "reset_time": "same_step", "v_start": "zero"}
    if not isinstance(node, nir.LI):
        wanted |= {"reset": "subtract", "crossing": "inclusive", "spikes_per_step": "many", "fires": "after_update"}
        wanted["v_min"] = "-threshold" if isinstance(node, nir.IF) else None
    for field, value in wanted.items():
        own = getattr(here, field)
        if field == "v_min" and value == "-threshold" and isinstance(own, int | float):
            same = np.all(np.asarray(own, np.float32) == -np.asarray(parameters(node)["v_threshold"], np.float32))
            own = value if same else own
        if own != value and not (field == "v_start" and graphs.starts_at_zero(node, own)):
            raise UnsupportedError(
                f"its convention has {field}={own!r}, and sinabs's importer makes a layer with {value!r} of it",
                node=name,
                remedy="Build that layer in sinabs.",
            )
    if here.integrator == "exact":
        raise UnsupportedError("its convention has integrator='exact', and sinabs takes whole steps", node=name)


def _steps(name: str, decay: np.ndarray, shape: Shape) -> np.ndarray:
    """tau in steps, whose exp(-1 / tau) is the decay."""
    decay = np.array(np.broadcast_to(decay, shape), np.float32)
    if not ((decay > 0) & (decay < 1)).all():
        raise UnsupportedError(
            f"it decays by {float(decay.min()):.6g} a step, and sinabs has exp(-1 / tau)",
            node=name,
            remedy="Use a dt below tau.",
        )
    return nearest_tau((-1.0 / np.log(decay.astype(np.float64))).astype(np.float32), decay, 1.0)


def _one(name: str, field: str, values: np.ndarray) -> np.ndarray:
    """One number for all neurons of a map, where the importer cannot ask whether all of several are 0."""
    if not np.all(values == values.flat[0]):
        raise UnsupportedError(
            f"{field} differs between neurons of a map, and sinabs's importer fails on that",
            node=name,
            remedy="Use one value a layer.",
        )
    return np.array([values.flat[0]], values.dtype)


def _diagonal(name: str, gain: np.ndarray) -> nir.NIRNode:
    """A layer that multiplies each neuron, or each channel of a map, by a number."""
    if gain.ndim == 1:
        return make_node(nir.Affine, weight=np.diag(gain), bias=np.zeros_like(gain))
    flat = gain.reshape(gain.shape[0], -1)
    if gain.ndim != 3 or not np.all(flat == flat[:, :1]):
        raise UnsupportedError(
            "it scales neurons of a map differently, and sinabs's importer has no layer for that",
            node=name,
            remedy="Use one factor a channel.",
        )
    weight = np.diag(flat[:, 0])[:, :, None, None]
    return _convolution(weight, gain.shape)


def _convolution(weight: np.ndarray, shape: Shape, stride: Shape = (1, 1), padding: Shape = (0, 0)) -> nir.NIRNode:
    return make_node(
        nir.Conv2d,
        input_shape=shape[1:],
        weight=np.ascontiguousarray(weight, np.float32),
        stride=stride,
        padding=padding,
        dilation=(1, 1),
        groups=1,
        bias=np.zeros(weight.shape[0], np.float32),
    )


def _pool(node: nir.NIRNode, shape: Shape) -> nir.NIRNode:
    """A pool as a convolution: the importer knows no AvgPool2d, and no padding of a SumPool2d."""
    kernel = pair(node.kernel_size)
    each = 1.0 if isinstance(node, nir.SumPool2d) else 1.0 / (kernel[0] * kernel[1])
    weight = np.eye(shape[0])[:, :, None, None] * np.full(kernel, each)
    return _convolution(weight, shape, pair(node.stride), pair(node.padding))


def _ungrouped(name: str, node: nir.Conv2d) -> nir.NIRNode:
    """A convolution without groups, which the importer counts channels wrongly for, and with padding in numbers."""
    options = conv2d_options(node, name)
    groups, weight = int(options["groups"]), np.asarray(node.weight, np.float32)
    out, per_group = weight.shape[:2]
    whole = np.zeros((out, per_group * groups, *weight.shape[2:]), np.float32)
    for group, rows in enumerate(np.split(np.arange(out), groups)):
        whole[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    bias = np.array(np.broadcast_to(np.asarray(node.bias, np.float32), (out,)))
    values = {**parameters(node), **options, "groups": 1, "weight": whole, "bias": bias}
    return make_node(nir.Conv2d, **values)
