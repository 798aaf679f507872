"""What the call of a module becomes in the draft: a node, a signal handed on, or a fold into the weights before it."""

from __future__ import annotations

import inspect
from typing import Any

import nir
import numpy as np
import torch
from torch import fx, nn

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.draft import Key, Shape, Signal, StateOf
from nirdeploy.convert.frameworks.conventions import layer_conventions
from nirdeploy.convert.frameworks.framework import ONE_STEP, check_layer, framework_of, is_lifted
from nirdeploy.convert.instead import instead
from nirdeploy.convert.maps import refuse_altered
from nirdeploy.convert.primitives import BYPASSED, TraceContext
from nirdeploy.convert.returned import shown
from nirdeploy.convert.source import where
from nirdeploy.convert.walk import Walk
from nirdeploy.errors import ConversionError, NirdeployError
from nirdeploy.nodes import keeps_state
from nirdeploy.reference.neurons import Stateful
from nirdeploy.shapes import own_input_shape

__all__ = ["call"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def call(walk: Walk, node: fx.Node) -> Signal:
    """What a module emits.

    Raises:
        ConversionError: a module that no map knows, one that a NIR node cannot hold, or a call of it that one cannot.
    """
    path = str(node.target)
    module = walk.root.get_submodule(path)
    arguments = _arguments(module, node)
    signal = walk.signal(arguments[0] if arguments else None, node)
    if walk.maps.function(module) is None and isinstance(module, BYPASSED):
        return signal
    normalised = _normalised(walk, module, node, signal)
    if normalised is not None:
        return normalised
    if not walk.maps.is_mapped(module):
        kind = type(module).__name__
        raise ConversionError(
            f"{kind} is not supported ({where(walk.root, node)})",
            node=path,
            remedy=_remedy(module),
            located=True,
        )
    foreign = walk.maps.foreign(module)
    if foreign is not None and foreign.adds_inputs:
        check_layer(module, foreign, path)
        return _added(walk, arguments, node)
    walk.axes.check(module, path, node)
    return _converted(walk, module, node, signal, arguments[1:])


def _remedy(module: nn.Module) -> str:
    """Of a module that no map knows: what to use in its place, where it is torch's, and how to map it."""
    kind = type(module).__name__
    known = instead(kind)
    mapped = f"module_map={{{kind}: a function of the module that returns its NIR node}}"
    return f"{known}; or pass {mapped}." if known else f"Pass {mapped}."


def _arguments(module: nn.Module, node: fx.Node) -> list[Any]:
    """What a module is called with, in the order of its forward's own arguments."""
    if len(node.args) == 1 and not node.kwargs:
        return list(node.args)
    try:
        bound = inspect.signature(module.forward).bind(*node.args, **node.kwargs)
    except TypeError as error:
        raise ConversionError(f"{type(module).__name__} is called with the wrong arguments: {error}") from error
    found: list[Any] = []
    for name, parameter in bound.signature.parameters.items():
        many = {inspect.Parameter.VAR_POSITIONAL: list, inspect.Parameter.VAR_KEYWORD: lambda v: v.values()}
        if parameter.kind not in many:
            found.append(bound.arguments.get(name))
        elif name in bound.arguments:
            found.extend(many[parameter.kind](bound.arguments[name]))
    return found


def _added(walk: Walk, arguments: list[Any], node: fx.Node) -> Signal:
    """The sum of what a layer is called with."""
    total, *others = [walk.signal(argument, node) for argument in arguments]
    for other in others:
        total = walk.draft.merge(total, other)
    return total


# ---------------------------------------------------------------- nodes


def _converted(walk: Walk, module: nn.Module, node: fx.Node, signal: Signal, extra: list[Any]) -> Signal:
    """What the module's own node emits; the signal itself where a map bypasses it."""
    path, row, foreign = str(node.target), walk.maps.row(module), walk.maps.foreign(module)
    signal = walk.draft.learn(signal, row.input_shape(module) if row is not None else None)
    context = TraceContext(
        path,
        signal.shape,
        dt=walk.maps.dt,
        axes=walk.axes.of(node),
        gets_state=path in walk.reset or any(value is not None for value in extra),
    )
    created = walk.maps.node_of(module, context)
    if created is None:
        return signal
    if keeps_state(created) and path in walk.called:
        raise ConversionError(
            f"a neuron module is called twice in one step; its state would be two states ({where(walk.root, node)})",
            node=path,
            remedy=f"Use two modules. {ONE_STEP}",
            located=True,
        )
    walk.called.add(path)
    if signal.shape is None and not isinstance(created, nir.NIRGraph):
        signal = walk.draft.learn(signal, _own_shape(created))
    emitted = walk.draft.add(path, created, signal, path)
    places = foreign.states(module) if foreign is not None else (None,)
    _check_state_is_passed(walk, module, node, extra)
    _take_state(walk, node, emitted.sources[0], extra, places)
    _take_convention(walk, module, emitted.sources[0])
    return emitted


def _own_shape(node: nir.NIRNode) -> Shape | None:
    try:
        return own_input_shape("", node)
    except NirdeployError:
        return None


def _take_convention(walk: Walk, module: nn.Module, name: str) -> None:
    if isinstance(module, Stateful):
        walk.draft.conventions[name] = {"": module.convention}
    framework, row = framework_of(module), walk.maps.foreign(module)
    if framework is not None and row is not None:
        walk.draft.conventions[name] = layer_conventions(module, framework, row, walk.maps.dt)


# ---------------------------------------------------------------- states


def _check_state_is_passed(walk: Walk, module: nn.Module, node: fx.Node, extra: list[Any]) -> None:
    """Refuse a layer that remembers nothing, as forward passes it no state in each step."""
    path = str(node.target)
    library = framework_of(module) if walk.maps.foreign(module) is not None else None
    if library is None or not library.passes_states or not walk.maps.returns_state(module):
        return
    given = any(value is not None for value in extra) or (walk.assumes_states and len(extra) > 0)
    carried = getattr(walk.root, "carries_states", False) or is_lifted(walk.root, path)
    if given or carried or walk.axes.of(node) > 1:
        return
    kind = type(module).__name__
    raise ConversionError(
        f"forward passes {kind} no state, so that it starts each step at rest and remembers nothing",
        node=path,
        remedy="Pass it in and return it: forward(x, state=None) with out, state = layer(x, state).",
    )


def _take_state(walk: Walk, node: fx.Node, owner: str, extra: list[Any], places: tuple[int | None, ...]) -> None:
    """Note which parts of the state argument a module gets, at which places it gives back their next values."""
    for n, value in enumerate(extra):
        found = walk.env.get(value) if isinstance(value, fx.Node) else None
        if isinstance(found, Key):
            wanted = StateOf(owner, places[min(n, len(places) - 1)])
            if walk.uses.setdefault(found.keys, wanted) != wanted:
                other = walk.uses[found.keys].owner
                raise walk.refuse(node, f"gets {shown(found.keys)}, which {other!r} gets, too")
        elif value is not None and found is not None:
            raise walk.refuse(node, "gets a second argument that is not its own state")
        elif value is not None and not isinstance(value, fx.Node):
            raise walk.refuse(node, f"gets the second argument {value!r}, which a NIR node cannot hold")


# ---------------------------------------------------------------- batch norms


def _normalised(walk: Walk, module: nn.Module, node: fx.Node, signal: Signal) -> Signal | None:
    """What a batch norm makes of a signal; None for every other module."""
    path, foreign = str(node.target), walk.maps.foreign(module)
    if foreign is not None and foreign.folds:
        check_layer(module, foreign, path)
        return _batch_norm(walk, module, path, walk.draft.learn(signal, foreign.input_shape(module)))
    tables = walk.maps.function(module) is None and walk.maps.default is None
    if not tables or not isinstance(module, _BATCH_NORMS):
        return None
    if walk.axes.of(node) > 1:
        raise walk.refuse(node, "would take the batch of [step, batch, channel] for its channels")
    refuse_altered(module, _BATCH_NORMS, path)
    shape = (module.num_features,) if isinstance(module, nn.BatchNorm1d) else None
    return _batch_norm(walk, module, path, walk.draft.learn(signal, shape))


def _batch_norm(walk: Walk, module: Any, path: str, signal: Signal) -> Signal:
    """y = (x - mean) / sqrt(var + eps) * weight + bias, in float64, with the running statistics."""
    if module.running_mean is None or module.running_var is None:
        raise ConversionError("BatchNorm without running statistics depends on the batch", node=path)
    ones = torch.ones_like(module.running_mean)
    gain = array_of(module.weight if module.weight is not None else ones).astype(np.float64)
    offset = array_of(module.bias if module.bias is not None else 0 * ones).astype(np.float64)
    deviation = np.sqrt(array_of(module.running_var).astype(np.float64) + module.eps)
    factor = gain / deviation
    shift = offset - array_of(module.running_mean).astype(np.float64) * factor
    return walk.draft.normalise(signal, path, factor, shift.astype(array_of(module.running_mean).dtype))
