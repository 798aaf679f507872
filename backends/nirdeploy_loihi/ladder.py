"""The rungs between a reference run and a Loihi: convention, integers, registers, Lava, silicon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.comparison.ladder import Step, in_reference
from nirdeploy.errors import UnsupportedError
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Record, Trajectory
from nirdeploy_loihi.float_nodes import register_node
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Connection, Layer
from nirdeploy_loihi.program import SYNAPSE_SHIFT

__all__ = ["chip_convention", "integer_graph", "ladder_steps"]


def ladder_steps(quantized: Quantized, placement: Placement) -> Sequence[Step]:
    """Convention, integer parameters, integer states, Lava and the chip, each on top of the one before."""
    from nirdeploy_loihi import BACKEND

    def on(where: str, record: tuple[str, ...] = ("spikes", "v_mem")) -> Any:
        return lambda raster: BACKEND.run(quantized, placement, raster, on=where, mode=None, record=record, nodes=None)

    converted = in_reference(quantized.graph, chip_convention(quantized))
    return (
        Step("chip convention", "threshold strict, reset to v_reset or zero", converted),
        Step("quantised parameters", "integer weights, thresholds, decays", lambda x: _integers(quantized, x)),
        Step("integer states", "rounding of u and v, biases from the chip's first step", on("emulator")),
        Step("lava", "Lava's own arithmetic", on("simulator")),
        Step("chip", "silicon", on("chip", ("spikes",))),
    )


def chip_convention(quantized: Quantized) -> Convention:
    """What the chip does of a convention's choices: it compares strictly."""
    used = quantized.convention
    overrides = {
        key: {field: value for field, value in fields.items() if field != "crossing"}
        for key, fields in used.overrides.items()
    }
    return replace(used, crossing="strict", overrides=overrides)


# ---------------------------------------------------------------- integers as float parameters


def integer_graph(quantized: Quantized) -> tuple[nir.NIRGraph, Convention]:
    """The graph with its integers as float parameters, in units of a weight's integer, and its convention.

    Raises:
        UnsupportedError: integers that no node of the graph holds by itself: a composed chain, a kernel that several
            connections share with different integers, currents of always-on axons that differ within a channel, or v
            that does not start at 0.
    """
    convention = quantized.convention
    dt = convention.dt or 1e-3
    nodes = {name: _plain_node(node) for name, node in quantized.graph.nodes.items()}
    for layer in lower(quantized.graph, convention).layers:
        neuron = cast("QuantizedNeuron", quantized[layer.name])
        if np.any(neuron.v_start):
            raise UnsupportedError("its v does not start at 0", node=layer.name)
        for connection in layer.connections:
            nodes[connection.name] = _weighted(quantized, connection, nodes)
        for constant in layer.constants:
            if constant.start != layer.lag - 1:
                raise UnsupportedError("a constant current starts later than the graph", node=layer.name)
            currents = cast("QuantizedWeight", quantized[constant.name]).weight.sum(axis=1)
            _add_currents(quantized.graph, layer, currents.astype(np.float64), nodes)
        leak = np.zeros(1) if neuron.bias is None else (neuron.bias << neuron.bias_exponent) / (1 << SYNAPSE_SHIFT)
        if leak.any() and np.any(np.asarray(neuron.decay_v) == 0):  # nothing leaks: it is a current
            _add_currents(quantized.graph, layer, np.broadcast_to(leak, layer.shape).reshape(-1), nodes)
            leak = np.zeros(1)
        threshold = np.asarray(neuron.threshold) / (1 << SYNAPSE_SHIFT)
        nodes[layer.name] = register_node(
            neuron.decay_u, neuron.decay_v, threshold, leak, layer.shape, dt, fires=neuron.fires
        )
    changed = Convention(
        dt=dt,
        reset="zero",
        if_gain="r_dt",
        population_delay=convention.population_delay,
        feedback_start=convention.feedback_start,
        feedback_edges=convention.feedback_edges,
    )
    return graphs.make_graph(nodes, list(quantized.graph.edges)), changed


