"""Layers of SpikingJelly 2.0."""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import fx, nn

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.frameworks.framework import Fields, Framework, LayerRow, check_layer, row_of
from nirdeploy.convert.frameworks.spikingjelly_files import adapt, repair
from nirdeploy.convert.frameworks.spikingjelly_neurons import (
    POPULATIONS,
    check_memory,
    full,
    population_axes,
    step_of,
)
from nirdeploy.convert.frameworks.spikingjelly_refused import REFUSED
from nirdeploy.convert.primitives import MODULES, TraceContext
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_graph, make_node, parameters

__all__ = ["FRAMEWORK"]

_LAYER = "spikingjelly.activation_based.layer"
_TIMELESS = f"{_LAYER}.container.SeqToANNContainer"
_STEPPED = f"{_LAYER}.container.MultiStepContainer"
_EITHER = f"{_LAYER}.container.StepModeContainer"
_BY_MODE = {
    _EITHER,
    f"{_LAYER}.container.LinearRecurrentContainer",
    f"{_LAYER}.container.ElementWiseRecurrentContainer",
}


def _any_axes(_module: Any) -> int:
    """A layer that does the same with a time axis and without."""
    return 0


def _names(module: str, classes: str) -> tuple[str, ...]:
    return tuple(f"{_LAYER}.{module}.{name}" for name in classes.split())


# ---------------------------------------------------------------- layers of torch with a step mode


def _as_torch(kind: type[nn.Module]) -> Callable[[Any, TraceContext], nir.NIRNode]:
    """As torch's layer of the same name, which sees [batch, ...] in either mode."""

    def to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
        return MODULES[kind].to_nir(module, dataclasses.replace(context, axes=1))

    return to_nir


def _standardised(kind: type[nn.Module]) -> Callable[[Any, TraceContext], nir.NIRNode]:
    """Weight standardisation: the weight that forward makes of the trained one."""

    def to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
        node = MODULES[kind].to_nir(module, context)
        return make_node(type(node), **{**parameters(node), "weight": array_of(module.get_weight())})

    return to_nir


def _linear_shape(module: Any) -> tuple[int, ...]:
    return (int(module.in_features),)


def _norm_node(_module: Any, context: TraceContext) -> nir.NIRNode:
    raise ConversionError(
        "a normalisation by itself is no NIR node", node=context.path, remedy="Convert the network that it belongs to."
    )


def _norm_shape(module: Any) -> tuple[int, ...] | None:
    return (int(module.num_features),) if type(module).__name__.endswith("1d") else None


def _dropout_node(module: Any, context: TraceContext) -> None:
    if module.training and module.p > 0.0:
        raise ConversionError(
            f"{type(module).__name__} is in training mode, where its output depends on chance",
            node=context.path,
            remedy="Call eval() on the network before it is converted.",
        )


