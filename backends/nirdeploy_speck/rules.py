"""What a DYNAP-CNN chip says about a graph: each limit of its table, each difference of its neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nir
import numpy as np

from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_speck.network import Layer, Network, lower

__all__ = ["RULES", "findings"]

Rule = Callable[[Layer, Network, Target], Iterator[Finding]]


def findings(graph: nir.NIRGraph, target: Target, convention: Convention) -> list[Finding]:
    """Everything the target cannot hold or computes differently."""
    network, found = lower(graph, convention)
    if network is not None:
        for layer in network.layers:
            for rule in RULES:
                found.extend(rule(layer, network, target))
        found.extend(_too_many(network, target))
    return found


def _limit(target: Target, name: str) -> Any:
    return target.table["limits"][name]


def kernel_size(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Kernels are square, 1 to 16 (DS 2.4)."""
    height, width = layer.weight.shape[2:]
    limit = _limit(target, "kernel_size")
    if height != width:
        yield Finding(
            "kernel_square",
            layer.weight_node,
            f"kernel {height}x{width} is not square",
            "Pad the kernel with zeros to a square, or make the map before a matrix square.",
            value=[height, width],
        )
    if max(height, width) > limit:
        yield Finding(
            "kernel_size",
            layer.weight_node,
            f"kernel {height}x{width} exceeds {limit}",
            "Use a smaller kernel, or pool before the matrix.",
            value=max(height, width),
            limit=limit,
        )


