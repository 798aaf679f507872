"""SpikingJelly's populations as NIR nodes.

Equations: `spikingjelly.activation_based.functional.neuron` and `_ops/{if_,lif,plif}/reference.py` of SpikingJelly
2.0.0. A step charges, fires where v >= v_threshold, and resets at once: to v_reset, or by v_threshold where v_reset is
None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from nirdeploy.convert.frameworks.framework import STEP, Fields, LayerRow
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_node

__all__ = ["POPULATIONS", "check_memory", "full", "population_axes", "step_of"]

_NEURON = "spikingjelly.activation_based.neuron"
_RESET = "Call spikingjelly.activation_based.functional.reset_net(network) before it is converted."
# what a forward is made of: a subclass that has one of its own may compute something else
_PARTS = (
    "forward",
    "functional_forward",
    "single_step_forward",
    "multi_step_forward",
    "single_step_functional_forward",
    "multi_step_functional_forward",
    "materialize_states",
    "neuronal_charge",
    "neuronal_fire",
    "neuronal_reset",
)
# those whose forward is the step function; the others emit counts, chance or the input
_STEP_FUNCTIONS = {
    *("PiecewiseQuadratic", "PiecewiseExp", "Sigmoid", "SoftSign", "SuperSpike", "ATan", "NonzeroSignLogAbs", "Erf"),
    *("PiecewiseLeakyReLU", "SquarewaveFourierSeries", "S2NN", "QPseudoSpike", "LeakyKReLU", "FakeNumericalGradient"),
    *("LogTailedReLU", "DeterministicPass", "Rect"),
}
_SURROGATES = "spikingjelly.activation_based.surrogate"


def step_of(context: TraceContext) -> float:
    """Seconds a step stands for."""
    return STEP if context.dt is None else context.dt


def full(shape: tuple[int, ...], value: float) -> np.ndarray:
    """One value for every neuron."""
    return np.full(shape, float(value))


def population_axes(module: Any) -> int:
    """Axes in front of a sample's: batch, and time where step_mode is 'm'."""
    return 1 if module.step_mode == "s" else 2


# ---------------------------------------------------------------- checks


def _own(module: nn.Module) -> type:
    """The class of `POPULATIONS` that a layer is, or is a subclass of: a user's, or one of a later SpikingJelly."""
    known = {name for row in POPULATIONS for name in row.classes}
    return next(kind for kind in type(module).__mro__ if f"{kind.__module__}.{kind.__qualname__}" in known)


def _check_parts(module: nn.Module, path: str) -> None:
    kind, own = type(module), _own(module)
    for part in _PARTS:
        if part in vars(module) or getattr(kind, part, None) is not getattr(own, part, None):
            raise ConversionError(
                f"{kind.__name__} has a {part} of its own, so it is no plain {own.__name__}",
                node=path,
                remedy=f"Map it with module_map={{{kind.__name__}: lambda m: nir.IF(...)}}.",
            )


def _check_surrogate(module: Any, path: str) -> None:
    function = module.surrogate_function
    kind = function if callable(function) and not isinstance(function, nn.Module) else type(function)
    name, home = getattr(kind, "__name__", repr(kind)), getattr(kind, "__module__", "")
    if home == _SURROGATES and name == "heaviside":
        return
    if home != _SURROGATES or name not in _STEP_FUNCTIONS:
        raise ConversionError(
            f"surrogate_function {name} need not give 0 and 1 in forward",
            node=path,
            remedy="Set layer.surrogate_function = surrogate.Sigmoid() if it does: only gradients change.",
        )
    if not function.spiking:
        raise ConversionError(
            f"surrogate_function {name} has spiking=False: the layer emits numbers between 0 and 1, not spikes",
            node=path,
            remedy="Call layer.surrogate_function.set_spiking_mode(True).",
        )


def check_memory(module: Any, starts: Mapping[str, Any], path: str) -> None:
    """Refuse a memory that is not where a run starts: our runs start at rest.

    Args:
        module: a MemoryModule.
        starts: name of a memory -> where it starts.
        path: the module path.

    Raises:
        ConversionError: naming layer, memory and remedy.
    """
    for name, start in starts.items():
        rests = module._memories_rv.get(name, start)
        if not _is(rests, start):
            raise ConversionError(
                f"{type(module).__name__} starts at {name} = {_shown(rests)}, set by set_reset_value; a population can "
                f"only start at {start}",
                node=path,
                remedy=f"Call layer.set_reset_value({name!r}, {start}) and reset_net.",
            )
        if not _is(module._memories.get(name, start), start):
            raise ConversionError(
                f"{type(module).__name__} holds {name} = {_shown(module._memories[name])} of an earlier run, a run "
                f"starts at {start}",
                node=path,
                remedy=_RESET,
            )


