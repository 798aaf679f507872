"""How far u and v can go whatever spikes arrive: interval arithmetic with the exact integer decay, to its fixpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STATE_LIMIT", "Reach", "fixpoint", "reach"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
STATE_LIMIT = 1 << 23  # magnitude that 24 bits hold: u wraps beyond, v is clipped (Lava lif/models.py)


@dataclass(frozen=True)
class Reach:
    """Largest magnitudes of a population's registers before a reset; infinite where nothing decays.

    Attributes:
        u: of either sign.
        v_high: of positive v.
        v_low: of negative v.
    """

    u: float
    v_high: float
    v_low: float

    @property
    def v(self) -> float:
        """Of either sign."""
        return max(self.v_high, self.v_low)


def fixpoint(push: Any, decay: Any) -> Floats:
    """Where x = ((x * (4096 - decay)) >> 12) + push comes to rest, started at 0.

    The decay takes ceil(x decay / 4096) from x >= 0, so x stops growing as soon as that is `push`:
    x = floor((push - 1) 4096 / decay) + 1.

    Args:
        push: integers from 0 on, added each step.
        decay: of 4096, what x loses a step, from 0 on; 0 with a push: infinite.
    """
    amount, lost = np.broadcast_arrays(np.asarray(push, dtype=np.int64), np.asarray(decay, dtype=np.int64))
    rest = (np.maximum(amount, 1) - 1) * 4096 // np.maximum(lost, 1) + 1
    found = np.where(lost > 0, rest.astype(np.float64), math.inf)
    return np.where(amount > 0, found, 0.0)


def reach(low: Integers, high: Integers, decay_u: Any, decay_v: Any, bias: Any, v_start: Any, shift: int) -> Reach:
    """Bounds of a population's registers.

    Args:
        low: most negative sum of one step, one a neuron.
        high: most positive one.
        decay_u: as in `Compartments`, as are the next three; one a neuron or one for all.
        decay_v: of v.
        bias: the register, mantissa << exponent.
        v_start: v before step 0.
        shift: bits by which sums stand above u.
    """
    up, down = fixpoint(high << shift, decay_u), fixpoint(-(low << shift), decay_u)
    start = np.asarray(v_start, dtype=np.int64)
    v_up = np.maximum(_settled(up + bias, decay_v), np.maximum(start, 0))
    v_down = np.maximum(_settled(down - np.asarray(bias), decay_v), np.maximum(-start, 0))
    return Reach(float(max(up.max(), down.max())), float(v_up.max()), float(v_down.max()))


def _settled(push: Floats, decay: Any) -> Floats:
    """`fixpoint` for a push that may be infinite, or negative: v is then back at 0 at the latest."""
    finite = np.isfinite(push)
    whole = np.where(finite, np.maximum(push, 0), 0).astype(np.int64)
    return np.where(finite, fixpoint(whole, decay), math.inf)
