"""Any graph NIR can hold, imported: feedback, subgraphs, delays, several ports; and back again."""

import copy
import io
import itertools
import pickle

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import conv_node, flatten_node, if_node, input_node, lif_node, linear_node, output_node, pool_node, shared

import nirdeploy as nd
from nirdeploy.convert.primitives import PRIMITIVES
from nirdeploy.errors import ConventionError, GraphError, RasterError, UnsupportedError
from nirdeploy.graph import make_graph, make_node, parameters

DT = nd.Convention(dt=1e-3)


def f32(*values):
    return np.asarray(values, np.float32)


def integrator(n):
    return nir.I(np.full(n, 1e3, np.float32))  # r dt = 1: y_t = y_{t-1} + x_t


def affine(weight, bias):
    return nir.Affine(np.asarray(weight, np.float32), np.asarray(bias, np.float32))


def outputs(module, inputs, state=None):
    found = []
    for x in inputs:
        out, state = module(x, state)
        found.append(out)
    return torch.stack(found), state


LOOP = {"in": input_node(2), "n": integrator(2), "w": affine([[0, 1], [0.5, 0]], [1, 0]), "out": output_node(2)}
LOOP_EDGES = [("in", "n"), ("n", "w"), ("w", "n"), ("n", "out")]


# ---------------------------------------------------------------- every primitive


def test_table_covers_what_nir_defines():
    defined = {name for name in dir(nir) if isinstance(getattr(nir, name), type)}
    defined = {n for n in defined if issubclass(getattr(nir, n), nir.NIRNode)} - {
        "NIRNode",
        "NIRGraph",
        "Input",
        "Output",
    }
    assert {row.node.__name__ for row in PRIMITIVES} == defined


def test_leaky_integrator_by_hand():
    node = nir.LI(f32(4e-3), f32(2), f32(0.4))
    out, _ = outputs(nd.nir_to_torch(graph_of((1,), n=node), convention=DT), torch.full((2, 1), 0.8))
    first = 0.25 * 0.4 + 2 * 0.25 * 0.8
    assert out[:, 0].tolist() == pytest.approx([first, 0.75 * first + first], abs=1e-6)


@pytest.mark.skipif(not hasattr(nir, "CubaLI"), reason="nir 1.0.4 has no CubaLI")
def test_synapse_and_membrane_by_hand():
    # i = 0.5 i + 3 * 0.5 x; the membrane sees the new i: v = 0.75 v + 2 * 0.25 i
    node = nir.CubaLI(f32(2e-3), f32(4e-3), f32(2), f32(0), w_in=f32(3))
    module = nd.nir_to_torch(graph_of((1,), n=node), convention=DT)
    out, state = outputs(module, torch.tensor([[1.0], [0.0]]))
    assert out[:, 0].tolist() == pytest.approx([0.75, 0.75 * 0.75 + 0.5 * 0.75])
    assert state["n"]["i_syn"].item() == pytest.approx(0.75)


def test_cubalif_spikes_and_keeps_its_current():
    node = make_node(
        nir.CubaLIF,
        **{k: f32(v) for k, v in {"tau_syn": 2e-3, "tau_mem": 1e-3, "r": 1, "v_leak": 0, "v_threshold": 0.4}.items()},
        v_reset=f32(0),
        w_in=f32(1),
    )
    out, state = outputs(nd.nir_to_torch(graph_of((1,), n=node), convention=DT), torch.tensor([[1.0], [0.0]]))
    assert out[:, 0].tolist() == [1.0, 0.0]  # i: 0.5, 0.25; v: 0.5 -> spike, 0.25
    assert state["n"]["i_syn"].item() == pytest.approx(0.25)
    assert state["n"]["v_mem"].item() == pytest.approx(0.25)


def graph_of(shape, **nodes):
    names = ["in", *nodes, "out"]
    out = tuple(shape)
    for name, node in nodes.items():
        out = nd.graph.output_shape(name, node, out)
    every = {"in": input_node(*shape), **nodes, "out": output_node(*out)}
    return make_graph(every, list(itertools.pairwise(names)))


