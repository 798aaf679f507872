"""Norse run live: files of its exporter are read as what was trained, and files written for its importer run there."""

from __future__ import annotations

import json
from pathlib import Path

import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from norse_nets import Builder, Drawn, forward, layers, norse
from norse_trips import DT, chain, exported, imported, run_imported, survives
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.graph import metadata
from nirdeploy.nodes import make_graph, make_node, parameters

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
CLOSE = 1e-5
GOLDEN = Path(__file__).parent.parent / "golden" / "trips_norse.json"


# ---------------------------------------------------------------- files of the exporter

KEPT = ("LIFCell", "LIFBoxCell", "LIBoxCell", "IAFCell")  # that the exporter knows, reset to 0


@st.composite
def exportable(draw):
    """Dense networks of the cells that Norse exports, with what its exporter keeps of their parameters."""
    build = Builder(draw, False)
    build.dt = DT
    width = build.one(3, 6)
    shape, parts = (width,), []
    for _ in range(build.one(1, 2, 3)):
        name, wider = build.one(*KEPT), build.one(2, 5)
        block = build.block(name, width, wider)
        kept = {"v_reset": torch.tensor(0.0), "reset_method": norse.reset_value}
        block[1].p = block[1].p._replace(**{key: v for key, v in kept.items() if hasattr(block[1].p, key)})
        parts, width = parts + block, wider
    raster = build.rng.poisson(0.7, (25, 3, *shape))
    return Drawn(norse.SequentialState(*parts), torch.tensor(raster, dtype=torch.float32), False)


def each(drawn):
    """One number a neuron for all parameters: of a layer's own, Norse's exporter asks all to have one shape."""
    width = None
    for part in drawn.net:
        width = part.out_features if isinstance(part, nn.Linear) else width
        if hasattr(part, "p"):
            tensors = {k: v for k, v in part.p._asdict().items() if isinstance(v, torch.Tensor) and k != "alpha"}
            part.p = part.p._replace(**{k: v.expand(width).clone() for k, v in tensors.items()})
    return drawn


@settings(max_examples=12, **QUIET)
@given(drawn=exportable(), whole=st.booleans())
def test_files_of_norses_exporter_give_the_networks_own_output(tmp_path_factory, drawn, whole):
    mixed = any(v.ndim for part in drawn.net if hasattr(part, "p") for v in part.p if isinstance(v, torch.Tensor))
    drawn = each(drawn) if whole or mixed else drawn
    watched = layers(drawn)
    assume(all(gap(layer) > 3e-5 * scale_of(layer) for layer in watched))
    path = exported(drawn.net, drawn.sample, tmp_path_factory.mktemp("norse") / "net.nir")
    graph = nd.read(path, exported_by="norse")
    found = nd.run(graph, drawn.raster.numpy(), convention=nd.convention("norse", dt=DT)).outputs
    close = CLOSE * scale_of(watched[-1])
    np.testing.assert_allclose(found, forward(drawn).numpy(), rtol=0, atol=close)


def gap(layer):
    return np.inf if layer.threshold is None else float((layer.v_before - layer.threshold).abs().min())


def scale_of(layer):
    return max(1.0, float(layer.v_before.abs().max()))


def test_each_repair_is_told_and_without_it_the_file_does_not_run(tmp_path):
    net = norse.SequentialState(nn.Linear(5, 3), norse.LIFCell())
    path = exported(net, torch.zeros(4, 5), tmp_path / "net.nir")
    assert metadata(nd.read(path, exported_by="norse"))["repairs"] == [
        ["input", "the exporter counts the batch of its sample: (4, 5) is one of (5,)"],
        ["output", "the exporter counts the batch of its sample: (4, 3) is one of (3,)"],
        ["1", "the exporter multiplied tau_mem by its dt: it is divided by 0.001, the default"],
        ["1", "the exporter multiplied tau_syn by its dt: it is divided by 0.001, the default"],
        ["1", "an input adds 1 to the current in Norse, which the exporter leaves out: w_in is tau_syn / 0.001"],
        ["1", "the exporter leaves out v_reset and the reset method: v is set to 0 after a spike"],
        ["1", "the exporter writes one number for all neurons: each of (3,) gets it"],
    ]
    report = nd.check(nd.read(path, exported_by="norse"), "loihi2", convention=nd.convention("norse", dt=DT))
    assert sum(finding.code == "repaired" for finding in report.findings) == 7
    plain = nd.read(path)
    with pytest.raises(ValueError, match=r"expects \(5,\), got \(4, 5\)"):
        nd.run(plain, np.zeros((3, 1, 5)), convention=nd.convention("norse", dt=DT))


