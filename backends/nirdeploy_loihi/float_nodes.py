"""Registers as NIR nodes: the chip's equations without their rounding, in units of a weight's integer."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs

__all__ = ["FOREVER", "register_node", "steps_of_decay"]

FOREVER = 2.0**40  # time constant, in steps, of a decay register of 0: its loss is below any integer


def register_node(
    decay_u: Any, decay_v: Any, threshold: Any, leak: Any, shape: tuple[int, ...], dt: float, *, fires: bool = True
) -> nir.NIRNode:
    """u = (1 - A) u + a and v = (1 - B) v + u + leak as NIR's Euler step, A and B being decay / 4096.

    NIR's CubaLIF gains are w_in A and r B (here 1, so w_in = 1/A, r = 1/B) and its leak is B v_leak; LIF is the
    case A = 1. IF has gain r dt = 1.

    Args:
        decay_u: of 4096; a number or one a neuron.
        decay_v: likewise.
        threshold: in units of a weight's integer; not read where `fires` is False.
        leak: added to v each step, in the same units; where v does not decay it would be lost in 32-bit floats.
        shape: of the population.
        dt: step in seconds.
        fires: False gives LI and CubaLI.
    """

    def full(values: Any) -> NDArray[np.float64]:
        return np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), shape))

    reset = {"v_threshold": full(threshold), "v_reset": full(0.0)} if fires else {}
    no_filter, no_loss = np.all(np.asarray(decay_u) == 4096), not np.any(decay_v)
    if no_filter and no_loss and not np.any(leak):
        kind = nir.IF if fires else nir.I
        return graphs.make_node(kind, r=full(1.0 / dt), **reset)
    steps_v = steps_of_decay(full(decay_v))
    membrane = {"r": steps_v, "v_leak": steps_v * full(leak), **reset}
    if no_filter:
        return graphs.make_node(nir.LIF if fires else nir.LI, tau=steps_v * dt, **membrane)
    steps_u = steps_of_decay(full(decay_u))
    kind = nir.CubaLIF if fires else nir.CubaLI
    return graphs.make_node(kind, tau_syn=steps_u * dt, tau_mem=steps_v * dt, w_in=steps_u, **membrane)


def steps_of_decay(decay: NDArray[np.float64]) -> NDArray[np.float64]:
    """Time constant in steps of a decay of 4096."""
    return np.where(decay > 0, 4096.0 / np.maximum(decay, 1.0), FOREVER)
