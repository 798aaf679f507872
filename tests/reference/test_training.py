"""Training through `sequence`: outputs, states and gradients are those of the step loop under autograd."""

import math

import nir
import numpy as np
import pytest
import torch
from nets import chain, conv_node, flatten_node, if_node, linear_node, make_graph
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConventionError, RasterError
from nirdeploy.graph import make_node
from nirdeploy.reference.neurons import Neuron
from nirdeploy.reference.surrogates import SURROGATES, surrogate_of

FIELDS = {
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "IF": ("r", "v_threshold", "v_reset"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    "LI": ("tau", "r", "v_leak"),
    "I": ("r",),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
}
KINDS = [k for k in FIELDS if hasattr(nir, k)]
RANGES = {
    "tau": (2e-3, 9e-3),
    "tau_mem": (2e-3, 9e-3),
    "tau_syn": (2e-3, 9e-3),
    "r": (0.8, 1.5),
    "v_leak": (-0.1, 0.1),
    "v_threshold": (0.4, 1.0),
    "v_reset": (-0.2, 0.1),
    "w_in": (0.8, 2.0),
}
CONVENTIONS = {
    "v_reset": {},
    "subtract": {"reset": "subtract"},
    "bounded": {"reset": "zero", "v_min": -0.05},
    "sinabs": {"reset": "subtract", "v_min": "-threshold", "spikes_per_step": "many", "crossing": "inclusive"},
    "next_step": {"reset_time": "next_step"},  # late resets go through torch's own operations
    "brought_forward": {"reset": "subtract", "reset_time": "brought_forward"},
    "delayed": {"population_delay": 1},
    "start": {"v_start": "v_leak", "synapse_gain": "decayed", "gain": "unit"},
}
HAS_V_RESET = "v_reset" in nir.IF.__dataclass_fields__
pytestmark = pytest.mark.skipif(not HAS_V_RESET, reason="nir 1.0.4 has no v_reset")


def population(kind, rng, size):
    values = {field: rng.uniform(*RANGES[field], size) for field in FIELDS[kind]}
    return make_node(getattr(nir, kind), **values)


def network(kind, seed=0):
    rng = np.random.default_rng(seed)
    return chain(
        (5,),
        a=make_node(nir.Affine, weight=rng.normal(0.3, 1, (7, 5)), bias=rng.normal(0, 0.1, 7)),
        n=population(kind, rng, 7),
        b=linear_node(rng.normal(0.2, 1, (3, 7))),
        o=if_node((3,), 0.7),
    )


def recurrent():
    rng = np.random.default_rng(3)
    graph = network("LIF", 3)
    back = make_node(nir.Affine, weight=rng.normal(0, 0.4, (7, 7)), bias=rng.normal(0, 0.1, 7))
    return make_graph({**graph.nodes, "back": back}, [*graph.edges, ("n", "back"), ("back", "n")])


def by_loop(module, x, state=None):
    out = []
    for frame in x:
        y, state = module(frame, state)
        out.append(y)
    return torch.stack(out), state


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state]
    return [t for key in sorted(state) for t in tensors(state[key])]


