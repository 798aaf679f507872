"""Integers for DYNAP-CNN: sinabs's rule, and one that fits them to data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import QuantizationError
from nirdeploy.exact import round_half_even, saturate
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, best
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_speck.emulator import Cores, layer_input, run_layer
from nirdeploy_speck.network import Layer, Network, lower

__all__ = ["Integers", "quantize", "sinabs_integers", "sinabs_scale"]

# how far below and above the scale that just fills 8 bits the search looks; above 1 the largest weights saturate
_SCALES = (1.0, 0.98, 0.95, 0.92, 0.89, 0.86, 0.83, 0.8, 0.75, 0.7, 0.6, 1.05, 1.1, 1.2)
_THRESHOLDS = (0, 1, -1, 2, -2)


@dataclass(frozen=True)
class Integers:
    """What one core is given: weight int8 [out, in, y, x], bias int16 [out] or None, thresholds int16."""

    weight: NDArray[np.int64]
    bias: NDArray[np.int64] | None
    threshold: int
    v_min: int
    scale: float


def quantize(
    graph: nir.NIRGraph,
    target: Target,
    convention: Convention,
    *,
    quantizer: str,
    calibration: Any,
) -> Quantized:
    """Integers of every layer.

    Args:
        graph: a graph the target's rules accept.
        target: the chip.
        convention: what the graph is run with.
        quantizer: 'max' (sinabs's rule) or 'calibrated'.
        calibration: raster [step, batch, ...] for 'calibrated'.

    Raises:
        QuantizationError: no scale fits the registers.
    """
    network, found = lower(graph, convention)
    if network is None:
        raise QuantizationError(f"{target.name} cannot hold this graph: {found[0]}")
    notes: list[str] = []
    by_max = {layer.name: sinabs_integers(layer, notes) for layer in network.layers}
    chosen: Mapping[str, Integers] = by_max
    if quantizer == "calibrated":
        notes.clear()
        chosen = _calibrated(graph, network, convention, calibration, by_max, notes)
    layers: dict[str, QuantizedWeight | QuantizedNeuron] = {}
    for layer in network.layers:
        layers.update(_as_layers(graph, layer, chosen[layer.name]))
    return Quantized(graph, target, convention, quantizer, layers, tuple(notes))


def _as_layers(graph: nir.NIRGraph, layer: Layer, integers: Integers) -> dict[str, QuantizedWeight | QuantizedNeuron]:
    shape = graph.nodes[layer.weight_node].weight.shape
    here = layer.convention
    return {
        layer.weight_node: QuantizedWeight(integers.weight.reshape(shape), integers.bias, integers.scale),
        layer.name: QuantizedNeuron(
            threshold=integers.threshold,
            v_min=integers.v_min,
            scale=integers.scale,
            reset="subtract" if here.reset == "subtract" else "zero",
            many=here.spikes_per_step == "many",
        ),
    }


# ---------------------------------------------------------------- sinabs's rule


def sinabs_scale(values: NDArray[np.float32], bits: int) -> np.float32:
    """Largest factor that keeps float32 values in signed integers of `bits` bits (sinabs discretize.py).

    With lo = -2**(bits-1) and hi = 2**(bits-1) - 1: |hi / max| where |min| <= |max| |lo| / hi, else |lo / min|.
    All-zero values give infinity.
    """
    lo, hi = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    smallest, largest = np.float32(values.min()), np.float32(values.max())
    with np.errstate(divide="ignore"):
        if abs(smallest) <= abs(largest) * np.float32(abs(lo) / hi):
            return np.float32(abs(np.float32(hi) / largest))
        return np.float32(abs(np.float32(lo) / smallest))


def sinabs_integers(layer: Layer, notes: list[str]) -> Integers:
    """sinabs 3.1.3's integers in its own float32 arithmetic, its traps included; each one met is noted.

    One scale for weights (8 bits), bias (8 bits) and thresholds (16 bits): the smallest of the three; a missing
    lower bound counts as -32768.

    Raises:
        QuantizationError: all weights are zero.
    """
    low = np.float32(-32768.0) if layer.v_min is None else layer.v_min
    thresholds = np.array([low, layer.threshold], dtype=np.float32)
    by_weight = sinabs_scale(layer.weight, 8)
    scales = [by_weight, sinabs_scale(thresholds, 16)]
    if layer.bias is not None:
        scales.append(sinabs_scale(layer.bias, 8))
    scale = min(scales)
    if not np.isfinite(by_weight):
        raise QuantizationError("all weights are zero", node=layer.weight_node, remedy="Remove the layer.")
    weight = round_half_even(layer.weight * scale)
    bias = None if layer.bias is None else round_half_even(layer.bias * scale)
    v_min, threshold = (int(v) for v in round_half_even(thresholds * scale))
    if layer.v_min is None:
        notes.append(
            f"{layer.name}: no lower bound of v, so 'max' scales by {scale:.3g} and weights become at most "
            f"{int(np.abs(weight).max())}; use quantizer='calibrated'"
        )
    elif layer.bias is not None and scale < by_weight:
        notes.append(
            f"{layer.name}: the bias, held to 8 bits by 'max', limits weights to {int(np.abs(weight).max())} of 127"
        )
    if threshold < 1 or v_min > -1:
        raise QuantizationError(
            f"quantizer 'max' rounds the thresholds to {threshold} and {v_min}; the chip needs >= 1 and <= -1",
            node=layer.name,
            remedy="Use quantizer='calibrated'.",
        )
    return Integers(weight, bias, threshold, v_min, float(1.0 / scale))


# ---------------------------------------------------------------- calibrated


def _calibrated(
    graph: nir.NIRGraph,
    network: Network,
    convention: Convention,
    raster: NDArray[Any],
    by_max: Mapping[str, Integers],
    notes: list[str],
) -> Mapping[str, Integers]:
    """Layer by layer the integers whose spikes differ least from the reference's on the calibration data.

    Each layer is fed by the quantised layers before it. All of it is replaced by 'max' should that agree better.
    """
    from nirdeploy.reference.executor import run

    reference = run(graph, raster, convention=convention, record=("spikes",))
    wanted = {layer.name: np.asarray(reference[layer.name, "spikes"].data) for layer in network.layers}
    chosen: dict[str, Integers] = {}
    differing: dict[str, dict[str, int]] = {"calibrated": {}, "max": {}}
    produced: dict[str, NDArray[Any]] = {network.input_name: raster}
    from_max: dict[str, NDArray[Any]] = {network.input_name: raster}
    for layer in network.layers:
        target = wanted[layer.name].reshape(*raster.shape[:2], *layer.output_shape)
        x = layer_input(layer, produced)

        def cost(integers: Integers, layer: Layer = layer, x: Any = x, target: Any = target) -> int:
            return int(np.abs(run_layer(layer, Cores.of(layer, integers), x).spikes - target).sum())

        chosen[layer.name], left = best(_candidates(layer, by_max[layer.name]), cost)
        differing["calibrated"][layer.name] = int(left)
        produced[layer.name] = run_layer(layer, Cores.of(layer, chosen[layer.name]), x).spikes
        plain = run_layer(layer, Cores.of(layer, by_max[layer.name]), layer_input(layer, from_max)).spikes
        from_max[layer.name] = plain
        differing["max"][layer.name] = int(np.abs(plain - target).sum())
    totals = {name: sum(found.values()) for name, found in differing.items()}
    notes.append(
        f"on the calibration data {totals['calibrated']} spikes differ from the reference "
        f"({totals['max']} with quantizer='max')"
    )
    if totals["max"] < totals["calibrated"]:
        notes.append("the integers of 'max' agree better and were taken")
        return by_max
    return chosen


def _candidates(layer: Layer, by_max: Integers) -> Iterator[Integers]:
    full = float(sinabs_scale(layer.weight, 8))
    strict = layer.convention.crossing == "strict"
    for factor in _SCALES:
        scale = full * factor
        if layer.bias is not None:
            scale = min(scale, 32767 / float(np.abs(layer.bias).max()))
        scale = min(scale, 32766 / float(layer.threshold))
        if layer.v_min is not None:
            scale = min(scale, 32768 / max(float(-layer.v_min), 1e-30))
        # in integers, above x is from floor(x) + 1 on, and not below x is from ceil(x) on
        exact = float(layer.threshold) * scale
        middle = int(np.floor(exact)) + 1 if strict else int(np.ceil(exact))
        v_min = -32768 if layer.v_min is None else int(round_half_even(float(layer.v_min) * scale))
        weight = saturate(round_half_even(layer.weight.astype(np.float64) * scale), 8)
        bias = None if layer.bias is None else saturate(round_half_even(layer.bias.astype(np.float64) * scale), 16)
        for offset in _THRESHOLDS:
            threshold = min(max(1, middle + offset), 32767)
            yield Integers(weight, bias, threshold, max(min(-1, v_min), -32768), 1.0 / scale)
    yield by_max


def integers_of(layer: Layer, quantized: Mapping[str, Any]) -> Integers:
    """The integers of one layer out of a `Quantized`."""
    weight, neuron = quantized[layer.weight_node], quantized[layer.name]
    kernel = weight.weight.reshape(layer.weight.shape)
    return Integers(kernel, weight.bias, neuron.threshold, neuron.v_min, neuron.scale)


def lowered(quantized: Quantized) -> Network:
    """The layers of a quantised graph.

    Raises:
        QuantizationError: the graph is not one that can have been quantised for this chip.
    """
    network, found = lower(graphs.copy_graph(quantized.graph), quantized.convention)
    if network is None:
        raise QuantizationError(f"{quantized.target.name} cannot hold this graph: {found[0]}")
    return network
