"""The 'calibrated' quantiser: integers whose spikes agree best with the reference's on given data.

Layer by layer, each fed by the quantised layers before it: a grid over scale and threshold, then a descent one
parameter at a time, over threshold, lower bound, the bias of each channel and the scale. The measure is the number of
spikes, of all neurons and steps, by which the layer differs from the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.exact import round_half_even, saturate
from nirdeploy.reference.convention import Convention
from nirdeploy_speck.emulator import Core, layer_currents, layer_input, run_layer
from nirdeploy_speck.network import Layer, Network
from nirdeploy_speck.quantize import layer_core, sinabs_integers, sinabs_scale
from nirdeploy_speck.step_kernels import count_differences

__all__ = ["LayerFit", "calibrated", "integers_at"]

# how far below and above the scale that just fills 8 bits the grid looks; above 1 the largest weights saturate
_SCALES = (1.0, 0.98, 0.95, 0.92, 0.89, 0.86, 0.83, 0.8, 0.75, 0.7, 0.6, 1.05, 1.1, 1.2)
_THRESHOLDS = (0, 1, -1, 2, -2)
_FINER = (1.002, 0.998, 1.005, 0.995, 1.01, 0.99, 1.02, 0.98)
_ROUNDS = 6


def calibrated(
    graph: nir.NIRGraph,
    network: Network,
    convention: Convention,
    given: NDArray[Any],
    notes: list[str],
    weight_bits: int = 8,
) -> dict[str, Core]:
    """Integers of every layer; all of them are those of 'max' should these agree better.

    Args:
        graph: the graph.
        network: its layers.
        convention: what the reference runs with.
        given: raster [step, batch, ...] to agree on.
        notes: gets a sentence on how well they agree.
        weight_bits: bits of a weight.

    Raises:
        QuantizationError: all weights of a layer are zero, or no scale fits the registers.
    """
    from nirdeploy.reference.executor import run

    raster = network.events(given)
    reference = run(graph, given, convention=convention, record=("spikes",))
    wanted = {
        layer.name: np.asarray(reference[layer.name, "spikes"].data).reshape(*raster.shape[:2], *layer.output_shape)
        for layer in network.layers
    }
    by_max = _max_where_possible(network, weight_bits)
    chosen: dict[str, Core] = {}
    produced: dict[str, NDArray[Any]] = {network.input_name: raster}
    found = 0
    for layer in network.layers:
        x = layer_input(layer, produced)
        chosen[layer.name] = LayerFit(layer, x, wanted[layer.name], weight_bits).best(by_max.get(layer.name))
        produced[layer.name] = run_layer(layer, chosen[layer.name], x).spikes
        found += _difference(produced[layer.name], wanted[layer.name])
    total = sum(int(spikes.sum()) for spikes in wanted.values())
    note = f"on the calibration data {found} spikes differ from the reference's {total}"
    if len(by_max) == len(network.layers):
        plain = _disagreement(network, by_max, raster, wanted)
        note += f" ({plain} with quantizer='max')"
        if plain < found:
            chosen, note = by_max, note + "; those of 'max' were taken"
    notes.append(note)
    return chosen


def _max_where_possible(network: Network, weight_bits: int) -> dict[str, Core]:
    found = {}
    for layer in network.layers:
        try:
            found[layer.name] = sinabs_integers(layer, [], weight_bits)
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


class LayerFit:
    """The search for one layer's integers.

    Args:
        layer: the layer.
        x: events at its input [step, batch, channel, y, x].
        wanted: spikes of the reference [step, batch, channel, y, x].
        weight_bits: bits of a weight.
    """

    def __init__(self, layer: Layer, x: NDArray[Any], wanted: NDArray[Any], weight_bits: int = 8) -> None:
        self._layer, self._x, self._bits = layer, x, weight_bits
        channels, height, width = layer.output_shape
        self._shape = (*x.shape[:2], channels, height * width)
        counts = wanted.reshape(self._shape)
        self._wanted = np.ascontiguousarray(counts, dtype=np.int16 if counts.max(initial=0) < 1 << 15 else np.int64)
        self._full = float(sinabs_scale(layer.weight, weight_bits))
        self._currents: tuple[NDArray[Any] | None, NDArray[Any]] = (None, np.zeros(0))

    def best(self, by_max: Core | None) -> Core:
        """The integers of least cost: the best of a grid and of 'max', improved one parameter at a time."""
        chosen: Core | None = None
        cost = -1
        for candidate in self._grid(by_max):
            found = self.cost(candidate, worst=cost)
            if chosen is None or found < cost:
                chosen, cost = candidate, found
            if cost == 0:
                return chosen
        if chosen is None:
            raise QuantizationError("no integer scale fits the target's registers", node=self._layer.name)
        for _ in range(_ROUNDS):
            before = cost
            for neighbours in (self._thresholds, self._bounds, self._biases, self._scales):
                for candidate in neighbours(chosen):
                    found = self.cost(candidate, worst=cost)
                    if found < cost:
                        chosen, cost = candidate, found
            if cost in (0, before):
                break
        return chosen

    def cost(self, core: Core, worst: int = -1) -> int:
        """Spikes by which a core differs from the reference; beyond `worst` any larger number may come back."""
        return int(self._by_channel(core, worst).sum())

    def _by_channel(self, core: Core, worst: int = -1) -> NDArray[np.int64]:
        """Spikes by which each channel differs."""
        if self._currents[0] is not core.weight:  # candidates that share weights come one after the other
            self._currents = core.weight, self._narrow(layer_currents(self._layer, core.weight, self._x))
        currents = self._currents[1]
        bias = np.zeros(self._shape[2], np.int64) if core.bias is None else core.bias
        found: NDArray[np.int64] = count_differences(
            currents, self._wanted, bias, core.threshold, core.v_min, core.subtract, core.many, worst
        )
        return found

    def _narrow(self, currents: NDArray[Any]) -> NDArray[Any]:
        most = max(abs(int(currents.max())), abs(int(currents.min())))
        # biases and bounds take 16 bits and a bit more
        if len(self._x) * (most + (1 << 15)) >= 1 << 62:
            raise QuantizationError(
                f"v can reach {len(self._x) * most}, which 64 bits do not hold", node=self._layer.name
            )
        return currents.reshape(self._shape).astype(np.int32 if most < 1 << 31 else np.int64)

    # ---------------------------------------------------------------- candidates

    def at(self, scale: float) -> Core:
        """The integers that parameters round to, at the largest scale up to `scale` that fits the registers."""
        return integers_at(self._layer, scale, self._bits)

    def _grid(self, by_max: Core | None) -> Iterator[Core]:
        for factor in _SCALES:
            core = self.at(self._full * factor)
            for offset in _THRESHOLDS:
                yield replace(core, threshold=_threshold(core.threshold + offset))
        if by_max is not None:
            yield by_max

    def _thresholds(self, core: Core) -> Iterator[Core]:
        for offset in (1, -1, 2, -2, 4, -4):
            yield replace(core, threshold=_threshold(core.threshold + offset))

    def _bounds(self, core: Core) -> Iterator[Core]:
        if self._layer.v_min is not None:
            for offset in (1, -1, 2, -2, 4, -4):
                yield replace(core, v_min=_bound(core.v_min + offset))

    def _biases(self, core: Core) -> Iterator[Core]:
        """Each channel's best offset at once: channels do not touch each other. Without a bias none is made up."""
        if core.bias is None:
            return
        offsets = (0, 1, -1, 2, -2, 4, -4)
        moved = [saturate(core.bias + offset, 16) for offset in offsets]
        costs = np.stack([self._by_channel(replace(core, bias=bias)) for bias in moved])
        picked = costs.argmin(0)
        yield replace(core, bias=np.stack(moved)[picked, np.arange(len(picked))])

    def _scales(self, core: Core) -> Iterator[Core]:
        """Other scales, with threshold, bound and bias as far from what they round to as they are here."""
        here = self.at(1.0 / core.scale)
        for factor in _FINER:
            other = self.at(factor / core.scale)
            bias = other.bias
            if bias is not None and core.bias is not None and here.bias is not None:
                bias = saturate(bias + core.bias - here.bias, 16)
            yield replace(
                other,
                threshold=_threshold(other.threshold + core.threshold - here.threshold),
                v_min=_bound(other.v_min + core.v_min - here.v_min),
                bias=bias,
            )


