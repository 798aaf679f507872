"""Compiled loops over synapses: what spikes add to the sums of their targets.

A connection `c` is a row of `packed.CONNECTION`. Sums are held in a ring of steps, so that a spike can be added to
the step in which it arrives; `to` is the place in the ring of the next step.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.native import kernel

__all__ = ["BY_SOURCE", "BY_TARGET", "EACH", "UNIFORM", "gather", "matrix", "window"]

# which synapses of a connection share a delay: all, those of a source, those of a target, none
UNIFORM, BY_SOURCE, BY_TARGET, EACH = range(4)


@kernel
def _place(c: Any, to: int, delay: int) -> int:
    """Where in the sums the step begins that is `delay` steps after the next."""
    slot = to + delay
    if slot >= c.slots:
        slot -= c.slots
    return int(c.sums_at + slot * c.room)


@kernel
def _in_time(c: Any, delays: NDArray[Any], source: int, at: int, width: int, left: int) -> int:
    """Of the synapses from `source` to `width` targets from `at` on, those whose delay is at most `left`."""
    if c.delayed == UNIFORM:
        return width if c.delay <= left else 0
    if c.delayed == BY_SOURCE:
        return width if delays[c.delays_at + source] <= left else 0
    first = c.delays_at + at + (source * c.targets if c.delayed == EACH else 0)
    count = 0
    for j in range(width):
        count += delays[first + j * c.apart] <= left
    return count


@kernel
def _spread(
    c: Any, sums: NDArray[Any], weights: NDArray[Any], delays: NDArray[Any], source: int, at: int, row: int, to: int
) -> None:
    """Add `c.width` weights from `row` on to the targets from `at` on, `c.apart` from each other."""
    width, apart = c.width, c.apart
    if c.delayed == EACH:
        first = c.delays_at + source * c.targets + at
        for j in range(width):
            sums[_place(c, to, delays[first + j * apart]) + at + j * apart] += weights[row + j]
        return
    delay = delays[c.delays_at + source] if c.delayed == BY_SOURCE else c.delay
    first = _place(c, to, delay) + at
    if apart == 1:
        total, added = sums[first : first + width], weights[row : row + width]
        for j in range(width):
            total[j] += added[j]
    else:
        for j in range(width):
            sums[first + j * apart] += weights[row + j]


@kernel
def _add_rows(total: NDArray[Any], weights: NDArray[Any], first: int, spikes: NDArray[Any]) -> None:
    """Add whole rows of a matrix, four at a time: each sum is then read and written once for four."""
    width = total.size
    k = 0
    while k + 4 <= spikes.size:
        at = first + spikes[k] * width
        a = weights[at : at + width]
        at = first + spikes[k + 1] * width
        b = weights[at : at + width]
        at = first + spikes[k + 2] * width
        d = weights[at : at + width]
        at = first + spikes[k + 3] * width
        e = weights[at : at + width]
        for i in range(width):
            total[i] += a[i] + b[i] + d[i] + e[i]
        k += 4
    while k < spikes.size:
        at = first + spikes[k] * width
        a = weights[at : at + width]
        for i in range(width):
            total[i] += a[i]
        k += 1


@kernel
def matrix(
    c: Any, sums: NDArray[Any], weights: NDArray[Any], delays: NDArray[Any], spikes: NDArray[Any], to: int, left: int
) -> int:
    """Deliver spikes through a matrix; returns how many synapses that takes, up to the end of the run.

    Args:
        c: the connection.
        sums: of all connections.
        weights: of all connections.
        delays: of all connections.
        spikes: who spikes, indices of the source.
        to: place of the next step in the ring.
        left: steps that the run has after the next one.
    """
    if c.delayed in (UNIFORM, BY_TARGET):
        first = _place(c, to, c.delay)
        _add_rows(sums[first : first + c.width], weights, c.weights_at, spikes)
    else:
        for k in range(spikes.size):
            _spread(c, sums, weights, delays, spikes[k], 0, c.weights_at + spikes[k] * c.width, to)
    if c.longest <= left:
        return int(spikes.size * c.width)
    count = 0
    for k in range(spikes.size):
        count += _in_time(c, delays, spikes[k], 0, c.width, left)
    return count


@kernel
def window(
    c: Any, sums: NDArray[Any], weights: NDArray[Any], delays: NDArray[Any], spikes: NDArray[Any], to: int, left: int
) -> int:
    """Deliver spikes through a convolution; arguments and result as of `matrix`."""
    count = 0
    for k in range(spikes.size):
        source = spikes[k]
        channel, pixel = source // c.area, source % c.area
        y, x = pixel // c.across + c.padding_y, pixel % c.across + c.padding_x
        into = (channel // c.sources_a_group) * c.width * c.apart
        for ky in range(c.kernel_y):
            down = y - ky * c.dilation_y
            if down < 0 or down % c.stride_y or down // c.stride_y >= c.to_down:
                continue
            for kx in range(c.kernel_x):
                right = x - kx * c.dilation_x
                if right < 0 or right % c.stride_x or right // c.stride_x >= c.to_across:
                    continue
                pixel_to = down // c.stride_y * c.to_across + right // c.stride_x
                at = pixel_to * c.pixels_apart + into
                row = c.weights_at + ((channel * c.kernel_y + ky) * c.kernel_x + kx) * c.width
                _spread(c, sums, weights, delays, source, at, row, to)
                count += c.width if c.longest <= left else _in_time(c, delays, source, at, c.width, left)
    return count


@kernel
def gather(c: Any, total: NDArray[Any], sums: NDArray[Any], delays: NDArray[Any], t: int) -> None:
    """Add to this step's sums what a connection holds apart: sums delayed a target, or wrapped to signed 24 bits."""
    if c.delayed == BY_TARGET:
        for j in range(c.targets):
            slot = (t - delays[c.delays_at + j]) % c.slots
            total[j] += sums[c.sums_at + slot * c.room + j]
    else:
        for j in range(c.targets):
            total[j] += (sums[c.sums_at + j] + STATE_LIMIT) % (2 * STATE_LIMIT) - STATE_LIMIT
