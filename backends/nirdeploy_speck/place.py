"""Layers onto cores: an assignment over the three memories of a core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nirdeploy.errors import PlacementError
from nirdeploy.names import suggest
from nirdeploy.placement import Placement, Usage, core_number, core_numbers, require_options
from nirdeploy.quantization import Quantized
from nirdeploy.target import Target
from nirdeploy_speck.network import Layer, lowered

__all__ = ["place"]

_OPTIONS = {"avoid_cores": "[core, ...]", "cores": "{layer: core}"}


def place(quantized: Quantized, **options: Any) -> Placement:
    """A core for every layer.

    Args:
        quantized: a quantised graph.
        **options: `avoid_cores`, cores to leave free (None: the chip's stochastic ones, 0 and 1), and `cores`,
            layers fixed to a core, by weight node or population.

    Raises:
        PlacementError: says per layer which memory of which core is too small, or which cores are short; or an
            option that is unknown or of the wrong type.
    """
    require_options(options, _OPTIONS)
    network = lowered(quantized)
    available = _memories(quantized.target)
    avoided = set(quantized.target.table["cores"]["stochastic"])
    if options.get("avoid_cores") is not None:
        avoided = set(core_numbers(options["avoid_cores"], len(available), option="avoid_cores"))
    fixed = _fixed(network.layers, options.get("cores"), available)
    allowed = {
        layer.name: [fixed[layer.name]]
        if layer.name in fixed
        else [c for c, have in enumerate(available) if c not in avoided and not _lacking(layer, have)]
        for layer in network.layers
    }
    for layer in network.layers:
        if not allowed[layer.name]:
            raise PlacementError(_why(layer, available, avoided), node=layer.name)
    matched = _match(allowed)
    if missing := [name for name in allowed if name not in matched]:
        raise PlacementError(
            f"no core is left: {len(allowed)} layers, and of the cores that could hold this one "
            f"({', '.join(map(str, allowed[missing[0]]))}) every one is taken",
            node=missing[0],
            remedy=f"Allow more cores with avoid_cores (now {sorted(avoided)}), or make a layer smaller.",
        )
    usage = tuple(
        Usage(matched[layer.name], layer.name, resource, used, available[matched[layer.name]][resource])
        for layer in network.layers
        for resource, used in layer.memory.items()
    )
    slices = {layer.name: ((0, _size(layer)),) for layer in network.layers}
    return Placement({layer.name: (matched[layer.name],) for layer in network.layers}, usage, slices)


def _size(layer: Layer) -> int:
    channel, height, width = layer.output_shape
    return channel * height * width


def _memories(target: Target) -> list[dict[str, int]]:
    table = target.table["cores"]
    return [
        {"kernel_memory": 1024 * kernel, "neuron_memory": 1024 * neuron, "bias_memory": bias}
        for kernel, neuron, bias in zip(
            table["kernel_memory_ki"], table["neuron_memory_ki"], table["bias_memory"], strict=True
        )
    ]


def _lacking(layer: Layer, have: Mapping[str, int]) -> list[str]:
    return [f"{r} {n} of {have[r]}" for r, n in layer.memory.items() if n > have[r]]


def _why(layer: Layer, available: list[dict[str, int]], avoided: set[int]) -> str:
    lines = []
    for core, have in enumerate(available):
        reason = "avoided" if core in avoided else ", ".join(_lacking(layer, have))
        lines.append(f"core {core}: {reason}")
    return f"fits no core ({'; '.join(lines)})"


def _fixed(layers: tuple[Layer, ...], cores: Any, available: list[dict[str, int]]) -> dict[str, int]:
    if not isinstance(cores, Mapping | None):
        raise PlacementError(f"cores is {cores!r}, expected {{layer: core}}")
    by_name = {key: layer for layer in layers for key in (layer.weight_node, layer.name)}
    fixed: dict[str, int] = {}
    for key, value in (cores or {}).items():
        if key not in by_name:
            raise PlacementError(f"cores names {key!r}, which is no layer", remedy=suggest(str(key), by_name))
        layer = by_name[key]
        core = core_number(value, len(available), option=f"cores[{key!r}]", node=layer.name)
        if layer.name in fixed:
            raise PlacementError(f"cores names it twice, as {layer.weight_node!r} and as itself", node=layer.name)
        if lacking := _lacking(layer, available[core]):
            raise PlacementError(f"does not fit core {core}: {', '.join(lacking)}", node=layer.name)
        if core in fixed.values():
            raise PlacementError(f"core {core} is given to two layers", node=layer.name)
        fixed[layer.name] = core
    return fixed


def _match(allowed: Mapping[str, list[int]]) -> dict[str, int]:
    """The largest matching, of those the one with the lowest core numbers; the same in every process."""
    from scipy.optimize import linear_sum_assignment

    names = list(allowed)
    cores = sorted({core for options in allowed.values() for core in options})
    forbidden = 1 + len(names) * (1 + max(cores))  # worth more than all allowed choices together
    cost = [[core if core in allowed[name] else forbidden for core in cores] for name in names]
    rows, columns = linear_sum_assignment(cost)
    return {names[r]: cores[c] for r, c in zip(rows, columns, strict=True) if cost[r][c] < forbidden}
