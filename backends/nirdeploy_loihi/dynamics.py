"""Neuron equations under a convention as what the registers need: decays, input gain, leak, threshold, start.

The coefficients are those of the reference (`nirdeploy.reference.dynamics`), rescaled so that one scale serves all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import UnsupportedError
from nirdeploy.exact import round_half_even
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.dynamics import coefficients, synapse_convention

__all__ = ["DECAY_UNITY", "Dynamics", "Numbers", "dynamics", "needs_dt", "plain"]

Floats = NDArray[np.float64]
Numbers = float | Floats
DECAY_UNITY = 4096
_SPIKING = ("CubaLIF", "IF", "LIF")


@dataclass(frozen=True, eq=False)
class Dynamics:
    """One step of a population, v counted from `offset` and u in units of v.

        u = (1 - loss_u) u + gain * input
        v = (1 - loss_v) v + leak + u, and where v exceeds `threshold`: a spike, v = 0

    Every value is one number, or an array of the node's parameters' shape where neurons differ.

    Attributes:
        loss_u: what u loses a step, 0 to 1; 1 without a synapse.
        loss_v: what v loses a step, 0 to 1.
        gain: what a unit of input adds to u: the gains of synapse and membrane together.
        membrane_gain: u is this times the current i_syn.
        leak: what is added to v each step, model units.
        threshold: model units above `offset`; infinite where nothing fires.
        v_start: v before step 0, model units above `offset`.
        offset: model units of v where the register is 0: what a reset sets v to.
    """

    loss_u: Numbers
    loss_v: Numbers
    gain: Numbers
    membrane_gain: Numbers
    leak: Numbers
    threshold: Numbers
    v_start: Numbers
    offset: Numbers

    @property
    def decay_u(self) -> int | NDArray[np.int64]:
        """Register: of 4096, what u loses a step."""
        return _register(self.loss_u)

    @property
    def decay_v(self) -> int | NDArray[np.int64]:
        """Register: of 4096, what v loses a step."""
        return _register(self.loss_v)

    def unit(self, v_unit: str) -> Numbers:
        """What v is divided by when it is recorded in a convention's `v_unit` (Membrane.unit of the reference)."""
        if v_unit == "threshold" and not np.any(np.isinf(self.threshold)):
            return plain(self.threshold + self.offset)
        return self.gain if v_unit == "gain" else 1.0


def plain(values: Any) -> Numbers:
    """One float where all are equal, else the array."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.flat[0]) if array.size and bool((array == array.flat[0]).all()) else array


def _register(loss: Numbers) -> int | NDArray[np.int64]:
    # far beyond the register is as good as further, and stays an integer
    found = round_half_even(np.clip(DECAY_UNITY * np.asarray(loss, dtype=np.float64), -(2.0**62), 2.0**62))
    return int(found.flat[0]) if found.size and bool((found == found.flat[0]).all()) else found


def needs_dt(node: nir.NIRNode, convention: Convention) -> bool:
    """Whether the step of a population depends on dt: always with a time constant, for IF and I with gain r dt."""
    if graphs.type_name(node) not in ("IF", "I"):
        return True
    return convention.gain != "unit" and convention.if_gain == "r_dt"


def dynamics(name: str, node: nir.NIRNode, convention: Convention) -> Dynamics:
    """Coefficients of IF, LIF, CubaLIF, I, LI or CubaLI (Pedersen et al. 2024, discretised as the convention says).

    The reference steps i = a i + s x and v = b v + (1 - b) v_leak + g i. With u = g i that is u = a u + g s x and
    v = b v + (1 - b) v_leak + u; without a synapse a = 0 and s = 1. A reset to v_reset becomes one to 0 in
    v - v_reset: threshold, leak and start shift with it.

    Raises:
        MissingTimeStepError: dt is needed and missing.
        UnsupportedError: another node type.
    """
    kind = graphs.type_name(node)
    if kind not in graphs.MEMBRANES:
        raise UnsupportedError(f"{kind} has no membrane to quantise", node=name)
    used = convention.for_node(name, kind)
    given = {key: np.asarray(value, dtype=np.float64) for key, value in graphs.parameters(node).items()}
    tau = given.get("tau", given.get("tau_mem"))
    membrane = coefficients(kind, used, r=_tensor(given["r"]), tau=None if tau is None else _tensor(tau), node=name)
    loss_v = 1.0 - _floats(membrane.decay)
    gain, loss_u = _floats(membrane.gain), np.ones(1)
    if "tau_syn" in given:
        decay, synapse = _synapse(name, kind, given, used)
        gain, loss_u = gain * synapse, 1.0 - decay
    spiking = kind in _SPIKING
    offset = given["v_reset"] if spiking and used.reset == "v_reset" else np.zeros(1)
    start = given.get(used.v_start, np.zeros(1))
    return Dynamics(
        loss_u=plain(loss_u),
        loss_v=plain(loss_v),
        gain=plain(gain),
        membrane_gain=plain(_floats(membrane.gain)),
        leak=plain(loss_v * (given.get("v_leak", np.zeros(1)) - offset)),
        threshold=plain(given["v_threshold"] - offset) if spiking else math.inf,
        v_start=plain(start - offset),
        offset=plain(offset),
    )


def _synapse(name: str, kind: str, given: Mapping[str, Floats], used: Convention) -> tuple[Floats, Floats]:
    """Decay of i_syn, and what a unit of input adds to it."""
    found = coefficients(
        kind, synapse_convention(used), r=_tensor(given["w_in"]), tau=_tensor(given["tau_syn"]), node=name
    )
    decay = _floats(found.decay)
    return decay, decay if used.synapse_gain == "decayed" else _floats(found.gain)


def _tensor(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.require(values, np.float64, ["C", "W"]))


def _floats(values: torch.Tensor | float) -> Floats:
    found: Floats = values.numpy() if isinstance(values, torch.Tensor) else np.full(1, values)
    return found