def _plain_node(node: nir.NIRNode) -> nir.NIRNode:
    """Pools that add, scales of one: their factors are inside the integers."""
    kind = graphs.type_name(node)
    if kind == "AvgPool2d":
        values = {key: getattr(node, key) for key in ("kernel_size", "stride", "padding")}
        return graphs.make_node(nir.SumPool2d, **values)
    if kind == "Scale":
        return graphs.make_node(nir.Scale, scale=np.ones_like(np.asarray(node.scale, dtype=np.float64)))
    return node


def _weighted(quantized: Quantized, connection: Connection, nodes: dict[str, nir.NIRNode]) -> nir.NIRNode:
    node = quantized.graph.nodes.get(connection.name)
    kernel = connection.kernel
    if node is None or kernel is None or kernel.node != connection.name or kernel.kind == "pool":
        if kernel is not None and kernel.kind == "pool" and node is not None:
            integers = cast("QuantizedWeight", quantized[connection.name]).weight
            if (integers == 1).all():
                return nodes[connection.name]
        raise UnsupportedError("its integers are those of a chain, not of a node", node=connection.name)
    integers = cast("QuantizedWeight", quantized[connection.name]).weight
    values = dict(graphs.parameters(node))
    values["weight"] = integers.astype(np.float64)
    # what biases bring is in the bias registers, or in always-on axons
    if "bias" in values:
        values["bias"] = np.zeros(len(integers))
    return graphs.make_node(type(node), **values)


def _add_currents(
    graph: nir.NIRGraph, layer: Layer, currents: NDArray[np.float64], nodes: dict[str, nir.NIRNode]
) -> None:
    """Put constant currents, one a neuron, into the bias of weights that lead here without a delay behind them."""
    if not currents.any():
        return
    for connection in layer.connections:
        kernel = connection.kernel
        if kernel is None or connection.source == layer.name or kernel.kind == "pool":
            continue
        rows = currents.reshape(kernel.shape[0], -1)
        if (rows != rows[:, :1]).any() or not _direct(graph, kernel.node, layer.name):
            continue
        node = nodes[connection.name]
        bias = np.zeros(len(rows)) if isinstance(node, nir.Linear) else np.asarray(node.bias, dtype=np.float64)
        values = {**graphs.parameters(node), "bias": bias + rows[:, 0]}
        kind = nir.Affine if isinstance(node, nir.Linear) else type(node)
        nodes[connection.name] = graphs.make_node(kind, **values)
        return
    raise UnsupportedError("its constant currents are those of no node's bias", node=layer.name)


def _direct(graph: nir.NIRGraph, name: str, target: str) -> bool:
    """Whether a chain leads from a node to a population alone, without a Delay."""
    after = graphs.successors(graph)
    while name != target:
        if len(after[name]) != 1 or graphs.type_name(graph.nodes[name]) == "Delay":
            return False
        name = after[name][0]
    return True


def _integers(quantized: Quantized, raster: Any) -> Trajectory:
    found = in_reference(*integer_graph(quantized))(raster)
    shown = {name: path.source for name in found.output_names for path in [_feeding(quantized.graph, name)]}
    records = {
        key: _in_model_units(quantized, record, shown.get(record.node, record.node))
        for key, record in found.records.items()
    }
    return replace(found, records=records)


def _feeding(graph: nir.NIRGraph, output: str) -> graphs.Path:
    return next(p.paths[0] for p in graphs.populations(graph, integrators=True) if p.name == output)


def _in_model_units(quantized: Quantized, record: Record, source: str) -> Record:
    neuron = cast("QuantizedNeuron", quantized[source])
    voltage = record.variable == "v_mem" or (record.variable == "output" and not neuron.fires)
    if not voltage:
        return record
    return replace(record, scale=neuron.scale * (1 << SYNAPSE_SHIFT), offset=neuron.offset)
