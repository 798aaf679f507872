"""One step of a neuron as pure functions: the definition that every executor is held against.

Equations are those of NIR (Pedersen et al., Nature Communications 15, 8122, 2024, Methods), discretised as the
Convention says.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nirdeploy.errors import ConventionError, MissingTimeStepError, UnsupportedError
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.surrogates import Surrogate, heaviside

__all__ = [
    "MOST_SPIKES",
    "Coefficients",
    "coefficients",
    "emit",
    "exact_step",
    "late_after_update",
    "lower_bound",
    "refuse_exact",
    "reset",
    "reset_value",
    "resets_late",
    "synapse_convention",
]

MOST_SPIKES = 10_000  # in one step of integrator 'exact'


class Coefficients(NamedTuple):
    """One step of a neuron as v = (decay * v + leak) + gain * x."""

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
    is the same with w for r and no leak. For an input that is constant within the step, integrator 'exact' is
    decay exp(-A) with gain r (1 - decay), whatever `gain` says; its spikes are `exact_step`'s.

    Raises:
        MissingTimeStepError: dt is needed and missing.
    """
    resistance = r if convention.use_r else torch.ones_like(r)
    if tau is None:
        if convention.gain == "unit":
            return Coefficients(1.0, torch.ones_like(r), 0.0)
        if convention.if_gain == "r":
            return Coefficients(1.0, resistance, 0.0)
        return Coefficients(1.0, resistance * _dt(convention, kind, node), 0.0)
    rate = _dt(convention, kind, node) / tau
    decay = 1.0 - rate if convention.integrator == "euler" else torch.exp(-rate)
    gain = "decay" if convention.integrator == "exact" else convention.gain
    found = {
        "euler": resistance * rate,
        "decay": resistance * (1.0 - decay),
        "unit": torch.ones_like(r),
    }[gain]
    return Coefficients(decay, found, 0.0 if v_leak is None else (1.0 - decay) * v_leak)


def synapse_convention(convention: Convention) -> Convention:
    """The convention at a synapse: tau di/dt = -i + w x is a membrane without leak whose r is w."""
    changes: dict[str, Any] = {"use_r": True, "overrides": {}}
    if convention.synapse_integrator != "same":
        changes["integrator"] = convention.synapse_integrator
    if convention.synapse_gain not in ("same", "decayed"):
        changes["gain"] = convention.synapse_gain
    return dataclasses.replace(convention, **changes)


def _dt(convention: Convention, kind: str, node: str | None) -> float:
    if convention.dt is None:
        why = "whose input gain is r dt" if kind in ("IF", "I") else "with a time constant"
        remedy = "Give the convention a dt in seconds"
        remedy += ", or if_gain='r'." if kind in ("IF", "I") else "."
        raise MissingTimeStepError(f"{kind} {why} needs dt", node=node, remedy=remedy)
    return convention.dt


def resets_late(convention: Convention) -> bool:
    """Whether v above the threshold is reset in the step after.

    So it is for reset_time='next_step' (snnTorch with reset_delay=True) and for fires='before_update' (spyx), which
    differ in when the spike is emitted. With 'brought_forward' (snnTorch with reset_delay=False) it is v above the
    threshold in spite of a reset: with c for that and s for the spike, u = v' - c threshold is what is compared, and
    u - (s - c) threshold the new v.
    """
    return convention.reset_time != "same_step" or convention.fires == "before_update"


def emit(v: Tensor, threshold: Tensor, convention: Convention, surrogate: Surrogate) -> Tensor:
    """Spike counts of one step: 1 where v crosses, or with 'many' how often the threshold fits into v."""
    inclusive = convention.crossing == "inclusive"
    spikes = heaviside(v - threshold, inclusive, surrogate)
    if convention.spikes_per_step == "one":
        return spikes
    ratio = (v / threshold).detach()
    whole = torch.floor(ratio) if inclusive else torch.ceil(ratio) - 1
    return spikes * whole.clamp(min=1.0)


def late_after_update(convention: Convention) -> bool:
    """Whether a late reset comes after decay and input: usual for subtraction, not for a value."""
    if convention.late_reset == "usual":
        return convention.reset == "subtract"
    return convention.late_reset == "after_update"


def reset_value(v_reset: Tensor, convention: Convention) -> Tensor:
    """The value that resets 'v_reset' and 'zero' set v to."""
    return v_reset if convention.reset == "v_reset" else torch.zeros_like(v_reset)