def test_delay_holds_each_neuron_its_own_steps():
    module = nd.nir_to_torch(graph_of((3,), d=nir.Delay(f32(0, 1e-3, 3e-3))), dt=1e-3)
    out, state = outputs(module, torch.arange(1.0, 6.0)[:, None].expand(5, 3))
    assert out.T.tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]
    again, _ = outputs(module, torch.zeros(1, 3), state)
    assert again[0].tolist() == [0, 5, 3]


@pytest.mark.parametrize(("delay", "words"), [(1.5e-3, r"1.5 steps of dt=0.001"), (-1e-3, "-1 steps")])
def test_delay_of_part_of_a_step_is_refused(delay, words):
    with pytest.raises(ConventionError, match=words):
        nd.nir_to_torch(graph_of((1,), d=nir.Delay(f32(delay))), dt=1e-3)


def test_delay_without_dt_is_a_type_error_naming_the_node():
    with pytest.raises(TypeError, match="'d': Delay needs dt"):
        nd.nir_to_torch(graph_of((1,), d=nir.Delay(f32(1e-3))))


# ---------------------------------------------------------------- feedback


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        # y_t = y_{t-1} + x + w(y_{t-1}), w(y) = (y1 + 1, y0 / 2); 'zero' leaves the bias out at step 0
        ("silence", [[2, 1], [5, 3], [10, 6.5]]),
        ("zero", [[1, 1], [4, 2.5], [8.5, 5.5]]),
    ],
)
def test_loop_with_bias_starts_as_the_convention_says(start, expected):
    convention = nd.Convention(dt=1e-3, feedback_start=start)
    for order in itertools.permutations(LOOP):
        module = nd.nir_to_torch(make_graph({k: LOOP[k] for k in order}, LOOP_EDGES[::-1]), convention=convention)
        out, _ = outputs(module, torch.ones(3, 2))
        assert out.tolist() == expected


def test_feedback_value_is_state_and_may_be_missing():
    module = nd.nir_to_torch(make_graph(LOOP, LOOP_EDGES), convention=DT)
    whole, _ = outputs(module, torch.ones(4, 3, 2))
    _, state = outputs(module, torch.ones(2, 3, 2))
    assert set(state) == {"n", "w->n"}
    rest, _ = outputs(module, torch.ones(2, 3, 2), state)
    assert torch.equal(torch.cat([whole[:2], rest]), whole)
    module(torch.ones(3, 2), {"n": state["n"]})


def test_given_feedback_edges_replace_the_rule():
    convention = nd.Convention(dt=1e-3, feedback_edges=(("n", "w"),))
    module = nd.nir_to_torch(make_graph(LOOP, LOOP_EDGES), convention=convention)
    _, state = module(torch.ones(2))
    assert set(state) == {"n", "n->w"}
    for edges, words in (((("a", "b"),), "'a' -> 'b' does not exist"), ((), "leave a cycle")):
        with pytest.raises(GraphError, match=words):
            nd.nir_to_torch(make_graph(LOOP, LOOP_EDGES), convention=nd.Convention(dt=1e-3, feedback_edges=edges))


def test_cycle_that_no_input_feeds_runs_from_its_own_parameters():
    nodes = {**LOOP, "x": affine([[0.5]], [1.0]), "y": linear_node([[1.0]]), "tap": output_node(1)}
    edges = [("in", "out"), ("x", "y"), ("y", "x"), ("y", "tap")]
    del nodes["n"], nodes["w"]
    module = nd.nir_to_torch(make_graph(nodes, edges), convention=nd.Convention(feedback_start="zero"))
    found = [module(torch.zeros(2))]
    for _ in range(2):
        found.append(module(torch.zeros(2), found[-1][1]))
    assert [out["tap"].item() for out, _ in found] == [1.0, 1.5, 1.75]


# ---------------------------------------------------------------- subgraphs


def nested(inner_edges=LOOP_EDGES):
    inner = make_graph({**LOOP, "in": input_node(2), "out": output_node(2)}, inner_edges)
    nodes = {"in": input_node(2), "sub": inner, "w": linear_node(np.eye(2)), "out": output_node(2)}
    return make_graph(nodes, [("in", "sub"), ("sub", "w"), ("w", "out")])


