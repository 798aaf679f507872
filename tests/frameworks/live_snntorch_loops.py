"""Forwards of snnTorch that loop over time, drawn with mistakes in them: refused, or converted without a spike less."""

from __future__ import annotations

import random

import numpy as np
import pytest
import snntorch as snn
import torch
from frameworks.live_common import fill_weights
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConversionError

LAYERS = (
    lambda: snn.Leaky(0.9, threshold=0.5),
    lambda: snn.Leaky(0.8, threshold=0.4, reset_mechanism="zero"),
    lambda: snn.Leaky(0.8, threshold=0.4, reset_mechanism="none"),
    lambda: snn.Lapicque(R=1, C=4, threshold=0.3),
)
# what makes a step another one than the first, or its output another one than the step's
MISTAKES = ("recurrence", "another input", "rotated states", "no state at the end", "reversed", "states at rest")
HARMLESS = ("skip", "second look at the input")


class Drawn(nn.Module):
    """Three layers, x[step] or x in each step, and at most one peculiarity."""

    def __init__(self, seed):
        super().__init__()
        rnd = random.Random(seed)  # noqa: S311
        torch.manual_seed(seed)
        self.steps, self.indexed, self.resets = rnd.choice((2, 3, 6)), rnd.random() < 0.4, rnd.random() < 0.8
        self.how = rnd.choice((*MISTAKES, *HARMLESS, *HARMLESS, "plain", "plain", "plain", "plain"))
        self.weights = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.layers = nn.ModuleList(rnd.choice(LAYERS)() for _ in range(3))
        fill_weights(self, np.random.default_rng(seed))

    def step(self, x, step, states, before):
        signal = x
        if self.how == "recurrence" and step > 0:
            signal = x + before
        if self.how == "another input" and step == 1:
            signal = 2 * x
        for n, (weight, layer) in enumerate(zip(self.weights, self.layers, strict=True)):
            current = weight(signal)
            if self.how == "second look at the input" and n == 1:
                current = current + weight(x)
            own = (n + 1) % 3 if self.how == "rotated states" and step > 0 else n
            arguments = () if self.how == "no state at the end" and step == self.steps - 1 else (states[own],)
            signal, state = layer(current, *arguments)
            if self.how != "states at rest":
                states[n] = state
        return signal + signal if self.how == "skip" else signal

    def forward(self, x):
        states = [layer.reset_mem() if self.resets else None for layer in self.layers]
        found = []
        for step in range(self.steps):
            found.append(self.step(x[step] if self.indexed else x, step, states, found[-1] if found else None))
        return torch.stack(found[::-1] if self.how == "reversed" else found)

    def sample(self):
        return 4 * torch.rand((self.steps, 2, 4) if self.indexed else (2, 4))


@pytest.mark.parametrize("block", range(4))
def test_a_loop_is_refused_or_gives_the_networks_own_output(block):
    taken = []
    for seed in range(block * 30, block * 30 + 30):
        network = Drawn(seed)
        x = network.sample()
        try:
            graph = nd.torch_to_nir(network, sample_input=x)
        except ConversionError:
            assert network.how in MISTAKES, (seed, network.how)
            continue
        raster = x if network.indexed else x.expand(network.steps, *x.shape)
        with torch.no_grad():
            own = network(x).numpy()
        assert np.array_equal(np.asarray(nd.run(graph, raster.numpy()).outputs), own), (seed, network.how)
        taken.append(own.sum())
    assert len(taken) > 10
    assert sum(taken) > 100


def unpacked(x):
    steps, _batch, _width = x.shape
    return range(steps)


LENGTHS = {
    "size": lambda x: range(x.size(0)),
    "all sizes": lambda x: range(x.size()[0]),
    "shape": lambda x: range(x.shape[0]),
    "unpacked": unpacked,
    "len": lambda x: range(len(x)),
}


class OverInput(nn.Module):
    """A loop over the first axis of its input."""

    def __init__(self, steps):
        super().__init__()
        self.fc, self.lif, self.steps = nn.Linear(4, 5), snn.Synaptic(alpha=0.5, beta=0.9), steps
        torch.manual_seed(0)
        fill_weights(self, np.random.default_rng(0))

    def forward(self, x):
        syn, mem = self.lif.reset_mem()
        found = []
        for step in self.steps(x):
            spk, syn, mem = self.lif(self.fc(x[step]), syn, mem)
            found.append(spk)
        return torch.stack(found), mem


@pytest.mark.parametrize("name", LENGTHS)
def test_a_loop_may_be_as_long_as_the_sample_input(name):
    network, x = OverInput(LENGTHS[name]), torch.randint(0, 3, (9, 3, 4)).float()
    graph = nd.torch_to_nir(network, sample_input=x)
    with torch.no_grad():
        spikes, mem = network(x)
    found = nd.run(graph, x)
    assert spikes.sum() > 10
    assert np.array_equal(np.asarray(found.outputs), spikes.numpy())
    assert np.array_equal(found["lif", "v_mem"].data[-1], mem.numpy())


LONGER = (lambda x: range(x.size(1)), lambda x: range(x.size(0) - 1), lambda x: range(int(x.sum())))


@pytest.mark.parametrize("steps", LONGER)
def test_a_loop_of_another_length_is_refused(steps):
    with pytest.raises(ConversionError, match="loops over an axis of its input|cannot be traced|depends on its data"):
        nd.torch_to_nir(OverInput(steps), sample_input=torch.rand((9, 3, 4)))


class Unspoken(nn.Module):
    """The spikes that come back are those at rest in each step."""

    def __init__(self):
        super().__init__()
        self.fc, self.layer = nn.Linear(4, 4), snn.RLeaky(0.9, linear_features=4)

    def forward(self, x):
        spk, mem = self.layer.init_rleaky()
        found = []
        for step in range(3):
            out, mem = self.layer(self.fc(x[step]), spk, mem)
            found.append(out)
        return torch.stack(found)


def test_spikes_at_rest_in_each_step_are_no_recurrence():
    with pytest.raises(ConversionError, match="node 'layer': forward resets it, and no loop over time of equal steps"):
        nd.torch_to_nir(Unspoken(), sample_input=torch.zeros(3, 2, 4))
