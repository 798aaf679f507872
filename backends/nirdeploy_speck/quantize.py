"""Integers for DYNAP-CNN: sinabs's rule, and one that fits them to data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.exact import round_half_even
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, require_bits
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_speck.emulator import Core
from nirdeploy_speck.network import Layer, Network, lower

__all__ = ["layer_core", "quantize", "sinabs_integers", "sinabs_scale"]


def quantize(
    graph: nir.NIRGraph,
    target: Target,
    convention: Convention,
    *,
    quantizer: str,
    calibration: Any,
    weight_bits: int = 8,
) -> Quantized:
    """Integers of every layer.

    Args:
        graph: a graph the target's rules accept.
        target: the chip.
        convention: what the graph is run with.
        quantizer: 'max' (sinabs's rule), 'calibrated', or 'exact' (values that are integers times a number already).
        calibration: raster [step, batch, ...] for 'calibrated'.
        weight_bits: bits of a weight, 2 to the chip's 8.

    Raises:
        QuantizationError: no scale fits the registers.
    """
    require_bits(weight_bits)
    network, found = lower(graph, convention)
    if network is None:
        raise QuantizationError(f"{target.name} cannot hold this graph: {found[0]}")
    notes: list[str] = []
    if quantizer == "max":
        chosen = {layer.name: sinabs_integers(layer, notes, weight_bits) for layer in network.layers}
    elif quantizer == "exact":
        from nirdeploy_speck.grid import exact_integers

        chosen = {layer.name: exact_integers(layer, weight_bits) for layer in network.layers}
    else:
        from nirdeploy_speck.calibrate import calibrated

        chosen = calibrated(graph, network, convention, calibration, notes, weight_bits)
        notes.extend(_bound_notes(network, chosen))
    layers: dict[str, QuantizedWeight | QuantizedNeuron] = {}
    for layer in network.layers:
        layers.update(_as_layers(layer, chosen[layer.name]))
    return Quantized(graph, target, convention, quantizer, layers, tuple(notes))


def _bound_notes(network: Network, chosen: Mapping[str, Core]) -> Iterator[str]:
    """What became of lower bounds that round to 0, which the chip must not be given (DS 3.2.4.6.3)."""
    for layer in network.layers:
        core = chosen[layer.name]
        if layer.v_min is not None and float(layer.v_min) / core.scale >= -0.5:
            yield (
                f"{layer.name}: v_min {float(layer.v_min):.4g} rounds to 0, the chip needs <= -1: it becomes -1, "
                f"which is {-core.scale:.4g}"
            )


def _as_layers(layer: Layer, core: Core) -> dict[str, QuantizedWeight | QuantizedNeuron]:
    weights = layer.by_node(core.weight, core.bias, core.scale)
    return {
        **{node: QuantizedWeight(*integers, core.scale) for node, integers in weights.items()},
        layer.name: QuantizedNeuron(
            threshold=core.threshold,
            v_min=core.v_min,
            scale=core.scale,
            reset="subtract" if core.subtract else "zero",
            many=core.many,
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


def sinabs_integers(layer: Layer, notes: list[str], weight_bits: int = 8) -> Core:
    """sinabs 3.1.3's integers in its own float32 arithmetic, its traps included; each one met is noted.

    One scale for weights (8 bits), bias (8 bits) and thresholds (16 bits): the smallest of the three; a missing
    lower bound counts as -32768. Fewer bits a weight than sinabs's 8 are the same rule with theirs.

    Raises:
        QuantizationError: all weights are zero.
    """
    low = np.float32(-32768.0) if layer.v_min is None else layer.v_min
    thresholds = np.array([low, layer.threshold], dtype=np.float32)
    by_weight = sinabs_scale(layer.weight, weight_bits)
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
            f"{layer.name}: the bias, held to 8 bits by 'max', limits weights to {int(np.abs(weight).max())} of "
            f"{2 ** (weight_bits - 1) - 1}"
        )
    if threshold < 1 or v_min > -1:
        raise QuantizationError(
            f"quantizer 'max' rounds the thresholds to {threshold} and {v_min}; the chip needs >= 1 and <= -1",
            node=layer.name,
            remedy="Use quantizer='calibrated'.",
        )
    return layer_core(layer, weight, bias, threshold, v_min, float(1.0 / scale))


def layer_core(
    layer: Layer,
    weight: NDArray[np.int64],
    bias: NDArray[np.int64] | None,
    threshold: int,
    v_min: int,
    scale: float,
) -> Core:
    """Integers of a layer, with the reset and the spikes a step of its convention."""
    here = layer.convention
    subtract, many = here.reset == "subtract", here.spikes_per_step == "many"
    return Core(weight, bias, threshold, v_min, scale, subtract, many)
