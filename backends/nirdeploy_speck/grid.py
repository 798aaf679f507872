"""Values that a layer's parameters have on DYNAP-CNN: chosen before training, and read off again after it.

What is trained lies on a grid: integers times one step a layer. The quantiser 'exact' finds the step in the values
alone, as the largest number that all of them are multiples of, so nothing but the graph need be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.multiples import as_integers, common_step, magnitudes
from nirdeploy.quantization import Grid, Quantized, TrainingGrid, require_bits
from nirdeploy.reference.convention import Convention
from nirdeploy.target import Target
from nirdeploy_speck.calibrate import calibrated, integers_at
from nirdeploy_speck.emulator import Core
from nirdeploy_speck.layers import Layer, log2_ceil
from nirdeploy_speck.network import Network, lower
from nirdeploy_speck.quantize import layer_core, sinabs_scale

__all__ = ["differing", "exact_integers", "training_grid"]

_FLOAT_BITS = 24  # of a float32: an integer times a step of 8 bits is exact up to 2**16, every value of a register
_STEP_BITS = 8


def training_grid(
    graph: nir.NIRGraph, target: Target, convention: Convention, *, weight_bits: int | None, calibration: Any
) -> TrainingGrid:
    """The values that parameters may have: weights of `weight_bits`, biases of 16 bits, thresholds and bounds.

    The step of a layer is the one that quantisation after training would take: with calibration data the calibrated
    quantiser's, with its threshold and lower bound; without, the one at which the largest weight fills its bits. It is
    rounded up to at most 8 significant bits. Where the graph fires above its threshold, it is trained to fire from the
    chip's threshold on, which is what the chip does.

    Args:
        graph: a graph the target's rules accept.
        target: the chip.
        convention: what the graph is run with.
        weight_bits: bits of a weight, 2 to 8; None: 8.
        calibration: raster [step, batch, ...], or None.

    Raises:
        QuantizationError: bits the chip does not have, an input gain or pooling factor that is no power of 2, weights
            that several populations share, all weights of a layer zero.
    """
    bits = 8 if weight_bits is None else weight_bits
    require_bits(bits)
    network, found = lower(graph, convention)
    if network is None:
        raise QuantizationError(f"{target.name} cannot hold this graph: {found[0]}")
    _require_own_weights(network)
    if calibration is None:
        cores = {layer.name: _filled(layer, bits) for layer in network.layers}
    else:
        cores = calibrated(graph, network, convention, calibration, [], bits)
    trained: dict[str, Mapping[str, Grid]] = {}
    fixed: dict[str, Mapping[str, float]] = {}
    bounds: dict[str, dict[str, Any]] = {name: dict(own) for name, own in convention.overrides.items()}
    for layer in network.layers:
        core = cores[layer.name]
        step = _rounded_up(core.scale, layer, bits)
        trained.update(_of_weights(layer, step, bits))
        fixed[layer.name] = {"v_threshold": core.threshold * step}
        if layer.convention.crossing == "strict":  # the chip compares with >=, and subtracts what it compares with
            bounds.setdefault(layer.name, {})["crossing"] = "inclusive"
        if layer.convention.v_min != "-threshold":  # without one, v ends where its register does
            bounds.setdefault(layer.name, {})["v_min"] = core.v_min * step
    return TrainingGrid(trained, fixed, replace(convention, overrides=bounds))


def _filled(layer: Layer, bits: int) -> Core:
    """The integers at the scale at which the largest weight just fills its bits."""
    scale = float(sinabs_scale(layer.weight, bits))
    if not math.isfinite(scale):
        raise QuantizationError("all weights are zero", node=layer.weight_node, remedy="Remove the layer.")
    return integers_at(layer, scale, bits)


def _rounded_up(step: float, layer: Layer, bits: int) -> float:
    """The next number of few significant bits; up, so that no integer grows.

    At most 8, and so few that the largest sum of a step, all inputs firing once, added to v of 16 bits is still exact
    in float32, in whatever order it is added up.
    """
    most = (1 << 15) + (int(np.prod(layer.weight.shape[1:])) << (bits - 1))
    kept = max(1, min(_STEP_BITS, _FLOAT_BITS - log2_ceil(most)))
    mantissa, exponent = math.frexp(step)
    return math.ldexp(math.ceil(math.ldexp(mantissa, kept)), exponent - kept)


def _of_weights(layer: Layer, step: float, bits: int) -> dict[str, dict[str, Grid]]:
    """Grids of the weight nodes of a layer, in the nodes' own units, before input gain and pooling factor."""
    found: dict[str, dict[str, Grid]] = {}
    factors = {feed.weight_node: feed.rescale for feed in layer.feeds}
    for inlet in layer.inlets:
        for what, factor in (("input gain", layer.gain), ("pooling factor", factors[inlet.node])):
            if abs(math.frexp(float(np.float32(factor)))[0]) != 0.5 or factor < 0:
                raise QuantizationError(
                    f"its {what} is {factor:.6g}, no power of 2: integers times a step are not exact behind it",
                    node=inlet.node if what == "pooling factor" else layer.name,
                    remedy="Use SumPool2d, or average pools of 2 or 4."
                    if what == "pooling factor"
                    else "Fold it into the weights and use r = 1, with the convention's if_gain='r'.",
                )
        gain = float(np.float32(layer.gain))
        own = step / gain
        found[inlet.node] = {"weight": Grid(own / factors[inlet.node], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)}
        if inlet.bias.any():
            share = 32767 // len(layer.inlets)  # biases of several nodes add up in one register
            found[inlet.node]["bias"] = Grid(own, -share, share)
    return found


