"""A small recurrent network of plain shape, layer behind layer, as one native call: the fastest of the cyclic loops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nirdeploy.reference import kernels
from nirdeploy.reference.program import POPULATIONS, Program, is_plain
from nirdeploy.reference.threads import split
from nirdeploy.schedule import NodePath, feedback_key

if TYPE_CHECKING:
    from nirdeploy.reference.engine import Engine, Signal

__all__ = ["Layer", "Stack", "layers_of"]

Array = NDArray[Any]
_LANES = 64  # bytes of a vector; layers are padded to whole ones


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
    """What `kernels.stack` reads, and where things stand in a sample's values."""

    layers: Array
    floats: Array
    how: Array
    start: Array
    rest: Array
    slots: tuple[tuple[int, int, int, int], ...]  # input, v, i, spikes of each layer
    read: tuple[tuple[NodePath, str, int, int], ...]


def _layout(program: Program, layers: tuple[Layer, ...], read: tuple[tuple[NodePath, str], ...], dtype: Any) -> _Layout:
    floats: list[Array] = []
    length = slot = place = 0
    table: list[list[int]] = []
    how: list[list[int]] = []
    slots: list[tuple[int, int, int, int]] = []
    kept: list[tuple[NodePath, str, int, int]] = []

    def put(array: Array) -> int:
        nonlocal length
        floats.append(np.ascontiguousarray(array).reshape(-1))
        length += array.size
        return length - array.size

    for layer in layers:
        native = program.native(layer.population, dtype)
        size = native.p.shape[1]
        lanes = _LANES // native.p.dtype.itemsize
        wide = -(-size // lanes) * lanes

        def pad(array: Array, wide: int = wide) -> Array:
            return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, wide - array.shape[-1])])

        weight: Any = program.modules[layer.weight]
        bias = np.zeros(size, native.p.dtype) if weight.bias is None else weight.bias.detach().numpy()
        own = put(pad(weight.weight.detach().numpy().T))
        again, start = -1, bias
        if layer.back is not None:
            back: Any = program.modules[layer.back]
            again = put(pad(back.weight.detach().numpy().T))
            start = bias if back.bias is None else bias + back.bias.detach().numpy()
        q = native.q if native.q.size else np.zeros((2, size), native.p.dtype)
        # what fills a vector up never fires: its threshold is infinite
        p = pad(native.p)
        p[kernels.THRESHOLD, size:] = np.inf
        uniform = native.how[4] and (not native.q.size or bool((q == q[:, :1]).all()))
        begin = put(pad(start))
        parameters = put(np.concatenate([p.reshape(-1), pad(q).reshape(-1)]))
        at = (slot, slot + wide, slot + 2 * wide if native.q.size else -1, slot + 3 * wide)
        slot += 4 * wide
        outs = [-1, -1, -1]
        for n, variables in enumerate((("spikes", "output"), ("v_mem",), ("i_syn",))):
            for variable in variables:
                if (layer.population, variable) in read:
                    outs[n] = place
                    kept.append((layer.population, variable, place, size))
                    place += size
        table.append(
            [
                len(weight.weight.T),
                size,
                wide,
                own,
                begin,
                again,
                parameters,
                len(how),
                *at[:2],
                at[2],
                at[3],
                *outs,
                uniform,
            ]
        )
        how.append([int(flag) for flag in native.how])
        slots.append(at)
    flat = np.concatenate(floats)
    first = np.zeros(slot, flat.dtype)
    for row in table:
        first[row[8] : row[8] + row[2]] = flat[row[4] : row[4] + row[2]]
    rest = _rest(program, layers, table, first, dtype)
    return _Layout(np.array(table, np.int64), flat, np.array(how, np.int64), first, rest, tuple(slots), tuple(kept))


def _rest(program: Program, layers: tuple[Layer, ...], table: list[list[int]], first: Array, dtype: Any) -> Array:
    """What a sample holds before the first step of a run that is given no state."""
    rest = first.copy()
    for layer, row in zip(layers, table, strict=True):
        population: Any = program.modules[layer.population]
        size = row[1]
        rest[row[9] : row[9] + size] = population.rest_potential(torch.zeros((size,), dtype=dtype)).detach().numpy()
        if layer.back is None:
            continue
        back: Any = program.modules[layer.back]
        bias = np.zeros(size) if back.bias is None else back.bias.detach().numpy()
        silent = program.module.convention.feedback_start == "silence"
        came = program.silence()[layer.back].reshape(size).numpy() if silent else np.zeros(size)
        rest[row[8] : row[8] + size] += came - bias
    return rest


