"""Which integer matrices a Loihi synapse holds, and which ones Lava's own chain changes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.exact import round_half_even

__all__ = [
    "CLIPPED",
    "LARGEST_WEIGHT",
    "Coding",
    "always_on",
    "coding",
    "filling",
    "kept_by_lava",
    "representable",
    "round_weights",
    "sign_mode",
    "spacing",
]

Integers = NDArray[np.int64]
# Lava's weightutils.py clip_weights, by the sign of a matrix
CLIPPED = {"mixed": (-256, 255), "positive": (0, 255), "negative": (-255, 0)}
LARGEST_WEIGHT = 254  # magnitude that mixed and single signs share


def sign_mode(weight: NDArray[Any]) -> str:
    """'positive' (no entry below 0), 'negative' (none above) or 'mixed'; as Lava's weightutils."""
    if weight.min() >= 0:
        return "positive"
    return "negative" if weight.max() <= 0 else "mixed"


class Coding(NamedTuple):
    """Integers that a synapse of some bits holds: count * spacing, the counts being consecutive.

    Attributes:
        lowest: smallest count.
        highest: largest count.
        finest: smallest spacing.
        coarsest: largest spacing.
    """

    lowest: int
    highest: int
    finest: int
    coarsest: int


def coding(mode: str, bits: int) -> Coding:
    """What `bits` bits of a weight hold, by the sign of its matrix: 2**bits counts (negative: from one on 0).

    Loihi drops the low bits of a weight (num_weight_bits) and shifts it by the exponent of its connection. Mixed signs
    cost one bit of magnitude and double the spacing; negative ones are kept even for Lava's sake, which at 8 bits
    leaves 128 counts.
    """
    if mode == "mixed":
        return Coding(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 2, 1 << (9 - bits))
    if mode == "positive":
        return Coding(0, (1 << bits) - 1, 1, 1 << (8 - bits))
    few = min(bits, 7)
    return Coding(-((1 << few) - 1), 0, 2, 1 << (8 - few))


def representable(weight: Integers, bits: int) -> bool:
    """Whether a synapse of some bits holds these integers, with a sign if need be."""
    mode = sign_mode(weight)
    # one sign alone is that of the connection, whichever it is
    magnitudes = [coding("positive", bits)] if mode != "mixed" else []
    common = int(np.bitwise_or.reduce(weight, axis=None))
    for code in (coding("mixed", bits), *magnitudes):
        ends = np.array([weight.min(), weight.max()])
        ends = np.sort(np.abs(ends)) if code in magnitudes else ends
        step = max(1, min(common & -common, code.coarsest))  # the largest power of 2 that divides them all
        if step >= code.finest and _within(ends // step, code):
            return True
    return False


def spacing(scaled: NDArray[np.float64], code: Coding) -> int:
    """Finest spacing, a power of 2, at which no weight is beyond the ends; else the coarsest there is."""
    step = code.finest
    ends = np.array([scaled.min(), scaled.max()])
    while step < code.coarsest and not _within(round_half_even(ends / step), code):
        step *= 2
    return step


def _within(counts: Integers, code: Coding) -> bool:
    return bool(code.lowest <= counts[0] and counts[1] <= code.highest)


def filling(weight: NDArray[np.float64], bits: int) -> float:
    """Largest scale at which weights of `bits` bits are within the ends of the coarsest spacing; 8 bits: within 254."""
    if bits == 8:
        return LARGEST_WEIGHT / float(np.abs(weight).max())
    code = coding(sign_mode(weight), bits)
    high, low = float(weight.max()), float(weight.min())
    above = code.highest * code.coarsest / high if high > 0 else math.inf
    below = code.lowest * code.coarsest / low if low < 0 else math.inf
    return min(above, below)


def _few_bits(scaled: NDArray[np.float64], bits: int) -> Integers:
    mode = sign_mode(scaled)
    code = coding(mode, bits)
    step = spacing(scaled, code)
    found = np.clip(round_half_even(scaled / step), code.lowest, code.highest) * step
    if mode == "negative" and found.any() and not kept_by_lava(found):
        moved = np.where(found == found.min(), found + step, found)  # a minimum that is a power of 2
        if moved.any() and kept_by_lava(moved):
            return moved
    return found


def round_weights(scaled: NDArray[np.float64], limits: Any, bits: int = 8) -> Integers:
    """Nearest integers a synapse holds, ties to even.

    Mixed signs need even weights, 2 round(w / 2): 8 bits and a sign. One sign takes 8 bits as they are, but
    a negative matrix that Lava's chain would change (see `kept_by_lava`) is made even, then its most negative
    entries are moved by one step towards zero. Of fewer bits, weights are multiples of a power of 2, at most 2**bits
    different ones (`coding`).

    Args:
        scaled: weights times the scale.
        limits: the target's [weights] table.
        bits: of a weight, 2 to 8.
    """
    if bits < 8:
        return _few_bits(scaled, bits)
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
    shares = (LARGEST_WEIGHT, 127, largest - 1) if mode == "negative" else (min(LARGEST_WEIGHT, int(limits[mode][1])),)
    for share in shares:
        found = _spread(sums, share) if share > 0 else None
        if found is not None and found.any() and kept_by_lava(found):
            return found
    return _spread(sums, LARGEST_WEIGHT)


def _spread(sums: Integers, share: int) -> Integers:
    """Each sum over axons of at most `share`, the first ones full."""
    count = max(1, -(-int(np.abs(sums).max(initial=0)) // share))
    filled = np.clip(np.abs(sums)[:, None] - share * np.arange(count), 0, share)
    found: Integers = filled * np.sign(sums)[:, None]
    return found


def kept_by_lava(*matrices: Integers) -> bool:
    """Whether Lava's Dense on CPU (0.10, behind netx 0.6) multiplies with exactly these integers.

    netx scales the matrices of a layer by one common shift that fills 8 bits and states how many bits it used (utils.py
    optimize_weight_bits); then each Dense clips, and cuts the bits it believes unused by the sign of its own matrix
    (lava proc/dense/models.py). For weights of 8 bits this is nearly always the identity. It is not for zeros
    alone, one-signed weights beyond 255, negative ones with a zero, an odd entry and a minimum below -128 (all become
    0), and negative weights whose minimum is a power of two (shifted to -256, clipped to -255).

    Args:
        matrices: the weights [out, in] of a layer, and its recurrent ones where it has any.
    """
    high, low = max(int(m.max()) for m in matrices), min(int(m.min()) for m in matrices)
    if high == low == 0 or (low < 0 and high > 254) or (high > 0 and low < -256):
        return False
    mixed = high >= 0 > low  # netx counts a matrix with a zero among negatives as mixed, Dense does not
    above = (127 if mixed else 255) / high if high > 0 else math.inf
    below = (-128 if mixed else -256) / low if low < 0 else math.inf
    shift = math.floor(math.log2(min(above, below))) + mixed
    if shift < 0:
        return False
    bits = int(np.bitwise_or.reduce([np.bitwise_or.reduce(m, axis=None) for m in matrices]))
    unused = min(8, (bits & -bits).bit_length() - 1) - mixed
    return all(_kept_by_dense(m << shift, 8 - shift - unused) for m in matrices)


def _kept_by_dense(stored: Integers, bits: int) -> bool:
    mode = sign_mode(stored)
    dropped = 8 - bits + (mode == "mixed")
    low, high = CLIPPED[mode]
    if dropped < 0 or stored.min() < low or stored.max() > high:
        return False
    # two's complement: the low bits of a magnitude are 0 where those of the number are
    return not np.any(stored & ((1 << dropped) - 1))
