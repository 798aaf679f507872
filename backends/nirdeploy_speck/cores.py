"""What runs on the chip: cores with their integers, and where each sends its events.

A Network has layers as the graph has them. A ChipProgram has cores: a layer may be split over several by output
channels, and several sources may share a core's input channels, side by side (`feature_shift`) or added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import PlacementError
from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy_speck.dvs import DvsLayer
from nirdeploy_speck.layers import Layer, Map, Network
from nirdeploy_speck.network import lowered

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
        spread: features of the chip a channel takes: its channel o is feature o * spread, those between never fire.
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
    spread: int = 1

    @property
    def features(self) -> int:
        """Features of the chip that its channels take."""
        return (self.output_shape[0] - 1) * self.spread + 1


@dataclass(frozen=True)
class ChipProgram:
    """Everything a chip is told.

    Attributes:
        cores: in an order in which events only go forward.
        entry: where the Input's events go: those of `Network.events` or, singly, of `Network.addresses`.
        input_map: (channel, y, x) of these events.
        layers: population -> positions of the cores that hold it, by channel.
        outputs: Output -> population it reads.
        dvs: the layer before the cores, where something is left to it; otherwise the host writes to the cores.
        readout: options of the readout behind a population, where it is in use (`readout.readout_options`).
    """

    cores: tuple[ChipCore, ...]
    entry: tuple[Destination, ...]
    input_map: Map
    layers: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, str]
    dvs: DvsLayer | None = None
    readout: Mapping[str, Any] | None = None


def chip_program(quantized: Quantized, placement: Placement, network: Network | None = None) -> ChipProgram:
    """The cores of a placed network.

    Args:
        quantized: its integers.
        placement: its cores.
        network: `lowered(quantized, placement)`, where it is there already: it takes longer than a run.

    Raises:
        QuantizationError: the graph is not one that can have been quantised for this chip.
        PlacementError: the placement is not one of this network.
    """
    network = lowered(quantized, placement) if network is None else network
    readout = placement.options.get("readout")
    parts = {layer.name: _parts(layer, placement) for layer in network.layers}
    layers: dict[str, tuple[int, ...]] = {}
    for name, found in parts.items():
        first = sum(len(positions) for positions in layers.values())
        layers[name] = tuple(range(first, first + len(found)))
    cores = [core for layer in network.layers for core in _cores(layer, network, quantized, parts, layers, readout)]
    return ChipProgram(
        cores=tuple(cores),
        entry=_destinations(network.input_name, 0, network, layers),
        input_map=network.input_map,
        layers=layers,
        outputs=network.outputs,
        dvs=network.dvs,
        readout=readout,
    )


def _parts(layer: Layer, placement: Placement) -> list[tuple[int, int, int]]:
    """Core, first channel and end of every part of a layer; without slices it is whole, on one core."""
    channels, height, width = layer.output_shape
    area = height * width
    cores = placement.cores.get(layer.name, ())
    slices = placement.slices.get(layer.name) or ((0, channels * area),)
    edges = [0, *(last for _, last in slices)]
    whole = all(first == edge for (first, _), edge in zip(slices, edges, strict=False))
    if len(cores) != len(slices) or not whole or edges[-1] != channels * area or any(edge % area for edge in edges):
        raise PlacementError(
            f"cores {list(cores)} with the neurons {[list(s) for s in slices]} are not whole channels of "
            f"{layer.output_shape} (channel, y, x)",
            node=layer.name,
            remedy="Place it again.",
        )
    return [(core, a // area, b // area) for core, (a, b) in zip(cores, slices, strict=True)]


def _cores(
    layer: Layer,
    network: Network,
    quantized: Quantized,
    parts: Mapping[str, list[tuple[int, int, int]]],
    layers: Mapping[str, tuple[int, ...]],
    readout: Mapping[str, Any] | None,
) -> Iterator[ChipCore]:
    (weight, bias), neuron = layer.integers(quantized), quantized[layer.name]
    _, height, width = layer.output_shape
    for number, first, end in parts[layer.name]:
        yield ChipCore(
            number=number,
            layer=layer.name,
            first=first,
            weight=weight[first:end],
            bias=None if bias is None else bias[first:end],
            stride=layer.stride,
            padding=layer.padding,
            input_shape=layer.input_shape,
            output_shape=(end - first, height, width),
            threshold=neuron.threshold,
            v_min=neuron.v_min,
            subtract=neuron.reset == "subtract",
            many=neuron.many,
            scale=neuron.scale,
            destinations=_destinations(layer.name, first, network, layers),
            spread=readout["spread"] if readout is not None and readout["node"] == layer.name else 1,
        )


def _destinations(
    source: str, first: int, network: Network, layers: Mapping[str, tuple[int, ...]]
) -> tuple[Destination, ...]:
    """Every part of every layer that reads a source; `first` is the first channel of the part that sends."""
    return tuple(
        Destination(position, feed.pool, feed.shift + first)
        for layer in network.layers
        for feed in layer.feeds
        if feed.source == source
        for position in layers[layer.name]
    )
