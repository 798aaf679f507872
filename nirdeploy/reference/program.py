"""What of an imported graph can be computed how: parts in order, layers that events can drive, native parameters.

A Program is made once for a module. What depends on parameters is made anew when one of them has changed.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nirdeploy.convert.build import GraphModule
from nirdeploy.convert.layers import FlattenSample, SumPool2d
from nirdeploy.convert.primitives import Scale
from nirdeploy.reference import kernels
from nirdeploy.reference.dynamics import late_after_update, reset_value
from nirdeploy.reference.neurons import IF, LI, LIF, CubaLI, CubaLIF, Delay, I, Membrane, Neuron, Threshold
from nirdeploy.reference.sparse import Weights, pack_convolution, pack_matrix, reach_of_pool
from nirdeploy.reference.watch import Watch
from nirdeploy.schedule import NodePath, feedback_key
from nirdeploy.shapes import pair

__all__ = ["FOLDED", "POPULATIONS", "Chain", "Native", "Part", "Program", "is_plain", "numbers_of"]

Array = NDArray[Any]
T = TypeVar("T")
FOLDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, SumPool2d, FlattenSample, Scale, Threshold, nn.Identity)
POPULATIONS = (IF, LIF, CubaLIF, I, LI, CubaLI)
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, SumPool2d)
_ABSORBED = 1 << 16  # weights of a cyclic graph that is stepped as a whole


@dataclass(frozen=True)
class Part:
    """Nodes computed together: one, or a cyclic component in the order of a step."""

    paths: tuple[NodePath, ...]
    cyclic: bool


@dataclass(frozen=True)
class Chain:
    """A population that events can drive: source -> address maps -> weight -> population.

    Attributes:
        source: whose events.
        weight: the Affine, Linear or Conv2d.
        maps: what lies between them, from the source on.
    """

    source: NodePath
    weight: NodePath
    maps: tuple[NodePath, ...]


@dataclass(frozen=True)
class Native:
    """A population's parameters for the kernels.

    Attributes:
        p: [row, neuron], as `kernels` numbers the rows.
        q: decay and gain of the synapse [2, neuron]; [2, 0] where there is none.
        how: mode, inclusive, subtract, many, uniform, and whether a late reset comes after the update.
        dt: step for the closed form.
    """

    p: Array
    q: Array
    how: tuple[int, bool, bool, bool, bool, bool]
    dt: Any


def is_plain(module: nn.Module | None, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is exactly of one of these types and does nothing beside its forward."""
    return (
        type(module) in kinds
        and not module._forward_hooks  # type: ignore[union-attr]
        and not module._forward_pre_hooks  # type: ignore[union-attr]
        and "forward" not in vars(module)
    )


def _is_wire(module: nn.Module | None) -> bool:
    return is_plain(module, (FlattenSample, nn.Identity))


def _is_native(module: nn.Module | None) -> bool:
    if module is None:
        return True
    padding = getattr(module, "padding_mode", "zeros")
    return padding == "zeros" and is_plain(module, (*FOLDED, *POPULATIONS, Delay))


def native(module: Membrane, shape: tuple[int, ...], dtype: torch.dtype) -> Native:
    """A population's parameters, broadcast to one a neuron."""
    convention, size = module.convention, math.prod(shape)

    def full(value: Tensor | float) -> Array:
        tensor = torch.as_tensor(value, dtype=dtype).detach().cpu()
        return tensor.expand(shape).reshape(size).numpy()

    p = np.zeros((7, size), full(0.0).dtype)
    exact = convention.integrator == "exact" and isinstance(module, Neuron)  # others do without a crossing
    tau = module.tau_membrane()
    decay, gain, leak = module.membrane()
    rows = [decay, leak, gain, 0.0, 0.0, -np.inf, np.inf if tau is None else tau]
    if exact:
        r = module.r if convention.use_r else torch.ones_like(module.r)
        rows[kernels.GAIN], rows[kernels.LEAK] = r, getattr(module, "v_leak", 0.0)
    mode = kernels.INTEGRATE
    if isinstance(module, Neuron):
        rows[kernels.THRESHOLD] = module.v_threshold
        rows[kernels.V_RESET] = reset_value(module.v_reset, convention)
        if convention.v_min is not None:
            rows[kernels.V_MIN] = -module.v_threshold if convention.v_min == "-threshold" else float(convention.v_min)
        many = convention.spikes_per_step == "many"
        mode = kernels.MANY if many else kernels.ONE
        if exact:
            mode = kernels.EXACT
        elif convention.fires == "before_update":
            mode = kernels.BEFORE
        elif convention.reset_time == "next_step":
            mode = kernels.LATE
        elif convention.reset_time == "brought_forward":
            mode = kernels.FORWARD
    for n, value in enumerate(rows):
        p[n] = full(value)
    synapse = module.synapse()
    q = np.zeros((2, 0 if synapse is None else size), p.dtype)
    if synapse is not None:
        q[0], q[1] = full(synapse.decay), full(synapse.gain)
    uniform = mode == kernels.ONE and size > 0 and bool((p == p[:, :1]).all())
    how = (
        mode,
        convention.crossing == "inclusive",
        convention.reset == "subtract",
        convention.spikes_per_step == "many",
        uniform,
        late_after_update(convention),
    )
    timed = convention.dt is not None and (tau is not None or convention.if_gain == "r_dt")
    return Native(p, q, how, p.dtype.type(convention.dt if timed else 1.0))