def integers_at(layer: Layer, scale: float, weight_bits: int) -> Core:
    """The integers that a layer's parameters round to, at the largest scale up to `scale` that fits the registers."""
    if layer.bias is not None:
        scale = min(scale, 32767 / float(np.abs(layer.bias).max()))
    scale = min(scale, 32766 / float(layer.threshold))
    if layer.v_min is not None:
        scale = min(scale, 32768 / max(float(-layer.v_min), 1e-30))
    # in integers, above x is from floor(x) + 1 on, and not below x is from ceil(x) on
    exact = float(layer.threshold) * scale
    strict = layer.convention.crossing == "strict"
    threshold = int(np.floor(exact)) + 1 if strict else int(np.ceil(exact))
    v_min = -32768 if layer.v_min is None else int(round_half_even(float(layer.v_min) * scale))
    weight = saturate(round_half_even(layer.weight.astype(np.float64) * scale), weight_bits)
    bias = None if layer.bias is None else saturate(round_half_even(layer.bias.astype(np.float64) * scale), 16)
    return layer_core(layer, weight, bias, _threshold(threshold), _bound(v_min), 1.0 / scale)


def _threshold(value: int) -> int:
    return min(max(1, value), 32767)


def _bound(value: int) -> int:
    return max(min(-1, value), -32768)
