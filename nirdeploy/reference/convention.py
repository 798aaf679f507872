"""The discretisation NIR leaves open, as one frozen value written into every trajectory.

NIR fixes continuous-time equations only (Pedersen et al., Nature Communications 15, 8122, 2024). dt, the
integrator and the reset decide which spikes a file stands for, and every library decides differently.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nirdeploy.errors import ConventionError
from nirdeploy.names import suggest

__all__ = ["PER_NODE", "Convention", "require_convention"]

_CHOICES: dict[str, tuple[Any, ...]] = {
    "integrator": ("euler", "exponential", "exact"),
    "gain": ("euler", "decay", "unit"),
    "use_r": (True, False),
    "reset": ("v_reset", "zero", "subtract"),
    "reset_time": ("same_step", "next_step", "brought_forward"),
    "crossing": ("strict", "inclusive"),
    "spikes_per_step": ("one", "many"),
    "fires": ("after_update", "before_update"),
    "population_delay": (0, 1),
    "feedback_start": ("silence", "zero"),
    "if_gain": ("r", "r_dt"),
    "v_unit": ("model", "gain", "threshold"),
    "v_start": ("zero", "v_reset", "v_leak"),
    "late_reset": ("usual", "before_update", "after_update"),
    "synapse_integrator": ("same", "euler", "exponential"),
    "synapse_gain": ("same", "euler", "decay", "unit", "decayed"),
}


class _Frozen(dict[str, Any]):
    """A dict that cannot be changed, so that a Convention stays what it was written as."""

    def __reduce__(self) -> Any:
        return (_Frozen, (dict(self),))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a Convention cannot be changed; make another with dataclasses.replace")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse


PER_NODE = frozenset(_CHOICES) - {"population_delay", "feedback_start"} | {"v_min"}


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a NIR graph is stepped through time.

    Attributes:
        dt: step in seconds; required as soon as a node has a time constant.
        integrator: 'euler' (decay 1 - dt/tau), 'exponential' (exp(-dt/tau)) or 'exact' (closed form).
        gain: input gain of leaky nodes, 'euler' (r dt/tau), 'decay' (r (1 - decay)) or 'unit' (1).
        use_r: whether the resistance multiplies the input.
        reset: 'v_reset' (NIR), 'zero' or 'subtract' (the threshold).
        reset_time: in the 'same_step' as the spike, in the 'next_step', or in the next one and 'brought_forward':
            what is left above the threshold after a subtraction is compared less another threshold, which is given
            back.
        crossing: 'strict' (v > threshold) or 'inclusive' (v >= threshold).
        spikes_per_step: 'one' or 'many' (floor of v / threshold).
        v_min: lower bound of v after the reset, in model units; '-threshold'; None for none.
        fires: compare 'after_update' or 'before_update' of v.
        population_delay: 1 where every stateful node reads its inputs one step late.
        feedback_start: what feedback edges carry at step 0.
        if_gain: input gain of IF nodes, 'r_dt' (NIR's equation) or 'r'.
        v_unit: 'model', or 'gain' where v is recorded divided by the node's input gains (membrane's and synapse's), or
            'threshold' where it is divided by the threshold.
        v_start: v of a population at rest, 'zero', or its 'v_reset' or 'v_leak' where it has one.
        late_reset: where a reset that happens in the step after its spike stands: 'usual' is subtraction after the
            update, and a value before it.
        synapse_integrator: the integrator of synapses, where it is not the 'same'.
        synapse_gain: the input gain of synapses, where it is not the 'same'; 'decayed' is that of
            i = a (i + x), where what comes in decays in the same step.
        feedback_edges: edges to treat as feedback instead of the rule's choice.
        overrides: node name or primitive type -> fields that differ there; a name wins over a type.
        preset: name of the preset it came from, for display only.
    """

    dt: float | None = None
    integrator: Literal["euler", "exponential", "exact"] = "euler"
    gain: Literal["euler", "decay", "unit"] = "euler"
    use_r: bool = True
    reset: Literal["v_reset", "zero", "subtract"] = "v_reset"
    reset_time: Literal["same_step", "next_step", "brought_forward"] = "same_step"
    crossing: Literal["strict", "inclusive"] = "strict"
    spikes_per_step: Literal["one", "many"] = "one"
    v_min: float | Literal["-threshold"] | None = None
    fires: Literal["after_update", "before_update"] = "after_update"
    population_delay: Literal[0, 1] = 0
    feedback_start: Literal["silence", "zero"] = "silence"
    if_gain: Literal["r", "r_dt"] = "r_dt"
    v_unit: Literal["model", "gain", "threshold"] = "model"
    v_start: Literal["zero", "v_reset", "v_leak"] = "zero"
    late_reset: Literal["usual", "before_update", "after_update"] = "usual"
    synapse_integrator: Literal["same", "euler", "exponential"] = "same"
    synapse_gain: Literal["same", "euler", "decay", "unit", "decayed"] = "same"
    feedback_edges: tuple[tuple[str, str], ...] | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preset: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.dt is not None and not (_is_number(self.dt) and math.isfinite(self.dt) and self.dt > 0):
            raise ConventionError(f"dt is {self.dt!r}, expected a positive number of seconds")
        for name in _CHOICES:
            _check_choice(name, getattr(self, name))
        _check_v_min(self.v_min)
        if self.fires == "before_update" and self.reset_time != "same_step":
            raise ConventionError(
                f"fires='before_update' resets in the step it fires in; reset_time={self.reset_time!r} contradicts it",
                remedy="Use reset_time='same_step'.",
            )
        if self.reset_time == "brought_forward" and self.reset != "subtract":
            raise ConventionError(
                f"reset_time='brought_forward' is about what a subtraction leaves; reset is {self.reset!r}",
                remedy="Use reset_time='same_step'.",
            )
        object.__setattr__(self, "feedback_edges", _edges(self.feedback_edges))
        plain = _overrides(self.overrides)
        for key, values in plain.items():
            for name, value in values.items():
                if name not in PER_NODE:
                    raise ConventionError(
                        f"overrides[{key!r}] sets {name!r}, which is not per node",
                        remedy=suggest(name, PER_NODE),
                    )
                _check_v_min(value) if name == "v_min" else _check_choice(name, value)
        object.__setattr__(self, "overrides", _Frozen({key: _Frozen(value) for key, value in plain.items()}))

    def for_node(self, name: str, kind: str) -> Convention:
        """The convention at one node: overrides for its type, then for its name, applied.

        Args:
            name: of the node.
            kind: its primitive, e.g. 'LIF'.
        """
        values = {**self.overrides.get(kind, {}), **self.overrides.get(name, {})}
        return dataclasses.replace(self, **values, overrides={}) if values else self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is its inverse."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["overrides"] = {key: dict(value) for key, value in self.overrides.items()}
        if self.feedback_edges is not None:
            values["feedback_edges"] = [list(edge) for edge in self.feedback_edges]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Convention:
        """Build from plain data, refusing unknown fields.

        Args:
            values: field -> value, as `to_dict` gives them.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ConventionError(f"unknown convention field {name!r}", remedy=suggest(name, known))
        return cls(**values)

    def to_json(self) -> str:
        """JSON text with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True)


