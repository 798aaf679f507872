"""What tracing keeps, folds, or refuses: nothing is dropped."""

import copy

import nir
import numpy as np
import pytest
import torch
from nets import Body
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

import nirdeploy as nd
from nirdeploy.convert.layers import SumPool2d
from nirdeploy.errors import ConversionError
from nirdeploy.reference.neurons import IF, LI, LIF

PLAIN = nd.Convention(if_gain="r", reset="zero", dt=1e-3)


def kinds(graph):
    return sorted(type(node).__name__ for node in graph.nodes.values() if not isinstance(node, nir.Input | nir.Output))


def same_result(module, shape, **options):
    """The graph computes what the module computes; its node types."""
    module.eval()
    graph = nd.torch_to_nir(module, input_shape=shape, **options)
    x = torch.randn(4, *shape)
    expected = module(x)
    found, _ = nd.nir_to_torch(graph)(x)
    assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    return kinds(graph)


def randomised(norm):
    """BatchNorm with statistics and weights that are not the initial ones."""
    norm.running_mean.copy_(torch.randn_like(norm.running_mean))
    norm.running_var.copy_(torch.rand_like(norm.running_var) * 1e-3)  # small: eps matters
    norm.weight.data.copy_(torch.randn_like(norm.weight))
    norm.bias.data.copy_(torch.randn_like(norm.bias))
    return norm


CONSTANT = torch.tensor([0.5, -1.0, 2.0])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda s, x: s.a(x) + 1.5, ["Affine"]),
        (lambda s, x: 1.5 + s.a(x), ["Affine"]),
        (lambda s, x: s.a(x) - CONSTANT, ["Affine"]),
        (lambda s, x: CONSTANT - s.a(x), ["Affine", "Affine", "Scale"]),
        (lambda s, x: s.a(x).add(CONSTANT, alpha=2), ["Affine"]),
        (lambda s, x: s.a(x) * 2, ["Affine", "Scale"]),
        (lambda s, x: s.a(x) * CONSTANT / 4, ["Affine", "Scale", "Scale"]),
        (lambda s, x: -s.a(x), ["Affine", "Scale"]),
        (lambda s, x: torch.sub(s.a(x), s.b(x)), ["Affine", "Affine", "Scale"]),
        (lambda s, x: s.a(x).add(s.b(x), alpha=3), ["Affine", "Affine", "Scale"]),
        (lambda s, x: sum([s.a(x), s.b(x), x]), ["Affine", "Affine"]),
        (lambda s, x: (y := s.a(x)) + y + x, ["Affine", "Scale"]),
        (lambda s, x: s.a(x) + s.p, ["Affine", "Affine"]),
        (lambda s, x: s.a(x) + s.buffer * 2, ["Affine"]),
        (lambda s, x: s.a(s.a(x)), ["Affine", "Affine"]),
        (lambda s, x: functional.dropout(s.a(x), training=s.training).clone(), ["Affine"]),
        (lambda s, x: (s.a(x), s.b(x))[1], ["Affine"]),
    ],
)
def test_arithmetic_is_folded_or_represented_exactly(body, expected):
    torch.manual_seed(0)
    module = Body(body, a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    module.p = nn.Parameter(torch.randn(3))
    module.register_buffer("buffer", torch.randn(3))
    assert same_result(module, (3,)) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda s, x: s.c(x) + 0.5, ["Conv2d"]),
        (lambda s, x: s.n(s.c(x)), ["Conv2d"]),
        (lambda s, x: s.n(s.c(x) + s.c2(x)), ["Conv2d", "Conv2d", "Conv2d"]),
        (lambda s, x: s.n(y := s.c(x)) + y, ["Conv2d", "Conv2d"]),
        (lambda s, x: functional.avg_pool2d(s.c(x), 2), ["AvgPool2d", "Conv2d"]),
        (lambda s, x: s.c(x).view(x.size(0), -1), ["Conv2d", "Flatten"]),
        (lambda s, x: torch.reshape(s.c(x), (x.shape[0], -1)), ["Conv2d", "Flatten"]),
        (lambda s, x: torch.flatten(input=s.c(x), start_dim=1), ["Conv2d", "Flatten"]),
        (lambda s, x: s.f(s.s(s.c(x))), ["Conv2d", "Flatten", "SumPool2d"]),
    ],
)
def test_images_norms_pools_and_flattening(body, expected):
    torch.manual_seed(0)
    module = Body(
        body,
        c=nn.Conv2d(2, 3, 3, padding=1, bias=False),
        c2=nn.Conv2d(2, 3, 1),
        n=randomised(nn.BatchNorm2d(3)),
        s=SumPool2d(2),
        f=nn.Flatten(),
    )
    assert same_result(module, (2, 4, 4)) == expected


