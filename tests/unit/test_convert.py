import nir
import numpy as np
import pytest
import torch
from nets import Body, chain, conv_net, conv_node, flatten_node, if_node, lif_node, pool_node
from torch import nn

import nirdeploy as nd
from nirdeploy.convert.layers import SumPool2d
from nirdeploy.convert.primitives import PRIMITIVES
from nirdeploy.errors import (
    ConventionError,
    ConversionError,
    MissingTimeStepError,
    RasterError,
    UnsupportedError,
)
from nirdeploy.graph import make_node, sha256
from nirdeploy.reference.neurons import IF, LIF

PLAIN = nd.Convention(if_gain="r", reset="zero", dt=1e-3)


class Net(nn.Module):
    """A module as users write them: nested blocks, state threaded through forward."""

    def __init__(self):
        super().__init__()
        self.features = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3, padding=1, bias=False), "drop": nn.Dropout(0.5)})
        self.if1 = IF(convention=PLAIN)
        self.pool = SumPool2d(2)
        self.fc = nn.Linear(12, 4)
        self.if2 = IF(convention=PLAIN)

    def forward(self, x, state=None):
        state, new = state or {}, {}
        x, new["if1"] = self.if1(self.features["drop"](self.features["conv"](x)), state.get("if1"))
        x = torch.flatten(self.pool(x), 1)
        x, new["if2"] = self.if2(self.fc(x), state.get("if2"))
        return x, new


def edges(graph):
    return sorted(graph.edges)


def test_traces_a_module_with_threaded_state():
    net = Net()
    graph = nd.torch_to_nir(net, input_shape=(2, 4, 4))
    assert {n: type(v).__name__ for n, v in graph.nodes.items()} == {
        "input": "Input",
        "features.conv": "Conv2d",
        "if1": "IF",
        "pool": "SumPool2d",
        "flatten": "Flatten",
        "fc": "Affine",
        "if2": "IF",
        "output": "Output",
    }
    assert edges(graph) == sorted(
        [
            ("input", "features.conv"),
            ("features.conv", "if1"),
            ("if1", "pool"),
            ("pool", "flatten"),
            ("flatten", "fc"),
            ("fc", "if2"),
            ("if2", "output"),
        ]
    )
    assert np.array_equal(graph.nodes["fc"].bias, net.fc.bias.detach().numpy())
    assert graph.nodes["if1"].v_threshold.shape == (3, 4, 4)
    assert tuple(graph.nodes["output"].output_type["output"]) == (4,)


def test_traced_graph_computes_what_the_module_computes():
    torch.manual_seed(0)
    net = Net().eval()
    graph = nd.torch_to_nir(net, sample_input=torch.zeros(5, 2, 4, 4))
    imported = nd.nir_to_torch(graph)
    ours, theirs = None, None
    for _ in range(8):
        x = (torch.rand(5, 2, 4, 4) < 0.5).float()
        a, theirs = net(x, theirs)
        b, ours = imported(x, ours)
        assert torch.equal(a, b)
        assert torch.equal(theirs["if1"], ours["if1"])


def test_tracing_leaves_the_module_as_it_was():
    net = Net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    nd.torch_to_nir(net, input_shape=(2, 4, 4))
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_graph_shares_no_memory_with_the_module():
    net = Net()
    graph = nd.torch_to_nir(net, input_shape=(2, 4, 4))
    net.fc.weight.data.zero_()
    assert np.any(graph.nodes["fc"].weight != 0)


def test_module_map_wins_and_follows_the_class_hierarchy():
    class MyLinear(nn.Linear):
        pass

    class MyScale(nn.Module):
        def forward(self, x):
            return 2 * x

    net = nn.Sequential(MyLinear(3, 2), MyScale())
    graph = nd.torch_to_nir(
        net,
        {
            nn.Linear: lambda m: nir.Linear(m.weight.detach().numpy() * 10),
            MyScale: lambda m: nir.Linear(2 * np.eye(2, dtype=np.float32)),
        },
    )
    assert [type(graph.nodes[n]).__name__ for n in ("0", "1")] == ["Linear", "Linear"]
    assert np.allclose(graph.nodes["0"].weight, net[0].weight.detach().numpy() * 10)


def test_map_may_bypass_a_module_with_none():
    graph = nd.torch_to_nir(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), {nn.Tanh: lambda m: None})
    assert edges(graph) == [("0", "output"), ("input", "0")]


