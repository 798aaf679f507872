"""Small networks, one for each primitive and option, that ask a target what it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from nirdeploy.graph import make_graph, make_node, output_shape

__all__ = ["DT", "POPULATIONS", "PROBES", "Population", "Probe", "changed_population", "plain", "recurrent"]

DT = 1e-3  # seconds
_P, _L, _N, _G, _S = "Primitives", "Options of layers", "Options of populations", "Networks", "Shapes"
Population = Callable[[tuple[int, ...]], nir.NIRNode]
_Nodes = dict[str, nir.NIRNode]


@dataclass(frozen=True)
class Probe:
    """A question to a target.

    Attributes:
        section: heading it stands under.
        name: what is asked, e.g. 'Conv2d, stride 2'.
        build: makes the network around populations of a kind.
        populations: kinds to try, the best answer counts; none: all.
        fields: what the convention has to have for the question to matter.
    """

    section: str
    name: str
    build: Callable[[Population], nir.NIRGraph]
    populations: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


def _if(shape: tuple[int, ...], **changed: Any) -> nir.NIRNode:
    return _neuron(nir.IF, shape, {"r": 1.0, "v_threshold": 1.0, "v_reset": 0.0, **changed})


def _lif(shape: tuple[int, ...], **changed: Any) -> nir.NIRNode:
    values = {"tau": 0.02, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
    return _neuron(nir.LIF, shape, {**values, **changed})


def _cubalif(shape: tuple[int, ...], **changed: Any) -> nir.NIRNode:
    values = {
        "tau_syn": 0.01,
        "tau_mem": 0.02,
        "r": 1.0,
        "v_leak": 0.0,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "w_in": 1.0,
    }
    return _neuron(nir.CubaLIF, shape, {**values, **changed})


def _neuron(kind: type[nir.NIRNode], shape: tuple[int, ...], values: Mapping[str, Any]) -> nir.NIRNode:
    full = {name: np.array(np.broadcast_to(np.asarray(v, np.float32), shape)) for name, v in values.items()}
    return make_node(kind, **full)


POPULATIONS: Mapping[str, Population] = {"IF": _if, "LIF": _lif, "CubaLIF": _cubalif}


# ---------------------------------------------------------------- parts


def _weights(*shape: int) -> np.ndarray[Any, Any]:
    """Weights of both signs and several sizes, none of them 0."""
    values = np.array([1.0, -0.5, 0.25, -0.125, 0.75], np.float32)
    return np.resize(values, shape).astype(np.float32)


def _affine(inputs: int, outputs: int, bias: float = 0.0) -> nir.NIRNode:
    return make_node(nir.Affine, weight=_weights(outputs, inputs), bias=np.full(outputs, bias, np.float32))


def _linear(inputs: int, outputs: int) -> nir.NIRNode:
    return make_node(nir.Linear, weight=_weights(outputs, inputs))


def _conv2d(kernel: tuple[int, int] = (3, 3), **changed: Any) -> nir.NIRNode:
    groups = changed.get("groups", 1)
    values = {
        "input_shape": (8, 8),
        "weight": _weights(2, 2 // groups, *kernel),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "bias": np.zeros(2, np.float32),
    }
    return make_node(nir.Conv2d, **{**values, **changed})


def _conv1d(**changed: Any) -> nir.NIRNode:
    groups = changed.get("groups", 1)
    values = {
        "input_shape": 8,
        "weight": _weights(2, 2 // groups, 3),
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
        "bias": np.zeros(2, np.float32),
    }
    return make_node(nir.Conv1d, **{**values, **changed})


def _pool(kind: type[nir.NIRNode], window: int, stride: int | None = None, padding: int = 0) -> nir.NIRNode:
    values = {"kernel_size": window, "stride": window if stride is None else stride, "padding": padding}
    return make_node(kind, **{name: np.array([value, value]) for name, value in values.items()})


def _flatten(shape: tuple[int, ...], start: int = 0, end: int = -1) -> nir.NIRNode:
    return make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=start, end_dim=end)


def _input(shape: tuple[int, ...]) -> nir.NIRNode:
    return make_node(nir.Input, input_type={"input": np.array(shape)})


def _output(shape: tuple[int, ...]) -> nir.NIRNode:
    return make_node(nir.Output, output_type={"output": np.array(shape)})


# ---------------------------------------------------------------- networks


def plain(population: Population) -> nir.NIRGraph:
    """Input -> Linear -> population -> Output, of four neurons: what all other networks are compared with."""
    return _chain((4,), [_linear(4, 4), population])


def _chain(shape: tuple[int, ...], parts: list[nir.NIRNode | Population]) -> nir.NIRGraph:
    """Input -> parts in order -> Output; a part that is a function is made for the shape that reaches it."""
    now, nodes = shape, {"input": _input(shape)}
    for number, part in enumerate(parts):
        node = part if isinstance(part, nir.NIRNode) else part(now)
        name = f"{type(node).__name__.lower()}{number}"
        now = output_shape(name, node, now)
        nodes[name] = node
    nodes["output"] = _output(now)
    return make_graph(nodes, list(itertools.pairwise(nodes)))


def _wired(nodes: _Nodes, edges: str) -> nir.NIRGraph:
    """A graph of nodes and edges like 'input>fc fc>n'."""
    pairs = [tuple(edge.split(">")) for edge in edges.split()]
    return make_graph(nodes, [(a, b) for a, b in pairs])


def _two(population: Population, extra: _Nodes, edges: str) -> nir.NIRGraph:
    """Input -> fc -> a -> mid -> b -> Output with more nodes and edges."""
    nodes = {
        "input": _input((4,)),
        "fc": _linear(4, 4),
        "a": population((4,)),
        "mid": _linear(4, 4),
        "b": population((4,)),
        "output": _output((4,)),
    }
    return _wired({**nodes, **extra}, f"input>fc fc>a a>mid mid>b b>output {edges}")


def _layer(section: str, name: str, shape: tuple[int, ...], *layers: nir.NIRNode) -> Probe:
    return Probe(section, name, lambda population: _chain(shape, [*layers, population]))


def _after(section: str, name: str, *layers: nir.NIRNode) -> Probe:
    """Layers between two populations, the first a map [2, 8, 8]."""

    def build(population: Population) -> nir.NIRGraph:
        return _chain((2, 8, 8), [_conv2d(padding=(1, 1)), population, *layers, population])

    return Probe(section, name, build)


def _own(name: str, *kinds: str, fields: Mapping[str, Any] | None = None, **changed: Any) -> Probe:
    """A population with changed parameters, given for its four neurons."""
    return Probe(_N, name, changed_population(**changed), kinds, fields or {})


def changed_population(**changed: Any) -> Callable[[Population], nir.NIRGraph]:
    """What builds the plain network with those of a population's parameters changed that it has."""

    def build(population: Population) -> nir.NIRGraph:
        make: Callable[..., nir.NIRNode] = population
        held = {name: value for name, value in changed.items() if hasattr(population((4,)), name)}
        return _chain((4,), [_linear(4, 4), lambda shape: make(shape, **held)])

    return build


