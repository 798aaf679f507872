"""The peers that nirdeploy is measured against, built from the same graph and run in the same process.

`fastest("cnn-1", extra=[("nirdeploy", work)])` times every peer and what it is given, in turn, and returns rows for
`table`. Run `python benchmarks/peers.py [WORKLOAD ...]` for the peers alone. Every peer is asked for the semantics of
`Workload.convention`; how many entries of its output differ from the hand-written loop is printed beside its time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from workloads import NAMES, Workload, workload

from nirdeploy.graph import copy_graph

SLOPE = 10.0  # of the surrogate gradient 1 / (1 + slope |v - threshold|)^2

Run = Callable[[Tensor], Any]


class NotBuilt(Exception):  # noqa: N818 (a reason, not an error)
    """Why a peer has no such network."""


@dataclass
class Network:
    """A peer's network.

    Attributes:
        forward: raster [step, batch, ...] -> output spikes [step, batch, ...], from rest.
        weights: weight and bias of each layer, in the order of `Workload.nodes`.
        scale: factor by which the peer's weights differ from the graph's.
        recorded: v of every population from the last run, where the workload asks for it.
    """

    forward: Run
    weights: list[nn.Parameter]
    scale: float = 1.0
    recorded: dict[str, Tensor] = field(default_factory=dict)


Build = Callable[[Workload], Network]


# ---------------------------------------------------------------- what several peers share


def _scalar(values: Any) -> float:
    """The one value of a parameter array; these networks have uniform populations."""
    found = np.unique(np.asarray(values))
    if found.size != 1:
        raise NotBuilt("a population whose parameters differ from neuron to neuron")
    return float(found[0])


def _linear(node: nir.NIRNode, scale: float = 1.0) -> nn.Linear:
    module = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    module.weight.data = torch.tensor(node.weight) * scale
    module.bias.data = torch.tensor(node.bias) * scale
    return module


def _conv(node: nir.NIRNode) -> nn.Conv2d:
    stride, padding = (tuple(int(v) for v in values) for values in (node.stride, node.padding))
    module = nn.Conv2d(
        node.weight.shape[1], node.weight.shape[0], tuple(node.weight.shape[2:]), stride=stride, padding=padding
    )
    module.weight.data = torch.tensor(node.weight)
    module.bias.data = torch.tensor(node.bias)
    return module


class _SumPool(nn.Module):
    def __init__(self, node: nir.NIRNode):
        super().__init__()
        self.kernel, self.stride = (tuple(int(v) for v in pair) for pair in (node.kernel_size, node.stride))

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, self.kernel, self.stride, divisor_override=1)


def _stateless(node: nir.NIRNode, scale: float = 1.0) -> nn.Module:
    """A layer without state, as anyone would write it in torch."""
    if isinstance(node, nir.Affine):
        return _linear(node, scale)
    if scale != 1.0:
        raise NotBuilt(f"{type(node).__name__} with another gain than 1")
    if isinstance(node, nir.Conv2d):
        return _conv(node)
    return _SumPool(node) if isinstance(node, nir.SumPool2d) else nn.Flatten()


def _is_population(node: nir.NIRNode) -> bool:
    return isinstance(node, nir.IF | nir.LIF | nir.CubaLIF)


def _gain(node: nir.NIRNode, dt: float) -> float:
    """Input gain of one Euler step."""
    if isinstance(node, nir.IF):
        return _scalar(node.r)
    return _scalar(node.r) * dt / _scalar(node.tau if isinstance(node, nir.LIF) else node.tau_mem)


def _decays(node: nir.NIRNode, dt: float) -> tuple[float, float]:
    """Decay of v, and of the synaptic current (0: none), of one Euler step."""
    if isinstance(node, nir.IF):
        return 1.0, 0.0
    if isinstance(node, nir.LIF):
        return 1.0 - dt / _scalar(node.tau), 0.0
    return 1.0 - dt / _scalar(node.tau_mem), 1.0 - dt / _scalar(node.tau_syn)


def _unit_gains(node: nir.NIRNode, dt: float) -> None:
    """Refuse a CubaLIF whose gains are not 1: the libraries have none to set."""
    if not math.isclose(_scalar(node.w_in) * dt / _scalar(node.tau_syn), 1.0, rel_tol=1e-5) or not math.isclose(
        _gain(node, dt), 1.0, rel_tol=1e-5
    ):
        raise NotBuilt("a CubaLIF whose input gains are not 1")


def _parameters(layers: Iterable[Any]) -> list[nn.Parameter]:
    """Weights and biases of the layers that have some, in order."""
    found = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    return [parameter for layer in found for parameter in (layer.weight, layer.bias)]


def _back(last: dict[int, Tensor], i: int, x: Tensor) -> Tensor:
    """What a population fired in the step before; nothing in the first."""
    return last[i] if i in last else torch.zeros_like(x)


def _no_recording(given: Workload) -> None:
    if given.record:
        raise NotBuilt("gives no access to v of every step")


class _Spike(torch.autograd.Function):
    """1 where distance > 0, with the gradient of a fast sigmoid."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return gradient * _slope(distance)