def _require_own_weights(network: Network) -> None:
    seen: dict[str, str] = {}
    for layer in network.layers:
        for inlet in layer.inlets:
            if inlet.node in seen:
                raise QuantizationError(
                    f"its weights are read by {seen[inlet.node]!r} and {layer.name!r}, which have scales of their own",
                    node=inlet.node,
                    remedy="Give each population weights of its own.",
                )
            seen[inlet.node] = layer.name


# ---------------------------------------------------------------- back to integers


def exact_integers(layer: Layer, weight_bits: int) -> Core:
    """The integers that a layer's values already are, in lowest terms, times one number.

    Raises:
        QuantizationError: they are not, or the integers do not fit the registers; naming the node and the value.
    """
    strict = layer.convention.crossing == "strict"
    if strict and (layer.convention.reset == "subtract" or layer.convention.spikes_per_step == "many"):
        raise QuantizationError(
            "quantizer 'exact': it fires above its threshold and subtracts it; the chip fires from a threshold on that "
            "is 1 larger, and would subtract that",
            node=layer.name,
            remedy="Train with quantization_aware, or use crossing='inclusive'.",
        )
    named = {layer.weight_node: layer.weight, layer.name: np.array([layer.threshold], np.float32)}
    others = [value for value in (layer.bias, layer.v_min) if value is not None]
    found = [magnitudes(value, node) for node, value in named.items()]
    step = common_step(chain(*found, *(magnitudes(value, layer.name) for value in others)))
    if step is None or not layer.weight.any():
        raise QuantizationError("all weights are zero", node=layer.weight_node, remedy="Remove the layer.")
    scale = float(step)
    weight = as_integers(layer.weight, scale)
    bias = None if layer.bias is None else as_integers(layer.bias, scale)
    threshold = int(as_integers(np.array([layer.threshold]), scale)[0]) + strict
    v_min = -32768 if layer.v_min is None else int(as_integers(np.array([layer.v_min]), scale)[0])
    _require("weight", weight, -(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1, layer.weight_node)
    if bias is not None:
        _require("bias", bias, -32768, 32767, layer.weight_node)
    _require("threshold", np.array([threshold]), 1, 32767, layer.name)
    _require("v_min", np.array([v_min]), -32768, -1, layer.name)
    return layer_core(layer, weight, bias, threshold, v_min, scale)


def differing(quantized: Quantized, integers: Mapping[str, Mapping[str, NDArray[np.int64]]]) -> str | None:
    """The first weight node whose integers are not those simulated, or all those of a layer divided by one number.

    Args:
        quantized: what 'exact' makes of the trained graph: integers in lowest terms.
        integers: weight node -> 'weight' or 'bias' -> the integers simulated.
    """
    for node, own in integers.items():
        found = quantized[node]
        weight, bias = own["weight"], own.get("bias")
        most = np.unravel_index(np.abs(found.weight).argmax(), found.weight.shape)
        times, rest = divmod(int(weight.reshape(found.weight.shape)[most]), int(found.weight[most]) or 1)
        same = not rest and np.array_equal(found.weight * times, weight.reshape(found.weight.shape))
        if bias is not None:
            given = np.zeros_like(bias) if found.bias is None else found.bias.reshape(bias.shape)
            same = same and np.array_equal(given * times, bias)
        if not same:
            return node
    return None


def _require(what: str, integers: NDArray[np.int64], lowest: int, highest: int, node: str) -> None:
    smallest, largest = int(integers.min()), int(integers.max())
    if smallest < lowest or largest > highest:
        raise QuantizationError(
            f"quantizer 'exact': as integers times one number, {what} goes from {smallest} to {largest}, the register "
            f"holds {lowest} to {highest}",
            node=node,
            remedy="Use quantizer='calibrated', or train with quantization_aware.",
        )
