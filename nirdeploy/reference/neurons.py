"""Neuron modules with explicit state: `spikes, state = module(x, state)`.

Equations are those of NIR (Pedersen et al. 2024, Methods), discretised as the Convention says.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy.errors import ConventionError, MissingTimeStepError, UnsupportedError
from nirdeploy.graph import make_node
from nirdeploy.names import suggest
from nirdeploy.reference.convention import Convention

__all__ = ["IF", "LIF", "SURROGATES", "Coefficients", "Neuron", "coefficients", "emit", "reset"]

# derivative of the spike with respect to (v - threshold); Zenke and Ganguli 2018, Fang et al. 2021
SURROGATES = {
    "fast_sigmoid": lambda d: 1.0 / (1.0 + 10.0 * d.abs()) ** 2,
    "atan": lambda d: 1.0 / (1.0 + (math.pi * d) ** 2),
}


class _Spike(torch.autograd.Function):
    """Heaviside step whose gradient is a surrogate."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, inclusive: bool, surrogate: str) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.surrogate = surrogate
        return (distance >= 0 if inclusive else distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        return gradients[0] * SURROGATES[ctx.surrogate](distance), None, None


class Coefficients(NamedTuple):
    """One step of a neuron as v = decay * v + leak + gain * x."""

    decay: Tensor | float
    gain: Tensor | float
    leak: Tensor | float


def coefficients(
    kind: str,
    convention: Convention,
    *,
    r: Tensor,
    tau: Tensor | None = None,
    v_leak: Tensor | None = None,
    node: str | None = None,
) -> Coefficients:
    """Decay, input gain and leak of one step.

    LIF: tau dv/dt = v_leak - v + r x. With A = dt/tau, Euler: decay 1 - A; exponential: decay exp(-A). The
    gain is r A ('euler'), r (1 - decay) ('decay') or 1 ('unit'); the leak is (1 - decay) v_leak.
    IF: dv/dt = r x, so gain r dt, or r where the convention says `if_gain='r'`.

    Raises:
        MissingTimeStepError: dt is needed and missing.
        UnsupportedError: integrator 'exact'.
    """
    if convention.integrator == "exact":
        raise UnsupportedError("integrator 'exact' is not supported yet", node=node, remedy="Use 'euler'.")
    resistance = r if convention.use_r else torch.ones_like(r)
    if kind == "IF":
        if convention.gain == "unit":
            return Coefficients(1.0, torch.ones_like(r), 0.0)
        if convention.if_gain == "r":
            return Coefficients(1.0, resistance, 0.0)
        return Coefficients(1.0, resistance * _dt(convention, kind, node), 0.0)
    if tau is None or v_leak is None:
        raise ConventionError(f"{kind} needs tau and v_leak", node=node)
    rate = _dt(convention, kind, node) / tau
    decay = 1.0 - rate if convention.integrator == "euler" else torch.exp(-rate)
    gain = {
        "euler": resistance * rate,
        "decay": resistance * (1.0 - decay),
        "unit": torch.ones_like(r),
    }[convention.gain]
    return Coefficients(decay, gain, (1.0 - decay) * v_leak)


def _dt(convention: Convention, kind: str, node: str | None) -> float:
    if convention.dt is None:
        why = "whose input gain is r dt" if kind == "IF" else "with a time constant"
        remedy = "Give the convention a dt in seconds"
        remedy += ", or if_gain='r'." if kind == "IF" else "."
        raise MissingTimeStepError(f"{kind} {why} needs dt", node=node, remedy=remedy)
    return convention.dt


def emit(v: Tensor, threshold: Tensor, convention: Convention, surrogate: str) -> Tensor:
    """Spike counts of one step: 1 where v crosses, or with 'many' how often the threshold fits into v."""
    inclusive = convention.crossing == "inclusive"
    spikes: Tensor = _Spike.apply(v - threshold, inclusive, surrogate)  # type: ignore[no-untyped-call]
    if convention.spikes_per_step == "one":
        return spikes
    ratio = (v / threshold).detach()
    whole = torch.floor(ratio) if inclusive else torch.ceil(ratio) - 1
    return spikes * whole.clamp(min=1.0)


def reset(v: Tensor, spikes: Tensor, threshold: Tensor, v_reset: Tensor, convention: Convention) -> Tensor:
    """v after the reset and the lower bound.

    'v_reset': v = v_reset; 'zero': v = 0; 'subtract': v = v - count * threshold. Then v = max(v, v_min).
    """
    if convention.reset == "subtract":
        v = v - spikes * threshold
    else:
        value = v_reset if convention.reset == "v_reset" else torch.zeros_like(v_reset)
        v = torch.where(spikes > 0, value.expand_as(v), v)
    if convention.v_min is None:
        return v
    low = -threshold if convention.v_min == "-threshold" else torch.full_like(threshold, float(convention.v_min))
    return torch.maximum(v, low)


class Neuron(nn.Module):
    """Base of the spiking modules.

    Args:
        r: resistance; scalar or one a neuron.
        v_threshold: firing threshold, model units.
        v_reset: reset potential, model units.
        convention: how it is stepped; None: forward Euler as NIR, which needs dt.
        surrogate: gradient of the spike in training, one of `SURROGATES`.
    """

    kind = "IF"
    v_threshold: Tensor
    v_reset: Tensor
    r: Tensor

    def __init__(
        self,
        r: Any = 1.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        *,
        convention: Convention | None = None,
        surrogate: str = "fast_sigmoid",
    ) -> None:
        super().__init__()
        if surrogate not in SURROGATES:
            raise ConventionError(f"unknown surrogate {surrogate!r}", remedy=suggest(surrogate, SURROGATES))
        self.convention = convention or Convention()
        self.surrogate = surrogate
        for option, only in (("fires", "after_update"), ("reset_time", "same_step"), ("population_delay", 0)):
            value = getattr(self.convention, option)
            if value != only:
                raise UnsupportedError(f"convention {option}={value!r} is not supported yet", remedy=f"Use {only!r}.")
        self._store(r=r, v_threshold=v_threshold, v_reset=v_reset)

    def _store(self, **values: Any) -> None:
        for name, value in values.items():
            tensor = torch.as_tensor(np.array(value, copy=True) if isinstance(value, np.ndarray) else value)
            tensor = tensor.detach().clone()
            if not tensor.is_floating_point():
                tensor = tensor.to(torch.get_default_dtype())
            setattr(self, name, nn.Parameter(tensor))

    def _coefficients(self, node: str | None = None) -> Coefficients:
        return coefficients("IF", self.convention, r=self.r, node=node)

    def check(self, node: str) -> None:
        """Raise now what the first step would raise, naming the node."""
        self._coefficients(node)

    def initial_state(self, x: Tensor) -> Tensor:
        """v at rest for an input of this shape: 0."""
        return torch.zeros_like(x)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            x: input current, [..., neurons].
            state: v after the previous step, the shape of `x`; None: at rest.

        Returns:
            Spike counts and the new state.

        Raises:
            ConventionError: the state belongs to another batch.
        """
        if state is None:
            state = self.initial_state(x)
        elif state.shape != x.shape:
            raise ConventionError(f"state of shape {tuple(state.shape)} for an input of shape {tuple(x.shape)}")
        decay, gain, leak = self._coefficients()
        v = decay * state + leak + gain * x
        spikes = emit(v, self.v_threshold, self.convention, self.surrogate)
        return spikes, reset(v, spikes, self.v_threshold, self.v_reset, self.convention)

    def voltage(self, state: Tensor) -> Tensor:
        """`state` as v_mem is recorded: model units, or divided by the input gain (v_unit='gain')."""
        if self.convention.v_unit == "model":
            return state
        return state / self._coefficients().gain

    def threshold_values(self) -> float | np.ndarray:
        """The threshold in the unit in which `voltage` is recorded; one number where all neurons agree."""
        array = self.voltage(self.v_threshold).detach().cpu().numpy()
        return float(array.flat[0]) if array.size and np.all(array == array.flat[0]) else array


class IF(Neuron):
    """Integrate and fire: dv/dt = r x (nir.IF)."""

    kind = "IF"

    def to_node(self, shape: tuple[int, ...]) -> nir.NIRNode:
        """The NIR node for a population of this shape."""
        return make_node(nir.IF, **_arrays(self, shape, "r", "v_threshold", "v_reset"))


class LIF(Neuron):
    """Leaky integrate and fire: tau dv/dt = v_leak - v + r x (nir.LIF).

    Args:
        tau: membrane time constant in seconds.
        r: resistance.
        v_leak: leak potential.
        v_threshold: firing threshold.
        v_reset: reset potential.
        convention: how it is stepped; needs dt.
        surrogate: gradient of the spike in training.
    """

    kind = "LIF"
    tau: Tensor
    v_leak: Tensor

    def __init__(
        self,
        tau: Any,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        *,
        convention: Convention | None = None,
        surrogate: str = "fast_sigmoid",
    ) -> None:
        super().__init__(r, v_threshold, v_reset, convention=convention, surrogate=surrogate)
        self._store(tau=tau, v_leak=v_leak)

    def _coefficients(self, node: str | None = None) -> Coefficients:
        return coefficients("LIF", self.convention, r=self.r, tau=self.tau, v_leak=self.v_leak, node=node)

    def to_node(self, shape: tuple[int, ...]) -> nir.NIRNode:
        """The NIR node for a population of this shape."""
        return make_node(nir.LIF, **_arrays(self, shape, "tau", "r", "v_leak", "v_threshold", "v_reset"))


def _arrays(module: nn.Module, shape: tuple[int, ...], *names: str) -> dict[str, np.ndarray]:
    found = {}
    for name in names:
        value = getattr(module, name).detach().cpu().numpy()
        found[name] = np.array(np.broadcast_to(value, shape), copy=True)
    return found
