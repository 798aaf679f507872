"""The rungs between a reference run and a Speck: conventions, integers, registers, events, sinabs, silicon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.comparison.ladder import Step, in_reference
from nirdeploy.errors import UnsupportedError
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import Trajectory

__all__ = ["chip_convention", "integer_graph", "ladder_steps"]


def ladder_steps(quantized: Quantized, placement: Placement) -> Sequence[Step]:
    """Convention, integers, registers, order of events, sinabs and the chip, each on top of the one before.

    Sinabs stands before the order of events: it works in steps, as 'integer states' does, and must equal it.
    """
    from nirdeploy_speck import emulator, samna_runner, simulator

    plain: dict[str, Any] = {"record": ("spikes", "v_mem"), "nodes": None, "options": {}}

    def emulated(mode: str) -> Any:
        return lambda raster: emulator.run(quantized, placement, raster, on="emulator", mode=mode, **plain)

    converted = in_reference(quantized.graph, chip_convention(quantized))
    return (
        Step("chip convention", "threshold inclusive, v bounded below", converted),
        Step("quantised parameters", "integer weights, thresholds and bounds", lambda x: _integers(quantized, x)),
        Step("integer states", "registers of whole numbers, of any size", emulated("step")),
        Step(
            "sinabs",
            "sinabs's own arithmetic",
            lambda x: simulator.run(quantized, placement, x, mode="step", **plain),
        ),
        Step("event order", "v is compared, and held to 16 bits, after every event", emulated("event")),
        Step("chip", "silicon", lambda x: samna_runner.run(quantized, placement, x, mode="event", **plain)),
    )


def chip_convention(quantized: Quantized) -> Convention:
    """What the chip does of a convention's choices: inclusive crossing, and a lower bound of v at every population."""
    used = quantized.convention
    overrides = {name: dict(values) for name, values in used.overrides.items()}
    for name, neuron in quantized.layers.items():
        if isinstance(neuron, QuantizedNeuron) and neuron.v_min is not None:
            overrides.setdefault(name, {}).update(crossing="inclusive", v_min=neuron.v_min * neuron.scale)
    return replace(used, crossing="inclusive", overrides=overrides)


def integer_graph(quantized: Quantized) -> tuple[nir.NIRGraph, Convention]:
    """The graph with its integers as float parameters, and the convention that runs it.

    Sums stay exact in float32 below 2**24. Records of it are in integers of v.

    Raises:
        UnsupportedError: a node whose integers are not there under its own name and in its own shape.
    """
    overrides = {name: dict(values) for name, values in chip_convention(quantized).overrides.items()}
    nodes = {}
    for name, node in quantized.graph.nodes.items():
        kind = graphs.type_name(node)
        if kind in ("Affine", "Conv1d", "Conv2d", "Linear"):
            nodes[name] = _weighted(quantized, name, node)
        elif kind == "AvgPool2d":  # its factor is inside the next integers
            values = {k: getattr(node, k) for k in ("kernel_size", "stride", "padding")}
            nodes[name] = graphs.make_node(nir.SumPool2d, **values)
        elif graphs.is_neuron(node):
            neuron = quantized[name]
            ones = np.ones(np.asarray(node.v_threshold).shape)
            nodes[name] = graphs.make_node(
                nir.IF, r=ones, v_threshold=neuron.threshold * ones, v_reset=np.zeros_like(ones)
            )
            overrides.setdefault(name, {})["v_min"] = float(neuron.v_min)
        else:
            nodes[name] = node
    graph = graphs.make_graph(nodes, list(quantized.graph.edges))
    changed = replace(
        quantized.convention,
        crossing="inclusive",
        if_gain="r",
        gain="euler",
        use_r=True,
        v_unit="model",
        v_start="zero",
        overrides=overrides,
    )
    return graph, changed


def _weighted(quantized: Quantized, name: str, node: nir.NIRNode) -> nir.NIRNode:
    integers = cast("QuantizedWeight | None", quantized.layers.get(name))
    if integers is None or integers.weight.shape != np.asarray(node.weight).shape:
        raise UnsupportedError("its integers are not its own, so the reference cannot run them", node=name)
    values = dict(graphs.parameters(node))
    values["weight"] = integers.weight.astype(np.float64)
    own = integers.bias
    if own is not None and graphs.type_name(node) == "Linear":
        return graphs.make_node(nir.Affine, weight=values["weight"], bias=own.astype(np.float64))
    if graphs.type_name(node) != "Linear":
        values["bias"] = np.zeros(len(integers.weight)) if own is None else own.astype(np.float64)
    return graphs.make_node(type(node), **values)


def _integers(quantized: Quantized, raster: Any) -> Trajectory:
    found = in_reference(*integer_graph(quantized))(raster)
    records = {
        key: replace(record, scale=quantized[record.node].scale) if key[1] == "v_mem" else record
        for key, record in found.records.items()
    }
    return replace(found, records=records)
