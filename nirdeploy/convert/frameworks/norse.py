"""Layers of Norse: norse.torch 1.1.0, read and run.

With a synapse (LIF, LI and their cells; functional/lif.py, leaky_integrator.py), one step is

    j = i + x
    v = v + dt tau_mem_inv ((v_leak - v) + j)
    z = v > v_th, and v = v_reset where z
    i = j - dt tau_syn_inv j

so that the membrane sees j = (1 - dt tau_syn_inv) j + x in the same step: a CubaLIF by forward Euler whose synapse
takes an input as it is, w_in dt / tau_syn = 1. Without a synapse (LIFBox, LIBox; lif_box.py, leaky_integrator_box.py)
x stands in the place of j: a LIF with r = 1. IAF (iaf.py) adds x to v.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import nir
import numpy as np
import torch

from nirdeploy.convert.arrays import array_of, one_a_neuron
from nirdeploy.convert.frameworks.framework import Fields, Framework, LayerRow
from nirdeploy.convert.frameworks.norse_adapt import adapt
from nirdeploy.convert.frameworks.norse_files import repair
from nirdeploy.convert.frameworks.norse_recurrent import chain_fields, chain_step, chain_to_nir
from nirdeploy.convert.frameworks.norse_refused import REFUSED
from nirdeploy.convert.frameworks.norse_steps import Lifted, axes, check_steps, is_lift
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_graph, make_node

__all__ = ["FRAMEWORK"]

_MODULE = "norse.torch.module"
_STEP = "norse.torch.functional"
_RESETS = {f"{_STEP}.reset.reset_value": "v_reset", f"{_STEP}.reset.reset_subtract": "subtract"}


def _array(tensor: Any) -> np.ndarray:
    given = torch.as_tensor(tensor)
    return array_of(given if given.is_floating_point() else given.float())


def _spread(values: Mapping[str, np.ndarray], shape: tuple[int, ...] | None, path: str) -> dict[str, np.ndarray]:
    """Every parameter with the shape of a sample; with each other's where that is unknown.

    Raises:
        ConversionError: a parameter that is no finite number, or of a shape that fits no sample.
    """
    found: dict[str, np.ndarray] = {}
    for name, given in values.items():
        if not np.isfinite(given).all():
            raise ConversionError(
                f"{name} is {given[~np.isfinite(given)].flat[0]}, expected a finite number",
                node=path,
                remedy="Train it again, or set it.",
            )
        spread = one_a_neuron(given, given.shape if shape is None else shape)
        if spread is None:
            raise ConversionError(
                f"{name} of shape {given.shape} does not fit neurons of shape {shape}",
                node=path,
                remedy="Use one number, or one a neuron.",
            )
        found[name] = spread
    if shape is None:
        whole = np.broadcast_shapes(*(array.shape for array in found.values()))
        found = {name: np.array(np.broadcast_to(array, whole), copy=True) for name, array in found.items()}
    return found


def _tau(p: Any, name: str, path: str) -> np.ndarray:
    """Seconds of an inverse time constant."""
    inverse = _array(getattr(p, name))
    if not (inverse > 0).all():
        raise ConversionError(
            f"{name} is {inverse.min()}, and NIR has no time constant for it", node=path, remedy="Use one above 0."
        )
    return (1.0 / inverse.astype(np.float64)).astype(inverse.dtype)


def _firing(p: Any) -> dict[str, np.ndarray]:
    return {"v_threshold": _array(p.v_th), "v_reset": _array(p.v_reset)}


def _synaptic(kind: str, p: Any, dt: float, shape: tuple[int, ...] | None, path: str) -> nir.NIRNode:
    """CubaLIF or CubaLI; w_in makes NIR's own forward Euler, too, give an input the weight 1."""
    if not hasattr(nir, kind):
        raise ConversionError(f"nir {nir.version} has no {kind}", node=path, remedy="Install nir >= 1.0.5.")
    tau_syn, tau_mem = _tau(p, "tau_syn_inv", path), _tau(p, "tau_mem_inv", path)
    values = {"tau_syn": tau_syn, "tau_mem": tau_mem, "v_leak": _array(p.v_leak), "w_in": tau_syn / dt}
    values |= _firing(p) if kind == "CubaLIF" else {}
    values["r"] = np.ones_like(values["v_leak"])
    return make_node(getattr(nir, kind), **_spread(values, shape, path))