def gradients(module, work, x):
    """Output, state and every gradient of a fixed function of them."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    out, state = work(x)
    weight = torch.linspace(0.1, 1.0, out.numel(), dtype=out.dtype).reshape(out.shape)
    ((out * weight).sum() + sum(t.sum() for t in tensors(state))).backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return out.detach(), tensors(state), {**found, "raster": x.grad}


def assert_alike(found, wanted, bound):
    """Outputs equal; states and gradients within the bound of their largest value.

    A sum carries the rounding of its largest terms, whatever is left of them: torch multiplies one row and many in other
    orders, and in which ones depends on the processor.
    """
    assert torch.equal(found[0], wanted[0])
    for a, b in zip(found[1], wanted[1], strict=True):
        assert float((a - b).abs().max()) <= bound * max(float(b.abs().max()), 1.0)
    zero = torch.zeros(())
    for name in {*found[2], *wanted[2]}:
        a, b = found[2].get(name, zero), wanted[2].get(name, zero)
        assert float((a - b).abs().max()) <= bound * max(float(b.abs().max()), 1e-3), name


@pytest.mark.parametrize("method", ["dense", "event"])
@pytest.mark.parametrize("name", list(CONVENTIONS))
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loop(kind, name, method):
    convention = nd.Convention(**{"dt": 1e-3, "if_gain": "r", "gain": "decay", **CONVENTIONS[name]})
    for dtype, bound, batch in ((torch.float64, 1e-10, 5), (torch.float32, 1e-5, 1)):
        module = nd.nir_to_torch(network(kind), convention=convention, dtype=dtype)
        x = torch.rand((20, batch, 5), dtype=dtype, generator=torch.Generator().manual_seed(1))
        wanted = gradients(module, lambda x, m=module: by_loop(m, x), x)
        assert_alike(gradients(module, lambda x, m=module: m.sequence(x, method=method), x), wanted, bound)


@pytest.mark.parametrize("start", ["silence", "zero"])
@pytest.mark.parametrize("method", ["dense", "event"])
def test_recurrent_networks_train(method, start):
    convention = nd.Convention(dt=1e-3, gain="decay", if_gain="r", feedback_start=start)
    module = nd.nir_to_torch(recurrent(), convention=convention, dtype=torch.float64)
    x = torch.rand((15, 3, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = gradients(module, lambda x: by_loop(module, x), x)
    assert wanted[2]["back.weight"].abs().max() > 0
    assert_alike(gradients(module, lambda x: module.sequence(x, method=method), x), wanted, 1e-10)


def test_convolutions_train():
    rng = np.random.default_rng(0)
    graph = chain(
        (1, 6, 6),
        c=conv_node(rng.normal(0.2, 0.5, (3, 1, 3, 3)), (6, 6), padding=1),
        n=if_node((3, 6, 6), 0.8),
        f=flatten_node((3, 6, 6)),
        w=linear_node(rng.normal(0, 0.3, (4, 108))),
        o=if_node((4,)),
    )
    convention = nd.Convention(if_gain="r", reset="subtract", v_min="-threshold")
    module = nd.nir_to_torch(graph, convention=convention, dtype=torch.float64)
    x = (torch.rand((9, 2, 1, 6, 6), generator=torch.Generator().manual_seed(0)) < 0.3).double()
    wanted = gradients(module, lambda x: by_loop(module, x), x)
    for method in ("dense", "event"):
        assert_alike(gradients(module, lambda x, m=method: module.sequence(x, method=m), x), wanted, 1e-10)


FORMULAS = {
    "fast_sigmoid": lambda d, k: 1 / (1 + k * abs(d)) ** 2,
    "atan": lambda d, k: 1 / (1 + (math.pi * k * d / 2) ** 2),
    "triangle": lambda d, k: max(0.0, 1 - k * abs(d)),
    "rectangle": lambda d, k: k if abs(d) < 1 / (2 * k) else 0.0,
}


@pytest.mark.parametrize("slope", [None, 3.0])
@pytest.mark.parametrize("kind", list(SURROGATES))
def test_surrogates_follow_their_formulas(kind, slope):
    surrogate = nd.Surrogate(kind, slope)
    module = nd.nir_to_torch(chain((1,), n=if_node((1,))), convention=nd.Convention(if_gain="r"), dtype=torch.float64)
    (neuron,) = (m for m in module.modules() if isinstance(m, Neuron))
    neuron.surrogate = surrogate
    for value in (0.2, 0.9, 1.1, 1.7):
        for work in (lambda x: by_loop(module, x), module.sequence):
            x = torch.full((1, 1, 1), value, dtype=torch.float64, requires_grad=True)
            work(x)[0].sum().backward()
            expected = FORMULAS[kind](value - 1, surrogate.slope)
            assert x.grad.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("fast", None), "unknown surrogate 'fast'"),
        (("atan", 0.0), "slope is 0.0"),
        (("atan", math.nan), "slope is nan"),
    ],
)
def test_surrogates_refuse_what_they_are_not(given, words):
    with pytest.raises(ConventionError, match=words):
        nd.Surrogate(*given)
    assert surrogate_of("atan") == nd.Surrogate("atan", 2.0)


@pytest.mark.parametrize("kind", ["LI", *(["CubaLI"] if "CubaLI" in KINDS else [])])
def test_integrators_pass_gradcheck(kind):
    rng = np.random.default_rng(0)
    graph = chain((2,), w=linear_node(rng.normal(0, 1, (3, 2))), n=population(kind, rng, 3))
    module = nd.nir_to_torch(graph, convention=nd.Convention(dt=1e-3), dtype=torch.float64)
    x = torch.rand((4, 2, 2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module.sequence(x)[0], (x,))
    names = [n for n, _ in module.named_parameters() if n != "n.tau" and "tau" not in n]
    values = [module.get_parameter(n) for n in names]
    assert torch.autograd.gradcheck(lambda *_: module.sequence(x.detach())[0], tuple(values))


def test_state_is_carried_and_takes_gradients():
    convention = nd.Convention(dt=1e-3, gain="decay", if_gain="r")
    module = nd.nir_to_torch(network("CubaLIF"), convention=convention, dtype=torch.float64)
    x = torch.rand((20, 2, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    whole, end = module.sequence(x)
    first, state = module.sequence(x[:8])
    second, halves = module.sequence(x[8:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    for a, b in zip(tensors(halves), tensors(end), strict=True):
        assert torch.equal(a, b)
    starts = []
    for work in (lambda s: by_loop(module, x[8:], s), lambda s: module.sequence(x[8:], s)):
        own = {"n": {k: v.detach().requires_grad_() for k, v in state["n"].items()}, "o": state["o"].detach()}
        out, after = work(own)
        (out.sum() + after["n"]["v_mem"].sum()).backward()
        starts.append([own["n"][k].grad for k in ("i_syn", "v_mem")])
    for a, b in zip(*starts, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_frozen_parameters_get_no_gradient():
    module = nd.nir_to_torch(network("LIF"), convention=nd.Convention(dt=1e-3, gain="decay", if_gain="r"))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == "a.weight")
    module.sequence(torch.rand(10, 2, 5))[0].sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is not None] == ["a.weight"]
    with torch.no_grad():
        assert not module.sequence(torch.rand(10, 2, 5))[0].requires_grad


@pytest.mark.parametrize("method", ["dense", "event"])
def test_a_few_steps_of_training_reduce_the_loss(method):
    torch.manual_seed(0)
    module = nd.nir_to_torch(network("LIF"), convention=nd.Convention(dt=1e-3, gain="decay", if_gain="r"))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    rates = 0.1 + 0.7 * nn.functional.one_hot(labels, 5)  # each class has an input of its own
    x = (torch.rand(30, 6, 5) < rates).float()
    optimiser = torch.optim.Adam([p for n, p in module.named_parameters() if "weight" in n], lr=0.05)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(module.sequence(x, method=method)[0].mean(0) * 5, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("raster", "words"),
    [
        (np.ones((3, 1, 5)), "the raster is a ndarray, expected a tensor"),
        (torch.ones(3, 5), r"shape \(3, 5\), expected \[step, batch, 5\]"),
        (torch.ones(3, 1, 5, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.ones((3, 1, 5), device="meta"), "the raster is on meta, the module on cpu"),
        ({"other": torch.ones(3, 1, 5)}, r"rasters of \['other'\] given"),
    ],
)
def test_rasters_of_another_kind_are_refused(raster, words):
    module = nd.nir_to_torch(network("IF"), convention=nd.Convention(if_gain="r"))
    with pytest.raises(RasterError, match=words):
        module.sequence(raster)


def spikes(rng, shape, most):
    return torch.from_numpy(((rng.random(shape) < 0.2) * rng.integers(1, most + 1, shape)).astype(np.float64))


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "next_step"])
@pytest.mark.parametrize("kind", ["IF", "LIF", "CubaLIF"])
def test_gradients_with_frozen_neurons_are_those_of_the_loop(kind, name):
    """Where no parameter of a population is trained, v before the resets is kept in place of its input."""
    convention = nd.Convention(**{"dt": 1e-3, "if_gain": "r", "gain": "decay", **CONVENTIONS[name]})
    module = nd.nir_to_torch(network(kind), convention=convention, dtype=torch.float64)
    for parameter, value in module.named_parameters():
        value.requires_grad_(parameter.rpartition(".")[2] in ("weight", "bias"))
    x = spikes(np.random.default_rng(4), (30, 3, 5), 2)
    wanted = gradients(module, lambda x: by_loop(module, x), x)
    for method in ("dense", "event"):
        found = gradients(module, lambda x, method=method: module.sequence(x, method=method), x)
        assert_alike(found, wanted, 1e-10)
        assert {"a.weight", "a.bias", "b.weight", "raster"} <= set(found[2])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 130])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_populations_of_any_size_train(size, steps):
    rng = np.random.default_rng(size)
    graph = chain(
        (4,), a=linear_node(rng.normal(0.3, 1, (size, 4))), n=population("LIF", rng, size), o=if_node((size,), 0.7)
    )
    for reset in ("zero", "subtract"):
        convention = nd.Convention(dt=1e-3, gain="decay", if_gain="r", reset=reset)
        module = nd.nir_to_torch(graph, convention=convention, dtype=torch.float64)
        for trained in (True, False):
            for name, value in module.named_parameters():
                value.requires_grad_(trained or name == "a.weight")
            x = spikes(rng, (steps, 2, 4), 2) + 1
            wanted = gradients(module, lambda x, m=module: by_loop(m, x), x)
            assert_alike(gradients(module, lambda x, m=module: m.sequence(x), x), wanted, 1e-10)


def test_a_layer_that_others_read_too_is_not_overwritten():
    """The layer in front of the population is an Output as well."""
    rng = np.random.default_rng(2)
    graph = chain((5,), a=linear_node(rng.normal(0.3, 1, (7, 5))), n=if_node((7,), 0.7))
    nodes = {**graph.nodes, "seen": make_node(nir.Output, output_type={"output": np.array([7])})}
    module = nd.nir_to_torch(
        make_graph(nodes, [*graph.edges, ("a", "seen")]), convention=nd.Convention(dt=1e-3, if_gain="r")
    )
    for name, value in module.named_parameters():
        value.requires_grad_(name == "a.weight")
    x = spikes(rng, (6, 4, 5), 1).float()
    for method in ("dense", "event"):
        out, _ = module.sequence(x, method=method)
        assert torch.allclose(out["seen"], x @ module.get_parameter("a.weight").T, atol=1e-6)
        assert out["output"].any()


@pytest.mark.parametrize("method", ["dense", "event"])
def test_second_derivatives_are_refused(method):
    graph = chain((5,), a=linear_node(np.ones((7, 5))), n=if_node((7,), 0.7))
    module = nd.nir_to_torch(graph, convention=nd.Convention(dt=1e-3, if_gain="r"))
    out, _ = module.sequence(torch.eye(5)[:, None], method=method)
    weight = module.get_parameter("a.weight")
    (first,) = torch.autograd.grad((out**2).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
