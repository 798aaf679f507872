"""The readout, which averages up to 15 neurons over slow clocks and names the most active (DS 3.2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nirdeploy.errors import PlacementError
from nirdeploy.names import suggest
from nirdeploy_speck.layers import Network

__all__ = ["READOUT_OPTIONS", "readout_options"]

READOUT_OPTIONS = {
    "node": "population",
    "threshold": "int",
    "average": "1, 16 or 32 slow clocks",
    "addressing": "0 to 3",
    "output_mode": "0 to 3",
    "neuron": "0 to 15",
    "override_threshold": "bool",
    "internal_clock": "bool",
    "remap": "bool",
}


def readout_options(given: Any, network: Network, table: Mapping[str, Any]) -> dict[str, Any]:
    """The option `readout` of a placement, checked, as plain data with `spread` added.

    `spread` is the features of the chip a channel of the population takes: 4 where Speck 2e's and 2f's erratum is
    worked around (feature 4 i is class i + 1: sinabs utils.extend_readout_layer, docs/speck/faqs/chip_errata.md).

    Args:
        given: mapping of some of READOUT_OPTIONS.
        network: the layers.
        table: `readout` of the target.

    Raises:
        PlacementError: naming option, value and what is expected, or a population that the readout cannot address.
    """
    if not isinstance(given, Mapping):
        raise PlacementError(f"readout is {given!r}, expected a mapping of {', '.join(READOUT_OPTIONS)}")
    for name in given:
        if name not in READOUT_OPTIONS:
            raise PlacementError(f"readout has an unknown entry {name!r}", remedy=suggest(str(name), READOUT_OPTIONS))
    node = _node(given.get("node"), network)
    found: dict[str, Any] = {"node": node}
    for name, default, low, high in (
        ("threshold", 1, 0, (1 << int(table["threshold_bits"])) - 1),
        ("average", 16, 1, max(table["averages"])),
        ("addressing", 3, 0, len(table["addressing"]) - 1),
        ("output_mode", 1, 0, 3),
        ("neuron", 0, 0, 15),
    ):
        value = given.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise PlacementError(f"readout {name} is {value!r}, expected {low} to {high}", node=node)
        found[name] = value
    if found["average"] not in table["averages"]:
        listed = list(table["averages"])
        raise PlacementError(f"readout average is {found['average']}, expected one of {listed}", node=node)
    erratum = int(table["feature_step"])
    for name, default in (("override_threshold", False), ("internal_clock", False), ("remap", erratum > 1)):
        value = given.get(name, default)
        if not isinstance(value, bool):
            raise PlacementError(f"readout {name} is {value!r}, expected a bool", node=node)
        found[name] = value
    found["spread"] = max(erratum, 1) if found["remap"] else 1
    _require_addressable(node, network, found["addressing"], table)
    if found["remap"] and found["addressing"] != 3:
        raise PlacementError("readout remap needs addressing 3, one feature a class", node=node)
    return found


def _node(given: Any, network: Network) -> str:
    exits = list(dict.fromkeys(network.outputs.values()))
    known = [layer.name for layer in network.layers]
    if given is None and len(exits) == 1:
        return exits[0]
    if not isinstance(given, str) or given not in known:
        raise PlacementError(f"readout node is {given!r}, expected a population", remedy=suggest(str(given), known))
    return given


def _require_addressable(node: str, network: Network, addressing: int, table: Mapping[str, Any]) -> None:
    layer = next(layer for layer in network.layers if layer.name == node)
    features, height, width = layer.output_shape
    columns, rows, channels = table["addressing"][addressing]
    classes = features * height * width
    if features > channels or height > rows or width > columns or classes > int(table["classes"]):
        raise PlacementError(
            f"its map {layer.output_shape} (channel, y, x) does not go into readout addressing {addressing}, "
            f"({channels}, {rows}, {columns}) and at most {table['classes']} in all",
            node=node,
            remedy="Read another population, or use another addressing.",
        )
