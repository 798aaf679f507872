"""Neuron modules with explicit state: `spikes, state = module(x, state)`.

Equations are those of NIR (Pedersen et al. 2024, Methods), discretised as the Convention says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import nir
import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy.errors import ConventionError, MissingTimeStepError, UnsupportedError
from nirdeploy.names import suggest
from nirdeploy.nodes import make_node
from nirdeploy.reference.convention import Convention

__all__ = [
    "IF",
    "LI",
    "LIF",
    "SURROGATES",
    "Coefficients",
    "CubaLI",
    "CubaLIF",
    "Delay",
    "I",
    "Integrator",
    "Neuron",
    "Stateful",
    "Threshold",
    "coefficients",
    "emit",
    "reset",
]

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
    IF and I: dv/dt = r x, so gain r dt, or r where the convention says `if_gain='r'`. A synapse, tau di/dt = -i + w x,
    is the same with w for r and no leak.

    Raises:
        MissingTimeStepError: dt is needed and missing.
        UnsupportedError: integrator 'exact'.
    """
    if convention.integrator == "exact":
        raise UnsupportedError("integrator 'exact' is not supported yet", node=node, remedy="Use 'euler'.")
    resistance = r if convention.use_r else torch.ones_like(r)
    if tau is None:
        if convention.gain == "unit":
            return Coefficients(1.0, torch.ones_like(r), 0.0)
        if convention.if_gain == "r":
            return Coefficients(1.0, resistance, 0.0)
        return Coefficients(1.0, resistance * _dt(convention, kind, node), 0.0)
    rate = _dt(convention, kind, node) / tau
    decay = 1.0 - rate if convention.integrator == "euler" else torch.exp(-rate)
    gain = {
        "euler": resistance * rate,
        "decay": resistance * (1.0 - decay),
        "unit": torch.ones_like(r),
    }[convention.gain]
    return Coefficients(decay, gain, 0.0 if v_leak is None else (1.0 - decay) * v_leak)


def _dt(convention: Convention, kind: str, node: str | None) -> float:
    if convention.dt is None:
        why = "whose input gain is r dt" if kind in ("IF", "I") else "with a time constant"
        remedy = "Give the convention a dt in seconds"
        remedy += ", or if_gain='r'." if kind in ("IF", "I") else "."
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


class Stateful(nn.Module):
    """Base of every module that keeps state: `out, state = module(x, state)`, never changing `state`."""

    kind = ""

    def __init__(self, convention: Convention | None = None) -> None:
        super().__init__()
        self.convention = convention or Convention()
        for option, only in (("fires", "after_update"), ("reset_time", "same_step"), ("population_delay", 0)):
            value = getattr(self.convention, option)
            if value != only:
                raise UnsupportedError(f"convention {option}={value!r} is not supported yet", remedy=f"Use {only!r}.")

    def check(self, node: str) -> None:
        """Raise now what the first step would raise, naming the node."""

    def rest(self, x: Tensor) -> Tensor:
        """What it emits, in the shape of `x`, while nothing has ever come in."""
        return torch.zeros_like(x)

    def _store(self, **values: Any) -> None:
        for name, value in values.items():
            # a Python number has no precision of its own; an array keeps its
            plain = isinstance(value, int | float)
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.array(value, copy=True))
            tensor = tensor.detach().clone()
            if plain or not tensor.is_floating_point():
                tensor = tensor.to(torch.get_default_dtype())
            setattr(self, name, nn.Parameter(tensor))


def _same_shape(state: Tensor, x: Tensor, what: str) -> Tensor:
    if state.shape != x.shape:
        raise ConventionError(f"{what} of shape {tuple(state.shape)} for an input of shape {tuple(x.shape)}")
    return state


