"""What netx and Lava make of a layer's weights, and which ones they change."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.weights import sign_mode

__all__ = ["kept_by_conv", "odd_for_the_chip"]

Integers = NDArray[np.int64]


def kept_by_conv(weight: Integers) -> bool:
    """Whether 8 bits and a sign hold a kernel; Lava's Conv on CPU takes any, a chip does not."""
    low, high = int(weight.min()), int(weight.max())
    return low >= -256 and high <= (254 if low < 0 else 255)


def odd_for_the_chip(weight: Integers) -> bool:
    """Whether signs are mixed and an odd entry needs all 8 bits: Lava on CPU keeps it, a chip rounds it."""
    if sign_mode(weight) != "mixed" or (weight.max() <= 127 and weight.min() >= -128):
        return False
    return bool(np.any(weight & 1))
