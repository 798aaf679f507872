"""A cyclic component over a chunk of steps: one native loop, or torch step by step where that is needed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nirdeploy.convert.build import lookup, nested
from nirdeploy.convert.layers import FlattenSample
from nirdeploy.convert.primitives import Scale
from nirdeploy.reference import kernels
from nirdeploy.reference.neurons import Delay, Membrane, Neuron, Threshold
from nirdeploy.reference.program import POPULATIONS, Part, Program, is_plain
from nirdeploy.reference.threads import split
from nirdeploy.schedule import NodePath, feedback_key

if TYPE_CHECKING:
    from nirdeploy.reference.engine import Engine
    from nirdeploy.reference.signals import Signal

__all__ = ["Cycle"]

Array = NDArray[Any]
Edge = tuple[NodePath, str | None]
_MOST_WEIGHTS = 1 << 22  # of a component as a native loop, whose weights are plain matrices
_BLOCK = 16  # samples stepped together: so many share the cost of starting an operation


@dataclass(frozen=True)
class Layout:
    """A component as `kernels.loop` reads it.

    Attributes:
        ops, sources, copies, floats, how, record, places: as there.
        slots: numbers a sample holds.
        emits: where each node's output stands.
        states: v and i of populations (i -1 where there is none); start and length of delay lines.
        previous: by key, the source of each delayed edge and where its previous value is kept.
        outside: what comes from outside, in the order of `places`.
        read: what is read out, in the order of `record`: node, variable, offset, size.
        dt: for the closed form.
    """

    ops: Array
    sources: Array
    copies: Array
    floats: Array
    how: Array
    record: Array
    places: Array
    slots: int
    emits: Mapping[NodePath, int]
    states: Mapping[NodePath, tuple[int, int]]
    previous: Mapping[str, tuple[NodePath, int]]
    outside: tuple[Edge, ...]
    read: tuple[tuple[NodePath, str, int, int], ...]
    dt: Any


class _Builder:
    """Lays a component out, node by node in the order of a step."""

    def __init__(self, program: Program, part: Part, dtype: torch.dtype) -> None:
        self.program, self.part, self.dtype = program, part, dtype
        self.shapes = program.module.shapes
        self.inside = set(part.paths)
        self.slots = 0
        self.emits: dict[NodePath, int] = {}
        self.states: dict[NodePath, tuple[int, int]] = {}
        self.previous: dict[str, tuple[NodePath, int]] = {}
        self.outside: dict[Edge, int] = {}
        self.ops: list[list[int]] = []
        self.sources: list[int] = []
        self.floats: list[Array] = []
        self.length = 0
        self.how: list[tuple[int, ...]] = []
        self.dt: Any = None

    def size(self, path: NodePath, port: str = "output") -> int:
        return math.prod(getattr(self.shapes[path], port))

    def take(self, size: int) -> int:
        self.slots += size
        return self.slots - size

    def store(self, *arrays: Array) -> int:
        at = self.length
        for array in arrays:
            self.floats.append(np.ascontiguousarray(array).reshape(-1))
            self.length += array.size
        return at

    def build(self, read: tuple[tuple[NodePath, str], ...]) -> Layout:
        for path in self.part.paths:
            for source, key in self.program.sources[path]:
                if source not in self.inside:
                    if (source, key) not in self.outside:
                        self.outside[source, key] = self.take(self.size(source))
                elif key is not None and key not in self.previous:
                    self.previous[key] = (source, self.take(self.size(source)))
        for path in self.part.paths:
            self.node(path)
        copies = [[self.emits[p], at, self.size(p)] for p, at in self.previous.values()]
        places, begin = [], 0
        for (source, _), at in self.outside.items():
            places.append([begin, at, self.size(source)])
            begin += self.size(source)
        record, found, begin = [], [], 0
        for path, variable in read:
            state = {"v_mem": 0, "i_syn": 1}.get(variable)
            size = self.size(path)
            record.append([self.emits[path] if state is None else self.states[path][state], begin, size])
            found.append((path, variable, begin, size))
            begin += size
        like = torch.empty(0, dtype=self.dtype).numpy().dtype
        return Layout(
            _table(self.ops, 13),
            np.array(self.sources, np.int64),
            _table(copies, 3),
            np.concatenate([a.astype(like, copy=False) for a in self.floats]) if self.floats else np.zeros(1, like),
            _table([list(h) for h in self.how], 6),
            _table(record, 3),
            _table(places, 3),
            self.slots,
            self.emits,
            self.states,
            self.previous,
            tuple(self.outside),
            tuple(found),
            like.type(1.0) if self.dt is None else self.dt,
        )

    def node(self, path: NodePath) -> None:
        module = self.program.modules[path]
        size, out = self.size(path, "input"), self.size(path)
        begin = len(self.sources)
        for source, key in self.program.sources[path]:
            if source not in self.inside:
                self.sources.append(self.outside[source, key])
            else:
                self.sources.append(self.emits[source] if key is None else self.previous[key][1])
        count = len(self.sources) - begin
        wire = module is None or is_plain(module, (FlattenSample, nn.Identity))
        if wire and count == 1 and self.program.sources[path][0][1] is None:
            self.emits[path] = self.sources[begin]
            return
        x = self.sources[begin] if count == 1 else self.take(size)
        op = [kernels.GATHER, begin, count, size, x, 0, out, 0, 0, 0, -1, 0, int(count == 1)]
        if not wire:
            self.fill(op, path, module)
        op[5] = self.emits[path] = self.take(out)
        self.ops.append(op)

    def fill(self, op: list[int], path: NodePath, module: Any) -> None:
        size = op[3]
        if is_plain(module, POPULATIONS):
            native = self.program.native(path, self.dtype)
            op[0], op[7], op[8] = kernels.POPULATION, self.store(native.p, native.q), len(self.how)
            self.how.append(tuple(int(flag) for flag in native.how))
            op[9] = self.take(size)
            op[10] = self.take(size) if native.q.size else -1
            self.states[path] = (op[9], op[10])
            if native.how[0] == kernels.EXACT:
                self.dt = native.dt
        elif isinstance(module, Delay):
            op[0], op[11] = kernels.DELAY, module.longest
            steps = module.steps.expand(self.shapes[path].input).reshape(-1).numpy()
            op[7], op[9] = self.store(steps), self.take(module.longest * size)
            self.states[path] = (op[9], module.longest)
        elif isinstance(module, Scale | Threshold):
            op[0] = kernels.SCALE if isinstance(module, Scale) else kernels.COMPARE
            value = (module.scale if isinstance(module, Scale) else module.threshold).detach()
            op[7] = self.store(value.expand(self.shapes[path].input).reshape(-1).numpy())
        else:
            op[0], op[7] = kernels.MATRIX, self.store(*_matrix(module, self.shapes[path].input, self.dtype))


def _table(rows: list[list[int]], width: int) -> Array:
    return np.array(rows, np.int64).reshape(len(rows), width)


def _matrix(module: Any, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Array, Array]:
    """A linear layer as a matrix [source, neuron] and a bias."""
    with torch.no_grad():
        bias: Tensor | None = None
        if isinstance(module, nn.Linear):
            own = torch.zeros(module.out_features, dtype=dtype) if module.bias is None else module.bias.detach()
            return module.weight.detach().T.numpy(), own.numpy()
        size = math.prod(shape)
        basis = torch.eye(size, dtype=dtype).reshape(size, *shape)
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            convolve: Any = functional.conv2d if isinstance(module, nn.Conv2d) else functional.conv1d
            options = (module.stride, module.padding, module.dilation, module.groups)
            found, bias = convolve(basis, module.weight, None, *options), module.bias
        else:
            found = module(basis)
        spread = torch.zeros(found.shape[1:], dtype=dtype)
        if bias is not None:
            spread = spread + bias.reshape(-1, *([1] * (found.ndim - 2)))
        return found.reshape(size, -1).numpy(), spread.reshape(-1).numpy()


class Cycle:
    """A component of a run, carried from chunk to chunk."""

    def __init__(self, engine: Engine, part: Part) -> None:
        self.engine: Engine = weakref.proxy(engine)  # which holds this: a run's memory should go when the run does
        self.part = part
        self.program, self.shapes = engine.program, engine.shapes
        inside = set(part.paths)
        self.inner = {(s, t) for s, t in engine.module.plan.feedback if s in inside and t in inside}
        self.native = engine.native and self._fits()
        self.steps = 0
        self._state: dict[NodePath, Any] = {}
        self._carried: dict[str, Tensor] = {}
        if self.native:
            key = (part, self._read(), engine.dtype)
            self.layout: Layout = self.program.made(
                key, lambda: _Builder(self.program, part, engine.dtype).build(self._read())
            )
            self.values = np.zeros((engine.batch, self.layout.slots), self.layout.floats.dtype)
            self._enter()

    def _fits(self) -> bool:
        program = self.program
        if not program.fits_loop(self.part.paths, _MOST_WEIGHTS):
            return False
        populations = (p for p in self.part.paths if is_plain(program.modules[p], POPULATIONS))
        natives = (program.native(path, self.engine.dtype) for path in populations)
        return len({float(n.dt) for n in natives if n.how[0] == kernels.EXACT}) < 2  # the loop knows one dt

    def _read(self) -> tuple[tuple[NodePath, str], ...]:
        """What is needed outside: node and variable."""
        inside, wants = set(self.part.paths), self.engine.sink.wants
        found: list[tuple[NodePath, str]] = []
        for path in self.part.paths:
            module = self.program.modules[path]
            emitted = "spikes" if isinstance(module, Neuron) else "output"
            needed = wants(path, emitted) or path in self.engine.module.plan.outputs
            if needed or any(p not in inside for p in self.program.consumers[path]):
                found.append((path, emitted))
            if isinstance(module, Membrane):
                found.extend((path, v) for v in ("v_mem", "i_syn") if wants(path, v))
        return tuple(found)

    # ------------------------------------------------------------ state

    def _enter(self) -> None:
        """Put initial states and previous values into their slots."""
        batch = self.engine.batch
        for path, (first, second) in self.layout.states.items():
            module, size = self.program.modules[path], math.prod(self.shapes[path].input)
            if isinstance(module, Delay):
                line = lookup(self.engine.given, path)
                for k in range(second if line is not None else 0):
                    at = first + ((-1 - k) % second) * size
                    self.values[:, at : at + size] = line[k].reshape(batch, size).numpy()
                continue
            v, i = self.engine.initial(path)
            self.values[:, first : first + size] = v.reshape(batch, size).numpy()
            if i is not None:
                self.values[:, second : second + size] = i.reshape(batch, size).numpy()
        for key, (source, at) in self.layout.previous.items():
            value = self.engine.before(source, key)
            size = math.prod(self.shapes[source].output)
            self.values[:, at : at + size] = value.detach().reshape(batch, size).numpy()

    def states(self) -> dict[NodePath, Any]:
        """State of every node of the component."""
        if not self.native:
            return dict(self._state)
        found: dict[NodePath, Any] = {}
        for path, (first, second) in self.layout.states.items():
            shape, module = self.shapes[path].input, self.program.modules[path]
            if isinstance(module, Delay):
                size = math.prod(shape)
                line = [self._slot(first + ((self.steps - 1 - k) % second) * size, shape) for k in range(second)]
                none = torch.zeros((0, self.engine.batch, *shape), dtype=self.engine.dtype)
                found[path] = torch.stack(line) if line else none
                continue
            assert isinstance(module, Membrane)
            v = self._slot(first, shape)
            found[path] = module.join(v, None if second < 0 else self._slot(second, shape))
        return found

    def _slot(self, at: int, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        return torch.from_numpy(self.values[:, at : at + size].reshape(-1, *shape).copy())

    def previous(self) -> dict[str, Tensor]:
        """What the delayed edges inside carry into the next step."""
        found = {}
        for source, target in self.inner:
            key = feedback_key(source, target)
            if self.native:
                found[key] = self._slot(self.layout.previous[key][1], self.shapes[source].output)
            elif key in self._carried:
                found[key] = self._carried[key]
        return found

    # ------------------------------------------------------------ run

    def run(self, steps: int) -> dict[NodePath, Signal]:
        """Run a chunk; what every node emits that somebody outside reads."""
        outside = self.layout.outside if self.native else self._outside()
        given = [self.engine.edge(source, key) for source, key in outside]
        found = (
            self._native(steps, given) if self.native else self._torch(steps, dict(zip(outside, given, strict=True)))
        )
        self.steps += steps
        return found

    def _native(self, steps: int, given: list[Tensor]) -> dict[NodePath, Signal]:
        layout, engine = self.layout, self.engine
        flat = [g.reshape(steps, engine.batch, -1).numpy() for g in given]
        outside = flat[0] if len(flat) == 1 else None
        if outside is None:
            empty = np.zeros((steps, engine.batch, 0), layout.floats.dtype)
            outside = np.concatenate(flat, axis=2) if flat else empty
        out = np.empty((steps, engine.batch, sum(size for *_, size in layout.read)), layout.floats.dtype)

        def work(first: int, last: int) -> None:
            kernels.loop(
                layout.ops, layout.sources, layout.copies, self.values, outside, layout.places, layout.floats,
                layout.how, layout.dt, out, layout.record, self.steps, first, last, _BLOCK,
            )  # fmt: skip

        split(work, engine.batch, max(1, (1 << 17) // max(1, steps * layout.slots)))
        found = {}
        for path, variable, at, size in layout.read:
            part = out if size == out.shape[2] else out[:, :, at : at + size]
            if variable in ("spikes", "output"):
                shape = self.shapes[path].output
                found[path] = engine.emitted(path, torch.from_numpy(part).reshape(steps, engine.batch, *shape))
            stateless = not isinstance(self.program.modules[path], Membrane)
            if engine.sink.wants(path, variable) and not stateless:  # the engine itself records nodes without state
                engine.sink.put(path, variable, engine.start, part)
        return found

    def _outside(self) -> tuple[Edge, ...]:
        inside = set(self.part.paths)
        edges = (edge for path in self.part.paths for edge in self.program.sources[path] if edge[0] not in inside)
        return tuple(dict.fromkeys(edges))

    def _torch(self, steps: int, given: Mapping[Edge, Tensor]) -> dict[NodePath, Signal]:
        engine, module = self.engine, self.engine.module
        stateful = {step.path for step in module._steps if step.stateful}
        traces: dict[NodePath, list[Tensor]] = {path: [] for path in self.part.paths}
        states: dict[NodePath, list[Any]] = {path: [] for path in self.part.paths if path in stateful}
        keys = {feedback_key(source, target): source for source, target in self.inner}
        carried = self._carried or {key: engine.before(source, key) for key, source in keys.items()}
        for t in range(steps):
            values: dict[NodePath, Tensor] = {}
            for path in self.part.paths:
                total: Tensor | None = None
                for source, key in self.program.sources[path]:
                    if (source, key) in given:
                        part = given[source, key][t]
                    else:
                        part = values[source] if key is None else carried[key]
                    total = part if total is None else total + part
                assert total is not None
                own = self.program.modules[path]
                if own is not None and path in stateful:
                    before = self._state[path] if path in self._state else self._first(path, own)
                    total, self._state[path] = module._advance(path, own, total, nested(path, before))
                    states[path].append(self._state[path])
                elif own is not None:
                    total = own(total)
                values[path] = total
                traces[path].append(total)
            carried = {key: values[source] for key, source in keys.items()}
        self._carried = carried
        found = {path: engine.emitted(path, torch.stack(steps_)) for path, steps_ in traces.items()}
        for path in self.part.paths:
            if isinstance(self.program.modules[path], Membrane):
                engine.put_torch_states(path, states[path])
                engine.put_emitted(path, found[path].dense())
        return found

    def _first(self, path: NodePath, module: nn.Module) -> Any:
        if isinstance(module, Membrane):
            return module.join(*self.engine.initial(path))
        return lookup(self.engine.given, path)