def test_additions_become_edges():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return torch.add(self.a(x), self.b(x)) + x

    assert edges(nd.torch_to_nir(Residual())) == sorted(
        [("input", "a"), ("input", "b"), ("a", "output"), ("b", "output"), ("input", "output")]
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda s, x: s.a(x) * s.a(x), "operation 'mul' of two signals"),
        (lambda s, x: torch.relu(s.a(x)), r"operation 'relu' .*test_convert.py:\d+\). Put it into a module"),
        (lambda s, x: s.a(x).sigmoid(), "tensor method 'sigmoid'"),
        (lambda s, x: x + x, "needs to know the shape"),
        (lambda s, x: s.a(x)[0], "indexing"),
        (lambda s, x: torch.flatten(s.a(x)), r"start_dim=0\) merges the batch"),
        (lambda s, x: s.a(x) if x.sum() > 0 else x, "depends on its data"),
        (lambda s, x: s.t(s.a(x)), "node 't': Tanh is not supported"),
    ],
)
def test_refuses_what_nir_would_lose(body, words):
    with pytest.raises((ConversionError, UnsupportedError), match=words):
        nd.torch_to_nir(Body(body, a=nn.Linear(2, 2), t=nn.Tanh()))


def test_refuses_a_neuron_module_called_twice():
    net = Body(lambda s, x: s.n(s.a(s.n(s.a(x))[0]))[0], a=nn.Linear(2, 2), n=IF(convention=PLAIN))
    with pytest.raises(ConversionError, match="'n': a neuron module is called twice"):
        nd.torch_to_nir(net)


def test_refuses_a_convolution_of_unknown_input_shape():
    with pytest.raises(ConversionError, match=r"'0': Conv2d needs .* Pass input_shape="):
        nd.torch_to_nir(nn.Sequential(nn.Conv2d(1, 2, 3)))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(1, 1, 3, padding_mode="circular", padding=1), "padding_mode 'circular'"),
        (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
    ],
)
def test_refuses_options_nir_lacks(module, words):
    with pytest.raises(ConversionError, match=words):
        nd.torch_to_nir(nn.Sequential(module), input_shape=(1, 4, 4))


@pytest.mark.parametrize(
    ("node", "size", "module"),
    [
        (
            conv_node(np.random.default_rng(0).normal(size=(4, 1, 3, 2)), (7, 6), (2, 1), (1, 0), groups=2),
            (2, 7, 6),
            None,
        ),
        (conv_node(np.ones((2, 2, 3, 3)), (7, 7), bias=[1, -1], dilation=2), (2, 7, 7), None),
        (pool_node(nir.AvgPool2d, 2, 1, 1), (2, 5, 5), nn.AvgPool2d(2, 1, 1)),
        (pool_node(nir.SumPool2d, 3, 2), (2, 7, 7), None),
    ],
)
def test_imported_layers_equal_torch(node, size, module):
    x = torch.randn(3, *size)
    out, _ = nd.nir_to_torch(chain(size, layer=node))(x)
    if module is None and isinstance(node, nir.Conv2d):
        expected = nn.functional.conv2d(
            x,
            torch.tensor(node.weight),
            torch.tensor(node.bias),
            tuple(node.stride),
            tuple(node.padding),
            tuple(node.dilation),
            node.groups,
        )
    elif module is None:
        expected = nn.functional.avg_pool2d(x, 3, 2) * 9
    else:
        expected = module(x)
    assert torch.allclose(out, expected, atol=1e-5)


def test_affine_import_uses_the_bias_of_the_file():
    node = make_node(nir.Affine, weight=np.ones((1, 2), np.float32), bias=np.array([7.0], np.float32))
    assert nd.nir_to_torch(chain((2,), a=node))(torch.zeros(1, 2))[0].item() == 7.0


def test_flatten_counts_dimensions_without_the_batch():
    module = nd.nir_to_torch(chain((2, 3, 3), flat=flatten_node((2, 3, 3))))
    assert module(torch.zeros(4, 2, 3, 3))[0].shape == (4, 18)
    assert module(torch.zeros(2, 3, 3))[0].shape == (18,)


def test_state_is_not_mutated_and_may_be_partial():
    module = nd.nir_to_torch(conv_net(), convention=PLAIN)
    x = torch.ones(2, 1, 6, 6)
    _, first = module(x)
    kept = {k: v.clone() for k, v in first.items()}
    module(x, first)
    assert all(torch.equal(kept[k], first[k]) for k in kept)
    _, second = module(x, {"if1": first["if1"]})
    assert set(second) == {"if1", "if2", "if3"}


def test_state_of_another_batch_names_the_node():
    module = nd.nir_to_torch(conv_net(), convention=PLAIN)
    _, state = module(torch.ones(2, 1, 6, 6))
    with pytest.raises(ConventionError, match=r"'if1'.*shape \(2, 3, 6, 6\)"):
        module(torch.ones(3, 1, 6, 6), state)


