"""The network a lava-dl file builds up, layer after layer, and its populations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import PlacementError, QuantizationError
from nirdeploy.quantization import QuantizedNeuron, QuantizedWeight
from nirdeploy.rules import Finding
from nirdeploy_loihi.float_nodes import register_node
from nirdeploy_loihi.netx_fields import DECAY, NEURON_FIELDS, THRESHOLD, Layer, Shape, neuron_group, register_field
from nirdeploy_loihi.program import SYNAPSE_SHIFT

__all__ = ["DT", "Chain"]

Integers = NDArray[np.int64]
DT = 1e-3
_USUAL = {"refDelay": 1, "gradedSpike": 0, "wgtExp": 0}  # netx reads none of them


@dataclass
class Chain:
    """The network so far.

    Attributes:
        shape: at its end.
        capacity: neurons the chip has.
        nodes: of the graph.
        edges: of the graph.
        integers: of the nodes.
        findings: what is worth a warning.
        last: node at its end.
    """

    shape: Shape
    capacity: int
    nodes: dict[str, nir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    integers: dict[str, QuantizedWeight | QuantizedNeuron] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    last: str = "input"

    def append(self, name: str, node: nir.NIRNode, shape: Shape) -> None:
        """Add a node at the end."""
        self.nodes[name] = node
        self.edges.append((self.last, name))
        self.last, self.shape = name, shape

    def weigh(self, name: str, node: nir.NIRNode, shape: Shape, weight: Integers, bias: Integers | None = None) -> None:
        """Add a node with weights at the end."""
        self.append(name, node, shape)
        self.integers[name] = QuantizedWeight(weight, bias, 1.0)

    def delay(self, name: str, steps: Integers, size: int) -> None:
        """Add a Delay of `size` neurons at the end, one number of steps for all or one a neuron."""
        seconds = np.broadcast_to(steps.reshape(-1) * DT, (size,)).copy()
        self.append(name, graphs.make_node(nir.Delay, delay=seconds), (size,))

    def warn(self, code: str, node: str, problem: str, remedy: str) -> None:
        """Add a warning."""
        self.findings.append(Finding(code, node, problem, remedy, severity="warning"))

    def require_room(self, group: str, shape: Shape) -> None:
        """Refuse a layer larger than the chip before anything of its size is made."""
        if math.prod(shape) > self.capacity:
            raise PlacementError(f"layer {group} has {math.prod(shape)} neurons, the chip {self.capacity}")

    def populate(self, layer: Layer, group: str, bias: Integers | None, in_synapse: bool) -> None:
        """Add the population of a layer at the end; `in_synapse`: the weight node already holds its bias."""
        values = neuron_group(layer, group)
        decay_u, decay_v = (register_field(values, name, group, DECAY) for name in ("iDecay", "vDecay"))
        threshold = register_field(values, "vThMant", group, THRESHOLD)
        if threshold == 0:
            raise QuantizationError(
                f"layer {group} has vThMant 0, on which the smallest v above 0 spikes", remedy="Use 1 or more."
            )
        name, shape = f"{group}.neuron", self.shape
        for option, usual in _USUAL.items():
            if option in values and np.any(np.asarray(values[option]) != usual):
                self.warn("ignored", name, f"{option} is {values[option]}, which netx ignores", f"Use {usual}.")
        for option in sorted(set(values) - NEURON_FIELDS):
            self.warn("ignored", name, f"layer {group} neuron has {option!r}, which netx ignores", "Check the export.")
        leak = np.zeros(shape) if bias is None or in_synapse else bias.astype(np.float64)
        self.append(name, register_node(decay_u, decay_v, threshold, leak, shape, DT), shape)
        self.integers[name] = QuantizedNeuron(
            threshold=threshold << SYNAPSE_SHIFT,
            v_min=None,
            scale=1.0 / (1 << SYNAPSE_SHIFT),
            decay_v=decay_v,
            decay_u=decay_u,
            bias=bias,
            bias_exponent=SYNAPSE_SHIFT if bias is not None else 0,  # netx hdf5.py: bias_exp = 6
            mantissa=threshold,
            exponent=SYNAPSE_SHIFT,
        )
