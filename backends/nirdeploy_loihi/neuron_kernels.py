"""Compiled loops over neurons: what the registers do in a step (see `registers` for the equations).

A step is three loops, since a loop that writes to more arrays is not turned into vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.native import kernel

__all__ = ["current", "fire", "fire_held", "integrate", "voltage"]

WHOLE = 1 << 24
SHIFT = 6
MARK = 128  # what the chip's v register shows for each refractory step left


@kernel
def current(u: NDArray[Any], sums: NDArray[Any], kept: NDArray[Any]) -> tuple[int, int, int]:
    """Advance u; returns how many folded, and the least and the largest u before folding."""
    wraps = 0
    low = high = 0
    for i in range(u.size):
        x: Any = np.int64(u[i])
        size = (abs(x) * np.int64(kept[i])) >> 12
        now: Any = (size if x >= 0 else -size) + (np.int64(sums[i]) << SHIFT)
        low = min(low, now)
        high = max(high, now)
        above = now > STATE_LIMIT
        below = now <= -STATE_LIMIT
        wraps += above or below
        now -= WHOLE if above else 0
        now += WHOLE if below else 0
        u[i] = np.int32(now)
    return wraps, low, high


@kernel
def voltage(v: NDArray[Any], u: NDArray[Any], kept: NDArray[Any], bias: NDArray[Any]) -> int:
    """Advance v up to its bounds; returns how many met one."""
    clips = 0
    for i in range(v.size):
        x: Any = np.int64(v[i])
        size = (abs(x) * np.int64(kept[i])) >> 12
        now: Any = (size if x >= 0 else -size) + np.int64(u[i]) + np.int64(bias[i])
        held = min(max(now, 1 - STATE_LIMIT), STATE_LIMIT - 1)
        clips += held != now
        v[i] = np.int32(held)
    return clips


@kernel
def fire(v: NDArray[Any], threshold: NDArray[Any], fired: NDArray[Any]) -> None:
    """Mark who spikes, and reset v."""
    for i in range(v.size):
        spikes = v[i] > threshold[i]
        fired[i] = spikes
        v[i] = 0 if spikes else v[i]


@kernel
def fire_held(
    v: NDArray[Any], threshold: NDArray[Any], fired: NDArray[Any], held: NDArray[Any], refractory: int
) -> None:
    """As `fire`, where v stays at 0 for `refractory` steps; `held` counts those left, this step included."""
    for i in range(v.size):
        left = max(held[i] - 1, 0)
        now = 0 if left > 0 else v[i]
        spikes = now > threshold[i]
        fired[i] = spikes
        v[i] = 0 if spikes else now
        held[i] = refractory if spikes else left


@kernel
def integrate(
    sums: NDArray[Any],
    registers: tuple[NDArray[Any], ...],
    refractory: int,
    first: int,
    last: int,
    u_out: NDArray[Any],
    v_out: NDArray[Any],
    s_out: NDArray[Any],
) -> tuple[int, int, int, int]:
    """Cells [first, last) of given sums [step, cell] through time, each with its own registers.

    Args:
        sums: synaptic sums.
        registers: kept_u, kept_v (of 4096), threshold, bias, v_start; each [cell].
        refractory: as of `Compartments`.
        first: first cell.
        last: cell to stop before.
        u_out: u after each step, [step, cell], or no steps.
        v_out: v likewise.
        s_out: spikes, [step, cell].

    Returns:
        Wraps of u, clips of v, the least and the largest u before folding.
    """
    kept_u, kept_v, threshold, bias, v_start = registers
    kept_u, kept_v, threshold = kept_u[first:last], kept_v[first:last], threshold[first:last]
    bias, v = bias[first:last], v_start[first:last].copy()
    u = np.zeros(last - first, np.int32)
    held = np.zeros(last - first, np.int32)
    wraps = clips = 0
    low = high = 0
    for t in range(sums.shape[0]):
        folded, least, most = current(u, sums[t, first:last], kept_u)
        wraps += folded
        low, high = min(low, least), max(high, most)
        clips += voltage(v, u, kept_v, bias)
        if refractory > 1:
            fire_held(v, threshold, s_out[t, first:last], held, refractory)
        else:
            fire(v, threshold, s_out[t, first:last])
        if u_out.shape[0] > 0:
            u_out[t, first:last] = u
        if v_out.shape[0] > 0:
            v_out[t, first:last] = v
    return wraps, clips, low, high
