"""Random networks of snnTorch's layers, and what they do by themselves."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import snntorch as snn
import torch
from frameworks.live_common import Seen, fill_weights, off_grid, rasters
from hypothesis import strategies as st
from torch import nn

KINDS = (snn.Leaky, snn.Lapicque, snn.Synaptic, snn.RLeaky, snn.RSynaptic)
STATES = {snn.Leaky: 1, snn.Lapicque: 1, snn.Synaptic: 2, snn.RLeaky: 2, snn.RSynaptic: 3}


@dataclass
class Maker:
    """Draws layers for samples of a shape."""

    draw: object
    rng: np.random.Generator

    def one(self, *values):
        return self.draw(st.sampled_from(values))

    def decay(self, shape):
        """A number whose decay float32 holds exactly, or one a neuron; now and then beyond what the layer clamps."""
        kind = self.one("usual", "usual", "each", "each", "short", "none", "beyond")
        if kind == "each":
            return torch.tensor(self.rng.uniform(0.75, 1.0, shape)).float()
        number = {"short": self.one(0.0, 0.25, 0.5), "none": 1.0, "beyond": self.one(1.25, -0.5)}
        return number.get(kind, float(self.rng.uniform(0.75, 1.0)))

    def threshold(self, shape):
        return off_grid(self.rng, shape if self.draw(st.booleans()) else ())

    def layer(self, kind, shape, hidden, output):
        options = {"threshold": self.threshold(shape), "init_hidden": hidden, "output": output}
        options["learn_threshold"] = self.draw(st.booleans())
        options["reset_mechanism"] = self.one("subtract", "subtract", "zero", "zero", "none")
        if kind is not snn.Lapicque and not (kind is snn.RSynaptic and hidden):
            options["reset_delay"] = self.one(True, True, False)
        if kind is snn.Lapicque:
            return snn.Lapicque(R=self.one(1.0, 2.0, 0.5), C=self.one(2.0, 8.0), time_step=self.one(1, 0.5), **options)
        if kind is snn.Leaky:
            options["graded_spikes_factor"] = self.one(1.0, 1.0, 0.5, torch.full(shape, 2.0))
        options |= {"beta": self.decay(shape), "learn_beta": self.draw(st.booleans())}
        if kind in (snn.Synaptic, snn.RSynaptic):
            options["alpha"] = self.decay(shape)
        if kind in (snn.RLeaky, snn.RSynaptic):
            options |= self.recurrence(shape)
        return kind(**options)

    def recurrence(self, shape):
        kind = self.one("all", "all", "one", "each")
        if kind != "all":
            return {"all_to_all": False, "V": 0.25 if kind == "one" else off_grid(self.rng, shape, -0.5, 0.5)}
        return {"linear_features": shape[0]} if len(shape) == 1 else {"conv2d_channels": shape[0], "kernel_size": 3}


class Hidden(nn.Sequential):
    """States in the layers."""

    def steps(self, raster):
        return [self(x) for x in raster]


class Explicit(nn.Module):
    """States through forward, a tuple a layer."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, states):
        after = []
        for layer in self.layers:
            kind = type(layer)
            state = states[len(after)] if kind in STATES else None
            if kind in (snn.Leaky, snn.Lapicque):
                x, mem = layer(x, state[0])
                after.append((mem,))
            elif kind is snn.Synaptic:
                x, syn, mem = layer(x, state[0], state[1])
                after.append((syn, mem))
            elif kind is snn.RLeaky:
                x, mem = layer(x, state[0], state[1])
                after.append((x, mem))
            elif kind is snn.RSynaptic:
                x, syn, mem = layer(x, state[0], state[1], state[2])
                after.append((x, syn, mem))
            else:
                x = layer(x)
        return x, tuple(after)

    def steps(self, raster):
        layers = [layer for layer in self.layers if type(layer) in STATES]
        state = [[torch.zeros(raster.shape[1], *n.sample)] * STATES[type(n)] for n in layers]
        found = []
        for x in raster:
            out, state = self(x, state)
            found.append(out)
        return found


@st.composite
def networks(draw):
    """One to three populations behind weights, dense or convolutional, states inside or passed along, and a raster."""
    maker = Maker(draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    now = maker.one((5,), (5,), (2, 6, 5))
    raster = draw(rasters(now))
    hidden, count, layers = draw(st.booleans()), draw(st.integers(1, 3)), []
    for n in range(count):
        if len(now) == 3 and maker.one("conv", "conv", "flat") == "conv":
            padding = maker.one(0, 1) if min(now[1:]) > 2 else 1
            layers.append(nn.Conv2d(now[0], 3, 3, padding=padding, bias=draw(st.booleans())))
            now = (3, *(size + 2 * padding - 2 for size in now[1:]))
        else:
            layers += [nn.Flatten()] if len(now) == 3 else []
            layers.append(nn.Linear(int(np.prod(now)), 4, bias=draw(st.booleans())))
            now = (4,)
        layer = maker.layer(maker.one(*KINDS), now, hidden, hidden and n == count - 1 and draw(st.booleans()))
        layer.sample = now
        layers.append(layer)
    network = (Hidden if hidden else Explicit)(*layers)
    return fill_weights(network, maker.rng), raster


def own(network, raster):
    """What the network itself puts out, and the spikes and mem of all its layers by path."""
    network = copy.deepcopy(network)
    found = {path: ([], [], layer) for path, layer in network.named_modules() if type(layer) in STATES}

    def record(path):
        def hook(layer, _inputs, output):
            spikes = output[0] if isinstance(output, tuple) else output
            found[path][0].append((spikes / layer.graded_spikes_factor).detach().numpy())
            found[path][1].append(layer.mem.detach().numpy())

        return hook

    for path, (_, _, layer) in found.items():
        layer.register_forward_hook(record(path))
    with torch.no_grad():
        outputs = [out[0] if isinstance(out, tuple) else out for out in network.steps(raster)]
    seen = {
        path: Seen(np.stack(spikes), np.stack(mem), layer.threshold.detach().numpy())
        for path, (spikes, mem, layer) in found.items()
    }
    return torch.stack(outputs).numpy(), seen