def _slope(distance: Tensor) -> Tensor:
    return 1.0 / (1.0 + SLOPE * distance.abs()) ** 2


# ---------------------------------------------------------------- the hand-written loop


class _Population(nn.Module):
    """IF, LIF or CubaLIF as (x, state) -> (spikes, state), the state being v, or (current, v)."""

    def __init__(self, node: nir.NIRNode, dt: float):
        super().__init__()
        self.decay, self.synapse = _decays(node, dt)
        self.gain, self.threshold = _gain(node, dt), _scalar(node.v_threshold)
        self.w_in = _scalar(node.w_in) * dt / _scalar(node.tau_syn) if isinstance(node, nir.CubaLIF) else None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if self.w_in is None:
            current, v = None, state
        else:
            current, v = (None, None) if state is None else state
            x = x if self.w_in == 1.0 else x * self.w_in
            x = current = x if current is None else current * self.synapse + x
        x = x if self.gain == 1.0 else x * self.gain
        if v is not None:
            x = x + (v if self.decay == 1.0 else v * self.decay)
        if torch.is_grad_enabled():
            spikes = _Spike.apply(x - self.threshold)
            fired = spikes > 0
        else:
            fired = x > self.threshold
            spikes = fired.to(x.dtype)
        v = x.masked_fill(fired, 0.0)
        return spikes, v if current is None else (current, v)


def loop(given: Workload) -> Network:
    """What is written by hand in plain torch: every layer, step by step."""
    names = [name for name, _ in given.nodes()]
    layers = [_Population(node, given.dt) if _is_population(node) else _stateless(node) for _, node in given.nodes()]
    recurrent = {i: _linear(node) for i, name in enumerate(names) if (node := given.recurrent(name)) is not None}

    def forward(raster: Tensor) -> Tensor:
        states: list[Any] = [None] * len(layers)
        last: dict[int, Tensor] = {}
        outputs, traces = [], [[] for _ in layers]
        for given_now in raster:
            x = given_now
            for i, layer in enumerate(layers):
                if not isinstance(layer, _Population):
                    x = layer(x)
                    continue
                if i in recurrent:
                    x = x + recurrent[i](_back(last, i, x))
                x, states[i] = layer(x, states[i])
                last[i] = x
                if given.record:
                    traces[i].append(states[i])
            outputs.append(x)
        network.recorded = {names[i]: torch.stack(trace) for i, trace in enumerate(traces) if trace}
        return torch.stack(outputs)

    network = Network(forward, _parameters([*layers, *recurrent.values()]))
    return network


# ---------------------------------------------------------------- libraries that read NIR


def nirtorch(given: Workload) -> Network:
    """nirtorch's graph interpreter around the modules of the hand-written loop."""
    from nirtorch import nir_to_torch

    neurons = {kind: lambda node: _Population(node, given.dt) for kind in (nir.IF, nir.LIF, nir.CubaLIF)}
    layers = dict.fromkeys((nir.Affine, nir.Conv2d, nir.SumPool2d, nir.Flatten), _stateless)
    module = nir_to_torch(copy_graph(given.graph), {**neurons, **layers})
    inner = {name: name.replace(".", "_") for name, _ in given.nodes()}  # what nirtorch calls them
    own = [name for name, node in given.nodes() if _is_population(node)]

    def forward(raster: Tensor) -> Tensor:
        state: Any = None
        outputs, traces = [], {name: [] for name in own}
        for x in raster:
            out, state = module(x) if state is None else module(x, state)
            outputs.append(out)
            if given.record:
                for name in own:
                    traces[name].append(state[inner[name]])
        if given.record:
            network.recorded = {name: torch.stack(trace) for name, trace in traces.items()}
        return torch.stack(outputs)

    network = Network(forward, _parameters(module.get_submodule(name) for name in inner.values()))
    return network


