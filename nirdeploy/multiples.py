"""Integers read off values that are multiples of one number: the number, exactly, and the integers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError

__all__ = ["MOST_DIFFERENT", "as_integers", "common_step", "magnitudes"]

MOST_DIFFERENT = 1 << 9  # magnitudes of weights that are still looked at; those of 8 bits have 256 at most


def magnitudes(values: Any, node: str, most: int = MOST_DIFFERENT) -> list[Fraction]:
    """Different absolute values, exactly; 0 is a multiple of everything.

    Raises:
        QuantizationError: more than `most`, which no integers of few bits are.
    """
    different = np.unique(np.abs(np.asarray(values, dtype=np.float64)))
    if len(different) > most:
        raise QuantizationError(
            f"{len(different)} different magnitudes, 8 bits have 128: these are not integers times one number",
            node=node,
            remedy="Use quantizer='calibrated', or train with quantization_aware.",
        )
    return [Fraction(float(value)) for value in different if value]


def common_step(values: Iterable[Fraction]) -> Fraction | None:
    """The largest number that all are multiples of: of p/q in lowest terms, gcd of all p over lcm of all q."""
    every = list(values)
    if not every:
        return None
    numerator = math.gcd(*(value.numerator for value in every))
    return Fraction(numerator, math.lcm(*(value.denominator for value in every)))


def as_integers(values: Any, step: float) -> NDArray[np.int64]:
    """Values over a step, nearest integers."""
    quotient: NDArray[np.float64] = np.rint(np.asarray(values, dtype=np.float64) / step)
    # beyond 2**62 the cast would wrap; what is so large is refused whatever it is exactly
    return np.clip(quotient, -(2.0**62), 2.0**62).astype(np.int64)