def _neuron(
    kind: str, parameters: Callable[[Any, str], Any], *steps: str
) -> Callable[[Any, TraceContext], nir.NIRNode]:
    """Conversion of a layer that is one node of this kind, whose step is one of these functions."""

    def to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
        check_steps(module, steps, context.path)
        shape, p = context.known_shape(type(module).__name__), parameters(module, context.path)
        if kind.startswith("Cuba"):
            return _synaptic(kind, p, float(module.dt), shape, context.path)
        values = {} if kind == "LI" else _firing(p)
        if kind != "IF":
            values |= {"tau": _tau(p, "tau_mem_inv", context.path), "v_leak": _array(p.v_leak)}
        values["r"] = np.ones_like(next(iter(values.values())))
        return make_node(getattr(nir, kind), **_spread(values, shape, context.path))

    return to_nir


def _recurrent(
    kind: str, parameters: Callable[[Any, str], Any], *steps: str
) -> Callable[[Any, TraceContext], nir.NIRGraph]:
    """Conversion of a layer with weights of its own: j = (1 - dt tau_syn_inv) j + W x + W_rec z of the step before."""

    def to_nir(module: Any, context: TraceContext) -> nir.NIRGraph:
        if steps:
            check_steps(module, steps, context.path)
        inputs, hidden = int(module.input_size), int(module.hidden_size)
        if context.input_shape is not None and context.input_shape != (inputs,):
            raise ConversionError(
                f"takes {inputs} inputs a sample, here {context.input_shape}",
                node=context.path,
                remedy="Flatten first.",
            )
        nodes: dict[str, nir.NIRNode] = {
            "input": make_node(nir.Input, input_type={"input": np.array([inputs])}),
            "input_weights": make_node(nir.Linear, weight=_array(module.input_weights)),
            "neuron": _synaptic(kind, parameters(module, context.path), float(module.dt), (hidden,), context.path),
            "output": make_node(nir.Output, output_type={"output": np.array([hidden])}),
        }
        edges = [("input", "input_weights"), ("input_weights", "neuron"), ("neuron", "output")]
        if kind == "CubaLIF":
            nodes["recurrent_weights"] = make_node(nir.Linear, weight=_array(module.recurrent_weights))
            edges += [("neuron", "recurrent_weights"), ("recurrent_weights", "neuron")]
        return make_graph(nodes, edges)

    return to_nir


def _p(module: Any, _path: str) -> Any:
    return module.p


def _unrefractory(module: Any, path: str) -> Any:
    """Parameters of the LIF that a refractory layer is where its refractory time is 0.

    Raises:
        ConversionError: a refractory time.
    """
    steps = _array(module.p.rho_reset)
    if (steps > 0).any():
        raise ConversionError(
            f"{type(module).__name__} holds v for rho_reset={steps.max():g} steps after a spike, and NIR has no "
            "refractory neuron",
            node=path,
            remedy="Train with LIFCell, LIF or LIFRecurrent, or set rho_reset to 0.",
        )
    return module.p.lif


def _box_fields(module: Any) -> Fields:
    function = module.p.reset_method
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    if name not in _RESETS:
        raise ConversionError(f"reset_method {name} is not known", remedy="Use reset_value or reset_subtract.")
    return {"": {"reset": _RESETS[name]}}


def _box_to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
    try:
        _box_fields(module)
    except ConversionError as error:
        raise ConversionError(str(error), node=context.path) from error
    return _neuron("LIF", _p, f"{_STEP}.lif_box.lif_box_feed_forward_step")(module, context)