def _stepped(module: nn.Module, given: Workload) -> Network:
    """A network that was read from NIR: (x, state) -> (out, state)."""
    hidden = [layer for layer in module.modules() if hasattr(layer, "reset_mem")]  # snnTorch's

    def forward(raster: Tensor) -> Tensor:
        for layer in hidden:
            layer.reset_mem()
        state: Any = None
        outputs = []
        for x in raster:
            out, state = module(x, state)
            outputs.append(out)
        return torch.stack(outputs)

    layers = {name.split(".")[-1]: layer for name, layer in module.named_modules()}
    return Network(forward, _parameters(layers.get(name) for name, _ in given.nodes()))


def _batched(graph: nir.NIRGraph) -> nir.NIRGraph:
    """A copy whose Flatten spares the batch: norse takes the dimensions as they are."""
    copy = copy_graph(graph)
    for node in copy.nodes.values():
        if isinstance(node, nir.Flatten):
            node.start_dim += 1
    return copy


def norse_from_nir(given: Workload) -> Network:
    """norse.torch.from_nir."""
    import norse.torch

    _no_recording(given)
    return _stepped(norse.torch.from_nir(_batched(given.graph), ignore_warnings=True, dt=given.dt), given)


def spikingjelly_from_nir(given: Workload) -> Network:
    """SpikingJelly's import_from_nir, step by step."""
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    _no_recording(given)
    return _stepped(import_from_nir(copy_graph(given.graph), dt=given.dt), given)


def snntorch_from_nir(given: Workload) -> Network:
    """snnTorch's import_from_nir, whose dt is 1e-4."""
    from snntorch.import_nir import import_from_nir

    _no_recording(given)
    if given.dt != 1e-4 and not any(isinstance(node, nir.IF) for _, node in given.nodes()):
        raise NotBuilt(f"import_from_nir has a fixed dt of 1e-4, the network one of {given.dt:g}")
    return _stepped(import_from_nir(copy_graph(given.graph)), given)


# ---------------------------------------------------------------- libraries in their own words


def norse(given: Workload) -> Network:
    """norse.torch.SequentialState of norse's cells, step by step."""
    from norse import torch as library
    from norse.torch.functional.iaf import IAFParameters
    from norse.torch.functional.lif_box import LIFBoxParameters
    from norse.torch.module.iaf import IAFCell
    from norse.torch.module.lif_box import LIFBoxCell

    def detached(z: Tensor, v: Tensor, reset: Tensor, _: Tensor) -> Tensor:
        return (1 - z.detach()) * v + z.detach() * reset

    def cell(node: nir.NIRNode) -> nn.Module:
        threshold = torch.tensor(_scalar(node.v_threshold))
        if isinstance(node, nir.IF):
            return IAFCell(IAFParameters(v_th=threshold, v_reset=torch.zeros(())), dt=given.dt)
        if isinstance(node, nir.CubaLIF):
            raise NotBuilt("no recurrent cell with NIR's CubaLIF; see norse from_nir")
        rate = torch.tensor(_gain(node, given.dt) / _scalar(node.r) / given.dt)
        return LIFBoxCell(LIFBoxParameters(tau_mem_inv=rate, v_th=threshold, reset_method=detached), dt=given.dt)

    nodes = given.nodes()
    layers = [cell(node) if _is_population(node) else _stateless(node) for _, node in nodes]
    module = library.SequentialState(*layers)

    def forward(raster: Tensor) -> Tensor:
        state: Any = None
        outputs, traces = [], {name: [] for name, node in nodes if _is_population(node)}
        for x in raster:
            out, state = module(x, state)
            outputs.append(out)
            if given.record:
                for (name, _), own in zip(nodes, state, strict=True):
                    if own is not None:
                        traces[name].append(own.v)
        if given.record:
            network.recorded = {name: torch.stack(trace) for name, trace in traces.items()}
        return torch.stack(outputs)

    network = Network(forward, _parameters(layers))
    return network