class Membrane(Stateful):
    """A population with a membrane potential; the state is v after the step, or {'i_syn', 'v_mem'} with a synapse."""

    fields: tuple[str, ...] = ("r",)
    r: Tensor

    def _membrane(self, node: str | None = None) -> Coefficients:
        return coefficients(
            self.kind,
            self.convention,
            r=self.r,
            tau=getattr(self, "tau_mem" if "tau_mem" in self.fields else "tau", None),
            v_leak=getattr(self, "v_leak", None),
            node=node,
        )

    def _synapse(self, node: str | None = None) -> Coefficients | None:
        if "tau_syn" not in self.fields:
            return None
        w_in = cast("Tensor", self.w_in)
        use_w = dataclasses.replace(self.convention, use_r=True, overrides={})
        return coefficients(self.kind, use_w, r=w_in, tau=cast("Tensor", self.tau_syn), node=node)

    def check(self, node: str) -> None:
        """Raise now what the first step would raise, naming the node."""
        self._membrane(node)
        self._synapse(node)
        threshold = getattr(self, "v_threshold", None)
        many = self.convention.spikes_per_step == "many"
        if many and threshold is not None and not bool((threshold > 0).all()):
            raise ConventionError(
                f"v_threshold {float(threshold.min())} with spikes_per_step='many' would fire without end",
                node=node,
                remedy="Use a positive threshold.",
            )

    def integrate(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor | None]:
        """One step of synapse, where there is one, and membrane: v before any reset, and i_syn."""
        v_before, i_before = self.split(state, x)
        synapse = self._synapse()
        current: Tensor | None = None
        if synapse is not None:
            current = synapse.decay * cast("Tensor", i_before) + synapse.gain * x
            x = current
        decay, gain, leak = self._membrane()
        return decay * v_before + leak + gain * x, current

    def split(self, state: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """v and i_syn of a state; zeros in the shape of `x` where it is missing.

        Raises:
            ConventionError: the state belongs to another batch or another kind of node.
        """
        has_synapse = "tau_syn" in self.fields
        if state is None:
            return torch.zeros_like(x), torch.zeros_like(x) if has_synapse else None
        if has_synapse != isinstance(state, Mapping):
            raise ConventionError(f"state of type {type(state).__name__} is not that of a {self.kind}")
        if not has_synapse:
            return _same_shape(state, x, "state"), None
        return _same_shape(state["v_mem"], x, "v_mem"), _same_shape(state["i_syn"], x, "i_syn")

    def join(self, v: Tensor, current: Tensor | None) -> Any:
        """The state made of v and i_syn."""
        return v if current is None else {"i_syn": current, "v_mem": v}

    def v_mem(self, state: Any) -> Tensor:
        """v of a state as it is recorded: model units, or divided by the input gain (v_unit='gain')."""
        v: Tensor = state["v_mem"] if isinstance(state, Mapping) else state
        return v if self.convention.v_unit == "model" else v / self._membrane().gain

    def to_node(self, shape: tuple[int, ...]) -> nir.NIRNode:
        """The NIR node for a population of this shape."""
        values = {name: getattr(self, name).detach().cpu().numpy() for name in self.fields}
        full = {name: np.array(np.broadcast_to(value, shape), copy=True) for name, value in values.items()}
        return make_node(getattr(nir, self.kind), **full)


class Integrator(Membrane):
    """Base of the populations that emit v itself."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step: v and the new state.

        Raises:
            ConventionError: the state belongs to another batch.
        """
        v, current = self.integrate(x, state)
        return v, self.join(v, current)


class Neuron(Membrane):
    """Base of the spiking populations.

    Args:
        r: resistance; scalar or one a neuron.
        v_threshold: firing threshold, model units.
        v_reset: reset potential, model units.
        convention: how it is stepped; None: forward Euler as NIR, which needs dt.
        surrogate: gradient of the spike in training, one of `SURROGATES`.
    """

    kind = "IF"
    fields: tuple[str, ...] = ("r", "v_threshold", "v_reset")
    v_threshold: Tensor
    v_reset: Tensor

    def __init__(
        self,
        r: Any = 1.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        *,
        convention: Convention | None = None,
        surrogate: str = "fast_sigmoid",
    ) -> None:
        super().__init__(convention)
        if surrogate not in SURROGATES:
            raise ConventionError(f"unknown surrogate {surrogate!r}", remedy=suggest(surrogate, SURROGATES))
        self.surrogate = surrogate
        self._store(r=r, v_threshold=v_threshold, v_reset=v_reset)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step.

        Args:
            x: input current, [..., neurons].
            state: what the previous step returned; None: at rest, v = 0.

        Returns:
            Spike counts and the new state.

        Raises:
            ConventionError: the state belongs to another batch.
        """
        v, current = self.integrate(x, state)
        spikes = emit(v, self.v_threshold, self.convention, self.surrogate)
        return spikes, self.join(reset(v, spikes, self.v_threshold, self.v_reset, self.convention), current)

    def threshold_values(self) -> float | np.ndarray:
        """The threshold in the unit in which v_mem is recorded; one number where all neurons agree."""
        unit = 1.0 if self.convention.v_unit == "model" else self._membrane().gain
        array = (self.v_threshold / unit).detach().cpu().numpy()
        return float(array.flat[0]) if array.size and np.all(array == array.flat[0]) else array


class IF(Neuron):
    """Integrate and fire: dv/dt = r x (nir.IF)."""


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
    fields = ("tau", "r", "v_leak", "v_threshold", "v_reset")

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


class CubaLIF(Neuron):
    """LIF behind a synapse: tau_syn di/dt = -i + w_in x; tau_mem dv/dt = v_leak - v + r i (nir.CubaLIF).

    Args:
        tau_syn: synaptic time constant in seconds.
        tau_mem: membrane time constant in seconds.
        r: resistance.
        v_leak: leak potential.
        v_threshold: firing threshold.
        v_reset: reset potential.
        w_in: input weight.
        convention: how it is stepped; needs dt. The membrane sees the synapse's new current.
        surrogate: gradient of the spike in training.
    """

    kind = "CubaLIF"
    fields = ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in")

    def __init__(
        self,
        tau_syn: Any,
        tau_mem: Any,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        w_in: Any = 1.0,
        *,
        convention: Convention | None = None,
        surrogate: str = "fast_sigmoid",
    ) -> None:
        super().__init__(r, v_threshold, v_reset, convention=convention, surrogate=surrogate)
        self._store(tau_syn=tau_syn, tau_mem=tau_mem, v_leak=v_leak, w_in=w_in)


class I(Integrator):  # noqa: E742 (NIR's own name)
    """Integrator: dv/dt = r x (nir.I)."""

    kind = "I"
    fields = ("r",)

    def __init__(self, r: Any = 1.0, *, convention: Convention | None = None) -> None:
        super().__init__(convention)
        self._store(r=r)


class LI(Integrator):
    """Leaky integrator: tau dv/dt = v_leak - v + r x (nir.LI); arguments as `LIF`."""

    kind = "LI"
    fields = ("tau", "r", "v_leak")

    def __init__(self, tau: Any, r: Any = 1.0, v_leak: Any = 0.0, *, convention: Convention | None = None) -> None:
        super().__init__(convention)
        self._store(tau=tau, r=r, v_leak=v_leak)


class CubaLI(Integrator):
    """Leaky integrator behind a synapse (nir.CubaLI); arguments as `CubaLIF`."""

    kind = "CubaLI"
    fields = ("tau_syn", "tau_mem", "r", "v_leak", "w_in")

    def __init__(
        self,
        tau_syn: Any,
        tau_mem: Any,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        w_in: Any = 1.0,
        *,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(convention)
        self._store(tau_syn=tau_syn, tau_mem=tau_mem, r=r, v_leak=v_leak, w_in=w_in)


class Threshold(nn.Module):
    """1 where x > threshold, else 0, with a surrogate gradient (nir.Threshold)."""

    def __init__(self, threshold: Any, *, surrogate: str = "fast_sigmoid") -> None:
        super().__init__()
        tensor = torch.as_tensor(np.array(threshold, copy=True))
        self.threshold = nn.Parameter(tensor if tensor.is_floating_point() else tensor.float())
        self.surrogate = surrogate

    def forward(self, x: Tensor) -> Tensor:
        """Compare one step."""
        found: Tensor = _Spike.apply(x - self.threshold, False, self.surrogate)  # type: ignore[no-untyped-call]
        return found


class Delay(Stateful):
    """Emits what came in `delay` seconds ago, each neuron its own; zeros before (nir.Delay).

    The state is [step, ...]: entry k came in k + 1 steps ago.

    Args:
        delay: seconds, whole steps of dt; scalar or one a neuron.
        convention: has the dt.

    Raises:
        ConventionError: a delay that is negative or no whole number of steps.
    """

    kind = "Delay"
    steps: Tensor

    def __init__(self, delay: Any, *, convention: Convention | None = None) -> None:
        super().__init__(convention)
        self.delay = np.array(delay, copy=True)
        dt = self.convention.dt
        exact = self.delay.astype(np.float64) / dt if dt else np.zeros(self.delay.shape)
        whole = np.rint(exact)
        # a float32 file keeps 7 digits: what is nearer to a whole step than that is one
        bad = (np.abs(exact - whole) > 1e-6 * np.maximum(1.0, np.abs(exact))) | (whole < 0)
        if bad.any():
            value = self.delay[bad].flat[0]
            raise ConventionError(
                f"a delay of {value} s is {exact[bad].flat[0]:.7g} steps of dt={dt}, expected a whole number from 0 on",
                remedy="Choose a dt that divides every delay.",
            )
        self.register_buffer("steps", torch.as_tensor(whole.astype(np.int64)))
        self.longest = int(whole.max(initial=0))

    def check(self, node: str) -> None:
        """Raise where dt is missing."""
        if self.convention.dt is None:
            raise MissingTimeStepError("Delay needs dt", node=node, remedy="Give the convention a dt in seconds.")

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step.

        Raises:
            ConventionError: the state belongs to another batch.
        """
        shape = (self.longest, *x.shape)
        if state is None:
            state = x.new_zeros(shape)
        elif tuple(state.shape) != shape:
            raise ConventionError(f"state of shape {tuple(state.shape)} for an input of shape {tuple(x.shape)}")
        line = torch.cat([x[None], state])
        index = self.steps.expand(x.shape)[None]
        return line.gather(0, index)[0], line[: self.longest]

    def to_node(self, shape: tuple[int, ...]) -> nir.NIRNode:
        """The NIR node for a population of this shape."""
        return make_node(nir.Delay, delay=np.array(np.broadcast_to(self.delay, shape), copy=True))
