"""From the traced operations of a forward to its graph: one handler an operation, everything else refused."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Collection
from typing import Any, cast

import nir
import numpy as np
import torch
from torch import fx, nn

from nirdeploy.convert.arrays import array_of
from nirdeploy.convert.axes import Axes
from nirdeploy.convert.calls import call
from nirdeploy.convert.draft import Key, Signal, Value
from nirdeploy.convert.feedback import closed
from nirdeploy.convert.frameworks.framework import ONE_STEP
from nirdeploy.convert.loops import Loop, unrolled_loop
from nirdeploy.convert.maps import Maps
from nirdeploy.convert.operations import HANDLERS, VIEWS, in_place, is_check
from nirdeploy.convert.returned import check_states, split_output
from nirdeploy.convert.samples import Sample
from nirdeploy.convert.source import located
from nirdeploy.convert.tracer import Traced
from nirdeploy.convert.walk import Walk
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_node

__all__ = ["graph_of"]


def graph_of(
    root: nn.Module, maps: Maps, traced: Traced, sample: Sample, states: list[str], *, assumes_states: bool = False
) -> nir.NIRGraph:
    """The graph of a traced forward.

    Args:
        root: the network.
        maps: what its modules become.
        traced: its operations.
        sample: what is known of its inputs.
        states: the symbolic state arguments.
        assumes_states: whether state arguments were traced as None, and what they are used for is not seen.

    Raises:
        ConversionError: an operation that NIR cannot express, or a state that does not come back.
    """
    axes = Axes(root, maps, traced.graph, sampled=sample.length is not None)
    walk = Walk(root, maps, axes, assumes_states=assumes_states)
    states = [*states, *_layers_states(walk, traced.graph, states)]
    signals = [n for n in traced.graph.nodes if n.op == "placeholder" and _is_signal(root, n, states)]
    walk.reset = {path for path, _ in traced.resets}
    loop = unrolled_loop(traced.graph, lambda node: _places(walk, node), walk.reset)
    _check_resets(traced, loop)
    if loop is not None and loop.indexed:
        sample = sample.of_a_step()
    visitor = _Visitor(walk, traced, sample, states, signals)
    for node in traced.graph.nodes if loop is None else loop.nodes:
        if loop is not None and (node in loop.same or node in loop.parts):
            walk.env[node] = walk.env[loop.same.get(node) or cast("fx.Node", node.args[0])]
        else:
            walk.env[node] = visitor.value(node)
    check_states(walk)
    return closed(walk)


def _places(walk: Walk, node: fx.Node) -> tuple[int, ...] | None:
    """Where a layer of a library returns what is to come back into it; None where it keeps no state."""
    module = walk.module(node)
    row = None if module is None else walk.maps.foreign(module)
    return row.states(module) if row is not None and row.resets else None


def _check_resets(traced: Traced, loop: Loop | None) -> None:
    """Layers are reset in front of a loop over time, or behind it, where it makes them start at rest.

    Raises:
        ConversionError: a layer that is reset in each step.
    """
    for path, count in traced.resets:
        if loop is None or loop.start < count < loop.stop:
            raise ConversionError(
                "forward resets it, and no loop over time of equal steps follows, so that it remembers nothing",
                node=path,
                remedy=f"Leave that to who calls it. {ONE_STEP}",
            )


# ---------------------------------------------------------------- arguments


def _is_signal(root: nn.Module, node: fx.Node, states: Collection[str]) -> bool:
    if str(node.target) in states:
        return False
    fixed = re.fullmatch(r"(.+)_\d+", str(node.target))
    known = inspect.signature(root.forward).parameters
    # fx renames an argument that is fixed to a value, and checks it
    return str(node.target) in known or fixed is None


def _layers_states(walk: Walk, traced: fx.Graph, known: Collection[str]) -> list[str]:
    """Arguments of forward that go nowhere but into layers of a library as their state, and unused ones then."""
    placeholders = [n for n in traced.nodes if n.op == "placeholder" and str(n.target) not in known]
    found = [n for n in placeholders if n.users and all(_takes_as_state(walk, user, n) for user in n.users)]
    unused = [n for n in placeholders[1:] if not n.users]
    return [str(n.target) for n in (*found, *unused)] if found else []


def _takes_as_state(walk: Walk, user: fx.Node, value: fx.Node) -> bool:
    module = walk.module(user)
    if module is None or (user.args and user.args[0] is value):
        return False
    return walk.maps.foreign(module) is not None and walk.maps.returns_state(module)


# ---------------------------------------------------------------- operations


class _Visitor:
    """What one operation after the other stands for."""

    def __init__(self, walk: Walk, traced: Traced, sample: Sample, states: list[str], signals: list[fx.Node]) -> None:
        self.walk, self.traced, self.sample, self.states, self.signals = walk, traced, sample, states, signals

    def value(self, node: fx.Node) -> Value:
        """The value of an operation, whose refusals name where it stands."""
        walk = self.walk
        try:
            value = self._visit(node)
        except ConversionError as error:
            if error.located:
                raise
            raise located(walk.root, error, node) from error
        except AttributeError as error:
            module = walk.module(node)
            called = walk.root if module is None else module
            raise walk.maps.other_version(error, called, str(node.target)) from error
        if isinstance(value, Signal):
            folds = value.foldable or node.op == "call_module"
            value = dataclasses.replace(value, foldable=folds and len(node.users) == 1)
        return value

    def _visit(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "output":
            self._output(node)
            return None
        if node.op == "call_module":
            return call(self.walk, node)
        if node.op == "get_attr":
            return self._attribute(node)
        if in_place(node) and _seen_again(node):
            raise self.walk.refuse(node, "changes a value in place that is used again, which a graph cannot express")
        handler = HANDLERS.get(node.target)
        if handler is not None:
            return handler(self.walk, node)
        if is_check(node) or not (node.users or in_place(node)):
            return None  # fx's own checks of fixed arguments, and values nobody uses
        raise self.walk.refuse(node)

    def _placeholder(self, node: fx.Node) -> Value:
        if str(node.target) in self.states:
            return Key((str(node.target),) if len(self.states) > 1 else ())
        if node not in self.signals:
            return None
        several = len(self.signals) > 1
        name = self.walk.draft.unique(str(node.target) if several else "input")
        shape = self.sample.shape(str(node.target), self.signals.index(node), several=several)
        self.walk.draft.inputs[name] = shape
        return Signal((name,), shape)

    def _attribute(self, node: fx.Node) -> np.ndarray:
        if node.target in self.traced.constants:
            return array_of(self.traced.constants[str(node.target)])
        found: Any = self.walk.root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        if not isinstance(found, torch.Tensor):
            raise self.walk.refuse(node)
        if isinstance(found, nn.Parameter):
            self.walk.parameters.add(node)
        return array_of(found)

    def _output(self, node: fx.Node) -> None:
        walk, draft = self.walk, self.walk.draft
        walk.output = node.args[0]
        outputs, walk.returned = split_output(walk, walk.output)
        if not outputs:
            raise ConversionError("forward returns no output")
        for label, leaf in outputs:
            signal = walk.signal(leaf, node)
            name = draft.unique(label)
            shape = None if signal.shape is None else np.array(signal.shape)
            draft.nodes[name] = make_node(nir.Output, output_type={"output": shape})
            draft.edges.extend((source, name) for source in signal.sources)


def _seen_again(node: fx.Node) -> bool:
    """Whether anything but this operation sees the value it changes, or a value that shares its memory."""
    value = node.args[0] if node.args else node.kwargs.get("input")
    while isinstance(value, fx.Node):
        if any(user is not node for user in value.users):
            return True
        if value.op == "get_attr":
            return True
        if value.target not in VIEWS:
            return False
        node, value = value, value.args[0] if value.args else value.kwargs.get("input")
    return False