def test_subgraph_computes_what_the_flat_graph_does_and_nests_its_state():
    module, flat = (
        nd.nir_to_torch(nested(), convention=DT),
        nd.nir_to_torch(make_graph(LOOP, LOOP_EDGES), convention=DT),
    )
    a, state = outputs(module, torch.ones(4, 2))
    b, _ = outputs(flat, torch.ones(4, 2))
    assert torch.equal(a, b)
    assert set(state) == {"sub", "sub.w->sub.n"}
    assert set(state["sub"]) == {"n"}
    assert "sub.n.r" in module.state_dict()


def test_subgraph_in_an_outer_loop():
    inner = graph_of((2,), n=integrator(2))
    nodes = {"in": input_node(2), "sub": inner, "w": linear_node(0.5 * np.eye(2)), "out": output_node(2)}
    graph = make_graph(nodes, [("in", "sub"), ("sub", "w"), ("w", "sub"), ("sub", "out")])
    assert nd.feedback_edges(graph) == [("w", "sub.n")]
    out, _ = outputs(nd.nir_to_torch(graph, convention=DT), torch.ones(3, 2))
    assert out[:, 0].tolist() == [1.0, 2.5, 4.75]


def test_subgraph_wire_counts_each_route():
    # the inner Input leads to the inner Output twice: once straight, once through a scale of 3
    inner = make_graph(
        {"i": input_node(1), "s": nir.Scale(f32(3)), "o": output_node(1)}, [("i", "s"), ("s", "o"), ("i", "o")]
    )
    nodes = {"in": input_node(1), "sub": inner, "w": linear_node([[1.0]]), "out": output_node(1)}
    graph = make_graph(nodes, [("in", "sub"), ("sub", "w"), ("w", "out")])
    assert nd.nir_to_torch(graph)(torch.ones(1))[0].item() == 4.0


def test_subgraph_with_two_inputs_is_refused_by_name():
    inner = make_graph(
        {"i": input_node(1), "j": input_node(1), "s": nir.Scale(f32(3)), "o": output_node(1)},
        [("i", "s"), ("j", "s"), ("s", "o")],
    )
    graph = make_graph({"in": input_node(1), "sub": inner, "out": output_node(1)}, [("in", "sub"), ("sub", "out")])
    with pytest.raises(UnsupportedError, match=r"'sub': a subgraph with 2 Input nodes \(i, j\)"):
        nd.nir_to_torch(graph)
    wires = make_graph({"i": input_node(1), "o": output_node(1)}, [("i", "o")])
    looped = make_graph(
        {"in": input_node(1), "a": wires, "b": copy.deepcopy(wires), "out": output_node(1)},
        [("in", "out"), ("a", "b"), ("b", "a")],
    )
    with pytest.raises(GraphError, match="loop of Inputs and Outputs|has no input"):
        nd.nir_to_torch(looped)


# ---------------------------------------------------------------- ports and state


def test_missing_unknown_and_surplus_arguments_are_refused():
    graph = make_graph(
        {"x": input_node(2), "y": input_node(2), "l": linear_node(np.eye(2)), "o": output_node(2)},
        [("x", "l"), ("y", "l"), ("l", "o")],
    )
    module, one = nd.nir_to_torch(graph), torch.ones(2)
    for call in (lambda: module(one), lambda: module(z=one), lambda: module(one, one, {}, one)):
        with pytest.raises(RasterError, match=r"the graph has the Inputs \['x', 'y'\]"):
            call()
    with pytest.raises(ConventionError, match="the state is a Tensor"):
        module(one, one, one)
    with pytest.raises(ConventionError, match="the state has an entry 'typo'"):
        module(one, one, {"typo": one})


def test_overrides_that_name_nothing_are_refused():
    convention = nd.Convention(if_gain="r", overrides={"typo": {"reset": "zero"}})
    with pytest.raises(ConventionError, match="overrides names 'typo'"):
        nd.nir_to_torch(graph_of((1,), n=if_node((1,))), convention=convention)


def test_modules_of_the_user_keep_state_whatever_they_call_it():
    class Memory(torch.nn.Module):
        def forward(self, x, mem=None):
            mem = x if mem is None else mem + x
            return mem, mem

    module = nd.nir_to_torch(graph_of((2,), n=nir.LI(f32(1, 1), f32(1, 1), f32(0, 0))), {nir.LI: lambda n: Memory()})
    out, state = outputs(module, torch.ones(3, 2))
    assert out[:, 0].tolist() == [1, 2, 3]
    assert list(state) == ["n"]