class Stack:
    """A run of such a network, carried from chunk to chunk; it answers as `Cycle` does.

    Args:
        engine: the run.
        layers: of `layers_of`.
        read: what is needed outside, (population, variable).
    """

    def __init__(self, engine: Engine, layers: tuple[Layer, ...], read: tuple[tuple[NodePath, str], ...]) -> None:
        self.engine, self.layers = engine, layers
        program = engine.program
        self.layout: _Layout = program.made(
            ("stack", read, engine.dtype), lambda: _layout(program, layers, read, engine.dtype)
        )
        self.values = np.empty((engine.batch, self.layout.start.size), self.layout.floats.dtype)
        self.stepped = False
        self.values[:] = self.layout.start if engine._given else self.layout.rest
        if not engine._given:
            return
        for layer, (x, v_at, i_at, _) in zip(layers, self.layout.slots, strict=True):
            v, i = engine.initial(layer.population)
            size = v.shape[1]
            self.values[:, v_at : v_at + size] = v.numpy()
            if i is not None:
                self.values[:, i_at : i_at + size] = i.numpy()
            if layer.back is not None:
                module: Any = program.modules[layer.back]
                came = engine.before(layer.back, self._key(layer)).detach().numpy()
                own = 0.0 if module.bias is None else module.bias.detach().numpy()
                self.values[:, x : x + size] += came - own

    @staticmethod
    def _key(layer: Layer) -> str:
        assert layer.back is not None
        return feedback_key(layer.back, layer.population)

    def run(self, steps: int) -> dict[NodePath, Signal]:
        """Run a chunk; what every population emits that somebody outside reads."""
        layout, engine = self.layout, self.engine
        plan = engine.module.plan
        outside = engine.signal(plan.inputs[0]).dense().reshape(steps, engine.batch, -1).contiguous().numpy()
        out = np.empty((steps, engine.batch, sum(r[3] for r in layout.read)), layout.floats.dtype)
        dt = layout.floats.dtype.type(1.0)

        def work(first: int, last: int) -> None:
            kernels.stack(layout.layers, layout.floats, self.values, layout.how, dt, outside, out, first, last)

        split(work, engine.batch, max(1, (1 << 17) // max(1, steps * self.values.shape[1])))
        self.stepped = True
        found = {}
        for path, variable, at, size in layout.read:
            part = out if size == out.shape[2] else out[:, :, at : at + size]
            if variable in ("spikes", "output"):
                found[path] = engine._emitted(path, torch.from_numpy(part))
            if engine.sink.wants(path, variable):
                engine.sink.put(path, variable, engine.start, part)
        return found

    def states(self) -> dict[NodePath, Any]:
        """State of every population."""
        found: dict[NodePath, Any] = {}
        for layer, (_, v_at, i_at, _s) in zip(self.layers, self.layout.slots, strict=True):
            size = self.engine.shapes[layer.population].input[0]
            v = torch.from_numpy(self.values[:, v_at : v_at + size].copy())
            i = None if i_at < 0 else torch.from_numpy(self.values[:, i_at : i_at + size].copy())
            population: Any = self.engine.program.modules[layer.population]
            found[layer.population] = population.join(v, i)
        return found

    def previous(self) -> dict[str, Tensor]:
        """What the matrices back carry into the next step."""
        found = {}
        for layer, (*_, s_at) in zip(self.layers, self.layout.slots, strict=True):
            if layer.back is None:
                continue
            key, size = self._key(layer), self.engine.shapes[layer.population].input[0]
            if self.stepped:
                spikes = torch.from_numpy(self.values[:, s_at : s_at + size].copy())
                with torch.no_grad():
                    found[key] = self.engine.program.modules[layer.back](spikes)  # type: ignore[misc]
            else:
                found[key] = self.engine.before(layer.back, key)
        return found
