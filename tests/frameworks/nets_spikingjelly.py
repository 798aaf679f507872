"""SpikingJelly networks drawn by hypothesis, and what that library makes of a raster."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import assume, currently_in_test_context
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import nn

import nirdeploy as nd
from nirdeploy.graph import metadata

MARGIN = 1e-5  # of the threshold: where float rounding could decide a spike, another network is drawn
LARGEST = 8  # thresholds: of a larger v, 1e-5 of the threshold is no more than a few roundings
NEURONS = ("if", "lif", "lif_undecayed", "plif", "plif_undecayed", "cuba", "simple_if", "simple_lif")
SURROGATES = (surrogate.Sigmoid, surrogate.ATan, surrogate.Rect, surrogate.PiecewiseLeakyReLU)


@dataclass
class Run:
    """The library's own spikes [step, batch, ...], v of each population likewise, and the least |v - threshold|."""

    output: np.ndarray
    v: dict[str, np.ndarray]
    margin: float


@dataclass
class Drawn:
    """A network, its raster and how it is stepped; `exact` where no arithmetic of it rounds."""

    module: nn.Module
    raster: torch.Tensor
    multi: bool
    exact: bool = False

    @property
    def sample(self):
        return self.raster if self.multi else self.raster[0]


class Watched(surrogate.Sigmoid):
    """A step function that remembers how near to the threshold it was called."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, x):
        self.found.append(float(x.abs().min()))
        return surrogate.heaviside(x)


def populations(module):
    kinds = (neuron.BaseNode, neuron.SimpleBaseNode)
    return {name: part for name, part in module.named_modules() if isinstance(part, kinds)}


def own_run(drawn):
    """The library itself, from rest, on a copy."""
    module = copy.deepcopy(drawn.module)
    functional.reset_net(module)
    found = populations(module)
    v = {name: [] for name in found}
    with torch.no_grad():
        if drawn.multi:
            plain = module(drawn.raster).clone()
            functional.reset_net(module)
            for part in found.values():
                if isinstance(part, neuron.BaseNode):
                    part.store_v_seq = True
                else:
                    _watch_v(part)
            output = module(drawn.raster)
            assert torch.equal(output, plain)
            v = {name: part.v_seq for name, part in found.items()}
        else:
            steps = []
            for x in drawn.raster:
                steps.append(module(x))
                for name, part in found.items():
                    v[name].append(part.v)
            output, v = torch.stack(steps), {name: torch.stack(values) for name, values in v.items()}
        margin = least_margin(drawn)
    return Run(output.numpy(), {name: values.numpy() for name, values in v.items()}, margin)


def _watch_v(part):
    """SimpleBaseNode stores no sequence of v."""
    part.v_seq = None
    single = part.single_step_forward

    def step(x):
        spike = single(x)
        part.v_seq = part.v[None] if part.v_seq is None else torch.cat((part.v_seq, part.v[None]))
        return spike

    part.single_step_forward = step


def least_margin(drawn):
    """The least |v - threshold| / threshold of all populations, steps and neurons, v before the reset."""
    module = copy.deepcopy(drawn.module)
    functional.reset_net(module)
    least = []
    for part in populations(module).values():
        found = []
        part.surrogate_function = Watched(found)
        least.append((part.v_threshold, found))
    with torch.no_grad():
        module(drawn.raster) if drawn.multi else [module(x) for x in drawn.raster]
    return min(min(found) / threshold for threshold, found in least)


def check(drawn, methods=("dense",)):
    """nd.run of the converted network against the library: every spike ==, v within 1e-5 of the threshold."""
    own = own_run(drawn)
    thresholds = {name: part.v_threshold for name, part in populations(drawn.module).items()}
    if not usable(drawn, own):
        assert currently_in_test_context(), "take another seed, or smaller weights"
        assume(False)
    functional.reset_net(drawn.module)
    graph = nd.torch_to_nir(drawn.module, sample_input=drawn.sample)
    convention = nd.convention_of(drawn.module)
    assert nd.Convention.from_dict(metadata(graph)["convention"]) == convention
    raster = drawn.raster.numpy()
    for method in methods:
        trajectory = nd.run(graph, raster, convention=convention, method=method)
        np.testing.assert_array_equal(np.asarray(trajectory.outputs), own.output, err_msg=method)
        names = {name for name, variable in trajectory.records if variable == "v_mem"}
        assert names == set(own.v)
        for name, threshold in thresholds.items():
            ours = trajectory[name, "v_mem"].values
            np.testing.assert_allclose(ours, own.v[name], rtol=0, atol=1e-5 * threshold, err_msg=name)
    stored_only = nd.run(graph, raster)
    np.testing.assert_array_equal(np.asarray(stored_only.outputs), own.output)
    return own


def usable(drawn, own):
    """Whether no float rounding can decide a spike, and v is of the size of the threshold."""
    parts = populations(drawn.module).items()
    small = all(np.abs(own.v[name]).max() <= LARGEST * part.v_threshold for name, part in parts)
    return small and (drawn.exact or own.margin > MARGIN)


def steady(make):
    """The first usable network of many seeds that fires."""
    found = (make(seed) for seed in range(60))
    return next(drawn for drawn in found if usable(drawn, own := own_run(drawn)) and own.output.any())


# ---------------------------------------------------------------- drawn networks


def on_grid(module, generator, strength=1.0):
    """Weights that are multiples of 1/64, some above 0 and some below."""
    for part in module.modules():
        for name in ("weight", "bias"):
            tensor = getattr(part, name, None)
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and tensor is not None:
                fan_in = part.weight[0].numel()
                low, high = (-0.5, 1.0) if name == "weight" else (0.0, 0.25)
                values = strength * generator.uniform(low, high, tensor.shape)
                values /= fan_in**0.5 if name == "weight" else 1.0
                tensor.data = torch.tensor(np.round(values * 64) / 64, dtype=torch.float32)
            elif isinstance(part, nn.modules.batchnorm._BatchNorm) and tensor is not None:
                tensor.data = torch.tensor(generator.uniform(0.5, 1.5, tensor.shape), dtype=torch.float32)
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean = torch.tensor(generator.uniform(-0.3, 0.3, part.num_features), dtype=torch.float32)
            part.running_var = torch.tensor(generator.uniform(0.5, 2.0, part.num_features), dtype=torch.float32)


def make_neuron(kind, v_threshold=0.6171, v_reset=0.0, tau=2.5, **options):
    """One of `NEURONS`; the simple ones take fewer options."""
    values = {"v_threshold": v_threshold, "v_reset": v_reset, **options}
    if kind.startswith("simple"):
        values.pop("store_v_seq", None)
    if kind == "cuba":
        values = {"v_threshold": v_threshold, "v_reset": v_reset}
    return {
        "if": lambda: neuron.IFNode(**values),
        "lif": lambda: neuron.LIFNode(tau=tau, decay_input=True, **values),
        "lif_undecayed": lambda: neuron.LIFNode(tau=tau, decay_input=False, **values),
        "plif": lambda: neuron.ParametricLIFNode(init_tau=tau, decay_input=True, **values),
        "plif_undecayed": lambda: neuron.ParametricLIFNode(init_tau=tau, decay_input=False, **values),
        "cuba": lambda: neuron.CUBALIFNode(c_decay=1 / tau, v_decay=1 - 0.5 / tau, **values),
        "simple_if": lambda: neuron.SimpleIFNode(**values),
        "simple_lif": lambda: neuron.SimpleLIFNode(tau=tau, decay_input=True, **values),
    }[kind]()


@st.composite
def neurons(draw):
    kind = draw(st.sampled_from(NEURONS))
    resets = [0.0, -0.25, 0.125] if kind == "simple_lif" else [None, None, 0.0, -0.25, 0.125]
    return make_neuron(
        kind,
        v_threshold=draw(st.sampled_from([0.6171, 1.0, 1.3171])),
        v_reset=draw(st.sampled_from(resets)),
        tau=draw(st.sampled_from([1.5, 2.0, 2.5, 7.3, 20.0])),
        detach_reset=draw(st.booleans()),
        surrogate_function=draw(st.sampled_from(SURROGATES))(),
    )


def with_neurons(draw, around):
    """A population, perhaps inside a recurrent container of `around` neurons."""
    found = draw(neurons())
    how = draw(st.sampled_from(["plain", "plain", "linear", "element"]))
    if how == "linear":
        return layer.LinearRecurrentContainer(found, around, around, bias=draw(st.booleans()))
    if how == "element":
        return layer.ElementWiseRecurrentContainer(found, lambda x, y: x + y)
    return found


@st.composite
def dense(draw):
    """1 to 3 times Linear (or WSLinear), perhaps BatchNorm, a population, perhaps Dropout."""
    sizes = draw(st.lists(st.integers(2, 9), min_size=2, max_size=4))
    parts = []
    for inputs, outputs in itertools.pairwise(sizes):
        kind = draw(st.sampled_from([layer.Linear, layer.Linear, layer.WSLinear, nn.Linear]))
        parts.append(kind(inputs, outputs, bias=draw(st.booleans())))
        if draw(st.booleans()):
            parts.append(layer.BatchNorm1d(outputs))
        parts.append(with_neurons(draw, outputs))
        if draw(st.booleans()):
            parts.append(layer.Dropout(0.3))
    if draw(st.booleans()):
        parts.append(layer.Delay(draw(st.integers(0, 3))))
    if draw(st.booleans()):
        parts.append(layer.VotingLayer(2))
    return finish(draw, parts, (sizes[0],))


@st.composite
def convolutional(draw):
    """1 or 2 times Conv1d or Conv2d (strides, padding, dilation, groups), a population and pooling; then Linear."""
    flat = draw(st.booleans())
    conv, norm = (layer.Conv1d, layer.BatchNorm1d) if flat else (layer.Conv2d, layer.BatchNorm2d)
    shape = (2, 11) if flat else (2, 9, 7)
    parts, channels = [], 2
    for _ in range(draw(st.integers(1, 2))):
        outputs = draw(st.sampled_from([2, 4]))
        padding = draw(st.sampled_from([0, 1, "same"]))
        options = {
            "stride": 1 if padding == "same" else draw(st.sampled_from([1, 2])),
            "padding": padding,
            "dilation": draw(st.sampled_from([1, 2])) if padding != 0 else 1,
            "groups": draw(st.sampled_from([1, 2])),
            "bias": draw(st.booleans()),
        }
        kernel = draw(st.sampled_from([1, 3] if padding == 0 else [3]))
        kind = layer.WSConv2d if not flat and kernel > 1 and draw(st.booleans()) else conv
        parts.append(kind(channels, outputs, kernel, **options))
        if draw(st.booleans()):
            parts.append(norm(outputs))
        parts.append(draw(neurons()))
        channels = outputs
    if not flat and draw(st.booleans()):
        parts.append(layer.AvgPool2d(2, draw(st.sampled_from([None, 1])), draw(st.sampled_from([0, 1]))))
    parts.append(layer.Flatten())
    try:
        size = nn.Sequential(*parts).eval()(torch.zeros(1, *shape)).shape[1]
    except RuntimeError:  # a window larger than what is left of the image
        assume(False)
    functional.reset_net(nn.Sequential(*parts))
    parts += [layer.Linear(size, 4), draw(neurons())]
    return finish(draw, parts, shape)


def finish(draw, parts, shape):
    """The layers in one of the library's containers, in either step mode; weights, raster."""
    module, multi = contained(parts, draw(st.sampled_from(["single", "multi", "steps", "grouped", "either"])))
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    on_grid(module, generator, draw(st.sampled_from([1.0, 2.0])))
    for part in module.modules():
        if isinstance(part, neuron.ParametricLIFNode):
            part.w.data += float(generator.uniform(-0.5, 0.5))
    steps, batch = draw(st.integers(5, 25)), draw(st.integers(1, 3))
    raster = torch.tensor(generator.poisson(draw(st.sampled_from([0.2, 0.6])), (steps, batch, *shape)))
    return Drawn(module.eval(), raster.to(torch.float32), multi)


def contained(parts, how):
    """Layers as one network, and whether it takes time."""
    if how in ("single", "multi"):
        module = nn.Sequential(*parts)
        functional.set_step_mode(module, how[0])
        return module, how == "multi"
    if how == "steps":
        return layer.MultiStepContainer(*parts), True
    if how == "either":
        return nn.Sequential(layer.StepModeContainer(True, "m", *parts)), True
    # stateless layers in SeqToANNContainer, the others as they are, with time
    stages = []
    for stateful, group in itertools.groupby(parts, lambda part: isinstance(part, base.MemoryModule)):
        found = list(group)
        functional.set_step_mode(nn.Sequential(*found), "m" if stateful else "s")
        stages += found if stateful else [layer.SeqToANNContainer(*found)]
    return nn.Sequential(*stages), True
