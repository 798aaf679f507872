"""The chip's fixed-point neuron, bit for bit as Lava's fixed_pt LIF (lava-nc 0.10, lif/models.py).

Each step, on integers, in this order:
    dec(x, d) = sign(x) * ((|x| * (4096 - d)) >> 12)
    u = wrap(dec(u, decay_u) + (a << 6))        u and v hold 24 bits
    v = clip(dec(v, decay_v) + u + bias, -(2**23 - 1), 2**23 - 1)
    s = v > threshold;  v = 0 where s           u is not reset
wrap folds once: above 2**23 it subtracts 2**24, at or below -2**23 it adds 2**24.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from nirdeploy.quantization import QuantizedNeuron

__all__ = ["SYNAPSE_SHIFT", "States", "bias_register", "scan"]

SYNAPSE_SHIFT = 6
_HALF = 1 << 23
_WHOLE = 1 << 24

Ints = NDArray[np.int32]


class States(NamedTuple):
    """A population over time, each [step, cell]; u and v are empty where they were not kept."""

    u: Ints
    v: Ints
    s: Ints
    wraps: int
    clips: int


@numba.njit(cache=True)
def _decay(x: int, kept: int) -> int:
    return (x * kept) >> 12 if x >= 0 else -((-x * kept) >> 12)


@numba.njit(cache=True)
def _scan(
    a: Any, bias: Any, kept_u: int, kept_v: int, threshold: int, u_out: Any, v_out: Any, s_out: Any
) -> tuple[int, int]:
    steps, cells = a.shape
    keep_u, keep_v = u_out.shape[0] > 0, v_out.shape[0] > 0
    u = np.zeros(cells, np.int64)
    v = np.zeros(cells, np.int64)
    wraps = clips = 0
    for t in range(steps):
        for i in range(cells):
            now = _decay(u[i], kept_u) + (np.int64(a[t, i]) << SYNAPSE_SHIFT)
            if now > _HALF:
                now -= _WHOLE
                wraps += 1
            elif now <= -_HALF:
                now += _WHOLE
                wraps += 1
            u[i] = now
            volt = _decay(v[i], kept_v) + now + bias[i]
            if volt > _HALF - 1:
                volt = _HALF - 1
                clips += 1
            elif volt < 1 - _HALF:
                volt = 1 - _HALF
                clips += 1
            spike = volt > threshold
            if spike:
                volt = 0
            v[i] = volt
            s_out[t, i] = spike
            if keep_u:
                u_out[t, i] = now
            if keep_v:
                v_out[t, i] = volt
    return wraps, clips


def bias_register(neuron: QuantizedNeuron, n_neurons: int) -> NDArray[np.int64]:
    """What is added to v each step, one a neuron: mantissa << exponent."""
    if neuron.bias is None:
        return np.zeros(n_neurons, dtype=np.int64)
    return np.broadcast_to(neuron.bias.reshape(-1).astype(np.int64) << neuron.bias_exponent, (n_neurons,)).copy()


def scan(a: Ints, neuron: QuantizedNeuron, n_neurons: int, *, keep_u: bool, keep_v: bool) -> States:
    """Step a population from rest.

    Args:
        a: synaptic sums, [step, cell], a cell being a sample's neuron, neurons last.
        neuron: its registers.
        n_neurons: neurons of the population; cells are a multiple.
        keep_u: whether to return u.
        keep_v: whether to return v.
    """
    none = np.empty((0, 0), dtype=np.int32)
    u = np.empty_like(a) if keep_u else none
    v = np.empty_like(a) if keep_v else none
    s = np.empty_like(a)
    bias = np.tile(bias_register(neuron, n_neurons), a.shape[1] // n_neurons)
    wraps, clips = _scan(
        np.ascontiguousarray(a), bias, 4096 - neuron.decay_u, 4096 - neuron.decay_v, neuron.threshold, u, v, s
    )
    return States(u, v, s, int(wraps), int(clips))