def test_a_file_of_another_dt_is_refused(tmp_path):
    graph = norse_export(tmp_path, dt=1.0)
    with pytest.raises(
        UnsupportedError, match=r"node '1'.*tau is 0.01, .* is 10 s: the file was written with another dt"
    ):
        nd.read(graph, exported_by="norse")


def norse_export(folder, dt):
    from norse_trips import quiet

    with quiet():
        graph = norse.to_nir(norse.SequentialState(nn.Linear(5, 3), norse.LIFBoxCell()), torch.zeros(4, 5), dt=dt)
        nir.write(folder / "net.nir", graph, compression=None)
    return folder / "net.nir"


# ---------------------------------------------------------------- files for the importer


def population(build, shape):
    """A node of each kind that Norse imports, with parameters one a neuron."""

    def some(*values):
        return build.rng.choice(values, shape).astype(np.float32)

    kind = build.one("LIF", "IF", "CubaLIF")
    values = {"r": some(0.5, 1.0, 2.0), "v_threshold": some(0.4, 0.6, 1.0), "v_reset": some(0.0)}
    if kind == "LIF":
        values |= {"tau": some(2e-3, 5e-3, 1e-2), "v_leak": some(0.0)}
    if kind == "CubaLIF":
        values |= {
            "tau_mem": some(5e-3, 1e-2),
            "tau_syn": some(2e-3, 5e-3),
            "v_leak": some(0.0),
            "w_in": some(1.0, 2.0),
        }
    return make_node(getattr(nir, kind), **values)


@st.composite
def importable(draw):
    """A graph of what Norse's importer knows, its raster and a convention that it can follow."""
    build = Builder(draw, False)
    fields = {"reset": build.one("zero", "v_reset"), "if_gain": "r", "feedback_start": "zero"}
    fields |= {"integrator": build.one("euler", "exponential"), "gain": build.one("euler", "decay", "unit")}
    fields |= {"use_r": build.one(True, False), "synapse_gain": build.one("same", "unit", "decayed")}
    shape, nodes, edges, last = (build.one(3, 5),), {}, [], "input"
    if build.one(True, False):
        shape = (2, 6, 5)
    nodes["input"] = make_node(nir.Input, input_type={"input": np.array(shape)})
    for index in range(build.one(1, 2, 3)):
        layer, after = stateless(build, shape)
        for kind, node in [*layer, ("neuron", population(build, after))]:
            name = f"{build.one('a', 'z')}{index}.{kind}"
            nodes[name] = node
            edges.append((last, name))
            last = name
        if len(after) == 1 and build.one(True, False):
            back = f"{build.one('a', 'z')}{index}.back"
            nodes[back] = affine(build, after[0], after[0])
            edges += [(last, back), (back, last)]
        shape = after
    nodes["output"] = make_node(nir.Output, output_type={"output": np.array(shape)})
    raster = build.rng.poisson(0.7, (20, 2, *nodes["input"].input_type["input"])).astype(np.float32)
    return make_graph(nodes, [*edges, (last, "output")]), raster, nd.Convention(dt=build.one(1e-3, 5e-4), **fields)


def affine(build, inputs, outputs):
    weight, bias = (build.rng.uniform(-0.5, 1.0, s).astype(np.float32) for s in ((outputs, inputs), outputs))
    return make_node(nir.Affine, weight=weight * 2 / inputs, bias=bias * 0.2)


