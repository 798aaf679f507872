"""Neuron equations under a convention as what the registers need: decay, input gain, leak and threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import MissingTimeStepError, UnsupportedError
from nirdeploy.reference.convention import Convention

__all__ = ["Dynamics", "dynamics", "needs_dt"]

DECAY_UNITY = 4096


@dataclass(frozen=True)
class Dynamics:
    """One step of a population: v = (1 - loss) v + leak + gain * input, spike above `threshold`.

    Attributes:
        loss: what v loses a step, 0 to 1.
        gain: input gain.
        leak: what is added each step, one number a neuron or one for all, model units.
        threshold: model units.
    """

    loss: float
    gain: float
    leak: NDArray[np.float64]
    threshold: float

    @property
    def decay_v(self) -> int:
        """Register: of 4096, what v loses a step."""
        return round(DECAY_UNITY * self.loss)


def needs_dt(node: nir.NIRNode, convention: Convention) -> bool:
    """Whether the step of a node depends on dt: always with a time constant, for IF with gain r dt."""
    if graphs.type_name(node) != "IF":
        return True
    return convention.gain != "unit" and convention.if_gain == "r_dt"


def dynamics(name: str, node: nir.NIRNode, convention: Convention) -> Dynamics:
    """Coefficients of an IF or LIF population with one value of tau, r and v_threshold.

    LIF (Pedersen et al. 2024): tau dv/dt = v_leak - v + r x. With A = dt/tau the loss is A ('euler') or
    1 - exp(-A) ('exponential'), the gain r A ('euler'), r loss ('decay') or 1 ('unit'), the leak loss v_leak.
    IF: dv/dt = r x; no loss, gain r dt or r (`if_gain`), or 1 ('unit'). Without `use_r`, r counts as 1.

    Raises:
        MissingTimeStepError: dt is needed and missing.
        UnsupportedError: another neuron type.
    """
    convention = convention.for_node(name, graphs.type_name(node))
    kind = graphs.type_name(node)
    if kind not in ("IF", "LIF"):
        raise UnsupportedError(f"the quantiser does not support {kind} yet", node=name)
    if needs_dt(node, convention) and convention.dt is None:
        raise MissingTimeStepError(f"{kind} needs dt", node=name, remedy="Give the convention a dt in seconds.")
    r = float(np.asarray(node.r).flat[0]) if convention.use_r else 1.0
    threshold = float(np.asarray(node.v_threshold).flat[0])
    if kind == "IF":
        dt = convention.dt or 0.0
        gain = 1.0 if convention.gain == "unit" else (r if convention.if_gain == "r" else r * dt)
        return Dynamics(0.0, gain, np.zeros(1), threshold)
    rate = float(convention.dt or 0.0) / float(np.asarray(node.tau).flat[0])
    loss = rate if convention.integrator == "euler" else -math.expm1(-rate)
    gain = {"euler": r * rate, "decay": r * loss, "unit": 1.0}[convention.gain]
    return Dynamics(loss, gain, loss * np.asarray(node.v_leak, dtype=np.float64), threshold)