def _voting_node(module: Any, context: TraceContext) -> nir.NIRNode:
    """The mean of each `voting_size` neurons after another; what is left over at the end is not read."""
    (inputs,) = context.required_shape("VotingLayer")
    size = int(module.voting_size)
    weight = np.zeros((inputs // size, inputs), np.float32)
    for row in range(inputs // size):
        weight[row, row * size : (row + 1) * size] = 1.0 / size
    return make_node(nir.Linear, weight=weight)


def _delay_node(module: Any, context: TraceContext) -> nir.NIRNode | None:
    check_memory(module, {"queue": []}, context.path)
    steps = int(module.delay_steps)
    shape = context.known_shape("Delay") or ()
    return make_node(nir.Delay, delay=full(shape, steps * step_of(context))) if steps else None


# ---------------------------------------------------------------- containers


def _population(module: Any, context: TraceContext, shape: tuple[int, ...] | None) -> nir.NIRNode:
    """The node of the one population inside a recurrent container."""
    inner = module.sub_module
    row = _population_row(inner)
    if row is None:
        raise ConversionError(
            f"{type(module).__name__} around a {type(inner).__name__}, expected a population such as LIFNode",
            node=context.path,
            remedy="Put the other layers in front of the container.",
        )
    path = f"{context.path}.sub_module"
    check_layer(inner, row, path)
    return cast("nir.NIRNode", row.to_nir(inner, dataclasses.replace(context, path=path, input_shape=shape)))


def _population_row(inner: nn.Module) -> LayerRow | None:
    row = row_of(inner)
    return row if any(row is known for known in POPULATIONS) else None


def _recurrent_fields(module: Any) -> Fields:
    row = _population_row(module.sub_module)
    return {} if row is None else {"sub_module": dict(row.fields(module.sub_module)[""])}


def _ends(shape: tuple[int, ...], inner: tuple[int, ...]) -> dict[str, nir.NIRNode]:
    return {
        "input": make_node(nir.Input, input_type={"input": np.array(shape)}),
        "output": make_node(nir.Output, output_type={"output": np.array(inner)}),
    }


def _linear_recurrent(module: Any, context: TraceContext) -> nir.NIRNode:
    """y[t] = neuron(W [x[t], y[t-1]] + b), y[-1] = 0: what comes in and what comes back have a part of W each."""
    check_memory(module, {"y": None}, context.path)
    weight, bias = array_of(module.rc.weight), module.rc.bias
    features, back = module.rc.out_features, module.sub_module_out_features
    if features != back:
        raise ConversionError(
            f"its population has {features} neurons and out_features is {back}, expected the same",
            node=context.path,
            remedy="Give LinearRecurrentContainer in_features == out_features.",
        )
    first = np.array(weight[:, : weight.shape[1] - back], copy=True)
    values = {} if bias is None else {"bias": array_of(bias)}
    nodes = {
        **_ends((features,), (features,)),
        "rc": make_node(nir.Linear if bias is None else nir.Affine, weight=first, **values),
        "rc_back": make_node(nir.Linear, weight=np.array(weight[:, weight.shape[1] - back :], copy=True)),
        "sub_module": _population(module, context, (features,)),
    }
    edges = [
        ("input", "rc"),
        ("rc", "sub_module"),
        ("sub_module", "rc_back"),
        ("rc_back", "sub_module"),
        ("sub_module", "output"),
    ]
    return make_graph(nodes, edges)


def _element_wise(module: Any, context: TraceContext) -> nir.NIRNode:
    """y[t] = neuron(f(y[t-1], x[t])), y[-1] = 0; f a sum: the population is connected to itself, one to one."""
    check_memory(module, {"y": None}, context.path)
    if not _adds(module.element_wise_function):
        raise ConversionError(
            "element_wise_function does something else than add its arguments",
            node=context.path,
            remedy="Use lambda x, y: x + y, or LinearRecurrentContainer.",
        )
    shape = context.required_shape("ElementWiseRecurrentContainer")
    nodes = {**_ends(shape, shape), "sub_module": _population(module, context, shape)}
    names = [("input", "sub_module"), ("sub_module", "sub_module"), ("sub_module", "output")]
    return make_graph(nodes, names)


def _adds(function: Any) -> bool:
    """Whether a function of two arguments is their sum, and nothing else."""
    if function in (operator.add, torch.add):
        return True
    try:
        nodes = list(fx.symbolic_trace(function).graph.nodes)
    except Exception:  # a user's function, which may raise anything on symbols
        return False
    first, second, *rest = nodes
    if len(rest) != 2 or first.op != "placeholder" or second.op != "placeholder":
        return False
    total, output = rest
    plain = total.target in (operator.add, torch.add, "add", "__add__") and not total.kwargs
    return plain and set(total.args) == {first, second} and len(total.args) == 2 and output.args == (total,)


def _lifts(module: nn.Module) -> bool:
    """Whether a container takes all steps, and sends those inside it single ones."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    return bool(names & {_TIMELESS, _STEPPED}) or (bool(names & _BY_MODE) and getattr(module, "step_mode", "s") == "m")


def _traceable(module: nn.Module) -> nn.Module | None:
    """A container's layers one after another: each step goes through them as the container sends it."""
    names = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in type(module).__mro__}
    base: Any = next((names[name] for name in (_TIMELESS, _STEPPED, _EITHER) if name in names), None)
    if base is None or not isinstance(module, nn.Sequential):
        return None
    if type(module).forward is not base.forward:
        raise ConversionError(
            f"{type(module).__name__} has a forward of its own, so it is no plain {base.__name__}",
            remedy="Convert the network inside it.",
        )
    timeless = _TIMELESS in names or (_EITHER in names and module.step_mode == "m" and not module.stateful)
    for path, part in module.named_modules():
        if timeless and getattr(part, "_memories", None) and "mask" not in part._memories:
            raise ConversionError(
                f"{type(part).__name__} inside {base.__name__} gets all steps as one batch, so it has no time",
                node=path,
                remedy="Use MultiStepContainer around layers with memory.",
            )
    return nn.Sequential(OrderedDict(module._modules))


# ---------------------------------------------------------------- table


_WRAPPED = "stateless_wrapper"

FRAMEWORK = Framework(
    "SpikingJelly",
    "spikingjelly",
    rows=(
        *POPULATIONS,
        LayerRow(_names(_WRAPPED, "Linear"), _as_torch(nn.Linear), input_shape=_linear_shape, axes=_any_axes),
        LayerRow(_names(_WRAPPED, "WSLinear"), _standardised(nn.Linear), input_shape=_linear_shape, axes=_any_axes),
        LayerRow(_names(_WRAPPED, "Conv1d"), _as_torch(nn.Conv1d), axes=population_axes),
        LayerRow(_names(_WRAPPED, "Conv2d"), _as_torch(nn.Conv2d), axes=population_axes),
        LayerRow(_names(_WRAPPED, "WSConv2d"), _standardised(nn.Conv2d), axes=population_axes),
        LayerRow(_names(_WRAPPED, "AvgPool2d"), _as_torch(nn.AvgPool2d), axes=population_axes),
        LayerRow(_names(_WRAPPED, "Flatten"), _as_torch(nn.Flatten), axes=population_axes),
        LayerRow(
            _names("bn", "BatchNorm1d BatchNorm2d ThresholdDependentBatchNorm1d ThresholdDependentBatchNorm2d"),
            _norm_node,
            input_shape=_norm_shape,
            axes=population_axes,
            folds=True,
        ),
        LayerRow(_names("dropout", "Dropout Dropout2d"), _dropout_node, axes=_any_axes),
        LayerRow(_names("misc", "PrintShapeModule"), lambda module, context: None, axes=_any_axes),
        LayerRow(_names("misc", "VotingLayer"), _voting_node, axes=population_axes),
        LayerRow(_names("misc", "Delay"), _delay_node, axes=population_axes),
        LayerRow(
            _names("container", "LinearRecurrentContainer"),
            _linear_recurrent,
            fields=_recurrent_fields,
            input_shape=lambda module: (int(module.rc.in_features) - int(module.sub_module_out_features),),
            axes=population_axes,
        ),
        LayerRow(
            _names("container", "ElementWiseRecurrentContainer"),
            _element_wise,
            fields=_recurrent_fields,
            axes=population_axes,
        ),
        *REFUSED,
    ),
    # a population starts at the value it is reset to; a step fires at v >= v_threshold; what comes back starts at 0
    fields={"crossing": "inclusive", "feedback_start": "zero", "v_start": "v_reset", "if_gain": "r"},
    traceable=_traceable,
    lifts=_lifts,
    repair=repair,
    adapt=adapt,
)