def stride(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Strides are 1, 2, 4 or 8 per axis (DS 2.4)."""
    allowed = list(_limit(target, "strides"))
    for value in layer.stride:
        if value not in allowed:
            yield Finding(
                "stride",
                layer.weight_node,
                f"stride {value} is not one of {allowed}",
                "Use another stride.",
                value=value,
                limit=allowed,
            )


def padding(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Padding is 0 to 7 per axis (DS 2.4)."""
    limit = _limit(target, "padding")
    if max(layer.padding) > limit:
        yield Finding(
            "padding",
            layer.weight_node,
            f"padding {layer.padding} exceeds {limit}",
            "Pad less.",
            value=max(layer.padding),
            limit=limit,
        )


def sizes(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Input maps up to 128x128, output maps up to 64x64, 1024 features (DS 2.4)."""
    for what, shape, key in (
        ("input", layer.input_shape, "input_size"),
        ("output", layer.output_shape, "output_size"),
    ):
        limit = _limit(target, key)
        if max(shape[1:]) > limit:
            yield Finding(
                key,
                layer.weight_node,
                f"{what} map {shape[1]}x{shape[2]} exceeds {limit}x{limit}",
                "Use a stride, pooling or a smaller map.",
                value=max(shape[1:]),
                limit=limit,
            )
        features = _limit(target, "features")
        if shape[0] > features:
            yield Finding(
                "features",
                layer.weight_node,
                f"{shape[0]} {what} features exceed {features}",
                "Use fewer channels.",
                value=shape[0],
                limit=features,
            )


def pooling(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Sum pooling of a destination is 1, 2 or 4; odd rows are dropped in the model, open on the chip."""
    allowed = list(_limit(target, "pooling"))
    for feed in layer.feeds:
        node = feed.nodes[0] if feed.nodes else layer.weight_node
        if feed.pool not in allowed:
            yield Finding(
                "pooling",
                node,
                f"pooling by {feed.pool} is not one of {allowed}",
                "Pool by 2 or 4.",
                value=feed.pool,
                limit=allowed,
            )
        source = next((other for other in network.layers if other.name == feed.source), None)
        if source is not None and any(n % feed.pool for n in source.output_shape[1:]):
            yield Finding(
                "pooling_remainder",
                node,
                f"a {source.output_shape[1]}x{source.output_shape[2]} map is not divisible by {feed.pool}; what the "
                "chip does with the last row is not documented",
                "Choose a map that is divisible.",
            )


def destinations(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """A core sends to at most two destinations; an Output reads by monitor and takes none (DS 2.4)."""
    fed = [(other.name, feed) for other in network.layers for feed in other.feeds if feed.source == layer.name]
    limit = _limit(target, "destinations")
    if len(fed) > limit:
        yield Finding(
            "destinations",
            layer.name,
            f"feeds {len(fed)} layers ({', '.join(name for name, _ in fed)}), at most {limit}",
            "Split the population, or feed fewer layers.",
            value=len(fed),
            limit=limit,
        )


def memory(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Every layer fits at least one core by itself."""
    cores = target.table["cores"]
    have = {
        "kernel_memory": [1024 * k for k in cores["kernel_memory_ki"]],
        "neuron_memory": [1024 * n for n in cores["neuron_memory_ki"]],
        "bias_memory": list(cores["bias_memory"]),
    }
    need = layer.memory
    if any(all(need[name] <= have[name][core] for name in have) for core in range(len(have["kernel_memory"]))):
        return
    for name, amounts in have.items():
        if need[name] > max(amounts):
            yield Finding(
                name,
                layer.weight_node,
                f"needs {need[name]} words of {name.replace('_', ' ')}, the largest core has {max(amounts)}",
                "Use fewer channels or a smaller kernel or map.",
                value=need[name],
                limit=max(amounts),
            )
    if all(need[name] <= max(amounts) for name, amounts in have.items()):
        figures = ", ".join(f"{need[name]} {name.replace('_', ' ')}" for name in have)
        yield Finding(
            "memory",
            layer.weight_node,
            f"needs {figures}: no one core has all of it",
            "Use fewer channels or a smaller map.",
        )


def leak(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """A bias is added by the slow clock, once a cycle, not once a step (DS 3.2.6)."""
    if layer.bias is not None:
        yield Finding(
            "bias",
            layer.weight_node,
            "the chip adds a bias once per slow-clock cycle, and only while a slow clock runs",
            "Train without bias, or set the slow clock to one cycle a step.",
            severity="warning",
        )


def many_spikes(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """The chip works event by event: a step of the model is not a moment of the chip."""
    if layer.convention.crossing == "strict":
        yield Finding(
            "crossing",
            layer.name,
            "the chip fires at v >= threshold, this convention at v > threshold; 'calibrated' accounts for it, 'max' "
            "rounds the threshold",
            "Nothing, with quantizer='calibrated'.",
            severity="warning",
        )
    if layer.v_min is None:
        yield Finding(
            "v_min",
            layer.name,
            "v has no lower bound here; on the chip it is bounded by 16 bits",
            "Give the convention a v_min if the network was trained with one.",
            severity="warning",
        )


def lower_bound(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """A lower bound of v lies below rest and threshold; the register holds -1 and less (erratum, DS 3.2.4.6.3)."""
    if layer.v_min is None:
        return
    bound, threshold = float(layer.v_min), float(layer.threshold)
    if bound > 0 or not np.isfinite(bound):
        yield Finding(
            "v_min",
            layer.name,
            f"v_min is {bound:.4g} (v_threshold {threshold:.4g}), the chip starts at v = 0 and holds negative, finite "
            "bounds",
            "Use v_min=None, '-threshold' or a negative bound.",
            value=bound,
            limit=0,
        )
        return
    # integers a model unit can become at most: weights fill 8 bits, the threshold 16
    largest = float(np.abs(layer.weight).max())
    scale = min(128 / largest if largest else np.inf, 32767 / threshold)
    if bound * scale >= -0.5:
        yield Finding(
            "v_min",
            layer.name,
            f"v_min {bound:.4g} rounds to 0, the chip needs <= -1 (erratum, DS 3.2.4.6.3): it becomes -1, which is "
            f"{-1 / scale:.4g} or less here; quantizer 'max' refuses it",
            "Use a v_min that is at least one integer below 0.",
            severity="warning",
            value=bound,
            limit=-1,
        )


def _too_many(network: Network, target: Target) -> Iterator[Finding]:
    cores = len(target.table["cores"]["kernel_memory_ki"])
    if len(network.layers) > cores:
        yield Finding(
            "cores",
            network.layers[cores].name,
            f"{len(network.layers)} layers, the chip has {cores} cores",
            "Use fewer layers.",
            value=len(network.layers),
            limit=cores,
        )


RULES: tuple[Rule, ...] = (
    kernel_size,
    stride,
    padding,
    sizes,
    pooling,
    destinations,
    memory,
    leak,
    many_spikes,
    lower_bound,
)
