"""What a DYNAP-CNN chip says about a graph: each limit of its table, each difference of its neurons.

Here are the rules of single layers; those of the network as a whole are `network_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nir
import numpy as np

from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_speck.capacity import demands, memories, most_channels
from nirdeploy_speck.layers import Layer, Network
from nirdeploy_speck.network import draft
from nirdeploy_speck.network_rules import core_findings, destination_findings, dvs_findings, event_findings

__all__ = ["RULES", "findings"]

Rule = Callable[[Layer, Network, Target], Iterator[Finding]]


def findings(graph: nir.NIRGraph, target: Target, convention: Convention) -> list[Finding]:
    """Everything the target cannot hold or computes differently.

    Limits are checked for every layer that can be made out, also where others cannot.
    """
    network, found = draft(graph, convention)
    if network is not None:
        for layer in network.layers:
            for rule in RULES:
                found.extend(rule(layer, network, target))
        found.extend(dvs_findings(network, target))
        whole = not any(f.severity == "error" for f in found)
        found.extend(core_findings(network, target, whole))
        found.extend(event_findings(network))
    return found


def _limit(target: Target, name: str) -> Any:
    return target.table["limits"][name]


def kernel_size(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Kernels are square, 1 to 16 (DS 2.4); others were made square, with zeros, when they were lowered."""
    side = layer.weight.shape[2]
    limit = _limit(target, "kernel_size")
    if side > limit:
        shapes = [inlet.shape[2:] for inlet in layer.inlets]
        height, width = max(shapes, key=max)
        zeros = "" if max(height, width) == side else f" (as a square of {side}x{side})"
        yield Finding(
            "kernel_size",
            layer.weight_node,
            f"kernel {height}x{width}{zeros} exceeds {limit}x{limit}",
            "Use a smaller kernel, or pool before the matrix.",
            value=side,
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
        square = any(inlet.shape[2:] != layer.weight.shape[2:] for inlet in layer.inlets)
        zeros = f", which the square kernel of {layer.weight.shape[2]} needs," if square else ""
        yield Finding(
            "padding",
            layer.weight_node,
            f"padding {layer.padding}{zeros} exceeds {limit}",
            "Use a kernel or map whose sides differ less." if square else "Pad less.",
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
                value=list(source.output_shape[1:]),
                limit=feed.pool,
            )


def destinations(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """A core sends to at most two destinations; an Output reads by monitor and takes none (DS 2.4)."""
    yield from destination_findings(layer.name, network, _limit(target, "destinations"))


def memory(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Every layer fits one core, or several by output channels as far as its sources' destinations go (DS 3.2.4.1)."""
    demand = demands(network, target)[layer.name]
    available = memories(target)
    most = most_channels(demand, available)
    if most >= demand.outputs:
        return
    needs = layer.memory
    largest = {name: max(have[name] for have in available) for name in needs}
    count = min(demand.most_parts, len(available))
    split = (
        f"split over {count}, " if count > 1 else f"not to be split, as {demand.bound_by!r} has no destination left, "
    )
    remedy = (
        f"{split}at most {most} of its {demand.outputs} output channels fit: use fewer, or a smaller kernel or map."
        if most
        else "No output channel fits: use fewer inputs, a smaller kernel or a smaller map."
    )
    remedy = remedy[0].upper() + remedy[1:]
    over = [name for name in needs if needs[name] > largest[name]]
    for name in over:
        yield Finding(
            name,
            layer.weight_node,
            f"needs {needs[name]} words of {name.replace('_', ' ')}, the largest core "
            f"({next(c for c, have in enumerate(available) if have[name] == largest[name])}) has {largest[name]}",
            remedy,
            value=needs[name],
            limit=largest[name],
        )
    if not over:
        figures = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in needs.items())
        yield Finding("memory", layer.weight_node, f"needs {figures}: no one core has all of it", remedy)


def leak(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """A bias is added by the slow clock, once a cycle, not once a step (DS 3.2.6)."""
    if layer.bias is not None:
        yield Finding(
            "bias",
            layer.weight_node,
            "the chip adds a bias once per slow-clock cycle, and only while a slow clock runs",
            "Train without bias, or set the slow clock to one cycle a step.",
            severity="warning",
            value=int(np.count_nonzero(layer.bias)),
        )


def firing(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """The chip fires at v >= threshold (sinabs test_single_neuron_hardware.py) and bounds v below (DS 3.2.4.6.3)."""
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


def resolution(layer: Layer, network: Network, target: Target) -> Iterator[Finding]:
    """Weights have 8 bits; threshold, bound and bias 16, of one scale (DS table 3): none may vanish beside another."""
    largest, threshold = float(np.abs(layer.weight).max()), float(layer.threshold)
    if not largest:
        problem = "all weights are zero: it never fires, and no scale can be found for it"
        yield Finding("weights", layer.weight_node, problem, "Remove the layer.", severity="warning", value=0)
        return
    words = target.table["words"]
    weight_scale = ((1 << (int(words["weight_bits"]) - 1)) - 1) / largest
    if threshold * weight_scale < 0.5:
        yield Finding(
            "threshold_resolution",
            layer.name,
            f"v_threshold {threshold:.4g} is less than half an integer where the weights, up to {largest:.4g}, fill "
            f"{words['weight_bits']} bits: any positive weight makes it fire",
            "Rescale weights or threshold; 'calibrated' takes the least the chip has, 1, and 'max' refuses.",
            severity="warning",
            value=threshold,
            limit=int(words["threshold_high_min"]),
        )
    for what, value, bits in (
        ("v_threshold", threshold, int(words["state_bits"])),
        ("v_min", 0.0 if layer.v_min is None else abs(float(layer.v_min)), int(words["state_bits"])),
        ("the bias", 0.0 if layer.bias is None else float(np.abs(layer.bias).max()), int(words["bias_bits"])),
    ):
        # values beyond floats are other rules'
        if np.isfinite(value) and value and largest * ((1 << (bits - 1)) - 1) / value < 0.5:
            yield Finding(
                "weight_resolution",
                layer.weight_node,
                f"weights up to {largest:.4g} are less than half an integer where {what} {value:.4g} fills {bits} "
                "bits: all of them become 0",
                "Rescale the weights, or what they stand beside.",
                value=largest,
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
    firing,
    lower_bound,
    resolution,
)
