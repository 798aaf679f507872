"""A population in float, ready to be scaled to integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import QuantizationError
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_loihi.dynamics import Dynamics, Numbers, dynamics
from nirdeploy_loihi.linear import bias_of, float_weight
from nirdeploy_loihi.network import Connection, Layer

__all__ = ["Problem", "of_outputs", "problem_of", "scales_behind"]

Floats = NDArray[np.float64]
_LEAST = 1e-300  # weights below have no finite scale


@dataclass(frozen=True, eq=False)
class Problem:
    """One population in float.

    Attributes:
        layer: the population.
        step: its coefficients.
        inclusive: whether it fires at the threshold itself.
        weights: of each connection, gain and pool factors included.
        constants: of each constant current, gain included, one a neuron, flat.
        bias: input gain times bias plus leak, added to v each step; the shape of the population.
        node_biases: own bias of a weight node times the gain, by node.
        table: limits of the target.
        weight_bits: bits of a weight of its connections.
    """

    layer: Layer
    step: Dynamics
    inclusive: bool
    weights: tuple[Floats, ...]
    constants: tuple[Floats, ...]
    bias: Floats
    node_biases: Mapping[str, Floats]
    table: Mapping[str, Any]
    weight_bits: int = 8

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of its integers in `Quantized`."""
        return tuple(dict.fromkeys((self.layer.name, *self.sources)))

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys of what feeds it: connections, then constants."""
        return (*(c.name for c in self.layer.connections), *(c.name for c in self.layer.constants))


def problem_of(
    graph: nir.NIRGraph,
    layer: Layer,
    convention: Convention,
    target: Target,
    weights: Sequence[Floats] | None = None,
    *,
    weight_bits: int = 8,
) -> Problem:
    """A population in float.

    Args:
        graph: the graph.
        layer: the population.
        convention: what the graph is run with.
        target: the chip.
        weights: `float_weight` of its connections, where they are known.
        weight_bits: bits of a weight, 2 to 8.

    Raises:
        QuantizationError: a connection whose weights are all zero, or numbers that are finite only one by one.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        known = [float_weight(graph, connection) for connection in layer.connections] if weights is None else weights
        found = replace(_problem(graph, layer, convention, target, known), weight_bits=weight_bits)
    step = found.step
    others = (step.loss_u, step.loss_v, step.v_start, step.offset, found.bias, *found.constants)
    numbers = (
        all(np.isfinite(values).all() for values in (*found.weights, *others)) and not np.isnan(step.threshold).any()
    )
    if not numbers or any(np.abs(weight).max() < _LEAST for weight in found.weights):
        raise QuantizationError(
            "its parameters times its weights are beyond what 64-bit floats hold",
            node=layer.name,
            remedy="Rescale the network.",
        )
    return found


def _problem(
    graph: nir.NIRGraph, layer: Layer, convention: Convention, target: Target, known: Sequence[Floats]
) -> Problem:
    node = graph.nodes[layer.name]
    step = dynamics(layer.name, node, convention)
    weights = []
    for connection, values in zip(layer.connections, known, strict=True):
        weight = values * of_outputs(step.gain, connection, values.ndim)
        if not np.any(weight):
            raise QuantizationError(
                f"all weights from {connection.source!r} are 0", node=connection.name, remedy="Remove the connection."
            )
        weights.append(weight)
    used = convention.for_node(layer.name, graphs.type_name(node))
    return Problem(
        layer=layer,
        step=step,
        inclusive=used.crossing == "inclusive",
        weights=tuple(weights),
        constants=tuple(_full(step.gain * constant.value, layer.shape).reshape(-1) for constant in layer.constants),
        bias=_full(step.gain * layer.bias + step.leak, layer.shape),
        node_biases=_node_biases(graph, layer, step),
        table=target.table,
    )


def _full(values: Any, shape: tuple[int, ...]) -> Floats:
    found: Floats = np.broadcast_to(np.asarray(values, dtype=np.float64), shape)
    return found


def of_outputs(values: Numbers, connection: Connection, ndim: int) -> Numbers:
    """Values of the target's neurons along the first axis of a connection's weights.

    Those of a kept kernel are equal within an output channel: lowering keeps the kernel only then.
    """
    if isinstance(values, float):
        return values
    flat = _full(values, connection.target_shape).reshape(-1)
    if connection.kernel is not None:
        flat = flat.reshape(connection.kernel.shape[0], -1)[:, 0]
    return flat.reshape(-1, *[1] * (ndim - 1))


def _node_biases(graph: nir.NIRGraph, layer: Layer, step: Dynamics) -> dict[str, Floats]:
    """Own biases of kept weight nodes, and of a composed chain that of the population; none where axons carry them."""
    found: dict[str, Floats] = {}
    for connection in layer.connections if not layer.constants else ():
        own = bias_of(graph.nodes[connection.name]) if connection.name in graph.nodes else None
        kernel = connection.kernel
        if kernel is not None and kernel.node == connection.name and own is not None:
            found[connection.name] = own * scales_behind(graph, connection) * of_outputs(step.gain, connection, 1)
        elif kernel is None and len(layer.connections) == 1:
            found[connection.name] = _full(step.gain * layer.bias, layer.shape).reshape(-1)
    return found


def scales_behind(graph: nir.NIRGraph, connection: Connection) -> Numbers:
    """Product of the scales behind a kept kernel, one an output."""
    total: Numbers = 1.0
    at = connection.stages.index(connection.kernel) if connection.kernel is not None else 0
    for stage in connection.stages[at:]:
        if stage.kind == "scale":
            values = np.asarray(graph.nodes[stage.node].scale, dtype=np.float64)
            total = total * of_outputs(float(values.flat[0]) if values.size == 1 else values, connection, 1)
    return total
