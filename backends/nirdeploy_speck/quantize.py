"""Integers for DYNAP-CNN: sinabs's rule, and one that fits them to data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.exact import round_half_even, saturate
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight, best
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_speck.emulator import Core, layer_input, run_layer
from nirdeploy_speck.network import Layer, Network, lower

__all__ = ["quantize", "sinabs_integers", "sinabs_scale"]

# how far below and above the scale that just fills 8 bits the search looks; above 1 the largest weights saturate
_SCALES = (1.0, 0.98, 0.95, 0.92, 0.89, 0.86, 0.83, 0.8, 0.75, 0.7, 0.6, 1.05, 1.1, 1.2)
_THRESHOLDS = (0, 1, -1, 2, -2)


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
    if quantizer == "max":
        chosen = {layer.name: sinabs_integers(layer, notes) for layer in network.layers}
    else:
        chosen = _calibrated(graph, network, convention, network.events(calibration), calibration, notes)
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


def sinabs_integers(layer: Layer, notes: list[str]) -> Core:
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
    return _core(layer, weight, bias, threshold, v_min, float(1.0 / scale))


def _core(
    layer: Layer,
    weight: NDArray[np.int64],
    bias: NDArray[np.int64] | None,
    threshold: int,
    v_min: int,
    scale: float,
) -> Core:
    here = layer.convention
    subtract, many = here.reset == "subtract", here.spikes_per_step == "many"
    return Core(weight, bias, threshold, v_min, scale, subtract, many)


# ---------------------------------------------------------------- calibrated


def _calibrated(
    graph: nir.NIRGraph,
    network: Network,
    convention: Convention,
    raster: NDArray[Any],
    given: NDArray[Any],
    notes: list[str],
) -> dict[str, Core]:
    """Layer by layer the integers whose spikes differ least from the reference's on the calibration data.

    Each layer is fed by the quantised layers before it. All of it is replaced by 'max' should that agree better.
    """
    from nirdeploy.reference.executor import run

    reference = run(graph, given, convention=convention, record=("spikes",))
    wanted = {
        layer.name: np.asarray(reference[layer.name, "spikes"].data).reshape(*raster.shape[:2], *layer.output_shape)
        for layer in network.layers
    }
    by_max = _max_where_possible(network)
    chosen: dict[str, Core] = {}
    produced: dict[str, NDArray[Any]] = {network.input_name: raster}
    for layer in network.layers:
        x = layer_input(layer, produced)

        def cost(core: Core, layer: Layer = layer, x: NDArray[Any] = x) -> int:
            return _difference(run_layer(layer, core, x).spikes, wanted[layer.name])

        chosen[layer.name], _ = best(_candidates(layer, by_max.get(layer.name)), cost)
        produced[layer.name] = run_layer(layer, chosen[layer.name], x).spikes
    found = _disagreement(network, chosen, raster, wanted)
    total = sum(int(spikes.sum()) for spikes in wanted.values())
    note = f"on the calibration data {found} spikes differ from the reference's {total}"
    if len(by_max) == len(network.layers):
        plain = _disagreement(network, by_max, raster, wanted)
        note += f" ({plain} with quantizer='max')"
        if plain < found:
            chosen, note = by_max, note + "; those of 'max' were taken"
    notes.append(note)
    return chosen


def _max_where_possible(network: Network) -> dict[str, Core]:
    found = {}
    for layer in network.layers:
        try:
            found[layer.name] = sinabs_integers(layer, [])
        except QuantizationError:
            if not layer.weight.any():
                raise
    return found


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> int:
    return int(np.abs(found.astype(np.int64) - wanted).sum())


def _disagreement(
    network: Network, cores: Mapping[str, Core], raster: NDArray[Any], wanted: Mapping[str, NDArray[Any]]
) -> int:
    """Spikes by which all layers together, each fed by the one before, differ from the reference's."""
    produced: dict[str, NDArray[Any]] = {network.input_name: raster}
    for layer in network.layers:
        produced[layer.name] = run_layer(layer, cores[layer.name], layer_input(layer, produced)).spikes
    return sum(_difference(produced[name], spikes) for name, spikes in wanted.items())


def _candidates(layer: Layer, by_max: Core | None) -> Iterator[Core]:
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
            yield _core(layer, weight, bias, threshold, max(min(-1, v_min), -32768), 1.0 / scale)
    if by_max is not None:
        yield by_max