def _is(value: Any, start: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return isinstance(start, int | float) and bool((value == start).all())
    return bool(value == start)


def _shown(value: Any) -> str:
    if not isinstance(value, torch.Tensor) or not value.numel():
        return "earlier steps" if isinstance(value, list) else repr(value)
    low, high = float(value.detach().min()), float(value.detach().max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _number(module: Any, name: str, path: str) -> float:
    value = getattr(module, name)
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = float(value.detach())
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise ConversionError(
            f"{name} of {type(module).__name__} is {shown}, expected one finite number a layer",
            node=path,
            remedy=f"Set layer.{name} to a number.",
        )
    return float(value)


def _checked(module: Any, context: TraceContext, start: float, **others: Any) -> tuple[int, ...]:
    """The population's shape, after all that is the same for all of them was checked."""
    _check_parts(module, context.path)
    _check_surrogate(module, context.path)
    if getattr(module, "_neuron_precision", None) is not None:
        raise ConversionError(
            f"{type(module).__name__} steps in a precision of its own, {module._neuron_precision}",
            node=context.path,
            remedy="Leave precision.convert_model out.",
        )
    check_memory(module, {"v": start, **others}, context.path)
    return context.known_shape(type(module).__name__) or ()


# ---------------------------------------------------------------- nodes


def _resets(module: Any, context: TraceContext) -> tuple[float, float]:
    """Threshold, and the value v is set to; 0 where the threshold is subtracted."""
    hard = module.v_reset is not None
    return _number(module, "v_threshold", context.path), _number(module, "v_reset", context.path) if hard else 0.0


def _if_node(module: Any, context: TraceContext) -> nir.NIRNode:
    """v = v + x."""
    threshold, v_reset = _resets(module, context)
    shape = _checked(module, context, 0.0 if _is_simple(module) else v_reset)
    return make_node(nir.IF, r=full(shape, 1.0), v_threshold=full(shape, threshold), v_reset=full(shape, v_reset))


def _lif_node(module: Any, context: TraceContext) -> nir.NIRNode:
    """decay_input: v = v + (x - (v - v_reset)) / tau, else v = v - (v - v_reset) / tau + x; without reset value, 0."""
    tau = _number(module, "tau", context.path)
    if not tau >= 1.0:
        raise ConversionError(f"tau is {tau} steps, expected at least 1", node=context.path, remedy="Set layer.tau.")
    if _is_simple(module) and module.v_reset is None:
        raise ConversionError(
            "SimpleLIFNode with v_reset=None cannot run in SpikingJelly itself",
            node=context.path,
            remedy="Use LIFNode.",
        )
    return _leaky(module, tau, context)


def _plif_node(module: Any, context: TraceContext) -> nir.NIRNode:
    """As LIFNode with 1 / tau = sigmoid(w)."""
    share = float(module.w.detach().float().sigmoid()) if module.w.ndim == 0 else math.nan
    if not 0.0 < share <= 1.0:
        raise ConversionError(
            f"w of {type(module).__name__} gives sigmoid(w) = {share}, expected one number above 0, up to 1",
            node=context.path,
            remedy="Use IFNode for a neuron without leak.",
        )
    return _leaky(module, 1.0 / share, context)


def _leaky(module: Any, tau: float, context: TraceContext) -> nir.NIRNode:
    threshold, v_reset = _resets(module, context)
    shape = _checked(module, context, 0.0 if _is_simple(module) else v_reset)
    # the convention has gain 'unit' where the input does not decay; r says the same to who reads NIR's equation
    return make_node(
        nir.LIF,
        tau=full(shape, tau * step_of(context)),
        r=full(shape, 1.0 if module.decay_input else tau),
        v_leak=full(shape, v_reset),
        v_threshold=full(shape, threshold),
        v_reset=full(shape, v_reset),
    )


def _cuba_node(module: Any, context: TraceContext) -> nir.NIRNode:
    """c = c_decay c + x; v = v_decay v + c: tau / dt = 1 / (1 - decay)."""
    found: dict[str, float] = {}
    for name in ("c_decay", "v_decay"):
        decay = _number(module, name, context.path)
        if not 0.0 <= decay < 1.0:
            raise ConversionError(
                f"{name} is {decay}, expected 0 up to but without 1, as no time constant gives that",
                node=context.path,
                remedy=f"Set layer.{name}, or use another layer.",
            )
        found[name] = 1.0 / (1.0 - decay)
    threshold, v_reset = _resets(module, context)
    shape = _checked(module, context, v_reset, c=0.0)
    return make_node(
        nir.CubaLIF,
        tau_syn=full(shape, found["c_decay"] * step_of(context)),
        tau_mem=full(shape, found["v_decay"] * step_of(context)),
        r=full(shape, found["v_decay"]),
        v_leak=full(shape, 0.0),
        v_threshold=full(shape, threshold),
        v_reset=full(shape, v_reset),
        w_in=full(shape, found["c_decay"]),
    )


# ---------------------------------------------------------------- conventions


def _is_simple(module: nn.Module) -> bool:
    return _own(module).__name__.startswith("Simple")


def _reset_fields(module: Any) -> dict[str, Any]:
    start = {"v_start": "zero"} if _is_simple(module) else {}
    return {"reset": "subtract" if module.v_reset is None else "v_reset", **start}


def _leaky_fields(module: Any) -> Fields:
    return {"": {**_reset_fields(module), "gain": "euler" if module.decay_input else "unit"}}


def _row(
    module: str,
    classes: str,
    to_nir: Callable[[Any, TraceContext], nir.NIRNode],
    fields: Callable[[Any], Fields],
) -> LayerRow:
    names = tuple(f"{_NEURON}.{module}.{name}" for name in classes.split())
    return LayerRow(names, to_nir, fields=fields, axes=population_axes)


POPULATIONS: tuple[LayerRow, ...] = (
    _row("integrate_and_fire", "IFNode SimpleIFNode", _if_node, lambda module: {"": _reset_fields(module)}),
    _row("lif", "LIFNode SimpleLIFNode", _lif_node, _leaky_fields),
    _row("plif", "ParametricLIFNode", _plif_node, _leaky_fields),
    _row("lif_variants", "CUBALIFNode", _cuba_node, lambda module: {"": {**_reset_fields(module), "gain": "unit"}}),
)