def numbers_of(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Type and device of a module's floating-point parameters; the default type and the CPU where it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.get_default_dtype(), torch.device("cpu")


class Program:
    """How a module is run over many steps.

    Attributes:
        sources: for each node its sources in name order, with the key of the state entry where the edge is delayed.
        consumers: for each node those that read it.
        parts: in the order they are computed.
        chains: populations that events can drive, by path.
        whole: whether the graph is one native loop.
        stack: its layers, where that loop is one layer behind the other.
        pools: rows and columns of pooling windows that lie side by side, and what their sums are divided by.
        stateless: nodes that are no populations.
        crossing: feedback edges from one part to another, as source and key of the state.
        step_size: numbers that a step of one sample takes in all nodes; Inputs and Outputs take none of their own.
    """

    def __init__(self, module: GraphModule) -> None:
        self._module = weakref.ref(module)  # programs are kept by module, and must not keep it
        plan = module.plan
        self.sources = {step.path: step.sources for step in module._steps}
        self.consumers: dict[NodePath, list[NodePath]] = {path: [] for path in plan.order}
        for path, sources in self.sources.items():
            for source, _ in sources:
                self.consumers[source].append(path)
        self.modules = {path: module.get(path) for path in plan.order}
        self.parts = tuple(self._parts())
        cyclic = [part for part in self.parts if part.cyclic]
        self.whole = bool(cyclic) and self.fits_loop(plan.order, _ABSORBED)
        if self.whole:
            inner = tuple(path for path in plan.order if path not in plan.inputs)
            self.parts = (*(Part((p,), False) for p in plan.inputs), Part(inner, True))
        self.chains = dict(self._chains())
        from nirdeploy.reference.stack import layers_of

        self.straight = {s[0][0]: p for p in plan.outputs if len(s := self.sources[p]) == 1 and s[0][1] is None}
        self.stack = layers_of(self) if self.whole else None
        self.pools = {p: self._window(p) for p, m in self.modules.items() if self._maps(p) and not _is_wire(m)}
        self.stateless = tuple(p for p in plan.order if not isinstance(self.modules[p], Membrane))
        part_of = {path: part for part in self.parts if part.cyclic for path in part.paths}
        self.crossing = tuple(
            (source, feedback_key(source, target))
            for source, target in plan.feedback
            if source not in part_of or part_of[source] is not part_of.get(target)
        )
        self.step_size = sum(
            math.prod(module.shapes[path].output) for path, own in self.modules.items() if own is not None
        )
        watched = (m for found in self.modules.values() if found is not None for m in found.modules())
        self._watch = Watch(watched, (module.holder(path) for path in plan.order if self.modules[path] is not None))
        self._made: dict[Any, Any] = {}

    # ------------------------------------------------------------ structure

    @property
    def module(self) -> GraphModule:
        """The graph."""
        found = self._module()
        assert found is not None, "whoever runs a program holds its module"
        return found

    def native_node(self, path: NodePath) -> bool:
        """Whether the kernels know a node."""
        return _is_native(self.modules[path])

    def _parts(self) -> Iterator[Part]:
        import networkx as nx

        digraph = nx.DiGraph()
        digraph.add_nodes_from(self.sources)
        digraph.add_edges_from((source, path) for path, sources in self.sources.items() for source, _ in sources)
        position = {path: n for n, path in enumerate(self.module.plan.order)}
        condensed = nx.condensation(digraph)
        members = {n: sorted(data["members"], key=position.__getitem__) for n, data in condensed.nodes(data=True)}
        for n in nx.lexicographical_topological_sort(condensed, key=lambda n: position[members[n][0]]):
            paths = tuple(members[n])
            yield Part(paths, len(paths) > 1 or digraph.has_edge(paths[0], paths[0]))

    def fits_loop(self, paths: Iterable[NodePath], most: int) -> bool:
        """Whether kernels know all of these nodes, and their layers have at most so many weights as plain matrices."""
        shapes, total = self.module.shapes, 0
        for path in paths:
            if not self.native_node(path):
                return False
            if is_plain(self.modules[path], _MATRICES):
                total += math.prod(shapes[path].input) * math.prod(shapes[path].output)
        return total <= most

    def _chains(self) -> Iterator[tuple[NodePath, Chain]]:
        for part in self.parts:
            (path, *_) = part.paths
            if part.cyclic or not is_plain(self.modules[path], POPULATIONS):
                continue
            weight = self.direct(path)
            if weight is None or not self._packs(weight):
                continue
            maps: list[NodePath] = []
            source = self.direct(weight)
            while source is not None and self._maps(source):
                maps.insert(0, source)
                source = self.direct(source)
            if source is not None:
                yield path, Chain(source, weight, tuple(maps))

    def direct(self, path: NodePath) -> NodePath | None:
        """The only source of a node, where nothing delays the edge."""
        sources = self.sources[path]
        return sources[0][0] if len(sources) == 1 and sources[0][1] is None else None

    def _packs(self, path: NodePath) -> bool:
        module: Any = self.modules[path]
        if is_plain(module, (nn.Linear,)):
            return True
        return (
            is_plain(module, (nn.Conv2d,))
            and module.groups == 1
            and pair(module.dilation) == (1, 1)
            and not isinstance(module.padding, str)
            and bool(module.padding_mode == "zeros")
        )

    def _maps(self, path: NodePath) -> bool:
        """Whether a node only changes addresses of events, and may scale them."""
        module = self.modules[path]
        if _is_wire(module):
            return True
        if not is_plain(module, (SumPool2d, nn.AvgPool2d)):
            return False
        if isinstance(module, nn.AvgPool2d) and (module.ceil_mode or module.divisor_override is not None):
            return False
        return pair(module.padding) == (0, 0) and pair(module.kernel_size) == pair(module.stride)  # type: ignore[union-attr]

    def _window(self, path: NodePath) -> tuple[int, int, int]:
        module: Any = self.modules[path]
        rows, columns = pair(module.kernel_size)
        return rows, columns, rows * columns if isinstance(module, nn.AvgPool2d) else 1

    # ------------------------------------------------------------ parameters

    def fits(self) -> bool:
        """Whether the module still has the submodules, hooks and conventions the program was made for."""
        return self._watch.structure_holds()

    def refresh(self) -> None:
        """Forget what was made from parameters if one of them has changed."""
        news = self._watch.news()
        if news is not None:
            self._made = {}  # not cleared: another thread may be making something for the old one
            self._watch.keep(news)

    def made(self, key: Any, make: Callable[[], T]) -> T:
        """What was made from the present parameters under a key, or what `make` makes of them now."""
        kept = self._made
        if key not in kept:
            kept[key] = make()
        found: T = kept[key]
        return found

    def numbers(self) -> tuple[torch.dtype, torch.device]:
        """`numbers_of` the module."""
        return self.made("numbers", lambda: numbers_of(self.module))

    def native(self, path: NodePath, dtype: torch.dtype) -> Native:
        """A population's parameters for the kernels."""
        module = self.modules[path]
        assert isinstance(module, Membrane)
        return self.made((path, dtype), lambda: native(module, self.module.shapes[path].input, dtype))

    def rest(self, path: NodePath, dtype: torch.dtype) -> Tensor:
        """v of one sample before anything has come in, [1, *shape]."""
        module = self.modules[path]
        assert isinstance(module, Membrane)
        shape = (1, *self.module.shapes[path].input)
        device = self.numbers()[1]

        def make() -> Tensor:
            return module.rest_potential(torch.zeros(shape, dtype=dtype, device=device)).detach()

        return self.made((path, dtype, "rest"), make)

    def weights(self, path: NodePath) -> Weights:
        """The weight in front of a population, laid out for the events of its chain's source."""
        return self.made((path, "weights"), lambda: self._weights(path, self.chains[path]))

    def _weights(self, population: NodePath, chain: Chain) -> Weights:
        shapes = self.module.shapes
        factor = 1.0
        reach = np.arange(math.prod(shapes[chain.source].output))
        for path in chain.maps:
            if path not in self.pools:
                continue
            rows, columns, divisor = self.pools[path]
            pool = reach_of_pool(shapes[path].input, (rows, columns))
            reach = np.where(reach >= 0, pool[reach], -1)
            factor /= divisor
        module: Any = self.modules[chain.weight]
        vectors = self.native(population, self.numbers()[0]).how[0] == kernels.ONE
        weight = module.weight.detach().numpy() * np.asarray(factor, module.weight.detach().numpy().dtype)
        bias = np.zeros(weight.shape[0], weight.dtype) if module.bias is None else module.bias.detach().numpy()
        if weight.ndim == 2:
            return pack_matrix(weight, bias, reach, vectors=vectors)
        (_, *given), (_, *out) = shapes[chain.weight].input, shapes[chain.weight].output
        stride, padding = pair(module.stride), pair(module.padding)
        return pack_convolution(
            weight, bias, (given[0], given[1]), (out[0], out[1]), stride, padding, reach, vectors=vectors
        )

    def silence(self) -> dict[NodePath, Tensor]:
        """What every node emits while nothing comes in, of one sample; `GraphModule._silence`."""

        def make() -> dict[NodePath, Tensor]:
            module = self.module
            like = next(itertools.chain(module.parameters(), module.buffers()), torch.zeros(1))
            dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
            # with a batch axis, as modules of the user's own may need one
            shapes = {p: (1, *module.shapes[p].input) for p in module.plan.inputs}
            zeros = {p: torch.zeros(shape, dtype=dtype, device=like.device) for p, shape in shapes.items()}
            with torch.no_grad():
                return module._silence(zeros)

        return self.made("silence", make)