def test_batch_norm_after_linear_and_by_itself():
    torch.manual_seed(0)
    assert same_result(nn.Sequential(nn.Linear(3, 3, bias=False), randomised(nn.BatchNorm1d(3))), (3,)) == ["Affine"]
    assert same_result(nn.Sequential(randomised(nn.BatchNorm1d(3))), (3,)) == ["Affine"]
    assert same_result(nn.Sequential(nn.Conv1d(2, 3, 3), randomised(nn.BatchNorm1d(3))), (2, 8)) == ["Conv1d"]
    without = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ConversionError, match="without running statistics"):
        nd.torch_to_nir(without)


def test_several_inputs_and_outputs_are_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, left, right):
            return {"sum": self.a(left) + self.b(right), "left": self.a(left)}

    torch.manual_seed(0)
    net = Two()
    graph = nd.torch_to_nir(net)
    assert nd.graph.input_names(graph) == ["left", "right"]
    assert nd.graph.output_names(graph) == ["left_1", "sum"]
    x, y = torch.randn(5, 2), torch.randn(5, 4)
    module = nd.nir_to_torch(graph)
    for call in (module(x, y), module({"left": x, "right": y}), module(left=x, right=y), module((x, y))):
        assert torch.allclose(call[0]["sum"], net(x, y)["sum"])


def test_samples_of_several_inputs_need_not_have_one_shape():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = SumPool2d(2), SumPool2d(3)

        def forward(self, x, y):
            return self.left(x), self.right(y)

    samples = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 6, 9)
    for given in (samples, list(samples), dict(zip("xy", samples, strict=True))):
        shapes = nd.graph.shapes(nd.torch_to_nir(Two(), sample_input=given))
        assert (shapes["x"].output, shapes["y"].output) == ((2, 4, 4), (3, 6, 9))


