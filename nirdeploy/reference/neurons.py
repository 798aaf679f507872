"""Neuron modules with explicit state: `spikes, state = module(x, state)`.

The arithmetic of one step is in `dynamics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy.errors import ConventionError, MissingTimeStepError
from nirdeploy.nodes import make_node
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.dynamics import (
    Coefficients,
    coefficients,
    emit,
    exact_step,
    late_after_update,
    lower_bound,
    refuse_exact,
    reset,
    resets_late,
    synapse_convention,
)
from nirdeploy.reference.surrogates import SURROGATES, Surrogate, heaviside, surrogate_of

__all__ = [
    "IF",
    "LI",
    "LIF",
    "SURROGATES",
    "CubaLI",
    "CubaLIF",
    "Delay",
    "I",
    "Integrator",
    "Membrane",
    "Neuron",
    "Stateful",
    "Surrogate",
    "Threshold",
]


class Stateful(nn.Module):
    """Base of every module that keeps state: `out, state = module(x, state)`, never changing `state`."""

    kind = ""

    def __init__(self, convention: Convention | None = None) -> None:
        super().__init__()
        self.convention = convention or Convention()
        if self.convention.population_delay:
            raise ConventionError(
                f"{type(self).__name__} alone cannot follow population_delay=1, which delays the edges into it",
                remedy="Build the graph it belongs to with nir_to_torch.",
            )

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


def _brief(values: Tensor) -> str:
    if values.is_meta or not values.numel() or bool((values != values.reshape(-1)[0]).any()):
        return str(tuple(values.shape))
    return f"{float(values.detach().reshape(-1)[0]):.4g}"


class Membrane(Stateful):
    """A population with a membrane potential; the state is v after the step, or {'i_syn', 'v_mem'} with a synapse."""

    fields: tuple[str, ...] = ("r",)
    r: Tensor

    def membrane(self, node: str | None = None) -> Coefficients:
        """Decay, gain and leak of the membrane, one a neuron or one for all."""
        return coefficients(
            self.kind,
            self.convention,
            r=self.r,
            tau=self.tau_membrane(),
            v_leak=getattr(self, "v_leak", None),
            node=node,
        )

    def extra_repr(self) -> str:
        """What torch prints of it: a number where all neurons share it, else the shape."""
        return ", ".join(f"{name}={_brief(getattr(self, name))}" for name in self.fields)

    def tau_membrane(self) -> Tensor | None:
        """Time constant of the membrane in seconds; None where it does not leak."""
        return getattr(self, "tau_mem" if "tau_mem" in self.fields else "tau", None)

    def synapse(self, node: str | None = None) -> Coefficients | None:
        """Decay and gain of the synapse; None where there is none."""
        if "tau_syn" not in self.fields:
            return None
        w_in, own = cast("Tensor", self.w_in), synapse_convention(self.convention)
        found = coefficients(self.kind, own, r=w_in, tau=cast("Tensor", self.tau_syn), node=node)
        decayed = self.convention.synapse_gain == "decayed"
        return found._replace(gain=found.decay * torch.ones_like(w_in)) if decayed else found

    def check(self, node: str) -> None:
        """Raise now what the first step would raise, naming the node."""
        refuse_exact(self.convention, self.kind, node)
        self.membrane(node)
        self.synapse(node)
        threshold = getattr(self, "v_threshold", None)
        many = self.convention.spikes_per_step == "many"
        if many and threshold is not None and not bool((threshold > 0).all()):
            raise ConventionError(
                f"v_threshold {float(threshold.min())} with spikes_per_step='many' would fire without end",
                node=node,
                remedy="Use a positive threshold.",
            )

    def current(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the membrane sees of an input, and i_syn where there is a synapse: i = decay i + gain x."""
        synapse = self.synapse()
        if synapse is None or before is None:
            return x, None
        current: Tensor = synapse.decay * before + synapse.gain * x
        return current, current

    def integrate(self, v: Tensor, x: Tensor) -> Tensor:
        """v before any reset: (decay v + leak) + gain x."""
        decay, gain, leak = self.membrane()
        found: Tensor = decay * v + leak + gain * x
        return found

    def rest_potential(self, x: Tensor) -> Tensor:
        """v before anything has come in, in the shape of `x`: 0, or what the convention's v_start names."""
        start = getattr(self, self.convention.v_start, None)
        return torch.zeros_like(x) if start is None else torch.zeros_like(x) + start

    def split(self, state: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """v and i_syn of a state; at rest in the shape of `x` where it is missing.

        Raises:
            ConventionError: the state belongs to another batch or another kind of node.
        """
        has_synapse = "tau_syn" in self.fields
        if state is None:
            return self.rest_potential(x), torch.zeros_like(x) if has_synapse else None
        if has_synapse != isinstance(state, Mapping):
            raise ConventionError(f"state of type {type(state).__name__} is not that of a {self.kind}")
        if not has_synapse:
            return _same_shape(state, x, "state"), None
        return _same_shape(state["v_mem"], x, "v_mem"), _same_shape(state["i_syn"], x, "i_syn")

    def join(self, v: Tensor, current: Tensor | None) -> Any:
        """The state made of v and i_syn."""
        return v if current is None else {"i_syn": current, "v_mem": v}

    def v_mem(self, state: Any) -> Tensor:
        """v of a state as it is recorded, divided by `unit`."""
        v: Tensor = state["v_mem"] if isinstance(state, Mapping) else state
        return v if self.convention.v_unit == "model" else v / self.unit()

    def unit(self) -> Tensor:
        """What v is divided by when it is recorded: 1, the input gains, or the threshold."""
        if self.convention.v_unit == "threshold" and "v_threshold" in self.fields:
            return cast("Tensor", self.v_threshold)
        if self.convention.v_unit != "gain":
            return torch.ones_like(self.r)
        synapse = self.synapse()
        return self.membrane().gain * (1.0 if synapse is None else synapse.gain)  # type: ignore[return-value]

    def to_node(self, shape: tuple[int, ...]) -> nir.NIRNode:
        """The NIR node for a population of this shape."""
        values = {name: getattr(self, name).detach().cpu().numpy() for name in self.fields}
        full = {name: np.array(np.broadcast_to(value, shape), copy=True) for name, value in values.items()}
        return make_node(getattr(nir, self.kind), **full)


class Integrator(Membrane):
    """Base of the populations that emit v itself."""

    def rest(self, x: Tensor) -> Tensor:
        """The initial v."""
        return self.rest_potential(x)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step: v and the new state.

        Raises:
            ConventionError: the state belongs to another batch.
        """
        v_before, i_before = self.split(state, x)
        x, current = self.current(x, i_before)
        v = self.integrate(v_before, x)
        return v, self.join(v, current)


class Neuron(Membrane):
    """Base of the spiking populations.

    Args:
        r: resistance; scalar or one a neuron.
        v_threshold: firing threshold, model units.
        v_reset: reset potential, model units.
        convention: how it is stepped; None: forward Euler as NIR, which needs dt.
        surrogate: gradient of the spike in training: one of `SURROGATES`, or a Surrogate with a slope.
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
        surrogate: str | Surrogate = "fast_sigmoid",
    ) -> None:
        super().__init__(convention)
        self.surrogate = surrogate_of(surrogate)
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
        convention = self.convention
        v, i_before = self.split(state, x)
        x, current = self.current(x, i_before)
        if convention.integrator == "exact":
            spikes, v = self._exact(v, x)
            return spikes, self.join(v, current)
        if not resets_late(convention):
            v = self.integrate(v, x)
            spikes = emit(v, self.v_threshold, convention, self.surrogate)
            v = reset(v, spikes, self.v_threshold, self.v_reset, convention)
            return spikes, self.join(lower_bound(v, self.v_threshold, convention), current)
        # the crossing of the step before
        spikes = crossed = emit(v, self.v_threshold, convention, self.surrogate)
        if late_after_update(convention):
            v = reset(self.integrate(v, x), crossed, self.v_threshold, self.v_reset, convention)
        else:
            v = self.integrate(reset(v, crossed, self.v_threshold, self.v_reset, convention), x)
        if convention.reset_time == "brought_forward":
            spikes = emit(v, self.v_threshold, convention, self.surrogate)
            v = v - (spikes - crossed) * self.v_threshold
        v = lower_bound(v, self.v_threshold, convention)
        if convention.reset_time == "next_step":
            spikes = emit(v, self.v_threshold, convention, self.surrogate)
        return spikes, self.join(v, current)

    def _exact(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return exact_step(
            v,
            x,
            self.convention,
            r=self.r,
            threshold=self.v_threshold,
            v_reset=self.v_reset,
            tau=self.tau_membrane(),
            v_leak=getattr(self, "v_leak", None),
        )

    def threshold_values(self) -> float | np.ndarray:
        """The threshold in the unit in which v_mem is recorded; one number where all neurons agree."""
        array = (self.v_threshold / self.unit()).detach().cpu().numpy()
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
        surrogate: str | Surrogate = "fast_sigmoid",
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
        surrogate: str | Surrogate = "fast_sigmoid",
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

    def __init__(self, threshold: Any, *, surrogate: str | Surrogate = "fast_sigmoid") -> None:
        super().__init__()
        tensor = torch.as_tensor(np.array(threshold, copy=True))
        self.threshold = nn.Parameter(tensor if tensor.is_floating_point() else tensor.float())
        self.surrogate = surrogate_of(surrogate)

    def forward(self, x: Tensor) -> Tensor:
        """Compare one step."""
        return heaviside(x - self.threshold, False, self.surrogate)


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