def recurrent(population: Population) -> nir.NIRGraph:
    """Two populations, the first of which is fed by itself, too."""
    return _two(population, {"w": _linear(4, 4)}, "a>w w>a")


def _between(section: str, name: str, node: nir.NIRNode) -> Probe:
    """A node between the spikes of a population and the layer behind it."""
    return Probe(section, name, lambda p: _chain((4,), [_linear(4, 4), p, node, _linear(4, 4), p]))


def _delays(*steps: float) -> nir.NIRNode:
    return make_node(nir.Delay, delay=np.array(steps, np.float32) * np.float32(DT))


def _analogue(kind: type[nir.NIRNode], **values: float) -> Callable[[Population], nir.NIRGraph]:
    def build(population: Population) -> nir.NIRGraph:
        readout = _neuron(kind, (4,), values)
        return _chain((4,), [_linear(4, 4), population, _linear(4, 4), readout])

    return build


def _subgraph(population: Population) -> nir.NIRGraph:
    nodes = {"input": _input((4,)), "sub": plain(population), "output": _output((4,))}
    return _wired(nodes, "input>sub sub>output")


def _only(kind: str) -> Callable[[Population], nir.NIRGraph]:
    return lambda _: plain(POPULATIONS[kind])


def _half() -> nir.NIRNode:
    return make_node(nir.Scale, scale=np.full(4, 0.5, np.float32))


