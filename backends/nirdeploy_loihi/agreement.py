"""How far integers are from the float reference on data: spikes that differ, and v of what only integrates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.quantization import Quantized
from nirdeploy.reference.convention import Convention
from nirdeploy_loihi.execute import Executed, execute
from nirdeploy_loihi.lower_program import lower_program
from nirdeploy_loihi.network import Layer, Network

__all__ = ["Cost", "Wanted", "compared", "difference", "disagreement", "reference_of"]

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
Cost = tuple[float, float]


@dataclass(frozen=True)
class Wanted:
    """The reference's run of the calibration data, [step, batch, neurons].

    Attributes:
        spikes: of every population that fires.
        v: of every population that only integrates, model units.
    """

    spikes: Mapping[str, Ints]
    v: Mapping[str, Floats]


def reference_of(graph: nir.NIRGraph, network: Network, convention: Convention, raster: Any) -> Wanted:
    """Spikes and analogue values that the integers are to follow.

    Args:
        graph: the graph.
        network: its lowering.
        convention: what the reference is run with; v is taken in model units whatever its v_unit.
        raster: [step, batch, ...].
    """
    from nirdeploy.reference.executor import run

    steps, batch = raster.shape[:2]
    firing = [layer.name for layer in network.layers if layer.fires]
    analogue = [layer.name for layer in network.layers if not layer.fires]
    spikes = run(graph, raster, convention=convention, record=("spikes",))
    found = {name: np.asarray(spikes[name, "spikes"].data, dtype=np.int32) for name in firing}
    values = {}
    if analogue:
        trace = run(graph, raster, convention=_in_model_units(convention), record=("v_mem",), nodes=analogue)
        values = {name: np.asarray(trace[name, "v_mem"].data, dtype=np.float64) for name in analogue}
    return Wanted(
        {name: array.reshape(steps, batch, -1) for name, array in found.items()},
        {name: array.reshape(steps, batch, -1) for name, array in values.items()},
    )


def _in_model_units(convention: Convention) -> Convention:
    overrides = {
        key: {field: value for field, value in fields.items() if field != "v_unit"}
        for key, fields in convention.overrides.items()
    }
    return replace(convention, v_unit="model", overrides=overrides)


def disagreement(network: Network, quantized: Quantized, raster: Ints, wanted: Wanted) -> Cost:
    """Spikes by which all populations together differ from the reference's, each shifted by its lag; and v's error.

    The second number is the mean |error| of v in populations that only integrate, model units, 0 where there is none.
    """
    found = execute(lower_program(network, quantized), raster, compared(network))
    return difference(network, quantized.layers, found, wanted)


def compared(network: Network) -> dict[str, tuple[str]]:
    """What a run must keep to be compared with the reference."""
    return {layer.name: ("spikes",) if layer.fires else ("v_mem",) for layer in network.layers}


def difference(network: Network, layers: Mapping[str, Any], found: Executed, wanted: Wanted) -> Cost:
    """As `disagreement`, of a run that has kept what `compared` says; `layers` has the scales."""
    total, errors = 0, []
    for layer in network.layers:
        if layer.fires:
            total += _spikes_apart(_flat(found.traces[layer.name, "spikes"]), wanted.spikes[layer.name], layer.lag)
        else:
            errors.append(_error_of_v(layer, layers, found, wanted))
    return total, float(np.mean(errors)) if errors else 0.0


def _spikes_apart(found: Ints, wanted: Ints, lag: int) -> int:
    """Spikes more or fewer, `found` being `lag` steps later; the steps that only one run has are left out."""
    steps = max(0, len(wanted) - lag)
    apart = found[lag:] - wanted[:steps]
    return int(np.abs(apart, out=apart).sum(dtype=np.int64))


def _error_of_v(layer: Layer, layers: Mapping[str, Any], found: Executed, wanted: Wanted) -> float:
    neuron = layers[layer.name]
    offset = np.broadcast_to(neuron.offset, layer.shape).reshape(-1)
    steps = max(0, len(wanted.v[layer.name]) - layer.lag)
    if not steps:
        return 0.0
    v = _flat(found.traces[layer.name, "v_mem"])[layer.lag :] * neuron.scale + offset
    return float(np.abs(v - wanted.v[layer.name][:steps]).mean())


def _flat(values: Ints) -> Ints:
    return values.reshape(*values.shape[:2], -1)
