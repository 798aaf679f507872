"""Networks of Norse drawn at random, and what Norse itself makes of them, layer by layer."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Norse itself uses torch.jit.script
    import norse.torch as norse

__all__ = ["CELLS", "SEQUENCES", "WEIGHTED", "Drawn", "Layer", "forward", "layers", "networks", "norse"]

CELLS = (
    "LIFCell",
    "LIFRefracCell",
    "LICell",
    "LIBoxCell",
    "LIFBoxCell",
    "IAFCell",
    "LIFRecurrentCell",
    "LIFRefracRecurrentCell",
    "LILinearCell",
)
SEQUENCES = ("LIF", "LI", "IAF", "LIFRecurrent", "LIFRefracRecurrent")
WEIGHTED = ("LIFRecurrentCell", "LIFRefracRecurrentCell", "LILinearCell", "LIFRecurrent", "LIFRefracRecurrent")
ONE_LEAK = (
    "LIF",
    "LI",
    "LIFRefracCell",
    "LIFRecurrentCell",
    "LIFRecurrent",
    "LIFRefracRecurrent",
)  # torch.full(v_leak)
GRID = 64  # weights are whole multiples of 1 / GRID, thresholds of IAF stand between two of them
NEVER = 1e9  # a threshold that nothing reaches


@dataclass(frozen=True)
class Drawn:
    """A network and its raster [step, batch, ...]; `sequence`: it takes all steps at once."""

    net: nn.Module
    raster: torch.Tensor
    sequence: bool

    @property
    def sample(self):
        return self.raster if self.sequence else self.raster[0]


@dataclass(frozen=True)
class Layer:
    """What a layer of neurons did: spikes or v as it emits them, v after the reset and before it, and its threshold."""

    path: str
    output: torch.Tensor
    v: torch.Tensor
    v_before: torch.Tensor
    threshold: torch.Tensor | None


# ---------------------------------------------------------------- drawing


class Builder:
    """Draws layers one after another."""

    def __init__(self, draw, sequence):
        self.draw = draw
        self.sequence = sequence
        self.rng = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))
        self.dt = draw(st.sampled_from((1e-3, 1e-3, 5e-4, 2e-3)))

    def one(self, *values):
        return self.draw(st.sampled_from(values))

    def weight(self, tensor, scale):
        values = self.rng.uniform(-0.5, 1.0, tuple(tensor.shape)) * scale
        return torch.tensor(np.round(values * GRID) / GRID, dtype=torch.float32)

    def weighted(self, module, scale):
        """A stateless layer, or a recurrent one, with weights of the grid."""
        module = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 8
                parameter.copy_(self.weight(parameter, scale * 3 / fan_in))
                if name == "recurrent_weights":
                    parameter.fill_diagonal_(0.0)
        return module

    def value(self, shape, *values):
        """One number, or one a neuron, or one a channel."""
        how = self.one("one", "one", "each", "channel")
        full = {"one": (), "each": shape, "channel": (shape[0], *[1] * (len(shape) - 1))}[how]
        return torch.tensor(self.rng.choice(values, full), dtype=torch.float32)

    def parameters(self, name, shape):
        """Parameters of a layer whose neurons have this shape."""
        th, reset = self.value(shape, 0.5, 1.0, 1.3), self.value(shape, 0.0, 0.0, -0.25, 0.125)
        mem, syn = self.value(shape, 50.0, 100.0, 150.0, 400.0), self.value(shape, 100.0, 200.0, 300.0, 500.0)
        leak = self.value(shape, 0.0, 0.0, 0.25, -0.125)
        if name in ONE_LEAK:
            leak = leak.flatten()[0] if leak.ndim else leak
        method = self.one("super", "heaviside", "tanh", "triangle", "circ", "heavi_erfc")
        if name.startswith("IAF"):
            return norse.IAFParameters(v_th=th + 0.5 / GRID, v_reset=reset, method=method)
        if name.startswith("LIBox"):
            return norse.LIBoxParameters(mem, leak)
        if name.startswith("LIFBox"):
            how = self.one(norse.reset_value, norse.reset_subtract)
            return norse.LIFBoxParameters(mem, leak, th, reset, method, torch.tensor(100.0), how)
        if name.startswith("LIF"):
            p = norse.LIFParameters(syn, mem, leak, th, reset, method)
            return norse.LIFRefracParameters(p, torch.tensor(0.0)) if "Refrac" in name else p
        return norse.LIParameters(syn, mem, leak)

    def neurons(self, name, shape):
        """A layer by its name, with the weights it needs in front of it left to the caller."""
        kind, p = getattr(norse, name), self.parameters(name, shape)
        return kind(p, dt=self.dt)

    def block(self, name, inputs, outputs):
        """Weights and neurons of a dense layer."""
        scale = {"LIBoxCell": 4.0, "LIFBoxCell": 4.0, "IAFCell": 0.5, "IAF": 0.5}.get(name, 1.0)
        if name in WEIGHTED:
            kind, p = getattr(norse, name), self.parameters(name, (outputs,))
            return [self.weighted(kind(inputs, outputs, p, dt=self.dt), scale)]
        bias = self.one(True, False)
        linear = self.weighted(nn.Linear(inputs, outputs, bias=bias), scale)
        if self.sequence and self.one(True, False):
            linear = norse.Lift(linear)
        return [linear, self.neurons(name, (outputs,))]

    def images(self, name, shape):
        """A convolution, neurons and perhaps a pool, all steps at once or one; and the shape that comes out."""
        channels = shape[0]
        stride, padding = self.one(1, 2), self.one(0, 1)
        options = {"kernel_size": self.one(3, (3, 2)), "stride": stride, "padding": padding}
        convolution = self.weighted(nn.Conv2d(channels, 3, bias=self.one(True, False), **options), 2.0)
        after = tuple(convolution(torch.zeros(1, *shape)).shape[1:])
        if self.sequence:
            convolution = norse.Lift(convolution)
            if self.one(True, False):
                convolution = self.weighted(norse.LConv2d(channels, 3, **options), 2.0)
        layers = [convolution, self.neurons(name, after)]
        if min(after[1:]) >= 2 and self.one(True, False):
            pool = nn.AvgPool2d(2)
            layers.append(norse.Lift(pool) if self.sequence else pool)
            after = (after[0], after[1] // 2, after[2] // 2)
        flatten = nn.Flatten(2) if self.sequence else nn.Flatten()
        if self.sequence and self.one(True, False):
            flatten = norse.Lift(nn.Flatten())
        return [*layers, flatten], int(np.prod(after))


@st.composite
def networks(draw, sequence, first=None):
    """Networks of one to three layers; `first` is the name of the first one's neurons."""
    build = Builder(draw, sequence)
    names = list(SEQUENCES if sequence else CELLS)
    chosen = [first or build.one(*names), *(build.one(*names) for _ in range(build.one(0, 1, 2)))]
    layers, shape = [], (build.one(3, 6),)
    width = shape[0]
    if chosen[0] not in WEIGHTED and build.one(True, False):
        shape = (2, build.one(5, 7), 6)
        layers, width = build.images(chosen.pop(0), shape)
    for name in chosen:
        wider = build.one(2, 5)
        layers += build.block(name, width, wider)
        width = wider
    if len(layers) > 2 and build.one(True, False):  # a container inside a container
        layers = [layers[0], norse.SequentialState(*layers[1:])]
    net = norse.SequentialState(*layers)
    steps, batch = build.one(12, 30), build.one(1, 3)
    raster = build.rng.poisson(build.one(0.4, 0.9), (steps, batch, *shape))
    drawn = Drawn(net, torch.tensor(raster, dtype=torch.float32), sequence)
    return Drawn(norse.Lift(net), drawn.raster, True) if not sequence and build.one(True, False, False) else drawn


