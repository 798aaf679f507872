"""What of a population's equations the chip's registers and its fixed pipeline cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding
from nirdeploy_loihi.dynamics import DECAY_UNITY, Dynamics, dynamics, needs_dt
from nirdeploy_loihi.network import INTEGRATORS

__all__ = ["convention_rules", "parameter_rules"]

_EXACT = (
    ("euler", "exponential"),
    "the chip multiplies by a fixed decay once a step",
    "Use integrator='euler' or 'exponential'.",
)
# field -> (values the pipeline of the chip has, why the others are not possible, remedy)
_CONVENTION: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "reset": (
        ("v_reset", "zero"),
        "the chip sets v to one value and cannot subtract (nengo-loihi PR 276)",
        "Train with reset='zero', or deploy to a target that subtracts.",
    ),
    "spikes_per_step": (("one",), "a compartment spikes once a step at most", "Use spikes_per_step='one'."),
    "v_min": ((None,), "v has no lower bound but its register's", "Use v_min=None and train without a clamp."),
    "integrator": _EXACT,
    "fires": (("after_update",), "the chip compares after the update", "Use fires='after_update'."),
    "reset_time": (("same_step",), "the chip resets in the step of the spike", "Use reset_time='same_step'."),
}
_TAUS = ("tau", "tau_mem", "tau_syn")


def convention_rules(graph: nir.NIRGraph, name: str, convention: Convention) -> Iterator[Finding]:
    """Fields of the convention at a population that the fixed pipeline does not have; a missing dt."""
    node = graph.nodes[name]
    kind = graphs.type_name(node)
    used = convention.for_node(name, kind)
    for field, (possible, why, remedy) in _CONVENTION.items():
        value = getattr(used, field)
        if value in possible or not _concerns(kind, field):
            continue
        limit = " or ".join(repr(p) for p in possible)
        yield Finding(
            field, name, f"{field} is {value!r}, {limit} is possible: {why}", remedy, value=value, limit=limit
        )
    if needs_dt(node, used) and used.dt is None:
        why = "its input gain r dt" if kind in ("IF", "I") else "its time constant"
        yield Finding("dt", name, f"{why} needs dt, and the convention has none", "Give the convention a dt.")


def _concerns(kind: str, field: str) -> bool:
    """Whether a field changes what a population does: without spikes only the integrator does.

    The closed form of I and LI for an input constant in a step is a fixed decay and gain.
    """
    return kind not in INTEGRATORS or (field == "integrator" and kind == "CubaLI")


def parameter_rules(graph: nir.NIRGraph, name: str, convention: Convention) -> Iterator[Finding]:
    """Parameters of a population that no register holds, or that register rounds to nothing."""
    node = graph.nodes[name]
    kind = graphs.type_name(node)
    values = {k: np.asarray(v, dtype=np.float64) for k, v in graphs.parameters(node).items()}
    used = convention.for_node(name, kind)
    if any(array.size == 0 for array in values.values()):
        return  # found with the shapes
    if "v_threshold" in values:
        yield from _threshold_rules(name, values, used)
    wrong = [field for field in _TAUS if field in values and np.any(values[field] <= 0)]
    for field in wrong:
        low = float(values[field].min())
        yield Finding("tau", name, f"{field} is {low} s, it must be above 0", "Raise it.", value=low, limit=0)
    closed = used.integrator == "exact" and _concerns(kind, "integrator")
    if wrong or closed or (needs_dt(node, used) and used.dt is None):
        return
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            step = dynamics(name, node, convention)
    except (RuntimeError, ValueError):
        return  # parameters of shapes that do not fit each other: found with the shapes
    yield from _decay_rules(name, kind, step)
    if not np.any(step.gain):
        yield Finding("gain", name, "its input gain is 0", "Check r.", value=0.0)


def _threshold_rules(name: str, values: dict[str, Any], used: Convention) -> Iterator[Finding]:
    rest = values["v_reset"] if used.reset == "v_reset" else np.zeros(1)
    try:
        above = values["v_threshold"] - rest
    except ValueError:
        return  # of shapes that do not fit each other: found with the shapes
    if np.any(above <= 0):
        at = int(np.argmin(above))
        low = float(np.broadcast_to(values["v_threshold"], above.shape).flat[at])
        limit = float(np.broadcast_to(rest, above.shape).flat[at])
        problem = f"v_threshold is {low}, it must be above {f'v_reset {limit}' if limit else '0'}"
        yield Finding("threshold", name, problem, "Raise it.", value=low, limit=limit)


def _decay_rules(name: str, kind: str, step: Dynamics) -> Iterator[Finding]:
    for register, loss, tau in (
        ("u", step.loss_u, "tau_syn"),
        ("v", step.loss_v, "tau_mem" if kind.startswith("Cuba") else "tau"),
    ):
        losses = np.asarray(loss, dtype=np.float64)
        largest = float(losses.max())
        decay = int(np.max(step.decay_u if register == "u" else step.decay_v))
        lost = (losses > 0) & (np.rint(DECAY_UNITY * losses) == 0)
        if decay > DECAY_UNITY:
            yield Finding(
                "decay",
                name,
                f"dt/{tau} is {largest:.4g}, so {register} would lose {decay} of {DECAY_UNITY} a step",
                f"Use a smaller dt or a larger {tau}.",
                value=decay,
                limit=DECAY_UNITY,
            )
        elif lost.any():
            least = float(losses[lost].min())
            yield Finding(
                "decay",
                name,
                f"{register} loses {least:.3g} a step, which rounds to 0 of {DECAY_UNITY}: it does not leak",
                "Use a larger dt.",
                severity="warning",
                value=least,
                limit=1 / DECAY_UNITY,
            )
