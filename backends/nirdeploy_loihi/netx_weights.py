"""What netx and Lava make of a layer's weights, and which ones they change."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.weights import sign_mode

__all__ = ["CLIPPED", "kept_by_conv", "kept_by_netx", "odd_for_the_chip"]

Integers = NDArray[np.int64]
# Lava's weightutils.py clip_weights, by the sign of a matrix
CLIPPED = {"mixed": (-256, 255), "positive": (0, 255), "negative": (-255, 0)}


def kept_by_netx(*matrices: Integers) -> bool:
    """Whether the Dense processes of one layer multiply with exactly these integers.

    netx scales the matrices of a recurrent layer by one common shift and states one number of bits
    (utils.py optimize_weight_bits); then each Dense clips and cuts by the sign of its own matrix (lava
    proc/dense/models.py).

    Args:
        matrices: the weights [out, in] of a layer, and its recurrent ones.
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


def kept_by_conv(weight: Integers) -> bool:
    """Whether 8 bits and a sign hold a kernel; Lava's Conv on CPU takes any, a chip does not."""
    low, high = int(weight.min()), int(weight.max())
    return low >= -256 and high <= (254 if low < 0 else 255)


def odd_for_the_chip(weight: Integers) -> bool:
    """Whether signs are mixed and an odd entry needs all 8 bits: Lava on CPU keeps it, a chip rounds it."""
    if sign_mode(weight) != "mixed" or (weight.max() <= 127 and weight.min() >= -128):
        return False
    return bool(np.any(weight & 1))
