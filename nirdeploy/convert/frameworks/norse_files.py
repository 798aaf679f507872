"""Files that Norse writes (norse 1.1.0, utils/export_nir.py).

The exporter writes dt / tau_inv for a time constant, which is the time constant times its dt; the batch of its sample
as an axis of Input and Output; one number for all neurons; and neither v_reset nor the reset method.
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.convert.frameworks.framework import Repair
from nirdeploy.errors import GraphError, UnsupportedError
from nirdeploy.nodes import make_graph, make_node, parameters

__all__ = ["repair"]

_DT = 1e-3  # of to_nir, unless it is told another
_LONGEST = 1.0  # seconds: a longer time constant means that the file was written with another dt


def repair(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, tuple[Repair, ...]]:
    """What a file of `norse.torch.to_nir` stands for, run with dt=1e-3 under the preset 'norse'.

    Raises:
        UnsupportedError: a time constant that was not written with dt=1e-3; naming the node.
    """
    graph, repairs = _without_batch(graph)
    shapes = graphs.shapes(graph)
    nodes: dict[str, nir.NIRNode] = {}
    for name, node in graph.nodes.items():
        nodes[name], found = _repaired(name, node, shapes[name].input if name in shapes else None)
        repairs += [Repair(name, text) for text in found]
    meta = dict(getattr(graph, "metadata", None) or {})
    return make_graph(nodes, list(graph.edges), meta), tuple(repairs)


def _without_batch(graph: nir.NIRGraph) -> tuple[nir.NIRGraph, list[Repair]]:
    """The first axis of Input and Output left out, where the layers agree with that."""
    nodes, repairs = dict(graph.nodes), []
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Input | nir.Output):
            port = "input" if isinstance(node, nir.Input) else "output"
            types: dict[str, Any] = getattr(node, f"{port}_type")
            shape = np.atleast_1d(np.asarray(types[port]))
            nodes[name] = make_node(type(node), **{f"{port}_type": {port: shape[1:]}})
            whole, one = tuple(shape.tolist()), tuple(shape[1:].tolist())
            repairs.append(Repair(name, f"the exporter counts the batch of its sample: {whole} is one of {one}"))
    without = make_graph(nodes, list(graph.edges), dict(getattr(graph, "metadata", None) or {}))
    try:
        graphs.shapes(without)
    except GraphError:
        return graph, []
    return without, repairs


def _repaired(name: str, node: nir.NIRNode, shape: tuple[int, ...] | None) -> tuple[nir.NIRNode, list[str]]:
    if not isinstance(node, nir.IF | nir.LIF | nir.LI | nir.CubaLIF):
        return node, []
    found, values = [], dict(parameters(node))
    for key in ("tau", "tau_mem", "tau_syn"):
        if key in values:
            values[key] = _seconds(name, key, np.asarray(values[key]))
            found.append(f"the exporter multiplied {key} by its dt: it is divided by {_DT:g}, the default")
    if isinstance(node, nir.CubaLIF):
        values["w_in"] = values["tau_syn"] / _DT
        found.append(
            f"an input adds 1 to the current in Norse, which the exporter leaves out: w_in is tau_syn / {_DT:g}"
        )
    if graphs.is_neuron(node):
        found.append("the exporter leaves out v_reset and the reset method: v is set to 0 after a spike")
    if shape is not None and any(np.shape(value) != shape for value in values.values()):
        values = {key: np.array(np.broadcast_to(value, shape), copy=True) for key, value in values.items()}
        found.append(f"the exporter writes one number for all neurons: each of {shape} gets it")
    return make_node(type(node), **values), found


def _seconds(name: str, key: str, written: np.ndarray) -> np.ndarray:
    seconds: np.ndarray = (written.astype(np.float64) / _DT).astype(written.dtype)
    if not (seconds <= _LONGEST).all():
        raise UnsupportedError(
            f"{key} is {written.max():g}, which divided by the exporter's dt of {_DT:g} is {seconds.max():g} s: the "
            "file was written with another dt, which it does not tell",
            node=name,
            remedy="Export it with dt=1e-3, or convert the network itself by torch_to_nir.",
        )
    return seconds
