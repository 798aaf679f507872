"""Networks that tracing would take for something else than they are."""

import copy
import random
import re
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConventionError, ConversionError
from nirdeploy.reference.neurons import IF

PLAIN = nd.Convention(if_gain="r", reset="zero", dt=1e-3)


class Noisy(nn.Module):
    """Its forward adds what a generator gives."""

    def __init__(self, draw):
        super().__init__()
        self.fc, self.draw = nn.Linear(4, 4), draw

    def forward(self, x):
        return self.fc(x) + self.draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(4),
        lambda: torch.tensor(np.random.rand(4).astype(np.float32)),
        random.random,
    ],
)
def test_a_forward_that_draws_random_numbers_is_refused_and_the_generators_are_as_before(draw):
    net, before = Noisy(draw), torch.get_rng_state()
    with pytest.raises(ConversionError, match="forward of Noisy draws random numbers.*keep them as a buffer"):
        nd.torch_to_nir(net, input_shape=(4,))
    assert torch.equal(torch.get_rng_state(), before)


class Asking(nn.Module):
    """It asks for its state by its truth, and returns it in the order given."""

    def __init__(self, swapped):
        super().__init__()
        self.fc, self.a, self.b, self.swapped = nn.Linear(4, 4), IF(convention=PLAIN), IF(convention=PLAIN), swapped

    def forward(self, x, state=None):
        if state:
            p, q = state
        else:
            p = q = None
        y, p = self.a(self.fc(x), p)
        y, q = self.b(y, q)
        return y, ((q, p) if self.swapped else (p, q))


def test_states_behind_a_question_for_their_truth_are_seen():
    torch.manual_seed(0)
    net = Asking(swapped=False)
    net.fc.weight.data = (net.fc.weight.data * 64).round() / 64
    raster = torch.randint(0, 3, (20, 2, 4)).float()
    own, state = [], None
    for x in raster:
        y, state = net(x, state)
        own.append(y)
    own = torch.stack(own).detach().numpy()
    assert own.sum() > 3
    graph = nd.torch_to_nir(net, sample_input=raster[0])
    assert np.array_equal(np.asarray(nd.run(graph, raster).outputs), own)
    with pytest.raises(
        ConversionError, match=r"the state of 'a' is read from state\[0\], but forward returns something"
    ):
        nd.torch_to_nir(Asking(swapped=True), sample_input=raster[0])


@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.DataParallel, "DataParallel wraps a network.*Convert the module it holds: network.module"),
        (torch.compile, "OptimizedModule wraps a network.*network._orig_mod"),
        (lambda m: torch.jit.trace(m, torch.zeros(1, 4)), "wraps a network.*Convert the module that it was made from"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_say_what_to_convert_instead(wrap, remedy):
    with pytest.raises(ConversionError, match=remedy):
        nd.torch_to_nir(wrap(nn.Sequential(nn.Linear(4, 4))), input_shape=(4,))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Conv2d(1, 3, 3), (12, 1, 8, 8), "node '0': Conv2d takes samples of (channel, height, width), here (12, 1"),
        (nn.Conv2d(1, 3, 3), (8,), "node '0': Conv2d takes samples of (channel, height, width), here (8,)"),
        (nn.Conv1d(1, 3, 3), (2, 1, 8), "node '0': Conv1d takes samples of (channel, length), here (2, 1, 8)"),
    ],
)
def test_a_convolution_of_another_number_of_axes_names_them(layer, shape, message):
    with pytest.raises(ConversionError, match=re.escape(message)):
        nd.torch_to_nir(nn.Sequential(layer), input_shape=shape)


@pytest.mark.parametrize("dt", [0, -1e-3, float("nan"), "1 ms"])
def test_a_dt_that_is_no_step_is_refused(dt):
    with pytest.raises(ConventionError, match="expected a positive number of seconds"):
        nd.torch_to_nir(nn.Sequential(nn.Linear(4, 4)), input_shape=(4,), dt=dt)


def test_a_layer_named_like_a_librarys_without_its_attributes_is_told_from_it():
    class IAF(nn.Module):
        def forward(self, x):
            return 2 * x

    IAF.__module__, IAF.__qualname__ = "sinabs.layers.iaf", "IAF"
    with pytest.raises(
        ConversionError, match="node '1': IAF is no IAF of the sinabs that is known.*Install the version"
    ):
        nd.torch_to_nir(nn.Sequential(nn.Linear(4, 4), IAF()), input_shape=(4,))
    with pytest.raises(ConversionError, match="IAF is no IAF of the sinabs that is known"):
        nd.torch_to_nir(IAF())
    IAF.__module__ = "sinabs_utils.layers.iaf"
    graph = nd.torch_to_nir(nn.Sequential(nn.Linear(4, 4), IAF()), input_shape=(4,))
    assert len(graph.nodes) == 4  # its forward is traced


class Remembers(nn.Module):
    """A leaky integrator whose state stands in something that it holds."""

    def __init__(self, holder, read, write):
        super().__init__()
        self.register_buffer("mem", torch.zeros(4))
        self.holder, self.read, self.write = holder, read, write

    def forward(self, x):
        new = 0.5 * self.read(self) + x
        self.write(self, new)
        return new


def _set(where, name, value):
    setattr(where, name, value)


@pytest.mark.parametrize(
    ("holder", "read", "write", "named"),
    [
        ([0.0], lambda m: m.holder[0], lambda m, v: m.holder.__setitem__(0, v), "holder"),
        ({}, lambda m: m.holder.get("v", 0.0), lambda m, v: m.holder.update(v=v), "holder"),
        (deque([0.0], 1), lambda m: m.holder[0], lambda m, v: m.holder.append(v), "holder"),
        (([0.0],), lambda m: m.holder[0][0], lambda m, v: m.holder[0].append(v), "holder"),
        ({"a": {"b": 0.0}}, lambda m: m.holder["a"]["b"], lambda m, v: m.holder["a"].update(b=v), "holder"),
        (SimpleNamespace(v=0.0), lambda m: m.holder.v, lambda m, v: _set(m.holder, "v", v), "holder"),
        (set(), lambda m: 0.0, lambda m, v: m.holder.add(v), "holder"),
        (None, lambda m: 0.0, lambda m, v: _set(m, "mem", v), "mem"),
    ],
)
def test_state_in_what_a_module_holds_is_memory_and_is_put_back(holder, read, write, named):
    net = nn.Sequential(nn.Linear(4, 4), Remembers(holder, read, write))
    before, mem = copy.deepcopy(holder), net[1].mem
    with pytest.raises(ConversionError, match=f"forward changes 1.{named} of Sequential: memory outside its state"):
        nd.torch_to_nir(net, input_shape=(4,))
    assert net[1].holder is holder
    assert holder == before
    assert net[1].mem is mem
    assert isinstance(net(torch.zeros(2, 4)), torch.Tensor)


def test_what_a_module_holds_and_leaves_alone_is_no_memory():
    cyclic = {"list": [1], "tensor": torch.zeros(2)}
    cyclic["itself"] = cyclic
    net = nn.Sequential(nn.Linear(4, 4), IF(convention=PLAIN))
    net.notes, net.owner = cyclic, SimpleNamespace(net=net)
    assert set(nd.torch_to_nir(net, input_shape=(4,)).nodes) == {"input", "0", "1", "output"}