# ---------------------------------------------------------------- the questions

_PRIMITIVES = (
    _layer(_P, "Affine", (4,), _affine(4, 4)),
    _after(_P, "AvgPool2d", _pool(nir.AvgPool2d, 2), _flatten((2, 4, 4)), _linear(32, 4)),
    _layer(_P, "Conv1d", (2, 8), _conv1d()),
    _layer(_P, "Conv2d", (2, 8, 8), _conv2d()),
    Probe(_P, "CubaLI", _analogue(nir.CubaLI, tau_syn=0.01, tau_mem=0.02, r=1.0, v_leak=0.0, w_in=1.0)),
    Probe(_P, "CubaLIF", _only("CubaLIF"), ("CubaLIF",)),
    _between(_P, "Delay", _delays(2, 2, 2, 2)),
    _after(_P, "Flatten", _flatten((2, 8, 8)), _linear(128, 4)),
    Probe(_P, "I", _analogue(nir.I, r=1.0)),
    Probe(_P, "IF", _only("IF"), ("IF",)),
    Probe(_P, "Input", plain),
    Probe(_P, "LI", _analogue(nir.LI, tau=0.02, r=1.0, v_leak=0.0)),
    Probe(_P, "LIF", _only("LIF"), ("LIF",)),
    _layer(_P, "Linear", (4,), _linear(4, 4)),
    Probe(_P, "NIRGraph", _subgraph),
    Probe(_P, "Output", plain),
    _layer(_P, "Scale", (4,), make_node(nir.Scale, scale=np.full(4, 0.5, np.float32)), _linear(4, 4)),
    _after(_P, "SumPool2d", _pool(nir.SumPool2d, 2), _flatten((2, 4, 4)), _linear(32, 4)),
    Probe(_P, "Threshold", _analogue(nir.Threshold, threshold=1.0)),
)

_MAP = (2, 8, 8)
_LAYERS = (
    _layer(_L, "Affine, bias other than 0", (4,), _affine(4, 4, bias=0.25)),
    _layer(_L, "Conv2d, bias other than 0", _MAP, _conv2d(bias=np.full(2, 0.25, np.float32))),
    _layer(_L, "Conv2d, stride 2", _MAP, _conv2d(stride=(2, 2))),
    _layer(_L, "Conv2d, stride 3", _MAP, _conv2d(stride=(3, 3))),
    _layer(_L, "Conv2d, stride (1, 2)", _MAP, _conv2d(stride=(1, 2))),
    _layer(_L, "Conv2d, padding 1", _MAP, _conv2d(padding=(1, 1))),
    _layer(_L, "Conv2d, padding (0, 2)", _MAP, _conv2d(padding=(0, 2))),
    _layer(_L, "Conv2d, padding 'same'", _MAP, _conv2d(padding="same")),
    _layer(_L, "Conv2d, padding 'valid'", _MAP, _conv2d(padding="valid")),
    _layer(_L, "Conv2d, dilation 2", _MAP, _conv2d(dilation=(2, 2))),
    _layer(_L, "Conv2d, groups 2", _MAP, _conv2d(groups=2)),
    _layer(_L, "Conv2d, kernel 1x3", _MAP, _conv2d(kernel=(1, 3))),
    _layer(_L, "Conv1d, stride 2", (2, 8), _conv1d(stride=2)),
    _layer(_L, "Conv1d, padding 1", (2, 8), _conv1d(padding=1)),
    _layer(_L, "Conv1d, dilation 2", (2, 8), _conv1d(dilation=2)),
    _layer(_L, "Conv1d, groups 2", (2, 8), _conv1d(groups=2)),
    _after(_L, "AvgPool2d, 4x4", _pool(nir.AvgPool2d, 4), _flatten((2, 2, 2)), _linear(8, 4)),
    _after(_L, "SumPool2d, 4x4", _pool(nir.SumPool2d, 4), _flatten((2, 2, 2)), _linear(8, 4)),
    _after(_L, "SumPool2d, 3x3", _pool(nir.SumPool2d, 3), _flatten((2, 2, 2)), _linear(8, 4)),
    _after(_L, "SumPool2d, windows overlap", _pool(nir.SumPool2d, 2, stride=1), _flatten((2, 7, 7)), _linear(98, 4)),
    _after(_L, "SumPool2d, padding 1", _pool(nir.SumPool2d, 2, padding=1), _flatten((2, 5, 5)), _linear(50, 4)),
    _after(_L, "Flatten, of the last two axes only", _flatten(_MAP, start=1), _conv1d(input_shape=64)),
    _between(_L, "Scale, of spikes", _half()),
    _between(_L, "Delay, each neuron its own", _delays(1, 2, 3, 4)),
    _between(_L, "Delay, no whole number of steps", _delays(1.5, 1.5, 1.5, 1.5)),
)


