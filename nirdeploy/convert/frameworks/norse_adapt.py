"""Files that Norse reads (norse 1.1.0, utils/import_nir.py).

The importer makes LIFBoxCell of LIF, IAFCell of IF, and LIBoxCell and LIFBoxCell of CubaLIF, all of which reset to 0.
It ignores r of LIF and IF, lets the synapse of CubaLIF leak to v_leak, and leaves out what it does not know.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.convert.frameworks.norse_order import in_nirtorchs_order
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.nodes import make_graph, make_node, parameters, type_name
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.neurons import IF, LIF, CubaLIF
from nirdeploy.reference.presets import convention as preset
from nirdeploy.schedule import Schedule, dotted, schedule

__all__ = ["adapt"]

_POPULATIONS: tuple[tuple[type[nir.NIRNode], Any], ...] = ((nir.CubaLIF, CubaLIF), (nir.LIF, LIF), (nir.IF, IF))


def adapt(graph: nir.NIRGraph, convention: Convention | None) -> nir.NIRGraph:
    """The graph that `norse.torch.from_nir(..., dt=convention.dt)` makes the same network of, subgraphs dissolved.

    Decay and gain of each population, whatever the convention makes them, are written as the time constants and
    thresholds that forward Euler with r = 1 gives the same spikes for; the voltages of LIF and IF are then in units of
    their input gain.

    Raises:
        UnsupportedError: what the importer would make another network of; naming the node.
        ConventionError: no convention, or one without dt.
    """
    if convention is None or convention.dt is None:
        raise ConventionError(
            "a file for Norse needs a convention with dt", remedy="Pass convention=nd.convention('norse', dt=1e-3)."
        )
    _refuse_whole(graph, convention)
    plan = schedule(graph, convention.feedback_edges)
    shapes = graphs.shapes(graph)
    nodes = {
        dotted(path): _adapted(dotted(path), node, convention, shapes[dotted(path)].input)
        for path, node in plan.nodes.items()
    }
    edges = in_nirtorchs_order(plan)
    _check_feedback(plan, convention)
    found = make_graph(nodes, edges)
    return graphs.with_metadata(found, convention=preset("norse", dt=convention.dt).to_dict())


def _refuse_whole(graph: nir.NIRGraph, convention: Convention) -> None:
    for what, names in (("Inputs", graphs.input_names(graph)), ("Outputs", graphs.output_names(graph))):
        if len(names) > 1:
            raise UnsupportedError(
                f"one of {len(names)} {what}, and Norse's importer takes one", node=names[1], remedy="Split the graph."
            )
    if convention.population_delay:
        raise UnsupportedError(
            "population_delay=1: Norse's populations see their input in the same step",
            node=graphs.input_names(graph)[0],
            remedy="Write the delays' steps into the network, or use population_delay=0.",
        )


def _adapted(name: str, node: nir.NIRNode, convention: Convention, shape: tuple[int, ...]) -> nir.NIRNode:
    for kind, module in _POPULATIONS:
        if isinstance(node, kind):
            return _population(name, node, module, convention.for_node(name, type_name(node)), shape)
    if isinstance(node, nir.Flatten):
        return _flatten(node, shape)
    if isinstance(node, nir.Conv2d):
        return _conv2d(name, node, shape)
    if isinstance(node, nir.SumPool2d) and np.any(np.asarray(node.padding) != 0):
        raise UnsupportedError("Norse's importer leaves out its padding", node=name, remedy="Use padding 0.")
    if not isinstance(node, nir.Input | nir.Output | nir.Affine | nir.Linear | nir.SumPool2d):
        raise UnsupportedError(
            f"{type_name(node)} is left out by Norse's importer, which knows Affine, Linear, Conv2d, Flatten, "
            "SumPool2d, IF, LIF and CubaLIF",
            node=name,
            remedy="Use those, or fold it into the weights before it.",
        )
    return node


def _population(name: str, node: Any, module: Any, convention: Convention, shape: tuple[int, ...]) -> nir.NIRNode:
    """The node whose forward Euler, r left out and reset to 0, gives the same spikes.

    With v = d v + l + g x, reset to v_reset, and A = 1 - d, u = (v - v_reset) A / g follows u = (1 - A) u + A (x + e),
    e = (l - A v_reset) / g, is reset to 0, and crosses at (v_threshold - v_reset) A / g.
    """
    values = {key: np.broadcast_to(np.asarray(v, np.float64), shape) for key, v in parameters(node).items()}
    own = module(**values, convention=dataclasses.replace(convention, overrides={}))
    _check_fields(name, convention)
    reset = values["v_reset"] if convention.reset == "v_reset" else np.zeros(shape)
    _check_start(name, values, reset, convention)
    decay, gain, leak = (np.broadcast_to(_plain(value), shape) for value in own.membrane(name))
    threshold, synapse, dt = values["v_threshold"] - reset, own.synapse(name), float(convention.dt or 0.0)
    found: dict[str, Any] = {"r": 1.0, "v_reset": 0.0}
    if isinstance(node, nir.IF):
        _positive(name, gain)
        found["v_threshold"] = threshold / gain
    elif synapse is None:
        _positive(name, gain)
        rate = _rate(name, decay)
        found |= {"tau": dt / rate, "v_leak": (leak - rate * reset) / gain, "v_threshold": threshold * rate / gain}
    else:
        _no_leak(name, values["v_leak"] - reset)
        rate, of_synapse = _rate(name, decay), _rate(name, np.broadcast_to(_plain(synapse.decay), shape))
        found |= {"tau_mem": dt / rate, "tau_syn": dt / of_synapse, "v_leak": 0.0, "r": gain / rate}
        found |= {"w_in": _plain(synapse.gain) / of_synapse, "v_threshold": threshold}
    return make_node(type(node), **{k: np.array(np.broadcast_to(v, shape), np.float32) for k, v in found.items()})


def _largest(values: np.ndarray) -> float:
    return float(values.flat[np.argmax(np.abs(values))])


def _plain(value: Any) -> np.ndarray:
    return np.asarray(value if isinstance(value, float) else value.detach().numpy())


def _rate(name: str, decay: np.ndarray) -> np.ndarray:
    if not (decay < 1.0).all():
        raise UnsupportedError(
            f"decays by {decay.max():g} a step, and Norse has no neuron that leaks nothing but IAF",
            node=name,
            remedy="Use IF, or a finite time constant.",
        )
    return 1.0 - decay


def _positive(name: str, gain: np.ndarray) -> None:
    if not (gain > 0).all():
        raise UnsupportedError(
            f"its input gain is {gain.min():g}, and Norse's importer takes r as 1",
            node=name,
            remedy="Turn the sign of the weights before it.",
        )


def _no_leak(name: str, v_leak: np.ndarray) -> None:
    if np.any(v_leak != 0):
        raise UnsupportedError(
            f"v_leak is {_largest(v_leak):g} above the reset, and Norse's importer lets the synapse leak to it, too",
            node=name,
            remedy="Use v_leak 0 and a bias.",
        )


def _check_fields(name: str, convention: Convention) -> None:
    """Refuse what Norse's cells do otherwise.

    Raises:
        UnsupportedError: naming the field of the convention.
    """
    expected = {
        "crossing": "strict",
        "spikes_per_step": "one",
        "reset_time": "same_step",
        "fires": "after_update",
        "v_min": None,
    }
    for key, value in expected.items():
        if getattr(convention, key) != value:
            raise UnsupportedError(
                f"{key}={getattr(convention, key)!r}: the neurons that Norse's importer makes have {value!r}",
                node=name,
                remedy=f"Train with {key}={value!r}, or keep the network out of Norse.",
            )
    if convention.integrator == "exact" or convention.reset == "subtract":
        what = "integrator='exact'" if convention.integrator == "exact" else "reset='subtract'"
        raise UnsupportedError(
            f"{what}: a file cannot tell Norse's importer so, which makes neurons that reset to 0 after a step",
            node=name,
            remedy="Use a network that resets to a value.",
        )


def _check_start(name: str, values: dict[str, np.ndarray], reset: np.ndarray, convention: Convention) -> None:
    """Refuse a v at rest other than Norse's, which is v_leak, and for IF what it is reset to."""
    zero = np.zeros_like(reset)
    start, rest = values.get(convention.v_start, zero), values.get("v_leak", reset)
    if np.any(start != rest):
        where = int(np.argmax(np.abs(start - rest)))
        raise UnsupportedError(
            f"v starts at {start.flat[where]:g} (v_start={convention.v_start!r}), and in Norse at {rest.flat[where]:g}",
            node=name,
            remedy="Use v_start='v_leak', for IF 'v_reset'.",
        )