def test_copies_pickles_and_exports_compute_the_same():
    module = nd.nir_to_torch(make_graph(LOOP, LOOP_EDGES), convention=DT)
    expected, _ = outputs(module, torch.ones(3, 2))
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),  # noqa: S301 (our own bytes)
        torch.load(saved, weights_only=False),
    ):
        assert torch.equal(outputs(other, torch.ones(3, 2))[0], expected)
    with torch.no_grad():
        _, state = module(torch.ones(2))
    exported = torch.export.export(module, (torch.ones(2), state)).module()
    assert torch.equal(exported(torch.ones(2), state)[0], expected[1])


def test_weights_are_trainable_and_never_alias_the_graph():
    graph = make_graph(LOOP, LOOP_EDGES)
    before = graph.nodes["w"].weight.copy()
    module = nd.nir_to_torch(graph, convention=DT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert np.array_equal(graph.nodes["w"].weight, before)
    out, _ = outputs(module, torch.ones(3, 2))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


# ---------------------------------------------------------------- round trip


def node_of(draw, kind, shape):
    """A random node of a type that takes this shape, or None."""
    positive = st.floats(0.125, 4, width=32)

    def full(strategy=positive):
        return np.array(draw(st.lists(strategy, min_size=1, max_size=1)) * int(np.prod(shape)), np.float32).reshape(
            shape
        )

    def some(*size):
        return np.random.default_rng(draw(st.integers(0, 9))).normal(size=size).astype(np.float32)

    zero = np.zeros(shape, np.float32)
    flat = len(shape) == 1
    makers = {
        "Affine": lambda: affine(some(2, shape[0]), some(2)) if flat else None,
        "Linear": lambda: linear_node(some(3, shape[0])) if flat else None,
        "Scale": lambda: nir.Scale(full()),
        "Threshold": lambda: nir.Threshold(full()),
        "Delay": lambda: nir.Delay(full(st.sampled_from([0.0, 1e-3, 2e-3]))),
        "Flatten": lambda: flatten_node(shape),
        "Conv1d": lambda: nir.Conv1d(shape[1], some(2, shape[0], 2), 1, 1, 1, 1, some(2)) if len(shape) == 2 else None,
        "Conv2d": lambda: conv_node(some(2, shape[0], 2, 1), shape[1:], padding=1) if len(shape) == 3 else None,
        "AvgPool2d": lambda: pool_node(nir.AvgPool2d, 2, 1, 1) if len(shape) == 3 else None,
        "SumPool2d": lambda: pool_node(nir.SumPool2d, 2, 1, 1) if len(shape) == 3 else None,
        "I": lambda: nir.I(full()),
        "LI": lambda: nir.LI(full(), full(), zero),
        "IF": lambda: if_node(shape, draw(positive), draw(positive)),
        "LIF": lambda: lif_node(shape, draw(positive), draw(positive)),
        "CubaLI": lambda: nir.CubaLI(full(), full(), full(), zero, w_in=full()),
        "CubaLIF": lambda: make_node(
            nir.CubaLIF,
            tau_syn=full(),
            tau_mem=full(),
            r=full(),
            v_leak=zero,
            v_threshold=full(),
            v_reset=zero,
            w_in=full(),
        ),
    }
    return makers[kind]()


KINDS = sorted(row.node.__name__ for row in PRIMITIVES)


@st.composite
def random_graphs(draw, depth=1):
    """Chains with skips, loops back, subgraphs and every primitive."""
    shape = draw(st.sampled_from([(3,), (2, 5), (2, 4, 3)]))
    nodes, edges = {"in": input_node(*shape)}, []
    now, shapes = "in", {"in": shape}
    for index in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from([*KINDS, "sub"] if depth else KINDS))
        name = f"{draw(st.sampled_from('abcz'))}.{index}"
        if kind == "sub":
            inner = make_graph(
                {
                    "i": input_node(*shapes[now]),
                    "s": nir.Scale(np.ones(shapes[now], np.float32)),
                    "o": output_node(*shapes[now]),
                },
                [("i", "s"), ("s", "o")],
            )
            nodes[name], shapes[name] = inner, shapes[now]
        else:
            node = node_of(draw, kind, shapes[now])
            if node is None:
                continue
            nodes[name], shapes[name] = node, nd.graph.output_shape(name, node, shapes[now])
        if draw(st.booleans()) and hasattr(nodes[name], "metadata"):
            nodes[name].metadata = {"note": name}
        edges.append((now, name))
        now = name
    targets = [n for n in nodes if n != "in"]
    for source in targets:
        for target in targets:
            fits = shapes[source] == next(shapes[a] for a, b in edges if b == target)
            if fits and (source, target) not in edges and draw(st.integers(0, 5)) == 0:
                edges.append((source, target))
    nodes["out"] = output_node(*shapes[now])
    edges.append((now, "out"))
    names = draw(st.permutations(list(nodes)))
    return make_graph({n: nodes[n] for n in names}, draw(st.permutations(edges)), {"made": "by hypothesis"})


