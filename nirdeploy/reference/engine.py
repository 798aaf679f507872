"""A run in progress: chunks of steps go through a Program, part by part; states are carried from chunk to chunk.

Time is folded into the batch of whatever has no state, populations are native scans, cyclic components native loops.
With autograd or off the CPU, torch does the same with its own operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy.convert.build import lookup, nested, store
from nirdeploy.convert.layers import FlattenSample
from nirdeploy.errors import ConventionError
from nirdeploy.reference import kernels, pool_kernels, training
from nirdeploy.reference.cycle import Cycle
from nirdeploy.reference.driven import driven, few_events
from nirdeploy.reference.dynamics import MOST_SPIKES
from nirdeploy.reference.neurons import Delay, Membrane, Neuron
from nirdeploy.reference.program import FOLDED, POPULATIONS, Part, Program, is_plain
from nirdeploy.reference.scanned import scanned
from nirdeploy.reference.signals import Signal
from nirdeploy.reference.sink import NOWHERE, Sink
from nirdeploy.reference.sparse import Rows
from nirdeploy.reference.stack import Stack
from nirdeploy.reference.threads import LEAST, split
from nirdeploy.schedule import NodePath, dotted, feedback_key

__all__ = ["Engine"]

_NONE = {np.dtype(kind): np.zeros((0, 0, 0), kind) for kind in (np.float32, np.float64)}


@contextmanager
def _counting(path: NodePath) -> Iterator[None]:
    """Name the node where the kernel of 'exact' gives up counting."""
    try:
        yield
    except OverflowError as error:
        raise ConventionError(
            f"more than {MOST_SPIKES} spikes in a step", node=dotted(path), remedy="Use a smaller dt or spikes 'one'."
        ) from error


class Engine:
    """One run of a program.

    Args:
        program: what to run.
        batch: samples.
        state: where to start; missing entries mean rest. Never changed.
        sink: where records go.
        events: whether events may drive layers.
        grad: whether gradients are wanted.
    """

    def __init__(
        self,
        program: Program,
        batch: int,
        state: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        device: torch.device,
        sink: Sink | None = None,
        events: bool = False,
        grad: bool = False,
    ) -> None:
        self.program, self.batch, self.sink = program, batch, sink or NOWHERE
        self.module, self.shapes = program.module, program.module.shapes
        self.dtype, self.device, self.grad = dtype, device, grad
        self.native = device.type == "cpu" and not grad
        self.events = events and self.native
        self.sparse = events and grad and device.type == "cpu"
        self.start = 0
        self.given = state
        self._states: dict[NodePath, Any] = {}
        self._previous: dict[str, Tensor] = {}
        self._cycles: dict[Part, Cycle | Stack] = {}
        self.signals: dict[NodePath, Signal] = {}
        self.written: set[NodePath] = set()  # Outputs whose record of this chunk is there already
        self.steps = 0

    # ------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """Where the run stands, as `GraphModule` gives it."""
        found: dict[str, Any] = {}
        for path, value in self._states.items():
            store(found, path, value)
        for cycle in self._cycles.values():
            for path, value in cycle.states().items():
                store(found, path, value)
            self._previous.update(cycle.previous())
        for source, target in self.module.plan.feedback:
            key = feedback_key(source, target)
            if key in self._previous:
                found[key] = self._previous[key]
        return found

    def _zeros(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros((self.batch, *shape), dtype=self.dtype, device=self.device)

    def initial(self, path: NodePath) -> tuple[Tensor, Tensor | None]:
        """v and i of a population before the first step, its own to change."""
        module, shape = self.program.modules[path], self.shapes[path].input
        assert isinstance(module, Membrane)
        given = lookup(self.given, path)
        if given is None:
            i = self._zeros(shape) if "tau_syn" in module.fields else None
            if self.grad:
                return module.rest_potential(self._zeros(shape)), i
            rest = self.program.rest(path, self.dtype)
            return rest.expand(self.batch, *shape).contiguous() if self.batch > 1 else rest.clone(), i
        try:
            v, i = module.split(given, torch.empty((self.batch, *shape), dtype=self.dtype, device="meta"))
        except ConventionError as error:
            raise ConventionError(str(error), node=dotted(path)) from error
        return self._own(v), None if i is None else self._own(i)

    def _own(self, state: Tensor) -> Tensor:
        """A copy in the run's type; it keeps its gradient where gradients are wanted."""
        copied = state.to(device=self.device, dtype=self.dtype, copy=True)
        return copied if self.grad else copied.detach().contiguous()

    def before(self, source: NodePath, key: str) -> Tensor:
        """What a delayed edge carries into the first step of this chunk, [batch, *shape]."""
        if key in self._previous:
            return self._previous[key]
        given = self.given.get(key)
        shape = self.shapes[source].output
        if given is not None:
            if tuple(given.shape) != (self.batch, *shape):
                raise ConventionError(
                    f"state {key!r} of shape {tuple(given.shape)}, expected {(self.batch, *shape)}", node=dotted(source)
                )
            found: Tensor = given.to(dtype=self.dtype, device=self.device)
            return found
        if self.module.convention.feedback_start == "zero":
            return self._zeros(shape)
        if self.grad:
            zeros = {path: self._zeros(self.shapes[path].input) for path in self.module.plan.inputs}
            return self.module._silence(zeros)[source]
        return self.program.silence()[source].to(self.dtype).expand((self.batch, *shape))

    # ------------------------------------------------------------ a chunk

    def chunk(self, inputs: Mapping[NodePath, Signal]) -> dict[NodePath, Signal]:
        """Run some steps.

        Args:
            inputs: what every Input gets.

        Returns:
            What the Outputs emit.
        """
        self.signals = dict(inputs)
        self.written = set()
        self.steps = next(iter(inputs.values())).steps
        self.sink.begin(self.steps)
        for part in self.program.parts:
            if part.cyclic:
                self._cycle(part)
                continue
            (path,) = part.paths
            if path in inputs:
                continue
            module = self.program.modules[path]
            if is_plain(module, POPULATIONS):
                with _counting(path):
                    self._population(path)
            elif is_plain(module, (Delay,)):
                self._delay(path)
            elif module is not None and not is_plain(module, FOLDED):
                self._stepwise(path)
        outputs = {path: self.signal(path) for path in self.module.plan.outputs}
        self._record_stateless()
        self._remember()
        self.start += self.steps
        return outputs

    def release(self) -> None:
        """Let go of everything but the state."""
        self.signals, self.sink = {}, NOWHERE

    def signal(self, path: NodePath) -> Signal:
        """What a node emits; nodes without state are computed when somebody asks."""
        if path not in self.signals:
            module = self.program.modules[path]
            sources = self.program.sources[path]
            if module is None and len(sources) == 1 and sources[0][1] is None:
                self.signals[path] = self.signal(sources[0][0])  # an Output is a wire
                return self.signals[path]
            x, _ = self.input(path)
            rows = self._sparse(path) if self.sparse and is_plain(module, (nn.Linear,)) else None
            if rows is not None:
                x = training.sparse_linear(module, x, rows)  # type: ignore[arg-type]
            elif self.native and path in self.program.pools:
                x = self._pool(path, x)
            elif module is not None:
                folded = x.reshape(self.steps * self.batch, *x.shape[2:])
                y = module(folded)
                x = y.reshape(self.steps, self.batch, *y.shape[1:])
            self.signals[path] = self.emitted(path, x)
        return self.signals[path]

    def _pool(self, path: NodePath, x: Tensor) -> Tensor:
        """Sums or means over windows side by side."""
        rows, columns, divisor = self.program.pools[path]
        shape = self.shapes[path].output
        given = x.contiguous().reshape(-1, *x.shape[-2:]).numpy()
        out = np.empty((len(given), *shape[1:]), given.dtype)
        by = given.dtype.type(divisor)
        split(lambda a, b: pool_kernels.pool(given, rows, columns, by, out, a, b), len(given), 1 + LEAST // out[0].size)
        return torch.from_numpy(out).reshape(self.steps, self.batch, *shape)

    def _sparse(self, path: NodePath) -> Rows | None:
        """A Linear's input as events, where it comes from one node and is mostly zero."""
        sources = self.program.sources[path]
        if len(sources) != 1 or sources[0][1] is not None:
            return None
        return few_events(self, sources[0][0], path)

    def emitted(self, path: NodePath, dense: Tensor | None = None, *, raw: np.ndarray | None = None) -> Signal:
        """What a node emits in this chunk: [step, batch, *shape], or `raw` [step, batch, neuron]."""
        shape = self.shapes[path].output
        return Signal(shape, self.steps, self.batch, dense=dense, raw=raw, dtype=self.dtype, device=self.device)

    def input(self, path: NodePath) -> tuple[Tensor, bool]:
        """The sum of what a node's sources emit, in name order, and whether nobody else reads that memory."""
        sources = self.program.sources[path]
        parts = [self.edge(source, key) for source, key in sources]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        if len(parts) > 1 or sources[0][1] is not None:
            return total, True
        source = sources[0][0]
        module = self.program.modules[source]
        fresh = is_plain(module, FOLDED) and not is_plain(module, (FlattenSample, nn.Identity))
        alone = len(self.program.consumers[source]) == 1 and not self.sink.wants(source, "output")
        return total, fresh and alone

    def edge(self, source: NodePath, key: str | None) -> Tensor:
        """What an edge carries in this chunk, [step, batch, *shape]; one with a key is a step late."""
        now = self.signal(source).dense()
        if key is None:
            return now
        return torch.cat([self.before(source, key)[None], now[:-1]])

    def _remember(self) -> None:
        """Keep what delayed edges carry into the next chunk."""
        for source, key in self.program.crossing:
            last = self.signal(source).dense()[-1]
            self._previous[key] = last if self.grad else last.clone()

    # ------------------------------------------------------------ populations

    def _population(self, path: NodePath) -> None:
        if not self.native:
            self._population_torch(path)
            return
        if path not in self._states:
            self._hold(path, *self.initial(path))
        if not (self.events and driven(self, path)):
            scanned(self, path)

    def _hold(self, path: NodePath, v: Tensor, i: Tensor | None) -> None:
        module = self.program.modules[path]
        assert isinstance(module, Membrane)
        self._states[path] = module.join(v, i)

    def held(self, path: NodePath) -> tuple[np.ndarray, np.ndarray]:
        """v and i [batch, neuron], the memory that the state is in."""
        state = self._states[path]
        v, i = (state["v_mem"], state["i_syn"]) if isinstance(state, Mapping) else (state, None)
        flat = v.numpy().reshape(self.batch, -1)
        return flat, flat[:0, :0] if i is None else i.numpy().reshape(self.batch, -1)

    def targets(self, path: NodePath, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where v and i are recorded, the third array where they are not."""
        none = _NONE[dtype]
        v = self.sink.target(path, "v_mem", self.start, self.steps)
        i = self.sink.target(path, "i_syn", self.start, self.steps)
        return none if v is None else v, none if i is None else i, none

    def put_states(self, path: NodePath, v: np.ndarray, i: np.ndarray, none: np.ndarray) -> None:
        """The records of v and i that `targets` gave are complete."""
        for variable, array in (("v_mem", v), ("i_syn", i)):
            if array is not none:
                self.sink.put(path, variable, self.start, None)

    def put_emitted(self, path: NodePath, out: Tensor) -> None:
        """Record what a population emits, where that is wanted."""
        module = self.program.modules[path]
        variable = "spikes" if isinstance(module, Neuron) else "output"
        if self.sink.wants(path, variable):
            flat = out.detach().reshape(self.steps, self.batch, -1)
            self.sink.put(path, variable, self.start, flat.cpu().numpy())

    def _population_torch(self, path: NodePath) -> None:
        """Step by step with the module itself; where autograd is on, the folded backward pass if it has one."""
        module = self.program.modules[path]
        assert isinstance(module, Membrane)
        if path not in self._states:
            self._hold(path, *self.initial(path))
        keep = any(self.sink.wants(path, variable) for variable in ("v_mem", "i_syn"))
        if self.device.type == "cpu" and not keep and training.foldable(module, self.dtype):
            x, own = self.input(path)
            out, self._states[path] = training.scan(module, x, self._states[path], own)
            self.signals[path] = self.emitted(path, out)
            self.put_emitted(path, out)
        else:
            self._stepwise(path)

    def put_torch_states(self, path: NodePath, states: list[Any]) -> None:
        """Record the states of a population that went step by step, where they are wanted."""
        for variable in ("v_mem", "i_syn"):
            if not self.sink.wants(path, variable):
                continue
            found = [s[variable] if isinstance(s, Mapping) else s for s in states]
            stacked = torch.stack([f.detach() for f in found]).reshape(self.steps, self.batch, -1)
            self.sink.put(path, variable, self.start, stacked.cpu().numpy())

    # ------------------------------------------------------------ everything else

    def _delay(self, path: NodePath) -> None:
        """Each neuron `steps` back in time, over what came in before this chunk and in it."""
        module = self.program.modules[path]
        assert isinstance(module, Delay)
        x, _ = self.input(path)
        shape = self.shapes[path].input
        line = self._states.get(path)
        if line is None:
            line = lookup(self.given, path)
            wanted = (module.longest, self.batch, *shape)
            if line is None:
                line = torch.zeros(wanted, dtype=self.dtype, device=self.device)
            elif tuple(line.shape) != wanted:
                raise ConventionError(
                    f"state of shape {tuple(line.shape)} for an input of shape {(self.batch, *shape)}",
                    node=dotted(path),
                )
        history = torch.cat([line.flip(0).to(x), x])
        step = torch.arange(self.steps, device=self.device).reshape(-1, *([1] * (x.ndim - 1)))
        index = module.longest + step - module.steps.expand(x.shape[1:])[None]
        self.signals[path] = self.emitted(path, history.gather(0, index.expand(x.shape)))
        self._states[path] = history[history.shape[0] - module.longest :].flip(0)

    def _stepwise(self, path: NodePath) -> None:
        """A module of the user's own, step by step."""
        module = self.program.modules[path]
        assert module is not None
        x, own = self.input(path)
        x = x if own else x.clone()  # it may work in place
        stateful = any(step.path == path and step.stateful for step in self.module._steps)
        state = self._states[path] if path in self._states else lookup(self.given, path)
        emitted, states = [], []
        for t in range(self.steps):
            if stateful:
                y, state = self.module._advance(path, module, x[t], nested(path, state))
                states.append(state)
            else:
                y = module(x[t])
            emitted.append(y)
        if stateful:
            self._states[path] = state
        self.signals[path] = self.emitted(path, torch.stack(emitted))
        if isinstance(module, Membrane):
            self.put_torch_states(path, states)
            self.put_emitted(path, self.signals[path].dense())

    def _cycle(self, part: Part) -> None:
        cycle = self._cycles.get(part)
        if cycle is None:
            read = None
            if self.native and self.program.stack is not None:
                read = self.program.made(("stackable", self.sink.wanted, self.dtype), self._stackable)
            stack = None if read is None else Stack(self, self.program.stack or (), read)
            cycle = self._cycles[part] = stack or Cycle(self, part)
        with _counting(part.paths[0]):
            self.signals.update(cycle.run(self.steps))

    def _stackable(self) -> tuple[tuple[NodePath, str], ...] | None:
        """What is read of a network that is a stack of layers; None where it is none, or more is wanted of it."""
        layers = self.program.stack
        assert layers is not None
        wants = self.sink.wants
        if any(wants(p, "output") for layer in layers for p in (layer.weight, layer.back) if p is not None):
            return None
        modes = [self.program.native(layer.population, self.dtype).how[0] for layer in layers]
        integrates = modes[-1] == kernels.INTEGRATE and layers[-1].back is None
        if any(mode != kernels.ONE for mode in modes[:-1]) or not (modes[-1] == kernels.ONE or integrates):
            return None
        read = []
        for layer in layers:
            path = layer.population
            emitted = "spikes" if isinstance(self.program.modules[path], Neuron) else "output"
            if wants(path, emitted) or path == layers[-1].population:
                read.append((path, emitted))
            read += [(path, variable) for variable in ("v_mem", "i_syn") if wants(path, variable)]
        return tuple(read)

    def _record_stateless(self) -> None:
        for path in self.program.stateless:
            if path in self.written:
                self.sink.put(path, "output", self.start, None)
            elif self.sink.wants(path, "output"):
                self.sink.put(path, "output", self.start, self.signal(path).numbers())
