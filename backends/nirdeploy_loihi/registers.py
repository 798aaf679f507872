"""The chip's fixed-point neuron, bit for bit as Lava's fixed_pt LIF (lava-nc 0.10, lif/models.py).

Each step, on integers, in this order:
    dec(x, d) = sign(x) * ((|x| * (4096 - d)) >> 12)
    u = wrap(dec(u, decay_u) + (a << 6))        u and v hold 24 bits
    v = clip(dec(v, decay_v) + u + bias, -(2**23 - 1), 2**23 - 1)
    v = 0 where the refractory counter is above 0
    s = v > threshold
    v = 0 and counter = refractory where s      u is not reset
    counter = max(counter - 1, 0)
wrap folds once: above 2**23 it subtracts 2**24, at or below -2**23 it adds 2**24. Lava's model has no refractory
time; the counter is that of nengo-loihi (emulator/interface.py), and with refractory = 1 it changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError
from nirdeploy.reference.threads import split
from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.program import SYNAPSE_SHIFT, Compartments

__all__ = ["SYNAPSE_SHIFT", "States", "integrate", "refuse_overflow", "registers_of"]

Ints = NDArray[np.int32]
Integers = NDArray[np.int64]
_LEAST_CELLS = 1 << 16  # neurons times steps that are worth a thread


class States(NamedTuple):
    """A population over time, each in the shape of its sums; u and v are empty where they were not kept.

    Attributes:
        u: the register u.
        v: the register v after the reset.
        s: spikes.
        wraps: how often u wrapped.
        clips: how often v met a bound.
    """

    u: Ints
    v: Ints
    s: Ints
    wraps: int
    clips: int


def registers_of(p: Compartments) -> tuple[Integers, ...]:
    """What the kernels are given: kept_u, kept_v, threshold, bias, v_start; each [neuron].

    Raises:
        QuantizationError: a decay outside 0 to 4096, v_start beyond 24 bits, or a bias beyond 32 bits.
    """
    limits = {
        "decay_u": (p.decay_u, 0, 4096),
        "decay_v": (p.decay_v, 0, 4096),
        "v_start": (p.v_start, 1 - STATE_LIMIT, STATE_LIMIT - 1),
        "bias": (p.bias, -(1 << 31), (1 << 31) - 1),
    }
    for name, (values, low, high) in limits.items():
        if (outside := values[(values < low) | (values > high)]).size:
            raise QuantizationError(f"{name} is {outside[0]}, expected {low} to {high}", node=p.name)
    # v has 24 bits: a threshold beyond 32 compares as the largest or least one does
    threshold = np.clip(p.threshold, -(1 << 31), (1 << 31) - 1)
    found = (4096 - p.decay_u, 4096 - p.decay_v, threshold, p.bias, p.v_start)
    return tuple(np.broadcast_to(values.reshape(-1), (p.size,)) for values in found)


def refuse_overflow(low: int, high: int, node: str) -> None:
    """Refuse a u that passed 32 bits before it was folded, where Lava's own integers run over.

    Raises:
        QuantizationError: naming the value.
    """
    worst = low if -low > high else high
    if not -(1 << 31) <= worst < 1 << 31:
        raise QuantizationError(
            f"u reaches {worst}, which 32 bits do not hold: its synaptic sum is too large",
            node=node,
            remedy="Use smaller weights, or fewer inputs that spike together.",
        )


def integrate(p: Compartments, a: Ints, *, keep_u: bool = False, keep_v: bool = False) -> States:
    """Step a population from its start with given synaptic sums.

    Args:
        p: its registers.
        a: sums [step, batch, *shape] or [step, cell], a cell being a sample's neuron, neurons last.
        keep_u: whether to return u.
        keep_v: whether to return v.

    Returns:
        States, each in the shape of `a`.

    Raises:
        QuantizationError: u beyond 32 bits, or a register out of its range.
    """
    from nirdeploy_loihi.neuron_kernels import integrate as compiled

    sums = np.ascontiguousarray(a, dtype=np.int32).reshape(len(a), -1)
    steps, cells = sums.shape
    none: Ints = np.empty((0, cells), dtype=np.int32)
    u, v = (np.empty_like(sums) if keep else none for keep in (keep_u, keep_v))
    s: Ints = np.empty_like(sums)
    each = tuple(np.tile(r.astype(np.int32), cells // p.size) for r in registers_of(p))

    def work(first: int, last: int) -> tuple[int, int, int, int]:
        found: tuple[int, int, int, int] = compiled(sums, each, p.refractory, first, last, u, v, s)
        return found

    parts = split(work, cells, max(1, _LEAST_CELLS // steps))
    refuse_overflow(min(part[2] for part in parts), max(part[3] for part in parts), p.name)
    u, v, s = (x.reshape(a.shape) if len(x) else x for x in (u, v, s))
    return States(u, v, s, sum(part[0] for part in parts), sum(part[1] for part in parts))
