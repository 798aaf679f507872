"""A small recurrent network of plain shape, layer behind layer, as one native call: the fastest of the cyclic loops."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nirdeploy.reference import kernels
from nirdeploy.reference import stack_kernels as k
from nirdeploy.reference.lanes import WIDTH
from nirdeploy.reference.memory import aligned, aligned_copy
from nirdeploy.reference.program import POPULATIONS, Program, is_plain
from nirdeploy.reference.threads import split
from nirdeploy.schedule import NodePath, feedback_key

if TYPE_CHECKING:
    from nirdeploy.reference.engine import Engine
    from nirdeploy.reference.signals import Signal

__all__ = ["Layer", "Stack", "layers_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """A matrix, the population behind it, and the matrix from that back into it, where there is one."""

    weight: NodePath
    population: NodePath
    back: NodePath | None


def layers_of(program: Program) -> tuple[Layer, ...] | None:
    """The layers of a graph Input -> (Linear -> population, with or without a Linear back)... -> Output, else None."""
    plan = program.module.plan
    if len(plan.inputs) != 1 or len(plan.outputs) != 1:
        return None
    now = plan.inputs[0]
    found: list[Layer] = []
    seen = {now, plan.outputs[0]}
    while True:
        following = [p for p in program.consumers[now] if p not in seen]
        if not following:
            done = program.consumers[now].count(plan.outputs[0]) == 1 and len(program.sources[plan.outputs[0]]) == 1
            return tuple(found) if done and found and len(seen) == len(plan.order) else None
        if len(following) != 1 or plan.outputs[0] in program.consumers[now]:
            return None
        (weight,) = following
        layer = _layer(program, now, weight)
        if layer is None:
            return None
        found.append(layer)
        seen |= {p for p in (layer.weight, layer.population, layer.back) if p is not None}
        now = layer.population


def _layer(program: Program, source: NodePath, weight: NodePath) -> Layer | None:
    modules, sources, consumers = program.modules, program.sources, program.consumers
    if (
        not is_plain(modules[weight], (nn.Linear,))
        or sources[weight] != ((source, None),)
        or len(consumers[weight]) != 1
    ):
        return None
    (population,) = consumers[weight]
    flat = len(program.module.shapes[population].input) == 1
    if not is_plain(modules[population], POPULATIONS) or not flat:
        return None
    others = [(s, key) for s, key in sources[population] if (s, key) != (weight, None)]
    if len(others) != len(sources[population]) - 1 or len(others) > 1:
        return None
    if not others:
        return Layer(weight, population, None)
    ((back, key),) = others
    straight = key is not None and sources[back] == ((population, None),) and consumers[back] == [population]
    return Layer(weight, population, back) if straight and is_plain(modules[back], (nn.Linear,)) else None


@dataclass(frozen=True)
class _Layout:
    """What `stack_kernels.stack` reads, and where things stand in a sample's values.

    Attributes:
        layers: [layer, field].
        floats: matrices and parameters.
        start: what a sample holds before the first step, [slot], where states are put into it.
        rest: the same where no state is given.
        read: what is read out: node, variable, offset, size.
    """

    layers: Array
    floats: Array
    start: Array
    rest: Array
    read: tuple[tuple[NodePath, str, int, int], ...]


def _layout(program: Program, layers: tuple[Layer, ...], read: tuple[tuple[NodePath, str], ...], dtype: Any) -> _Layout:
    floats: list[Array] = []
    length = slots = places = 0
    table = np.full((len(layers), k.FIELDS), -1, np.int64)
    kept: list[tuple[NodePath, str, int, int]] = []

    def put(*arrays: Array) -> int:
        nonlocal length
        begin = length
        for array in arrays:
            floats.append(np.ascontiguousarray(array).reshape(-1))
            length += array.size
        return begin

    for layer, row in zip(layers, table, strict=True):
        native = program.native(layer.population, dtype)
        kind, size = native.p.dtype, native.p.shape[1]
        wide = -(-size // WIDTH) * WIDTH

        def pad(array: Array, wide: int = wide) -> Array:
            return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, wide - array.shape[-1])])

        weight: Any = program.modules[layer.weight]
        end = np.zeros(wide, kind)  # the row that fills lists up
        bias = np.zeros(size, kind) if weight.bias is None else weight.bias.detach().numpy()
        row[k.SIZE], row[k.WIDE] = size, wide
        row[k.OWN] = put(pad(weight.weight.detach().numpy().T), end)
        if layer.back is not None:
            back: Any = program.modules[layer.back]
            row[k.BACK] = put(pad(back.weight.detach().numpy().T), end)
            bias = bias if back.bias is None else bias + back.bias.detach().numpy()
        q = native.q if native.q.size else np.zeros((2, size), kind)
        # what fills a vector up never fires: its threshold is infinite
        p = pad(native.p)
        p[kernels.THRESHOLD, size:] = np.inf
        row[k.BIAS], row[k.PARAMETERS] = put(pad(bias)), put(p, pad(q))
        mode, row[k.INCLUSIVE], row[k.SUBTRACTS], *_ = native.how
        row[k.SPIKES] = mode == kernels.ONE
        row[k.X], row[k.V], row[k.S] = slots, slots + wide, slots + 2 * wide
        row[k.CURRENT] = slots + 3 * wide if native.q.size else -1
        slots += (4 if native.q.size else 3) * wide
        for field, variables in ((k.SPIKES_TO, ("spikes", "output")), (k.V_TO, ("v_mem",)), (k.I_TO, ("i_syn",))):
            for variable in variables:
                if (layer.population, variable) in read:
                    row[field] = places
                    kept.append((layer.population, variable, places, size))
                    places += size
    flat = aligned_copy(np.concatenate(floats))
    first = np.zeros(slots, flat.dtype)
    for row in table:
        first[row[k.X] : row[k.X] + row[k.WIDE]] = flat[row[k.BIAS] : row[k.BIAS] + row[k.WIDE]]
    return _Layout(table, flat, first, _rest(program, layers, table, first, dtype), tuple(kept))


def _rest(program: Program, layers: tuple[Layer, ...], table: Array, first: Array, dtype: Any) -> Array:
    """What a sample holds before the first step of a run that is given no state."""
    rest = first.copy()
    for layer, row in zip(layers, table, strict=True):
        population: Any = program.modules[layer.population]
        size = int(row[k.SIZE])
        v = population.rest_potential(torch.zeros((size,), dtype=dtype)).detach().numpy()
        rest[row[k.V] : row[k.V] + size] = v
        if layer.back is None:
            continue
        back: Any = program.modules[layer.back]
        bias = np.zeros(size) if back.bias is None else back.bias.detach().numpy()
        silent = program.module.convention.feedback_start == "silence"
        came = program.silence()[layer.back].reshape(size).numpy() if silent else np.zeros(size)
        rest[row[k.X] : row[k.X] + size] += came - bias
    return rest


class Stack:
    """A run of such a network, carried from chunk to chunk; it answers as `Cycle` does.

    Args:
        engine: the run.
        layers: of `layers_of`.
        read: what is needed outside, (population, variable).
    """

    def __init__(self, engine: Engine, layers: tuple[Layer, ...], read: tuple[tuple[NodePath, str], ...]) -> None:
        self.engine: Engine = weakref.proxy(engine)  # which holds this: a run's memory should go when the run does
        self.layers = layers
        program = engine.program
        self.layout: _Layout = program.made(
            ("stack", read, engine.dtype), lambda: _layout(program, layers, read, engine.dtype)
        )
        shape, kind = (engine.batch, self.layout.start.size), self.layout.floats.dtype
        self.values = np.empty(shape, kind) if engine.batch == 1 else aligned(shape, kind)  # one sample is soon done
        self.stepped = False
        self.values[:] = self.layout.start if engine.given else self.layout.rest
        if not engine.given:
            return
        for layer, row in zip(layers, self.layout.layers, strict=True):
            v, i = engine.initial(layer.population)
            self._part(row, k.V)[:] = v.numpy()
            if i is not None:
                self._part(row, k.CURRENT)[:] = i.numpy()
            if layer.back is not None:
                module: Any = program.modules[layer.back]
                came = engine.before(layer.back, self._key(layer)).detach().numpy()
                own = 0.0 if module.bias is None else module.bias.detach().numpy()
                self._part(row, k.X)[:] += came - own

    def _part(self, row: Array, field: int) -> Array:
        """What a layer holds of something, [batch, neuron]: the memory itself."""
        return self.values[:, row[field] : row[field] + row[k.SIZE]]

    @staticmethod
    def _key(layer: Layer) -> str:
        assert layer.back is not None
        return feedback_key(layer.back, layer.population)

    def run(self, steps: int) -> dict[NodePath, Signal]:
        """Run a chunk; what every population emits that somebody outside reads."""
        layout, engine = self.layout, self.engine
        plan = engine.module.plan
        outside = engine.signal(plan.inputs[0]).numbers()
        out = np.empty((steps, engine.batch, sum(r[3] for r in layout.read)), layout.floats.dtype)

        def work(first: int, last: int) -> None:
            k.stack(layout.layers, layout.floats, self.values, outside, out, first, last)

        split(work, engine.batch, max(1, (1 << 17) // max(1, steps * self.values.shape[1])))
        self.stepped = True
        found = {}
        for path, variable, at, size in layout.read:
            part = out if size == out.shape[2] else out[:, :, at : at + size]
            if variable in ("spikes", "output"):
                found[path] = engine.emitted(path, raw=part)
            if engine.sink.wants(path, variable):
                engine.sink.put(path, variable, engine.start, part)
        return found

    def states(self) -> dict[NodePath, Any]:
        """State of every population."""
        found: dict[NodePath, Any] = {}
        for layer, row in zip(self.layers, self.layout.layers, strict=True):
            v = torch.from_numpy(self._part(row, k.V).copy())
            i = None if row[k.CURRENT] < 0 else torch.from_numpy(self._part(row, k.CURRENT).copy())
            population: Any = self.engine.program.modules[layer.population]
            found[layer.population] = population.join(v, i)
        return found

    def previous(self) -> dict[str, Tensor]:
        """What the matrices back carry into the next step."""
        found = {}
        for layer, row in zip(self.layers, self.layout.layers, strict=True):
            if layer.back is None:
                continue
            key = self._key(layer)
            if self.stepped:
                spikes = torch.from_numpy(self._part(row, k.S).copy())
                with torch.no_grad():
                    found[key] = self.engine.program.modules[layer.back](spikes)  # type: ignore[misc]
            else:
                found[key] = self.engine.before(layer.back, key)
        return found