def test_tuple_outputs_are_numbered():
    graph = nd.torch_to_nir(Body(lambda s, x: (s.a(x), s.b(x)), a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    assert nd.graph.output_names(graph) == ["output_0", "output_1"]


class Recurrent(nn.Module):
    """A layer fed with its own earlier spikes through the state."""

    def __init__(self):
        super().__init__()
        self.up, self.back = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
        self.lif = LIF(5e-3, r=4.0, convention=PLAIN)

    def forward(self, x, state=None):
        x = self.up(x)
        if state is None:
            spikes, v = self.lif(x)
        else:
            spikes, v = self.lif(x + self.back(state["spikes"]), state["v"])
        return spikes, {"spikes": spikes, "v": v}


def test_recurrence_through_the_state_becomes_a_feedback_edge():
    torch.manual_seed(1)
    net = Recurrent()
    graph = nd.torch_to_nir(net)
    assert nd.feedback_edges(graph) == [("back", "lif")]
    module = nd.nir_to_torch(graph)
    ours = theirs = None
    total = 0
    for _ in range(20):
        x = torch.rand(6, 3) * 3
        a, theirs = net(x, theirs)
        b, ours = module(x, ours)
        assert torch.equal(a, b)
        total += int(a.sum())
    assert total > 0
    assert set(ours) == {"lif", "back->lif"}


def test_recurrence_hidden_behind_a_question_is_refused():
    class Hidden(Recurrent):
        def forward(self, x, state=None):
            state = state or {}
            x = self.up(x)
            if "spikes" in state:
                x = x + self.back(state["spikes"])
            spikes, v = self.lif(x, state.get("v"))
            return spikes, {"spikes": spikes, "v": v}

    with pytest.raises(ConversionError, match="the returned state holds an output, and forward hides how it is used"):
        nd.torch_to_nir(Hidden())


def test_state_that_is_read_and_not_returned_is_refused():
    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = IF(convention=PLAIN)
            self.fc = nn.Linear(2, 2)

        def forward(self, x, state):
            spikes, new = self.a(self.fc(x), state["a"])
            return spikes, {"b": new}

    with pytest.raises(ConversionError, match=r"the state of 'a' is read from state\['a'\], but forward returns"):
        nd.torch_to_nir(Forgetful())


def test_forward_that_returns_nothing_is_refused():
    with pytest.raises(ConversionError, match="constant None cannot be"):
        nd.torch_to_nir(Body(lambda s, x: None, a=nn.Linear(2, 2)))


class OwnForward(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class OwnIF(IF):
    def integrate(self, x, state):
        v, current = super().integrate(x, state)
        return 2 * v, current


def hooked(module):
    module.register_forward_hook(lambda m, i, o: 2 * o)
    return module


def patched(module):
    module.forward = lambda x: 7 * x
    return module


def aliased(s, x):
    y = s.a(x)
    z = y.view(x.size(0), -1)
    z.add_(1)
    return s.b(y)


def inplace_used_again(s, x):
    y = s.a(x)
    y.mul_(2)
    return s.b(y)


def augmented_alias(s, x):
    y = s.a(x)
    z = y
    z += s.b(x)
    return s.b(y)


def relu_in_place(s, x):
    y = s.a(x)
    functional.relu(y, inplace=True)
    return s.b(y)


def written_into(s, x):
    y = s.a(x)
    y.copy_(x)
    return y


def remembers(s, x):
    y = s.a(x)
    if s.before is not None:
        y = y + s.before
    s.before = y
    return y


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Body(inplace_used_again), "'mul_' changes a value in place that is used again"),
        (Body(augmented_alias), "'iadd' changes a value in place that is used again"),
        (Body(relu_in_place), "'relu' changes a value in place that is used again"),
        (Body(written_into), "'copy_' changes a value in place that is used again"),
        (Body(aliased), "'add_' changes a value in place that is used again"),
        (
            Body(lambda s, x: s.own(x), own=OwnForward(2, 2)),
            "OwnForward has a forward of its own, so it is no plain Linear",
        ),
        (Body(lambda s, x: s.own(s.a(x))[0], own=OwnIF(convention=PLAIN)), "OwnIF is a subclass of IF"),
        (Body(lambda s, x: s.own(x), own=hooked(nn.Linear(2, 2))), "Linear has forward hooks"),
        (hooked(Body(lambda s, x: s.a(x))), "Body has forward hooks"),
        (Body(lambda s, x: s.own(x), own=patched(nn.Linear(2, 2))), "has a forward of its own"),
        (Body(remembers, before=None), "forward changes before of Body: memory outside its state"),
        (
            Body(lambda s, x: s.n(s.a(x), s.b(x))[0], n=IF(convention=PLAIN)),
            "second argument that is not its own state",
        ),
        (Body(lambda s, x: s.n(state=s.b(x), x=s.a(x))[0], n=IF(convention=PLAIN)), "not its own state"),
        (Body(lambda s, x: s.own(x), own=nn.LazyLinear(2)), "LazyLinear"),
        (Body(lambda s, x: s.own(x), own=nn.Linear(2, 2, device="meta")), "parameters that cannot be read"),
        (Body(lambda s, x: s.a(x) if x else x), "depends on its data|cannot be traced"),
        (Body(lambda s, x: s.a(x) * int(x.sum())), "depends on its data|cannot be traced"),
        (Body(lambda s, x: s.a(x) / 0), "by zero"),
        (
            Body(lambda s, x: functional.dropout(s.a(x), 0.2)).eval(),
            r"'dropout' drops values by chance; call eval\(\), and give it training=self.training",
        ),
        (Body(lambda s, x: 1 / s.a(x)), "by a signal"),
        (Body(lambda s, x: s.a(x) + torch.randn(2)), "draws random numbers.*keep them as a buffer"),
        (Body(lambda s, x: s.a(x) + torch.ones(3)), "does not fit"),
        (Body(lambda s, x: s.a(x).reshape(-1)), "is no flattening of a sample"),
        (Body(lambda s, x: s.a(x).view(x.size(1), -1)), "another axis than the batch"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused_by_name(module, words):
    module.a = nn.Linear(2, 2)
    module.b = nn.Linear(2, 2)
    with pytest.raises(ConversionError, match=words):
        nd.torch_to_nir(module)
    if hasattr(module, "before"):
        assert module.before is None


def test_old_weight_norm_pruning_and_spectral_norm_hooks_are_refused():
    pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 3)
    with pytest.raises(ConversionError, match="forward hooks"):
        nd.torch_to_nir(nn.Sequential(pruned))


def test_parametrised_weights_are_read_without_changing_them():
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    assert parametrize.is_parametrized(layer)
    before = copy.deepcopy(layer.state_dict())
    graph = nd.torch_to_nir(nn.Sequential(layer).train())
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in before.items())
    assert layer.training
    layer.eval()
    assert np.allclose(graph.nodes["0"].weight, layer.weight.detach().numpy())


def test_in_place_on_a_value_nobody_sees_again_is_fine():
    torch.manual_seed(0)
    assert same_result(Body(lambda s, x: s.a(x).mul_(2).add_(1), a=nn.Linear(3, 3)), (3,)) == [
        "Affine",
        "Affine",
        "Scale",
    ]


def test_neurons_of_different_conventions_become_overrides():
    other = nd.Convention(if_gain="r", reset="subtract", dt=1e-3)
    net = nn.Sequential(nn.Linear(2, 2), IF(convention=PLAIN), nn.Linear(2, 2), IF(convention=other))
    stored = nd.Convention.from_dict(nd.graph.metadata(nd.torch_to_nir(net))["convention"])
    assert stored.for_node("1", "IF").reset == "zero"
    assert stored.for_node("3", "IF").reset == "subtract"
    slow = nn.Sequential(IF(1.0 * torch.ones(2), convention=PLAIN), LI(1e-2, convention=nd.Convention(dt=1.0)))
    with pytest.raises(ConversionError, match="its convention has dt=1.0, that of '0' 0.001"):
        nd.torch_to_nir(slow)


def test_run_of_a_module_with_another_convention_is_refused():
    net = nn.Sequential(nn.Linear(2, 2), IF(convention=PLAIN))
    with pytest.raises(ValueError, match="built with another convention"):
        nd.run(net, np.zeros((2, 1, 2)), convention=nd.Convention(if_gain="r"))


def test_module_rebuilt_with_another_convention_exports_that_one():
    graph = nd.torch_to_nir(nn.Sequential(nn.Linear(2, 2), IF(convention=PLAIN)))
    other = nd.Convention(if_gain="r", reset="subtract")
    again = nd.torch_to_nir(nd.nir_to_torch(graph, convention=other))
    assert nd.Convention.from_dict(nd.graph.metadata(again)["convention"]) == other


def test_map_may_return_a_graph_and_tensors_become_arrays():
    inner = nd.torch_to_nir(nn.Sequential(nn.Linear(2, 2), LI(1e-2, convention=PLAIN)))
    graph = nd.torch_to_nir(
        nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)),
        {nn.Tanh: lambda m: inner, nn.Linear: lambda m: nir.Affine(m.weight.detach(), m.bias.detach())},
    )
    assert isinstance(graph.nodes["1"], nir.NIRGraph)
    assert isinstance(graph.nodes["0"].weight, np.ndarray)
    module = nd.nir_to_torch(graph, dt=1e-3)
    _, state = module(torch.ones(1, 3))
    assert set(state) == {"1"}
    assert set(state["1"]) == {"1"}