def _flatten(node: Any, shape: tuple[int, ...]) -> nir.NIRNode:
    """Dimensions counted from the end: the importer hands them to torch, which counts the batch as well."""
    start, end = int(node.start_dim), int(node.end_dim)
    return make_node(
        nir.Flatten,
        input_type={"input": np.array(shape)},
        start_dim=start - len(shape) if start >= 0 else start,
        end_dim=end - len(shape) if end >= 0 else end,
    )


def _conv2d(name: str, node: Any, shape: tuple[int, ...]) -> nir.NIRNode:
    """Groups written out as one matrix with zeros: the importer, and nir's own types, take them for one channel."""
    values = {**parameters(node), "input_shape": tuple(shape[1:])}
    groups, weight = int(node.groups), np.asarray(node.weight)
    if weight.shape[2] != weight.shape[3]:
        raise UnsupportedError(
            f"its kernel is {weight.shape[2:]}, and nir's reader works out the size of its output by the height alone",
            node=name,
            remedy="Use a square kernel.",
        )
    if groups > 1:
        outputs, per_group = weight.shape[0] // groups, weight.shape[1]
        whole = np.zeros((weight.shape[0], per_group * groups, *weight.shape[2:]), weight.dtype)
        for g in range(groups):
            rows = slice(g * outputs, (g + 1) * outputs)
            whole[rows, g * per_group : (g + 1) * per_group] = weight[rows]
        values |= {"weight": whole, "groups": 1}
    return make_node(nir.Conv2d, **values)


def _check_feedback(plan: Schedule, convention: Convention) -> None:
    """Refuse a loop that is not silent where Norse's is: before the second step."""
    if convention.feedback_start == "zero":
        return
    for source, _ in plan.feedback:
        node = plan.nodes[source]
        plain = isinstance(node, nir.Linear) or (isinstance(node, nir.Affine) and not np.any(node.bias))
        silent = plain and all(graphs.is_neuron(plan.nodes[before]) for before in plan.sources[source])
        if not (silent or graphs.is_neuron(node)):
            raise UnsupportedError(
                "what it feeds back acts from the first step (feedback_start='silence'), in Norse from the second",
                node=dotted(source),
                remedy="Use feedback_start='zero', or no bias there.",
            )
