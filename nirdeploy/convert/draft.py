"""The graph under construction while a module is traced: nodes, edges, shapes, and constants folded into nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.convert.frameworks.conventions import combined
from nirdeploy.errors import ConventionError, ConversionError, GraphError
from nirdeploy.nodes import make_node, parameters
from nirdeploy.reference.convention import Convention

__all__ = ["Batch", "Draft", "Key", "Shape", "Signal", "StateOf", "Value"]

Shape = tuple[int, ...]
_LARGEST_IDENTITY = 4096  # neurons; a matrix of that side takes 64 MiB


@dataclass(frozen=True)
class Signal:
    """What a traced value is in the graph: the sum of the outputs of these nodes."""

    sources: tuple[str, ...]
    shape: Shape | None
    foldable: bool = False  # nothing but the next operation sees it


@dataclass(frozen=True)
class StateOf:
    """The state a module returned, at this place of what it returns; None: all that it returns."""

    owner: str
    place: int | None = None


@dataclass(frozen=True)
class Key:
    """Part of the state argument, by its keys from the argument on."""

    keys: tuple[Any, ...]


@dataclass(frozen=True)
class Batch:
    """The size of the batch; with `whole`, the whole shape."""

    whole: bool = False


Value = Signal | StateOf | Key | Batch | np.ndarray | None


@dataclass
class Draft:
    """Nodes and edges so far.

    Attributes:
        nodes: by name, in order of creation.
        edges: source -> target.
        inputs: shape of each Input, None while unknown.
        paths: module path of each node that has one.
        conventions: of the nodes that come from modules with one; by the name inside the node where that is a graph,
            else under ''.
    """

    nodes: dict[str, nir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    inputs: dict[str, Shape | None] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    conventions: dict[str, dict[str, Convention]] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... where it is taken."""
        taken = self.nodes.keys() | self.inputs.keys()
        if name not in taken:
            return name
        return next(n for i in range(1, len(taken) + 2) if (n := f"{name}_{i}") not in taken)

    def sources(self) -> set[str]:
        """Names that edges start at."""
        return {source for source, _ in self.edges}

    def add(self, name: str, node: nir.NIRNode, signal: Signal, path: str | None = None) -> Signal:
        """A node fed by a signal; what it emits."""
        unique = self.unique(name)
        shape = self._output_shape(unique, node, signal.shape)
        self.nodes[unique] = node
        self.edges.extend((source, unique) for source in signal.sources)
        if path is not None:
            self.paths[unique] = path
        return Signal((unique,), shape)

    def _output_shape(self, name: str, node: nir.NIRNode, shape: Shape | None) -> Shape | None:
        if isinstance(node, nir.NIRGraph):
            found = graphs.shapes(node)
            return found[graphs.output_names(node)[0]].output
        if shape is None:
            return None
        try:
            return graphs.output_shape(name, node, shape)
        except GraphError as error:
            raise ConversionError(str(error), remedy=f"Its input has shape {shape}.") from error

    def learn(self, signal: Signal, shape: Shape | None) -> Signal:
        """The signal with its shape filled in, and with it that of the Inputs it comes straight from."""
        if shape is None or signal.shape is not None:
            return signal
        for source in signal.sources:
            if self.inputs.get(source, ()) is None:
                self.inputs[source] = shape
        return Signal(signal.sources, shape, signal.foldable)

    def merge(self, left: Signal, right: Signal) -> Signal:
        """The sum of two signals; a node that is in both is doubled by a Scale, as NIR has no double edges."""
        if left.shape is not None and right.shape is not None and left.shape != right.shape:
            raise ConversionError(f"broadcasts {left.shape} with {right.shape}", remedy="Give both the same shape.")
        shape = left.shape or right.shape
        twice = [source for source in right.sources if source in left.sources]
        once = tuple(s for s in (*left.sources, *right.sources) if s not in twice)
        doubled = [self.scale(Signal((source,), shape), np.asarray(2.0)).sources[0] for source in twice]
        return Signal((*once, *doubled), shape)

    def scale(self, signal: Signal, factor: np.ndarray) -> Signal:
        """A Scale node; none where the factor is 1."""
        if np.all(factor == 1) and np.ndim(factor) == 0:
            return signal
        shape = self._known(signal, "a factor")
        return self.add("scale", make_node(nir.Scale, scale=self._full(factor, shape)), signal)

    def shift(self, signal: Signal, constant: np.ndarray, *, fold: bool) -> Signal:
        """The signal plus a constant: folded into the bias before it if asked and possible, else a node of its own.

        Raises:
            ConversionError: a constant for each pixel, or for more neurons than an identity matrix is made for.
        """
        if not np.any(constant):
            return signal
        shape = self._known(signal, "a constant")
        full = self._full(constant, shape)
        folded = self._folded(signal, np.ones(shape[0]), full) if fold else None
        if folded is not None:
            return folded
        ones = np.ones(shape[0], dtype=full.dtype)
        return self.add("bias", self._diagonal(shape, ones, full), signal)

    def normalise(self, signal: Signal, name: str, gain: np.ndarray, offset: np.ndarray) -> Signal:
        """gain x + offset per channel: folded into the weights before it, else a node of its own."""
        shape = self._known(signal, "BatchNorm")
        if gain.shape != (shape[0],):
            raise ConversionError(f"BatchNorm over {gain.size} channels of a {shape} signal", node=name)
        full = np.broadcast_to(offset.reshape(-1, *[1] * (len(shape) - 1)), shape)
        folded = self._folded(signal, gain, full)
        return folded if folded is not None else self.add(name, self._diagonal(shape, gain, full), signal, name)

    def _known(self, signal: Signal, what: str) -> Shape:
        if signal.shape is None:
            raise ConversionError(f"{what} needs to know the shape it applies to", remedy="Pass input_shape=.")
        return signal.shape

    def _full(self, value: np.ndarray, shape: Shape) -> np.ndarray:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind not in "f" or array.ndim == 0 else array
        try:
            return np.array(np.broadcast_to(array, shape), copy=True)
        except ValueError as error:
            raise ConversionError(f"a constant of shape {array.shape} does not fit a {shape} signal") from error

    def _folded(self, signal: Signal, gain: np.ndarray, offset: np.ndarray) -> Signal | None:
        """Weights and bias of the node before, rescaled; None where others see that node or it has no weights."""
        if not signal.foldable or len(signal.sources) != 1:
            return None
        (name,) = signal.sources
        node = self.nodes.get(name)
        if not isinstance(node, nir.Affine | nir.Linear | nir.Conv1d | nir.Conv2d):
            return None
        per_channel = self._per_channel(offset)
        if per_channel is None:
            return None
        weight = np.asarray(node.weight)
        factor = gain.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        before = np.asarray(getattr(node, "bias", np.zeros(weight.shape[0], weight.dtype)), np.float64)
        values = {key: value for key, value in parameters(node).items() if key not in ("weight", "bias")}
        values["weight"] = (weight * factor).astype(weight.dtype)
        values["bias"] = (before * gain + per_channel).astype(weight.dtype)
        self.nodes[name] = make_node(nir.Affine if isinstance(node, nir.Linear) else type(node), **values)
        return Signal(signal.sources, signal.shape, signal.foldable)

    @staticmethod
    def _per_channel(full: np.ndarray) -> np.ndarray | None:
        """The constant of each channel; None where pixels of a channel differ."""
        flat = full.reshape(full.shape[0], -1)
        return flat[:, 0].astype(np.float64) if np.all(flat == flat[:, :1]) else None

    def _diagonal(self, shape: Shape, gain: np.ndarray, offset: np.ndarray) -> nir.NIRNode:
        """A node that computes gain x + offset: a diagonal matrix, or a 1x1 depthwise convolution."""
        per_channel = self._per_channel(offset)
        if len(shape) == 1:
            if shape[0] > _LARGEST_IDENTITY:
                raise ConversionError(
                    f"a constant for {shape[0]} neurons needs a matrix of that side, at most {_LARGEST_IDENTITY}",
                    remedy="Add it to the bias of the layer before.",
                )
            return make_node(nir.Affine, weight=np.diag(gain).astype(offset.dtype), bias=offset.copy())
        if per_channel is None:
            raise ConversionError(
                f"a constant that differs between pixels of a {shape} signal does not exist in NIR",
                remedy="Add one number a channel.",
            )
        bias = per_channel.astype(offset.dtype)
        weight = gain.astype(offset.dtype).reshape(-1, *[1] * len(shape))
        common: dict[str, Any] = {"weight": weight, "bias": bias, "groups": shape[0]}
        if len(shape) == 2:
            return make_node(nir.Conv1d, input_shape=shape[1], stride=1, padding=0, dilation=1, **common)
        options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
        return make_node(nir.Conv2d, input_shape=shape[1:], **options, **common)

    # ------------------------------------------------------------ end

    def finish(self, replaced: Mapping[str, tuple[str, ...]]) -> nir.NIRGraph:
        """The graph, without what reaches no Output.

        Args:
            replaced: for each placeholder of a previous output, the nodes that emit it.

        Raises:
            ConversionError: the shape of an Input is still unknown.
        """
        edges = [(s, b) for a, b in self.edges for s in replaced.get(a, (a,))]
        nodes: dict[str, nir.NIRNode] = {}
        for name, shape in self.inputs.items():
            if shape is None:
                raise ConversionError(
                    f"the shape of the input {name!r} is unknown", remedy="Pass input_shape= or sample_input=."
                )
            nodes[name] = make_node(nir.Input, input_type={"input": np.array(shape)})
        nodes.update(self.nodes)
        keep = self._reaching_output(nodes, edges)
        nodes = {name: node for name, node in nodes.items() if name in keep}
        graph = graphs.make_graph(nodes, [(a, b) for a, b in edges if a in keep and b in keep])
        paths = {name: path for name, path in self.paths.items() if name in keep}
        found = self._convention(keep)
        return graphs.with_metadata(graph, torch_paths=paths or None, convention=found.to_dict() if found else None)

    def _convention(self, keep: set[str]) -> Convention | None:
        """One convention for all nodes that are kept.

        Raises:
            ConversionError: nodes differ in something that holds for a whole graph, such as dt.
        """
        given = {
            f"{name}.{inner}" if inner else name: convention
            for name, conventions in self.conventions.items()
            if name in keep
            for inner, convention in conventions.items()
        }
        try:
            return combined(given)
        except ConventionError as error:
            raise ConversionError(str(error)) from error

    @staticmethod
    def _reaching_output(nodes: Mapping[str, nir.NIRNode], edges: list[tuple[str, str]]) -> set[str]:
        before: dict[str, list[str]] = {}
        for source, target in edges:
            before.setdefault(target, []).append(source)
        keep = {name for name, node in nodes.items() if isinstance(node, nir.Output | nir.Input)}
        waiting = list(keep)
        while waiting:
            for source in before.get(waiting.pop(), []):
                if source not in keep:
                    keep.add(source)
                    waiting.append(source)
        return keep
