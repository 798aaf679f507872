"""Layers as the graph has them: a population with all that feeds it, lowered to one square convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.exact import round_half_even
from nirdeploy.reference.convention import Convention
from nirdeploy_speck.dvs import DvsLayer

__all__ = ["Feed", "Inlet", "Layer", "Map", "Network", "log2_ceil", "memory_words"]

Map = tuple[int, int, int]


def log2_ceil(value: int) -> int:
    """ceil(log2(value)) of a positive integer."""
    return (value - 1).bit_length()


def memory_words(inputs: int, outputs: int, kernel: int, size: tuple[int, int], biased: bool) -> dict[str, int]:
    """Words taken of each memory of a core (sinabs dynapcnn_layer.py memory_summary; DS 3.2.4.1).

    kernel = inputs 2**(clog2(kernel**2) + clog2(outputs)); neuron = outputs 2**(clog2(y) + clog2(x)); bias = outputs.

    Args:
        inputs: channels of the events it gets.
        outputs: channels of its neurons.
        kernel: side of the square kernel.
        size: (y, x) of the neurons' map.
        biased: whether it has biases.
    """
    return {
        "kernel_memory": inputs << (log2_ceil(kernel * kernel) + log2_ceil(outputs)),
        "neuron_memory": outputs << (log2_ceil(size[0]) + log2_ceil(size[1])),
        "bias_memory": outputs if biased else 0,
    }


@dataclass(frozen=True)
class Feed:
    """Where a layer's events come from: a population or Input, pooled by summing on the way.

    Attributes:
        source: population or Input.
        pool: side of the pooling window, 1 for none; what is pooled behind the Input is the DVS layer's.
        rescale: factor on the layer's weights, 1/pool**2 for each average pooling.
        nodes: the pooling and flatten nodes on the way.
        shift: the first of the layer's input channels that these events go to.
        weight_node: the weights that they meet.
    """

    source: str
    pool: int
    rescale: float
    nodes: tuple[str, ...]
    shift: int = 0
    weight_node: str = ""


@dataclass(frozen=True)
class Inlet:
    """The weights of one node as a part of a layer's kernel.

    Attributes:
        node: convolution or matrix node.
        first: the first of the layer's input channels that they read.
        input_shape: (channel, y, x) of what they read.
        shape: [out, in, y, x] of these weights as a kernel.
        offset: (y, x) of their upper left corner in the square kernel, which is zero around them.
        node_shape: shape of the node's own weight.
        bias: float32 [out], input gain applied.
    """

    node: str
    first: int
    input_shape: Map
    shape: tuple[int, int, int, int]
    offset: tuple[int, int]
    node_shape: tuple[int, ...]
    bias: NDArray[np.float32]

    @property
    def place(self) -> tuple[slice, ...]:
        """Where they are in the layer's kernel."""
        (_, inputs, height, width), (y, x) = self.shape, self.offset
        return (slice(None), slice(self.first, self.first + inputs), slice(y, y + height), slice(x, x + width))


@dataclass(frozen=True)
class Layer:
    """One DYNAP-CNN layer: convolution, then a population.

    Attributes:
        name: population node.
        weight_node: convolution or matrix node; the first, where several add up.
        weight: float32 [out, in, y, x], input gain and rescaling applied; a matrix is a full-size kernel.
        bias: float32 [out], input gain applied, or None where all are zero.
        stride, padding: (y, x).
        input_shape: (channel, y, x) of the events that reach the core: the source core's map, pooled.
        output_shape: (channel, y, x) of the population on the core.
        node_shape: shape of the population in the graph.
        threshold: firing threshold, model units.
        v_min: lower bound of v, model units, or None.
        gain: input gain of the neuron, already in `weight` and `bias`.
        convention: what holds at this population.
        feeds: where events come from.
        inlets: the weight nodes, side by side in the input channels.
    """

    name: str
    weight_node: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_shape: Map
    output_shape: Map
    node_shape: tuple[int, ...]
    threshold: np.float32
    v_min: np.float32 | None
    gain: float
    convention: Convention
    feeds: tuple[Feed, ...]
    inlets: tuple[Inlet, ...]

    @property
    def memory(self) -> dict[str, int]:
        """Words taken of each memory of a core, were it all on one; `memory_words` has the equations."""
        return self.memory_of(self.output_shape[0])

    def memory_of(self, outputs: int) -> dict[str, int]:
        """Words taken by that many of its output channels."""
        return memory_words(
            self.input_shape[0], outputs, max(self.weight.shape[2:]), self.output_shape[1:], self.bias is not None
        )

    def inlet(self, feed: Feed) -> Inlet:
        """The weights that events of a feed meet."""
        return next(inlet for inlet in self.inlets if inlet.node == feed.weight_node)

    def integers(self, quantized: Mapping[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Kernel [out, in, y, x] and bias [out] out of the integers of the weight nodes; `by_node` is the inverse."""
        kernel = np.zeros(self.weight.shape, dtype=np.int64)
        biases = []
        for inlet in self.inlets:
            given = quantized[inlet.node]
            kernel[inlet.place] = given.weight.reshape(inlet.shape)
            if given.bias is not None:
                biases.append(np.asarray(given.bias, dtype=np.int64).reshape(-1))
        return kernel, sum(biases[1:], start=biases[0]) if biases else None

    def by_node(
        self, kernel: NDArray[np.int64], bias: NDArray[np.int64] | None, scale: float
    ) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64] | None]]:
        """Integers of each weight node, in its own shape, and of its bias; biases of several add up to `bias`.

        Args:
            kernel: integers [out, in, y, x].
            bias: integers [out], or None.
            scale: model units that an integer stands for.
        """
        found = {}
        rest = bias
        for inlet in reversed(self.inlets):
            own: NDArray[np.int64] | None = None
            if rest is not None and inlet is self.inlets[0]:
                own = rest
            elif rest is not None and inlet.bias.any():
                own = round_half_even(inlet.bias.astype(np.float64) / scale)
                rest = rest - own
            found[inlet.node] = kernel[inlet.place].reshape(inlet.node_shape), own
        return {inlet.node: found[inlet.node] for inlet in self.inlets}


@dataclass(frozen=True)
class Network:
    """Layers in execution order, and where the Outputs read.

    Attributes:
        layers: one a population.
        outputs: Output -> the population it reads.
        input_name: the Input.
        input_shape: shape of a raster: the Input's, or, where the DVS layer is set by options, what reaches that.
        input_map: its shape on the chip, behind the DVS layer.
        dvs: the DVS layer, where something is left to it.
    """

    layers: tuple[Layer, ...]
    outputs: Mapping[str, str]
    input_name: str
    input_shape: tuple[int, ...]
    input_map: Map
    dvs: DvsLayer | None = None

    def events(self, raster: NDArray[Any]) -> NDArray[Any]:
        """A raster [step, batch, ...] in `input_shape` as the events [step, batch, channel, y, x] that cores get."""
        if self.dvs is not None:
            return self.dvs.events(raster.reshape(*raster.shape[:2], *self.dvs.input_shape))
        return raster.reshape(*raster.shape[:2], *self.input_map)

    def addresses(
        self, address: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Single events, flat indices into `input_shape`: which reach cores, and channel, y and x of those that do."""
        if self.dvs is not None:
            return self.dvs.addresses(*np.unravel_index(address, self.dvs.input_shape))
        channel, y, x = np.unravel_index(address, self.input_map)
        return np.ones(np.shape(address), dtype=np.bool_), channel, y, x