def _jelly_population(node: nir.NIRNode, dt: float) -> nn.Module:
    from spikingjelly.activation_based import neuron

    own = {
        "v_threshold": _scalar(node.v_threshold),
        "v_reset": 0.0,
        "surrogate_function": _Spike.apply,
    }
    if isinstance(node, nir.IF):
        return neuron.IFNode(**own, detach_reset=True)
    if isinstance(node, nir.LIF):
        return neuron.LIFNode(tau=_scalar(node.tau) / dt, decay_input=True, **own, detach_reset=True)
    _unit_gains(node, dt)
    v_decay, c_decay = _decays(node, dt)
    return neuron.CUBALIFNode(c_decay=c_decay, v_decay=v_decay, **own)


def _jelly_layer(node: nir.NIRNode, mode: str) -> nn.Module:
    from spikingjelly.activation_based import layer

    plain = _stateless(node)
    if isinstance(plain, nn.Flatten):
        return layer.Flatten(step_mode=mode)
    # layer.Linear is nn.Linear, and so is every layer in step mode 's'
    return plain if mode == "s" or isinstance(plain, nn.Linear) else layer.SeqToANNContainer(plain)


def _jelly(given: Workload, mode: str) -> Network:
    from spikingjelly.activation_based import functional as jelly

    nodes = given.nodes()
    if any(given.recurrent(name) is not None for name, _ in nodes) and mode == "m":
        raise NotBuilt("step mode 'm' goes layer by layer, which recurrence does not allow")
    layers = [
        _jelly_population(node, given.dt) if _is_population(node) else _jelly_layer(node, mode) for _, node in nodes
    ]
    recurrent = {i: _linear(node) for i, (name, _) in enumerate(nodes) if (node := given.recurrent(name)) is not None}
    module = nn.Sequential(*layers)
    own = {name: layer for (name, node), layer in zip(nodes, layers, strict=True) if _is_population(node)}
    for layer in own.values():
        layer.step_mode = mode
        layer.store_v_seq = given.record

    def step(x: Tensor, last: dict[int, Tensor]) -> Tensor:
        for i, layer in enumerate(layers):
            x = layer(x + recurrent[i](_back(last, i, x)) if i in recurrent else x)
            if i in recurrent:
                last[i] = x
        return x

    def forward(raster: Tensor) -> Tensor:
        jelly.reset_net(module)
        if mode == "m":
            out = module(raster)
        elif recurrent:
            last: dict[int, Tensor] = {}
            out = torch.stack([step(x, last) for x in raster])
        else:
            out = torch.stack([module(x) for x in raster])
        if given.record:
            network.recorded = {name: layer.v_seq for name, layer in own.items()}
        return out

    inner = [next((m for m in layer.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None) for layer in layers]
    network = Network(forward, _parameters([*inner, *recurrent.values()]))
    return network


def spikingjelly_m(given: Workload) -> Network:
    """SpikingJelly's own modules, layer by layer over all steps."""
    return _jelly(given, "m")


def spikingjelly_s(given: Workload) -> Network:
    """SpikingJelly's own modules, step by step."""
    if given.record:
        raise NotBuilt("step mode 's' grows its record by a copy in every step")
    return _jelly(given, "s")


def _stepwise_tau(decay: float) -> float:
    """The time constant in steps of which exp(-1 / tau) is an Euler decay."""
    return -1.0 / math.log(decay)


def sinabs(given: Workload) -> Network:
    """sinabs's own layers, layer by layer, with single spikes and a reset to zero."""
    import sinabs.layers as library
    from sinabs.activation import MembraneReset, SingleSpike

    def population(name: str, node: nir.NIRNode) -> nn.Module:
        options = {
            "spike_threshold": torch.tensor(_scalar(node.v_threshold)),
            "spike_fn": SingleSpike,
            "reset_fn": MembraneReset(),
            "surrogate_grad_fn": lambda v, threshold: _slope(v - threshold),
            "record_states": given.record,
        }
        if isinstance(node, nir.IF):
            return library.IAF(**options)
        tau = _stepwise_tau(_decays(node, given.dt)[0])
        if isinstance(node, nir.LIF):
            return library.LIF(tau_mem=tau, norm_input=True, **options)
        _unit_gains(node, given.dt)
        # sinabs lets the input of a step decay in that step already: the threshold is smaller by that factor
        decay = _decays(node, given.dt)[1]
        options["spike_threshold"] = options["spike_threshold"] * decay
        options |= {"tau_mem": tau, "tau_syn": _stepwise_tau(decay), "norm_input": False}
        back = given.recurrent(name)
        return library.LIF(**options) if back is None else library.LIFRecurrent(rec_connect=_linear(back), **options)

    nodes = given.nodes()
    layers = [population(name, node) if _is_population(node) else _stateless(node) for name, node in nodes]
    module = nn.Sequential(*layers)
    own = {name: layer for (name, node), layer in zip(nodes, layers, strict=True) if _is_population(node)}
    for layer in own.values():
        for name, parameter in layer.named_parameters():
            if not name.startswith("rec_connect"):
                parameter.requires_grad_(False)
    source: list[Tensor] = []

    def forward(raster: Tensor) -> Tensor:
        if not source or source[0] is not raster:  # batch first, laid out once as its users would
            source[:] = [raster, raster.transpose(0, 1).contiguous()]
        x = source[1]
        batch, steps = x.shape[:2]
        for layer in own.values():
            layer.reset_states()
        for layer in layers:
            x = layer(x) if layer in own.values() else layer(x.flatten(0, 1)).unflatten(0, (batch, steps))
        if given.record:
            network.recorded = {name: layer.recordings["v_mem"] for name, layer in own.items()}
        return x.transpose(0, 1)

    back = [layer.rec_connect for layer in own.values() if hasattr(layer, "rec_connect")]
    network = Network(forward, _parameters([*module, *back]))
    return network


def snntorch(given: Workload) -> Network:
    """snnTorch's own neurons, step by step."""
    import snntorch as library

    nodes = given.nodes()
    gains = {_gain(node, given.dt) for _, node in nodes if _is_population(node)}
    scale = 1.0
    if not any(isinstance(node, nir.CubaLIF) for _, node in nodes):
        (scale,) = gains  # a Leaky has no input gain: the weights, or where there are none the threshold, carry it
    weighted = any(isinstance(node, nir.Affine | nir.Conv2d) for _, node in nodes)

    def population(node: nir.NIRNode) -> nn.Module:
        threshold = _scalar(node.v_threshold) / (1.0 if weighted else scale)
        decay, synapse = _decays(node, given.dt)
        options = {"threshold": threshold, "spike_grad": _Spike.apply, "reset_mechanism": "zero"}
        if not isinstance(node, nir.CubaLIF):
            # the reset comes one step later, before v is used again: the spikes are the same
            return library.Leaky(beta=decay, reset_delay=given.record is False, **options)
        _unit_gains(node, given.dt)
        return library.Synaptic(alpha=synapse, beta=decay, reset_delay=False, **options)

    layers = [population(node) if _is_population(node) else _stateless(node, scale) for _, node in nodes]
    recurrent = {i: _linear(node) for i, (name, _) in enumerate(nodes) if (node := given.recurrent(name)) is not None}
    stateful = [_is_population(node) for _, node in nodes]

    def forward(raster: Tensor) -> Tensor:
        states = {i: layer.reset_mem() for i, layer in enumerate(layers) if stateful[i]}
        last: dict[int, Tensor] = {}
        outputs, traces = [], {name: [] for name, node in nodes if _is_population(node)}
        for given_now in raster:
            x = given_now
            for i, layer in enumerate(layers):
                if not stateful[i]:
                    x = layer(x)
                    continue
                if i in recurrent:
                    x = x + recurrent[i](_back(last, i, x))
                before = states[i] if isinstance(states[i], tuple) else (states[i],)
                x, *after = layer(x, *before)
                states[i], last[i] = tuple(after), x
                if given.record:
                    traces[nodes[i][0]].append(after[-1])
            outputs.append(x)
        if given.record:
            network.recorded = {name: torch.stack(trace) for name, trace in traces.items()}
        return torch.stack(outputs)

    network = Network(forward, _parameters([*layers, *recurrent.values()]), scale if weighted else 1.0)
    return network


PEERS: dict[str, Build] = {
    "torch loop, by hand": loop,
    "nirtorch": nirtorch,
    "spikingjelly 'm'": spikingjelly_m,
    "spikingjelly 's'": spikingjelly_s,
    "spikingjelly from_nir": spikingjelly_from_nir,
    "norse": norse,
    "norse from_nir": norse_from_nir,
    "sinabs": sinabs,
    "snntorch": snntorch,
    "snntorch from_nir": snntorch_from_nir,
}
REFERENCE = "torch loop, by hand"


# ---------------------------------------------------------------- running


def inference(build: Build, given: Workload) -> Run:
    """Raster -> output spikes [step, batch, ...], without gradients."""
    network = build(given)

    def run(raster: Tensor) -> Tensor:
        with torch.no_grad():
            return network.forward(raster)

    return run


def training(build: Build, given: Workload) -> Run:
    """Raster -> [output spikes, gradient of every weight and bias], forward and backward, without a step.

    The loss is `loss` of the output; gradients are those of the graph's weights.
    """
    network = build(given)
    if len(network.weights) != 2 * sum(isinstance(node, nir.Affine) for _, node in given.nodes()):
        raise NotBuilt(f"only {len(network.weights)} of its weights can be reached")

    def run(raster: Tensor) -> list[Tensor]:
        out = network.forward(raster)
        gradients = torch.autograd.grad(loss(out, given), network.weights)
        return [out.detach(), *(gradient * network.scale for gradient in gradients)]

    return run


def loss(out: Tensor, given: Workload) -> Tensor:
    """Cross entropy of the mean output count per step, averaged over the batch."""
    return functional.cross_entropy(out.mean(0), given.labels)


def work(name: str, given: Workload) -> Run:
    """What one peer runs: inference, or training where the workload has labels."""
    return (inference if given.labels is None else training)(PEERS[name], given)


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: of the candidate.
        peer: whether it is one of `PEERS`.
        times: milliseconds of each repeat; empty where it failed.
        differing: entries of the output that differ from the hand-written loop; None where there is nothing to compare.
        entries: how many there are.
        gradient: largest relative error (in the 2-norm) of a gradient; None for inference.
        reason: why it did not run.
    """

    name: str
    peer: bool
    times: list[float] = field(default_factory=list)
    differing: int | None = None
    entries: int = 0
    gradient: float | None = None
    reason: str = ""

    @property
    def best(self) -> float:
        """The least of its times."""
        return min(self.times, default=math.inf)

    @property
    def median(self) -> float:
        """The median of its times."""
        return statistics.median(self.times) if self.times else math.inf


def agreement(found: Any, reference: Any) -> tuple[int, int, float | None]:
    """Differing entries of the output, how many there are, and the largest relative error of a gradient."""
    one, other = (value if isinstance(value, list | tuple) else [value] for value in (found, reference))
    spikes, expected = torch.as_tensor(np.array(one[0])), torch.as_tensor(other[0])
    if spikes.shape != expected.shape:
        raise ValueError(f"output of shape {tuple(spikes.shape)}, expected {tuple(expected.shape)}")
    errors = [
        float((torch.as_tensor(a) - b).norm() / b.norm().clamp(min=1e-30))
        for a, b in zip(one[1:], other[1:], strict=bool(one[1:]))
    ]
    return int((spikes != expected).sum()), expected.numel(), max(errors, default=None)


def fastest(
    name: str | Workload,
    repeats: int = 5,
    extra: Sequence[tuple[str, Run]] = (),
    *,
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    **options: Any,
) -> list[Row]:
    """Time peers and other candidates on one workload, in turn, in this process.

    Args:
        name: a workload, or its name.
        repeats: rounds; in each every candidate runs once. One more, before, warms up and is compared.
        extra: other candidates as (name, function of the raster). A function returns the output spikes, in training a
            list of them and the gradients of every weight and bias; or None, where nothing is to be compared.
        peers: names out of `PEERS`; None: all. The hand-written loop always runs: it is what outputs are compared to.
        threads: of torch; None: as they are.
        **options: for `workloads.workload`.

    Returns:
        Rows in the order given, failures with their reason.
    """
    given = name if isinstance(name, Workload) else workload(name, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows, candidates = _ready(given, peers, extra)
        for _ in range(repeats):
            for row, run in candidates:
                gc.collect()
                calls = _calls(row)
                started = time.perf_counter()
                for _ in range(calls):
                    run(given.raster)
                row.times.append(1e3 * (time.perf_counter() - started) / calls)
    finally:
        torch.set_num_threads(before)
    return rows


def _calls(row: Row) -> int:
    """How often a candidate runs in a round: for 50 ms, as a single short call after a collection is a cold one."""
    return 1 if not row.times else max(1, min(200, int(50 / row.best)))


def _ready(
    given: Workload, peers: Sequence[str] | None, extra: Sequence[tuple[str, Run]]
) -> tuple[list[Row], list[tuple[Row, Run]]]:
    """Build every candidate, run it once and compare it."""
    rows: list[Row] = []
    candidates: list[tuple[Row, Run]] = []
    reference: Any = None
    chosen = [peer for peer in PEERS if peers is None or peer in peers or peer == REFERENCE]
    for label, own in [*((peer, None) for peer in chosen), *extra]:
        row = Row(label, peer=own is None)
        rows.append(row)
        try:
            with _quiet(own is None):
                run = own or work(label, given)
                found = run(given.raster)
            reference = found if label == REFERENCE else reference
            if found is not None:
                row.differing, row.entries, row.gradient = agreement(found, reference)
        except Exception as error:  # whatever a library raises is a reason to be listed
            if own is not None:
                raise
            row.reason = str(error) if isinstance(error, NotBuilt) else f"{type(error).__name__}: {error}"
        else:
            candidates.append((row, run))
    return rows, candidates


@contextlib.contextmanager
def _quiet(active: bool) -> Any:
    """Keep what libraries print and log while they build off the table."""
    if not active:
        yield
        return
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def best_peer(rows: Sequence[Row]) -> Row:
    """The fastest of the libraries; of the hand-written loop where no library runs."""
    peers = [row for row in rows if row.peer]
    return min(peers, key=lambda row: (row.name == REFERENCE or not row.times, row.best))


def table(rows: Sequence[Row], title: str) -> Table:
    """Times, ratio to the fastest peer, agreement, and why a peer did not run."""
    yardstick = best_peer(rows)
    made = Table("candidate", title=title, title_justify="left")
    for column in ("min ms", "median ms", "x fastest peer", "differing spikes"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_column("remark")
    for row in sorted(rows, key=lambda row: row.best):
        if row.reason:
            made.add_row(row.name, "-", "-", "-", "-", "not run: " + " ".join(row.reason.split())[:160])
            continue
        times = [f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in (row.best, row.median)]
        differing = "" if row.differing is None else f"{row.differing:,} of {row.entries:,}"
        remark = "" if row.gradient is None else f"gradient error {row.gradient:.0e}"
        made.add_row(row.name, *times, f"{row.best / yardstick.best:.2f}", differing, remark)
    return made


def main() -> None:
    """Time the peers on the workloads given, all by default."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("workloads", nargs="*", default=NAMES, metavar="WORKLOAD", help=", ".join(NAMES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; its own default otherwise")
    parser.add_argument("--density", type=float, help="of the input, where the workload has one")
    parser.add_argument("--published", action="store_true", help="weights of the NIR paper's files")
    given = parser.parse_args()
    options = {"density": given.density} if given.density is not None else {}
    options |= {"published": True} if given.published else {}
    console = Console()
    console.width = max(console.width, 140)
    for name in given.workloads:
        made = workload(name, **options)
        rows = fastest(made, given.repeats, threads=given.threads)
        console.print(table(rows, f"{name}: {made.title}; {given.threads or torch.get_num_threads()} threads"))


if __name__ == "__main__":
    main()