# ---------------------------------------------------------------- what Norse does


def forward(drawn):
    """The network's own output of all steps."""
    with torch.no_grad():
        if drawn.sequence:
            return drawn.net(drawn.raster)[0]
        state, found = None, []
        for x in drawn.raster:
            out, state = drawn.net(x, state)
            found.append(out)
        return torch.stack(found)


def layers(drawn):
    """What each layer of neurons does in the network, by Norse's own step functions."""
    lifted = isinstance(drawn.net, norse.Lift)
    found = []
    with torch.no_grad():
        root = drawn.net.lifted_module if lifted else drawn.net
        out = _through(root, "lifted_module" if lifted else "", drawn.raster, drawn.sequence and not lifted, found)
    # BLAS may round a row otherwise where it lies otherwise in memory; another spike would differ by 1
    torch.testing.assert_close(out, forward(drawn), rtol=1e-6, atol=1e-6, msg=lambda said: f"layer by layer: {said}")
    return found


def _through(module, path, x, sequence, found):
    if isinstance(module, norse.SequentialState):
        for name, part in module.named_children():
            x = _through(part, f"{path}.{name}".lstrip("."), x, sequence, found)
        return x
    if hasattr(module, "p"):
        layer = watch(module, path, x, sequence)
        found.append(layer)
        return layer.output
    return module(x) if sequence else torch.stack([module(step) for step in x])


def watch(module, path, x, sequence):
    """A layer's outputs and voltages; before a reset, v is that of a layer that cannot fire in this step."""
    free = copy.copy(module)
    spikes = hasattr(getattr(module.p, "lif", module.p), "v_th")
    if spikes:
        p = module.p
        never = torch.tensor(NEVER)
        free.p = p._replace(lif=p.lif._replace(v_th=never)) if hasattr(p, "lif") else p._replace(v_th=never)
    state, outputs, v, v_before = None, [], [], []
    for step in range(len(x)):
        given = x[step : step + 1] if sequence else x[step]
        before = _lif(free(given, state)[1]).v
        out, state = module(given, state)
        outputs.append(out[0] if sequence else out)
        v.append(_lif(state).v)
        v_before.append(before)
    threshold = getattr(module.p, "lif", module.p).v_th if spikes else None
    return Layer(path, torch.stack(outputs), torch.stack(v), torch.stack(v_before), threshold)


def _lif(state):
    return state.lif if hasattr(state, "lif") else state