def reset(v: Tensor, spikes: Tensor, threshold: Tensor, v_reset: Tensor, convention: Convention) -> Tensor:
    """v after a reset: 'v_reset': v_reset; 'zero': 0; 'subtract': v - count * threshold."""
    if convention.reset == "subtract":
        return v - spikes * threshold
    return torch.where(spikes > 0, reset_value(v_reset, convention).expand_as(v), v)


def lower_bound(v: Tensor, threshold: Tensor, convention: Convention) -> Tensor:
    """max(v, v_min) where the convention has a v_min."""
    if convention.v_min is None:
        return v
    low = -threshold if convention.v_min == "-threshold" else torch.full_like(threshold, float(convention.v_min))
    return torch.maximum(v, low)


def exact_step(
    v: Tensor,
    x: Tensor,
    convention: Convention,
    *,
    r: Tensor,
    threshold: Tensor,
    v_reset: Tensor,
    tau: Tensor | None,
    v_leak: Tensor | None,
    node: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Spike counts and v of a step in closed form, resets at the time of crossing, integration going on after them.

    With the input constant within the step, LIF: v(t) = E + (v0 - E) exp(-t / tau), E = v_leak + r x, crossing at
    t* = tau ln((E - v0) / (E - threshold)); IF: v(t) = v0 + r x t, t* = (threshold - v0) / (r x). With
    spikes_per_step='one' the threshold is not looked at again after the first crossing of a step.

    Raises:
        ConventionError: a threshold at or below the reset value, which fires without end.
    """
    timed = tau is not None or convention.if_gain == "r_dt"
    dt = _dt(convention, "LIF" if tau is not None else "IF", node) if timed else 1.0
    drive = (r if convention.use_r else torch.ones_like(r)) * x + (0.0 if v_leak is None else v_leak)
    after = reset_value(v_reset, convention).expand_as(v)
    inclusive = convention.crossing == "inclusive"
    left = torch.full_like(v, dt)
    count = torch.zeros_like(v)
    for _ in range(1 if convention.spikes_per_step == "one" else MOST_SPIKES):
        above = v >= threshold if inclusive else v > threshold
        rises = drive > (threshold if tau is not None else 0.0)
        if tau is not None:
            ratio = (drive - v) / torch.where(rises, drive - threshold, torch.ones_like(drive))
            wait = tau * torch.log(torch.where(rises & ~above, ratio, torch.ones_like(ratio)))
        else:
            wait = (threshold - v) / torch.where(rises, drive, torch.ones_like(drive))
        wait = torch.where(above, torch.zeros_like(wait), wait)
        crosses = above | (rises & ((wait <= left) if inclusive else (wait < left)))
        if not bool(crosses.any()):
            break
        at = torch.where(above, v, threshold.expand_as(v))
        landed = at - threshold if convention.reset == "subtract" else after
        v = torch.where(crosses, landed, v)
        left = torch.where(crosses, left - wait, left)
        count = count + crosses.to(v.dtype)
    else:
        if convention.spikes_per_step == "many":
            raise ConventionError(
                f"more than {MOST_SPIKES} spikes in a step", node=node, remedy="Use a smaller dt or spikes 'one'."
            )
    v = v + drive * left if tau is None else drive + (v - drive) * torch.exp(-left / tau)
    return count, lower_bound(v, threshold, convention)


def refuse_exact(convention: Convention, kind: str, node: str | None) -> None:
    """Refuse what has no closed form: a population behind a synapse, or a convention that contradicts it.

    Raises:
        UnsupportedError: CubaLIF and CubaLI, whose crossing has no closed form.
        ConventionError: a gain, reset time or moment of comparison that the closed form cannot follow.
    """
    if convention.integrator != "exact":
        return
    if kind.startswith("Cuba"):
        raise UnsupportedError(
            f"{kind} with integrator 'exact': the time of a crossing behind a synapse has no closed form",
            node=node,
            remedy="Use 'exponential' with a smaller dt, or overrides={'" + kind + "': {'integrator': 'exponential'}}.",
        )
    for option, allowed in (
        ("gain", ("euler", "decay")),
        ("fires", ("after_update",)),
        ("reset_time", ("same_step",)),
    ):
        value = getattr(convention, option)
        if value not in allowed:
            raise ConventionError(
                f"integrator 'exact' with {option}={value!r}", node=node, remedy=f"Use {option}={allowed[0]!r}."
            )