def assert_same(a, b):
    assert list(a.nodes) == list(b.nodes)
    assert a.edges == b.edges
    assert dict(a.metadata) == dict(b.metadata)
    for name, node in a.nodes.items():
        other = b.nodes[name]
        assert type(node) is type(other)
        if isinstance(node, nir.NIRGraph):
            assert_same(node, other)
            continue
        # nir 1.0.4's Input and Output have none
        assert dict(getattr(node, "metadata", {})) == dict(getattr(other, "metadata", {}))
        theirs = parameters(other)
        for key, value in parameters(node).items():
            assert np.array_equal(np.asarray(value), np.asarray(theirs[key])), (name, key)
        for port in ("input_type", "output_type"):
            for key, shape in (getattr(node, port) or {}).items():
                assert np.array_equal(shape, getattr(other, port)[key]), (name, port)


@settings(max_examples=150, deadline=None)
@given(random_graphs())
def test_round_trip_gives_every_graph_back(graph):
    convention = nd.Convention(dt=1e-3)
    module = nd.nir_to_torch(graph, convention=convention)
    assert_same(graph, nd.torch_to_nir(module))


@settings(max_examples=60, deadline=None)
@given(random_graphs(), st.randoms())
def test_result_depends_on_no_order(graph, random):
    convention = nd.Convention(dt=1e-3)
    names, edges = list(graph.nodes), list(graph.edges)
    random.shuffle(names)
    random.shuffle(edges)
    other = make_graph({n: graph.nodes[n] for n in names}, edges)
    assert nd.feedback_edges(other) == nd.feedback_edges(graph)
    shape = tuple(graph.nodes["in"].input_type["input"])
    x = torch.rand(3, 2, *shape)
    a, _ = outputs(nd.nir_to_torch(graph, convention=convention), x)
    b, _ = outputs(nd.nir_to_torch(other, convention=convention), x)
    assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def test_files_of_the_nir_paper_load_and_go_through_torch():
    for path in ("braille/braille_noDelay_bias_zero.nir", "cnn/cnn_sinabs.nir", "lif/lif_norse.nir"):
        graph = nd.read(shared("reference", *path.split("/")))
        assert_same(
            graph, nd.torch_to_nir(nd.nir_to_torch(graph, convention=nd.Convention(dt=1e-4), dtype=torch.float64))
        )


def test_module_with_an_option_declares_that_it_keeps_no_state():
    class Gain(torch.nn.Module):
        stateful = False

        def forward(self, x, gain=2.0):
            return gain * x

    class Undeclared(torch.nn.Module):
        def forward(self, x, gain=None):
            return x

    graph = graph_of((2,), n=nir.LI(f32(1, 1), f32(1, 1), f32(0, 0)))
    out, state = nd.nir_to_torch(graph, {nir.LI: lambda n: Gain()})(torch.ones(2))
    assert (out.tolist(), state) == ([2.0, 2.0], {})
    with pytest.raises(
        ValueError, match=r"'n': Undeclared takes a second argument but does not return \(output, state\)"
    ):
        nd.nir_to_torch(graph, {nir.LI: lambda n: Undeclared()})(torch.ones(2))
