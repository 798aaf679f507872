"""What runs on the chip: cores with their integers, and where each sends its events.

A Network has layers as the graph has them. A ChipProgram has cores: a layer may be split over several by output
channels, and several sources may share a core's input channels, side by side (`feature_shift`) or added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy_speck.network import Map, lowered

__all__ = ["ChipCore", "ChipProgram", "Destination", "chip_program"]


@dataclass(frozen=True)
class Destination:
    """Where events go.

    Attributes:
        core: position in `ChipProgram.cores` (not the number of the core on the chip).
        pooling: side of the window events are summed over; coordinates are divided by it.
        feature_shift: what is added to the event's channel.
    """

    core: int
    pooling: int = 1
    feature_shift: int = 0


@dataclass(frozen=True)
class ChipCore:
    """One core.

    Attributes:
        number: of the core on the chip.
        layer: population node.
        first: the first of the population's channels that it holds.
        weight: int8 values [out, in, y, x].
        bias: int16 values [out], or None.
        stride, padding: (y, x).
        input_shape: (channel, y, x) of the events it gets.
        output_shape: (channel, y, x) of its neurons, before pooling.
        threshold: int16, at least 1.
        v_min: int16, at most -1.
        subtract: reset by subtracting the threshold instead of to 0.
        many: whether a neuron may fire several times a step in step mode.
        scale: model units that an integer stands for.
        destinations: at most two.
    """

    number: int
    layer: str
    first: int
    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_shape: Map
    output_shape: Map
    threshold: int
    v_min: int
    subtract: bool
    many: bool
    scale: float
    destinations: tuple[Destination, ...]


@dataclass(frozen=True)
class ChipProgram:
    """Everything a chip is told.

    Attributes:
        cores: in an order in which events only go forward.
        entry: where the Input's events go.
        input_map: (channel, y, x) of the Input's events.
        layers: population -> positions of the cores that hold it, by channel.
        outputs: Output -> population it reads.
    """

    cores: tuple[ChipCore, ...]
    entry: tuple[Destination, ...]
    input_map: Map
    layers: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, str]


def chip_program(quantized: Quantized, placement: Placement) -> ChipProgram:
    """The cores of a placed network.

    Raises:
        QuantizationError: the graph is not one that can have been quantised for this chip.
    """
    network = lowered(quantized)
    position = {layer.name: n for n, layer in enumerate(network.layers)}
    cores = []
    for layer in network.layers:
        weight, neuron = quantized[layer.weight_node], quantized[layer.name]
        cores.append(
            ChipCore(
                number=placement.cores[layer.name][0],
                layer=layer.name,
                first=0,
                weight=weight.weight.reshape(layer.weight.shape),
                bias=weight.bias,
                stride=layer.stride,
                padding=layer.padding,
                input_shape=layer.input_shape,
                output_shape=layer.output_shape,
                threshold=neuron.threshold,
                v_min=neuron.v_min,
                subtract=neuron.reset == "subtract",
                many=neuron.many,
                scale=neuron.scale,
                destinations=_destinations(layer.name, network.layers, position),
            )
        )
    entry = _destinations(network.input_name, network.layers, position)
    layers = {name: (n,) for name, n in position.items()}
    return ChipProgram(tuple(cores), entry, network.input_map, layers, network.outputs)


def _destinations(source: str, layers: tuple[Any, ...], position: Mapping[str, int]) -> tuple[Destination, ...]:
    return tuple(
        Destination(position[layer.name], feed.pool)
        for layer in layers
        for feed in layer.feeds
        if feed.source == source
    )
