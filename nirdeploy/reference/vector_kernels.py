"""What kernels in vectors share: the ends of rows, and a step of a population, operation for operation as `kernels`."""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.lanes import (
    WIDTH,
    above,
    add,
    at_least,
    choose,
    count_set,
    first_set,
    get,
    load,
    load_some,
    multiply,
    put,
    store,
    store_some,
    subtract,
)
from nirdeploy.reference.native import inline

__all__ = ["GROUP", "append", "copy", "membrane", "read", "settle", "synapse", "write"]

GROUP = 64  # neurons whose spikes are one word


@inline
def read(base, at, left):
    """`WIDTH` numbers from `at` on, or those that are left."""
    return load(base, at, WIDTH) if left >= WIDTH else load_some(base, at, left, WIDTH)


@inline
def write(base, at, left, lanes):
    """The inverse of `read`."""
    if left < WIDTH:
        store_some(base, at, left, lanes)
    else:
        store(base, at, lanes)


@inline
def copy(source, at, target, to, size):
    """Copy numbers one by one."""
    for j in range(size):
        put(target, to + j, get(source, at + j))


@inline
def append(bits, found, used, first):
    """Positions of set bits, four at a time: how many there are cannot be guessed. Returns how many are used now."""
    while bits != 0:
        count = min(4, count_set(bits))
        for n in range(4):
            put(found, used + n, np.int32(first + first_set(bits, 0)))
            bits &= bits - np.uint64(1)
        used += count
    return used


@inline
def synapse(decay, i, gain, x):
    """`kernels._synapse`."""
    return add(multiply(decay, i), multiply(gain, x))


@inline
def membrane(decay, v, leak, gain, x):
    """v before the reset, as in `kernels._one` and `_integrate`."""
    return add(add(multiply(decay, v), leak), multiply(gain, x))


@inline
def settle(u, threshold, v_reset, v_min, inclusive, subtracts):
    """v after reset and lower bound, and which neurons fire, as in `kernels._one`."""
    fired = at_least(u, threshold) if inclusive else above(u, threshold)
    after = subtract(u, threshold) if subtracts else v_reset
    u = choose(fired, after, u)
    return choose(at_least(u, v_min), u, v_min), fired
