"""Which integer matrices a Loihi synapse holds, and which ones Lava's own chain changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.exact import round_half_even

__all__ = ["always_on", "kept_by_lava", "round_weights", "sign_mode"]

Integers = NDArray[np.int64]
_AXON = 254  # largest magnitude that mixed and single signs share


def sign_mode(weight: NDArray[Any]) -> str:
    """'positive' (no entry below 0), 'negative' (none above) or 'mixed'; as Lava's weightutils."""
    if weight.min() >= 0:
        return "positive"
    return "negative" if weight.max() <= 0 else "mixed"


def round_weights(scaled: NDArray[np.float64], limits: Any) -> Integers:
    """Nearest integers a synapse holds, ties to even.

    Mixed signs need even weights, 2 round(w / 2): 8 bits and a sign. One sign takes 8 bits as they are, but
    a negative matrix that Lava's chain would change (see `kept_by_lava`) is made even, then its most negative
    entries are moved by one step towards zero.

    Args:
        scaled: weights times the scale.
        limits: the target's [weights] table.
    """
    mode = sign_mode(scaled)
    low, high = limits[mode]
    if mode == "mixed":
        return np.clip(2 * round_half_even(scaled / 2), low, high)
    whole = np.clip(round_half_even(scaled), low, high)
    if mode == "positive" or not whole.any() or kept_by_lava(whole):
        return whole
    even = np.clip(2 * round_half_even(scaled / 2), low + 1, high)
    if kept_by_lava(even):
        return even
    for values, step in ((whole, 1), (even, 2)):
        moved = np.where(values == values.min(), values + step, values)
        if moved.any() and kept_by_lava(moved):
            return moved
    return even


def always_on(scaled: NDArray[np.float64], limits: Any) -> Integers:
    """Weights [target neurons, axons] whose sums over all axons are the nearest integers a synapse can add up to.

    As many axons as the largest sum needs, at most 254 each and at least one. With mixed signs sums are even, as every
    weight is; of one sign they are the nearest integers, spread such that Lava's chain leaves them alone where any
    spread does (see `kept_by_lava`).

    Args:
        scaled: currents times gain and scale, one a neuron, flat.
        limits: the target's [weights] table.
    """
    mode = sign_mode(scaled)
    sums = 2 * round_half_even(scaled / 2) if mode == "mixed" else round_half_even(scaled)
    # a zero beside negative weights leaves Lava 7 bits of magnitude, and minima that are powers of two are shifted out
    largest = int(np.abs(sums).max(initial=0))
    shares = (_AXON, 127, largest - 1) if mode == "negative" else (min(_AXON, int(limits[mode][1])),)
    for share in shares:
        found = _spread(sums, share) if share > 0 else None
        if found is not None and found.any() and kept_by_lava(found):
            return found
    return _spread(sums, _AXON)


def _spread(sums: Integers, share: int) -> Integers:
    """Each sum over axons of at most `share`, the first ones full."""
    count = max(1, -(-int(np.abs(sums).max(initial=0)) // share))
    filled = np.clip(np.abs(sums)[:, None] - share * np.arange(count), 0, share)
    found: Integers = filled * np.sign(sums)[:, None]
    return found


def kept_by_lava(weight: Integers) -> bool:
    """Whether Lava's Dense on CPU (0.10, behind netx 0.6) multiplies with exactly these integers.

    netx shifts the weights up to fill 8 bits and states how many bits it used; Dense then clips and drops the
    bits it believes unused, and shifts the sum back. For weights that fit 8 bits this is nearly always the
    identity. It is not for a matrix of zeros, one-signed weights beyond 255, negative weights with a zero, an
    odd entry and a minimum below -128 (all become 0), and negative weights whose minimum is a power of two
    (shifted to -256, clipped to -255).
    """
    high, low = int(weight.max()), int(weight.min())
    if high == low == 0 or (low < 0 and high > 254) or (high > 0 and low < -256):
        return False
    # netx counts a matrix with a zero among negatives as mixed, Dense does not
    mixed = high >= 0 > low
    positive = (127 if mixed else 255) / high if high > 0 else math.inf
    negative = (-128 if mixed else -256) / low if low < 0 else math.inf
    shift = math.floor(math.log2(min(positive, negative))) + mixed
    if shift < 0:
        return False
    unused = next((n for n in range(8, 0, -1) if not np.any(weight % (1 << n))), 0) - mixed
    stored = weight << shift
    mode = sign_mode(weight)
    bounds = {"mixed": (-256, 255), "positive": (0, 255), "negative": (-255, 0)}[mode]
    dropped = 8 - (8 - shift - unused) + (mode == "mixed")
    if dropped < 0 or stored.min() < bounds[0] or stored.max() > bounds[1]:
        return False
    return not np.any(np.abs(stored) % (1 << dropped))
