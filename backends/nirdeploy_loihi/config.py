"""What the chip is given, as plain JSON data."""

from __future__ import annotations

from typing import Any

import numpy as np

from nirdeploy.placement import Placement
from nirdeploy.quantization import Quantized
from nirdeploy_loihi.lowering import lower
from nirdeploy_loihi.network import Connection, Layer
from nirdeploy_loihi.weights import sign_mode

__all__ = ["configuration"]


def configuration(quantized: Quantized, placement: Placement) -> dict[str, Any]:
    """Registers of every population, integers of every connection, and the slice on every core.

    Names are those of Lava's LIF, Dense and Conv. `du` is decay_u - 1, as the chip adds 1 to it (ds_offset);
    images are channel, y, x; a kernel is [out, in, y, x] and correlates.
    """
    network = lower(quantized.graph, quantized.convention)
    populations = [_population(layer, quantized) for layer in network.layers]
    cores = [
        {"core": core, "population": name, "first": first, "last": last}
        for name, found in placement.cores.items()
        for core, (first, last) in zip(found, placement.slices[name], strict=True)
    ]
    return {
        "backend": "loihi",
        "input": {"name": network.input, "shape": list(network.input_shape)},
        "outputs": [{"name": r.name, "population": r.source, "shape": list(r.shape)} for r in network.readouts],
        "populations": populations,
        "connections": [_connection(c, quantized) for layer in network.layers for c in layer.connections],
        "cores": sorted(cores, key=lambda row: row["core"]),
    }


def _population(layer: Layer, quantized: Quantized) -> dict[str, Any]:
    neuron = quantized[layer.name]
    bias = neuron.bias
    return {
        "name": layer.name,
        "shape": list(layer.shape),
        "du": int(neuron.decay_u) - 1,
        "dv": int(neuron.decay_v),
        "vth": int(neuron.mantissa),
        "bias_mant": None if bias is None else np.broadcast_to(bias, layer.shape).tolist(),
        "bias_exp": int(neuron.bias_exponent),
    }


def _connection(connection: Connection, quantized: Quantized) -> dict[str, Any]:
    weight = quantized[connection.name].weight
    pools = [] if connection.kernel is None else [s for s in connection.stages if s.kind == "pool"]
    options = dict(connection.kernel.options or {}) if connection.kernel else {}
    return {
        "name": connection.name,
        "source": connection.source,
        "target": connection.target,
        "kind": connection.kind,
        "source_shape": list(connection.source_shape),
        "target_shape": list(connection.target_shape),
        # sums over disjoint windows that share one weight: each source neuron still has one synapse a target
        "sum_pools": [{"kernel": list(s.kernel), "stride": list((s.options or {})["stride"])} for s in pools],
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        "sign_mode": sign_mode(weight),
        "weight": weight.tolist(),
        "weight_exp": 0,
        "num_weight_bits": 8,
    }