_EACH = (1.0, 1.25, 1.5, 2.0)
_LEAKY = ("LIF", "CubaLIF")
_NEURONS = (
    _own("v_threshold, each neuron its own", v_threshold=_EACH),
    _own("v_reset other than 0", v_reset=-0.5, fields={"reset": "v_reset"}),
    _own("r other than 1", r=2.0, fields={"use_r": True}),
    _own("r, each neuron its own", r=_EACH, fields={"use_r": True}),
    _own("v_leak other than 0", *_LEAKY, v_leak=0.25),
    _own("tau, each neuron its own", "LIF", tau=(0.01, 0.02, 0.03, 0.04)),
    _own("tau_mem, each neuron its own", "CubaLIF", tau_mem=(0.01, 0.02, 0.03, 0.04)),
    _own("tau_syn, each neuron its own", "CubaLIF", tau_syn=(0.01, 0.02, 0.03, 0.04)),
    _own("w_in other than 1", "CubaLIF", w_in=0.5),
    _own("w_in, each neuron its own", "CubaLIF", w_in=_EACH),
)


def _fan(population: Population) -> nir.NIRGraph:
    extra: _Nodes = {}
    edges = []
    for name in ("c", "d"):
        extra |= {f"w{name}": _linear(4, 4), name: population((4,)), f"o{name}": _output((4,))}
        edges.append(f"a>w{name} w{name}>{name} {name}>o{name}")
    return _two(population, extra, " ".join(edges))


_NETWORKS = (
    Probe(_G, "two layers", lambda p: _two(p, {}, "")),
    Probe(_G, "a population fed by itself", recurrent),
    Probe(_G, "a population fed by a later one", lambda p: _two(p, {"w": _linear(4, 4)}, "b>w w>a")),
    Probe(_G, "a skip past a population", lambda p: _two(p, {"w": _linear(4, 4)}, "input>w w>b")),
    Probe(_G, "a population that feeds three", _fan),
    Probe(_G, "two Inputs", lambda p: _two(p, {"input2": _input((4,)), "w": _linear(4, 4)}, "input2>w w>b")),
    Probe(_G, "two Outputs", lambda p: _two(p, {"output2": _output((4,))}, "a>output2")),
    Probe(_G, "an Output that reads a layer", lambda p: _chain((4,), [_linear(4, 4), p, _linear(4, 4)])),
    Probe(_G, "a population straight behind the Input", lambda p: _chain((4,), [p])),
    Probe(_G, "two layers in a row", lambda p: _chain((4,), [_linear(4, 4), _linear(4, 4), p])),
)


_SHAPES = (
    _layer(_S, "[neuron]", (4,), _linear(4, 4)),
    _layer(_S, "[channel, x]", (2, 8), _conv1d()),
    _layer(_S, "[channel, y, x]", _MAP, _conv2d()),
)

PROBES = _PRIMITIVES + _LAYERS + _NEURONS + _NETWORKS + _SHAPES