def test_input_of_the_wrong_shape_names_both_shapes():
    module = nd.nir_to_torch(conv_net(), convention=PLAIN)
    with pytest.raises(RasterError, match=r"shape \(2, 1, 6, 5\), expected \(1, 6, 6\)"):
        module(torch.ones(2, 1, 6, 5))


@pytest.mark.parametrize("name", ["a.b", "forward", "training", "nodes", "input 1", "ünï", "50%", "x" * 300])
def test_any_node_name_imports_runs_and_has_state_dict_keys(name):
    module = nd.nir_to_torch(chain((2,), **{name: if_node((2,))}), convention=PLAIN)
    out, state = module(2 * torch.ones(1, 2))
    assert out.tolist() == [[1.0, 1.0]]
    assert list(state) == [name]
    other = nd.nir_to_torch(chain((2,), **{name: if_node((2,), 9.0)}), convention=PLAIN)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(2 * torch.ones(1, 2))[0], out)


def test_names_that_differ_in_dots_and_underscores_do_not_collide():
    nodes = {"a.b": if_node((1,), 1.0), "a_b": if_node((1,), 5.0)}
    out, state = nd.nir_to_torch(chain((1,), **nodes), convention=PLAIN)(torch.full((1, 1), 2.0))
    assert set(state) == {"a.b", "a_b"}
    assert out.item() == 0.0


def test_node_without_a_map_names_node_and_type():
    with pytest.raises(UnsupportedError, match="'slow': type LI is not supported"):
        nd.nir_to_torch(chain((2,), slow=nir.LI(np.ones(2), np.ones(2), np.zeros(2))), {}, {nir.IF: lambda n: None})


def test_missing_dt_is_a_type_error_at_build_time():
    with pytest.raises(MissingTimeStepError, match="'lif': LIF with a time constant needs dt") as caught:
        nd.nir_to_torch(chain((1,), lif=lif_node((1,))))
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_two_steps_of_time_are_an_error():
    with pytest.raises(ConventionError, match=r"dt=0.1 and a convention with dt=0.001"):
        nd.nir_to_torch(conv_net(), convention=PLAIN, dt=0.1)


def test_bare_node_gives_the_mapped_module_itself():
    module = nd.nir_to_torch(nir.Linear(np.eye(2, dtype=np.float32)))
    assert isinstance(module, nn.Linear)
    node = nd.torch_to_nir(nn.Linear(2, 3))
    assert isinstance(node, nir.Affine)


def test_round_trip_gives_the_graph_back():
    graph = conv_net()
    again = nd.torch_to_nir(nd.nir_to_torch(graph, convention=PLAIN))
    assert sha256(again) == sha256(graph)
    assert list(again.edges) == list(graph.edges)


def test_round_trip_exports_trained_parameters():
    module = nd.nir_to_torch(chain((2,), fc=nir.Linear(np.eye(2, dtype=np.float32))))
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    assert np.array_equal(nd.torch_to_nir(module).nodes["fc"].weight, np.eye(2) + 1)


def test_gradients_reach_the_weights_of_an_imported_module():
    module = nd.nir_to_torch(conv_net(), convention=PLAIN)
    out, _ = module(torch.ones(2, 1, 6, 6))
    out.sum().backward()
    assert module.get(("conv1",)).weight.grad.abs().sum() > 0


def test_dtype_is_honoured():
    module = nd.nir_to_torch(conv_net(), convention=PLAIN, dtype=torch.float64)
    out, state = module(torch.ones(1, 1, 6, 6, dtype=torch.float64))
    assert out.dtype == state["if1"].dtype == torch.float64


def test_table_has_one_row_a_primitive():
    rows = [row.node for row in PRIMITIVES]
    assert len(rows) == len(set(rows))
    modules = [m for row in PRIMITIVES for m in row.modules]
    assert len(modules) == len(set(modules))


def test_convention_of_our_own_modules_travels_in_the_graph():
    graph = nd.torch_to_nir(nn.Sequential(nn.Linear(2, 2), LIF(1e-2, convention=PLAIN)))
    assert nd.Convention.from_dict(nd.graph.metadata(graph)["convention"]) == PLAIN


@pytest.mark.parametrize("kernel", [(3, 5), 3])
def test_padding_same_is_held_by_every_nir(kernel):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, kernel, padding="same", dilation=2), nn.Identity())
    graph = nd.torch_to_nir(network, input_shape=(2, 9, 9))
    x = torch.randn(2, 2, 9, 9)
    assert torch.equal(nd.nir_to_torch(graph)(x)[0], network(x))