def _edges(value: Any) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return None
    listed = list(value) if isinstance(value, list | tuple) else [value]
    for edge in listed:
        if not (isinstance(edge, list | tuple) and len(edge) == 2 and all(isinstance(end, str) for end in edge)):
            raise ConventionError(f"feedback_edges holds {edge!r}, expected pairs of node names")
    return tuple((a, b) for a, b in listed)


def _overrides(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise ConventionError(f"overrides is {value!r}, expected {{node name or type: {{field: value}}}}")
    return {str(key): dict(fields) for key, fields in value.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_choice(name: str, value: Any) -> None:
    # `in` alone would take 1 for True and 0.0 for 0
    if not any(value == choice and type(value) is type(choice) for choice in _CHOICES[name]):
        raise ConventionError(f"{name} is {value!r}, expected one of {list(_CHOICES[name])}")


def _check_v_min(value: Any) -> None:
    if value is not None and value != "-threshold" and not (_is_number(value) and math.isfinite(value)):
        raise ConventionError(f"v_min is {value!r}, expected a voltage, '-threshold' or None")


def require_convention(convention: Any) -> None:
    """Refuse what is no Convention.

    Raises:
        ConventionError: it is neither None nor one.
    """
    if convention is not None and not isinstance(convention, Convention):
        name = convention if isinstance(convention, str) else "nir"
        raise ConventionError(
            f"convention is {convention!r}, expected a Convention",
            remedy=f"Pass nd.convention({name!r}, dt=...).",
        )