def stateless(build, shape):
    """Weights, a convolution with groups, a pool or a flattening, and the shape that comes out."""
    if len(shape) == 1:
        outputs = build.one(2, 4)
        return [("affine", affine(build, shape[0], outputs))], (outputs,)
    if build.one(True, False) or min(shape[1:]) < 3:
        size = int(np.prod(shape))
        start, end = build.one((0, -1), (0, len(shape) - 1), (-len(shape), -1))
        flat = make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=start, end_dim=end)
        return [("flat", flat), ("affine", affine(build, size, 3))], (3,)
    groups = build.one(1, shape[0])
    weight = build.rng.uniform(-0.2, 0.6, (2 * groups, shape[0] // groups, 3, 3)).astype(np.float32)
    padding = build.one((0, 0), (1, 1))
    options = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": groups}
    node = make_node(nir.Conv2d, input_shape=shape[1:], weight=weight, bias=weight[:, 0, 0, 0] * 0.1, **options)
    after = (2 * groups, shape[1] - 2 + 2 * padding[0], shape[2] - 2 + 2 * padding[1])
    if min(after[1:]) < 4:
        return [("conv", node)], after
    pool = {key: np.array(value) for key, value in (("kernel_size", [2, 2]), ("stride", [2, 2]), ("padding", [0, 0]))}
    pooled = (after[0], after[1] // 2, after[2] // 2)
    return [("conv", node), ("pool", make_node(nir.SumPool2d, **pool))], pooled


def steady(graph, raster, convention):
    """The output, where thresholds a little higher or lower give the same one; None where rounding decides a spike."""

    def shifted(factor):
        nodes = {
            name: make_node(type(node), **{**parameters(node), "v_threshold": np.float32(factor) * node.v_threshold})
            if hasattr(node, "v_threshold")
            else node
            for name, node in graph.nodes.items()
        }
        return nd.run(make_graph(nodes, list(graph.edges)), raster, convention=convention).outputs

    found = [shifted(factor) for factor in (1.0, 1.0 + CLOSE, 1.0 - CLOSE)]
    return found[0] if all(np.array_equal(found[0], other) for other in found[1:]) else None


def written_for_norse(graph, raster, convention, path):
    """What Norse makes of the file that is written for it, against the reference."""
    ours = steady(graph, raster, convention)
    assume(ours is not None)
    nd.write(path, graph, convention=convention, for_library="norse")
    theirs = run_imported(imported(path, convention.dt), torch.tensor(raster))
    np.testing.assert_array_equal(theirs, ours)
    again = nd.run(nd.read(path), raster).outputs
    np.testing.assert_array_equal(again, ours)


@settings(max_examples=15, **QUIET)
@given(case=importable())
def test_files_for_norse_run_there_with_the_same_spikes(tmp_path_factory, case):
    written_for_norse(*case, tmp_path_factory.mktemp("norse") / "net.nir")


@pytest.mark.long
@settings(max_examples=100, **QUIET)
@given(case=importable())
def test_many_files_for_norse_run_there_with_the_same_spikes(tmp_path_factory, case):
    written_for_norse(*case, tmp_path_factory.mktemp("norse") / "net.nir")


def simple(node):
    """A graph of one population or other node between an Input and an Output."""
    shape = np.array([2])
    nodes = {
        "input": make_node(nir.Input, input_type={"input": shape}),
        "node": node,
        "output": make_node(nir.Output, output_type={"output": shape}),
    }
    return make_graph(nodes, [("input", "node"), ("node", "output")])


def full(**values):
    return {key: np.full(2, value, np.float32) for key, value in values.items()}


def spiking(kind, **values):
    given = {"r": 1.0, "v_threshold": 1.0, "v_reset": 0.0}
    given |= {"tau": 1e-2, "v_leak": 0.0} if kind == "LIF" else {}
    given |= {"tau_mem": 1e-2, "tau_syn": 5e-3, "v_leak": 0.0, "w_in": 1.0} if kind == "CubaLIF" else {}
    return simple(make_node(getattr(nir, kind), **full(**{**given, **values})))


REFUSED = [
    (spiking("LIF"), {"reset": "subtract"}, "reset='subtract': a file cannot tell Norse's importer"),
    (
        spiking("LIF"),
        {"crossing": "inclusive"},
        "crossing='inclusive': the neurons that Norse's importer makes have 's",
    ),
    (spiking("LIF"), {"spikes_per_step": "many"}, "spikes_per_step='many'"),
    (spiking("LIF"), {"reset_time": "next_step"}, "reset_time='next_step'"),
    (spiking("LIF"), {"fires": "before_update"}, "fires='before_update'"),
    (spiking("LIF"), {"v_min": -1.0}, "v_min=-1.0"),
    (spiking("LIF"), {"integrator": "exact"}, "integrator='exact'"),
    (spiking("LIF", v_leak=0.5), {"v_start": "zero"}, r"v starts at 0 \(v_start='zero'\), and in Norse at 0.5"),
    (spiking("IF", v_reset=0.5), {"reset": "v_reset"}, r"v starts at 0 \(v_start='v_leak'\), and in Norse at 0.5"),
    (spiking("LIF", r=-1.0), {"overrides": {}}, "its input gain is -0.1, and Norse's importer takes r as 1"),
    (spiking("CubaLIF", v_leak=0.5), {}, "v_leak is 0.5 above the reset, and Norse's importer lets the synapse leak"),
    (simple(make_node(nir.LI, **full(tau=1e-2, r=1.0, v_leak=0.0))), {}, "LI is left out by Norse's importer"),
    (simple(make_node(nir.Scale, scale=np.ones(2))), {}, "Scale is left out by Norse's importer"),
    (simple(make_node(nir.Delay, delay=np.full(2, 1e-3))), {}, "Delay is left out by Norse's importer"),
]


@pytest.mark.parametrize(("graph", "fields", "message"), REFUSED)
def test_what_norse_would_make_something_else_of_is_refused(tmp_path, graph, fields, message):
    convention = nd.convention("norse", dt=DT, **fields)
    with pytest.raises(UnsupportedError, match=f"node 'node'.*{message}"):
        nd.write(tmp_path / "net.nir", graph, convention=convention, for_library="norse")
    assert not (tmp_path / "net.nir").exists()


def test_a_file_for_norse_needs_a_convention_and_one_delay(tmp_path):
    with pytest.raises(ConventionError, match="a file for Norse needs a convention with dt"):
        nd.write(tmp_path / "net.nir", spiking("LIF"), for_library="norse")
    late = nd.convention("norse", dt=DT, population_delay=1)
    with pytest.raises(UnsupportedError, match="population_delay=1: Norse's populations"):
        nd.write(tmp_path / "net.nir", spiking("LIF"), convention=late, for_library="norse")


def between(*extra, edges):
    """input -> node -> output with more nodes and edges."""
    graph = spiking("LIF")
    matrix = make_node(nir.Linear, weight=np.eye(2, dtype=np.float32))
    return make_graph({**graph.nodes, **dict.fromkeys(extra, matrix)}, [*graph.edges, *edges])


UNORDERED = [
    (
        between("a", "b", edges=[("input", "a"), ("input", "b"), ("a", "node"), ("b", "node")]),
        "node 'node'.*would take the last step's output of '[ab]'",
    ),
    (between("a_1", "a.1", edges=[("node", "a.1"), ("a.1", "a_1"), ("a_1", "output")]), "takes its name for that of"),
]


@pytest.mark.parametrize(("graph", "message"), UNORDERED)
def test_graphs_that_nirtorch_runs_in_another_order_are_refused(tmp_path, graph, message):
    with pytest.raises(UnsupportedError, match=message):
        nd.write(tmp_path / "net.nir", graph, convention=nd.convention("norse", dt=DT), for_library="norse")


@pytest.mark.parametrize("names", [("a", "b"), ("y", "z"), ("z", "y")])
def test_skips_and_long_loops_keep_their_order_whatever_their_names(tmp_path, names):
    a, b = names
    edges = [("node", a), (a, b), (b, "output")]
    raster = np.random.default_rng(2).poisson(6.0, (30, 2, 2)).astype(np.float32)
    for edge in ((b, "node"), (a, "node"), ("node", b)):
        graph = between(a, b, edges=[*edges, edge])
        nd.write(tmp_path / "net.nir", graph, convention=nd.convention("norse", dt=DT), for_library="norse")
        theirs = run_imported(imported(tmp_path / "net.nir"), torch.tensor(raster))
        assert theirs.sum() > 10
        np.testing.assert_array_equal(theirs, nd.run(graph, raster, convention=nd.convention("norse", dt=DT)).outputs)


def test_a_bias_that_acts_a_step_later_in_norse_is_refused(tmp_path):
    graph = spiking("LIF")
    biased = make_node(nir.Affine, weight=np.eye(2, dtype=np.float32), bias=np.ones(2, np.float32))
    looped = make_graph({**graph.nodes, "back": biased}, [*graph.edges, ("node", "back"), ("back", "node")])
    silence = nd.convention("norse", dt=DT, feedback_start="silence")
    with pytest.raises(UnsupportedError, match="node 'back'.*acts from the first step"):
        nd.write(tmp_path / "net.nir", looped, convention=silence, for_library="norse")


def test_what_survives_a_trip_is_what_the_table_says():
    found = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    assert found == json.loads(GOLDEN.read_text())
    assert sum(row["to"] == "same" for row in found) >= 8


def test_a_trained_network_goes_to_norse_and_back(tmp_path):
    net = chain("LIFRecurrentCell")
    raster = torch.tensor(np.random.default_rng(1).poisson(0.7, (40, 2, 6)), dtype=torch.float32)
    nd.write(tmp_path / "net.nir", nd.torch_to_nir(net, sample_input=raster[0]), for_library="norse")
    theirs = forward(Drawn(net, raster, False)).numpy()
    assert theirs.sum() > 100
    np.testing.assert_array_equal(run_imported(imported(tmp_path / "net.nir"), raster), theirs)
