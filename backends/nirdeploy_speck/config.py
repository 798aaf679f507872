"""Every field a Speck is given, as plain data.

Field names are those of samna's configuration classes; x comes before y everywhere, and weights are
[out][in][x][y] (sinabs chips/dynapcnn.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy_speck.emulator import Core
from nirdeploy_speck.network import Layer, Network, lowered

__all__ = ["chip_configuration"]


def chip_configuration(quantized: Quantized, placement: Placement) -> dict[str, Any]:
    """`{"cnn_layers": {core: fields}}` for every core in use."""
    network = lowered(quantized)
    exits = set(network.outputs.values())
    layers = {}
    for layer in network.layers:
        core = placement.cores[layer.name][0]
        layers[str(core)] = {
            **_fields(layer, Core.of(layer, quantized)),
            "monitor_enable": layer.name in exits,
            "destinations": _destinations(layer, network, placement),
        }
    return {"cnn_layers": dict(sorted(layers.items(), key=lambda item: int(item[0])))}


def _fields(layer: Layer, core: Core) -> dict[str, Any]:
    outputs, out_y, out_x = layer.output_shape
    inputs, in_y, in_x = layer.input_shape
    bias = np.zeros(outputs, dtype=np.int64) if core.bias is None else core.bias
    return {
        "dimensions": {
            "input_shape": {"feature_count": inputs, "size": {"x": in_x, "y": in_y}},
            "output_shape": {"feature_count": outputs, "size": {"x": out_x, "y": out_y}},
            "kernel_size": int(layer.weight.shape[2]),
            "stride": {"x": layer.stride[1], "y": layer.stride[0]},
            "padding": {"x": layer.padding[1], "y": layer.padding[0]},
        },
        "weights": core.weight.swapaxes(2, 3).tolist(),
        "biases": bias.tolist(),
        "neurons_initial_value": np.zeros((outputs, out_x, out_y), dtype=np.int64).tolist(),
        "leak_enable": bool(bias.any()),
        "leak_internal_slow_clk_enable": False,
        "threshold_high": core.threshold,
        "threshold_low": core.v_min,
        "return_to_zero": not core.subtract,
        "input_congestion_balancer_enable": False,
        "output_decimator_enable": False,
        "output_decimator_interval": 0,
    }


def _destinations(layer: Layer, network: Network, placement: Placement) -> list[dict[str, Any]]:
    found = [
        {
            "enable": True,
            "layer": placement.cores[other.name][0],
            "pooling": feed.pool,
            "feature_shift": 0,
        }
        for other in network.layers
        for feed in other.feeds
        if feed.source == layer.name
    ]
    unused = {"enable": False, "layer": 0, "pooling": 1, "feature_shift": 0}
    return [*found, *[dict(unused) for _ in range(2 - len(found))]]