def _lconv_to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
    """A convolution of each step: the kernel is 1 along the time axis, which stands last."""
    shape = context.known_shape("LConv2d")
    return make_node(
        nir.Conv2d,
        input_shape=None if shape is None else shape[1:],
        weight=_array(module.weight)[..., 0],
        stride=tuple(module.stride[:2]),
        padding=tuple(module.padding[:2]),
        dilation=tuple(module.dilation[:2]),
        groups=module.groups,
        bias=np.zeros(module.out_channels, np.float32),
    )


def _one(_module: Any) -> Fields:
    return {"": {}}


def _inner(_module: Any) -> Fields:
    return {"neuron": {}}


def _row(
    names: tuple[str, ...], to_nir: Callable[[Any, TraceContext], nir.NIRNode], fields: Callable[[Any], Fields] = _one
) -> LayerRow:
    classes = tuple(f"{_MODULE}.{name}" for name in names)
    return LayerRow(classes, to_nir, fields, returns_state=lambda module: True, axes=axes)


def _row_with_weights(
    names: tuple[str, ...], kind: str, parameters: Callable[[Any, str], Any], *steps: str
) -> LayerRow:
    classes = tuple(f"{_MODULE}.{name}" for name in names)
    return LayerRow(
        classes,
        _recurrent(kind, parameters, *steps),
        _inner,
        returns_state=lambda module: True,
        input_shape=lambda module: (int(module.input_size),),
        axes=axes,
    )


_LIF = f"{_STEP}.lif.lif_feed_forward_step"
_REFRACTORY = f"{_STEP}.lif_refrac.lif_refrac_feed_forward_step"

FRAMEWORK = Framework(
    "Norse",
    "norse",
    rows=(
        _row(("lif.LIF", "lif.LIFCell"), _neuron("CubaLIF", _p, _LIF)),
        _row(("lif_refrac.LIFRefracCell",), _neuron("CubaLIF", _unrefractory, _REFRACTORY)),
        _row(
            ("leaky_integrator.LI", "leaky_integrator.LICell"),
            _neuron("CubaLI", _p, f"{_STEP}.leaky_integrator.li_feed_forward_step"),
        ),
        _row(("lif_box.LIFBoxCell",), _box_to_nir, _box_fields),
        _row(
            ("leaky_integrator_box.LIBoxCell",),
            _neuron("LI", _p, f"{_STEP}.leaky_integrator_box.li_box_feed_forward_step"),
        ),
        _row(
            ("iaf.IAF", "iaf.IAFCell"),
            _neuron("IF", _p, f"{_STEP}.iaf.iaf_feed_forward_step"),
            lambda module: {"": {"v_start": "v_reset"}},
        ),
        _row_with_weights(("lif.LIFRecurrent", "lif.LIFRecurrentCell"), "CubaLIF", _p, f"{_STEP}.lif.lif_step"),
        _row_with_weights(
            ("lif_refrac.LIFRefracRecurrent", "lif_refrac.LIFRefracRecurrentCell"),
            "CubaLIF",
            _unrefractory,
            f"{_STEP}.lif_refrac.lif_refrac_step",
        ),
        _row_with_weights(("leaky_integrator.LILinearCell",), "CubaLI", _p),
        LayerRow((f"{_MODULE}.conv.LConv2d",), _lconv_to_nir, axes=lambda module: 2),
        LayerRow(
            (f"{_MODULE}.sequential.RecurrentSequential",),
            chain_to_nir,
            chain_fields,
            returns_state=lambda module: True,
            axes=lambda module: 0,
        ),
        *REFUSED,
    ),
    fields={
        "reset": "v_reset",
        "if_gain": "r",
        "feedback_start": "zero",
        "v_start": "v_leak",
        "synapse_gain": "unit",
    },
    step=chain_step,
    traceable=lambda module: Lifted(module) if is_lift(module) else None,
    lifts=is_lift,
    passes_states=True,
    repair=repair,
    adapt=adapt,
)
