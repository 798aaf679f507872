"""snnTorch's exporter and importer live: its files repaired and run, ours adapted and run there."""

from __future__ import annotations

import json

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from frameworks.live_common import fill_weights, off_grid, on_grid, rasters
from frameworks.snntorch_networks import Hidden, own
from frameworks.snntorch_trips import GOLDEN, exported, imported_output, survives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import chain, conv_node, if_node, lif_node, linear_node, pool_node
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.graph import make_graph, make_node, metadata

SAMPLE = torch.zeros(1, 6)
DEFAULTS = {"reset": "subtract", "reset_time": "next_step"}
PRESET = nd.convention("snntorch", dt=1e-4)


def raster(width=6, steps=40, batch=4):
    return torch.tensor(np.random.default_rng(2).integers(0, 3, (steps, batch, width)), dtype=torch.float32)


def network(layer):
    return fill_weights(Hidden(nn.Linear(6, 8), layer, nn.Linear(8, 3)), np.random.default_rng(1))


def texts(graph):
    return dict(metadata(graph).get("repairs", ()))


# ---------------------------------------------------------------- what survives


def test_the_table_of_what_survives_is_the_one_that_was_written():
    found = [dict(zip(("layer", "option", "to", "back"), row, strict=True)) for row in survives()]
    assert found == json.loads(GOLDEN.read_text())
    assert not any("DIFFERS" in row["to"] for row in found)
    assert sum(row["to"] == "same" for row in found) >= 7
    assert sum(row["back"] == "same" for row in found) >= 12


# ---------------------------------------------------------------- its exporter


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        (lambda t: snn.Leaky(0.9, threshold=t, init_hidden=True), DEFAULTS),
        (
            lambda t: snn.Synaptic(0.7, 0.9, threshold=t, init_hidden=True),
            DEFAULTS,
        ),
        (
            lambda t: snn.Leaky(0.9, threshold=t, init_hidden=True, reset_mechanism="zero", reset_delay=False),
            {},
        ),
    ],
)
def test_shapes_that_the_exporter_leaves_out_are_filled_in(layer, changes, tmp_path):
    given_network = network(layer(float(off_grid(np.random.default_rng(3)))))
    exported(given_network, SAMPLE, tmp_path / "n.nir", checked=False)
    graph = nd.read(tmp_path / "n.nir", exported_by="snntorch")
    assert texts(graph) == {
        "input": "its shape [1, 6] holds the batch of the sample data; it is [6]",
        "1": "its parameters are one number for all neurons; there are [8]",
        "output": "its shape is missing or wrong; it is [3]",
    }
    output, _ = own(given_network, raster())
    found = nd.run(graph, raster(), convention=nd.convention("snntorch", dt=1e-4, **changes))
    assert output.any()
    assert np.array_equal(np.asarray(found.outputs), output)
    problems = [f.problem for f in nd.check(graph, "speck2f", convention=PRESET).findings if f.code == "repaired"]
    assert len(problems) == 3


def test_a_file_that_needs_no_repair_stays_as_it_is(tmp_path):
    full = torch.full((8,), 0.9)
    exported(network(snn.Leaky(full, threshold=full, init_hidden=True)), SAMPLE, tmp_path / "n.nir")
    graph = nd.read(tmp_path / "n.nir", exported_by="snntorch")
    assert texts(graph) == {}
    plain = nd.read(tmp_path / "n.nir")
    assert np.array_equal(plain.nodes["1"].tau, graph.nodes["1"].tau)
    assert np.array_equal(plain.nodes["1"].v_threshold, graph.nodes["1"].v_threshold)


@pytest.mark.parametrize(("beta", "text"), [(1.25, "1 or more"), (1.0, "1 or more"), (-0.5, "less than 0")])
def test_decays_that_the_layer_clamps_are_clamped_in_the_file(beta, text, tmp_path):
    betas = torch.full((8,), 0.75)
    betas[2:4] = beta
    threshold = torch.full((8,), float(off_grid(np.random.default_rng(3))))
    given_network = network(snn.Leaky(betas, threshold=threshold, init_hidden=True))
    exported(given_network, SAMPLE, tmp_path / "n.nir")
    graph = nd.read(tmp_path / "n.nir", exported_by="snntorch")
    assert texts(graph)["1"].startswith(f"tau of 2 neurons comes from a decay of {text}, which the layer clamps")
    output, _ = own(given_network, raster())
    stated = nd.convention("snntorch", dt=1e-4, **DEFAULTS)
    assert np.array_equal(np.asarray(nd.run(graph, raster(), convention=stated).outputs), output)


# ---------------------------------------------------------------- its importer


@st.composite
def graphs_for_it(draw):
    """A chain of weights and populations that the importer can take, with a convention, and a raster."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dt = draw(st.sampled_from((1e-4, 1e-3)))
    fields = {
        "integrator": draw(st.sampled_from(("euler", "exponential"))),
        "gain": draw(st.sampled_from(("euler", "decay", "unit"))),
        "if_gain": "r",
        "reset": draw(st.sampled_from(("zero", "v_reset"))),
    }
    now, nodes = draw(st.sampled_from(((5,), (2, 6, 6)))), {}
    given_raster = draw(rasters(now))
    for n in range(draw(st.integers(1, 3))):
        if len(now) == 3:
            weight = on_grid(rng, (3, now[0], 3, 3), -0.3, 0.5).numpy()
            nodes[f"w{n}"], now = conv_node(weight, now[1:], padding=1), (3, *now[1:])
        else:
            nodes[f"w{n}"], now = linear_node(on_grid(rng, (4, now[0])).numpy()), (4,)
        kind, threshold = draw(st.sampled_from(("IF", "LIF", "CubaLIF"))), float(off_grid(rng))
        if kind == "IF":
            nodes[f"n{n}"] = if_node(now, threshold, r=2.0)
        else:
            tau = dt * draw(st.sampled_from((4.0, 8.0, 16.0)))
            lif = lif_node(now, tau=tau, threshold=threshold / 4, r=2.0)
            nodes[f"n{n}"] = lif if kind == "LIF" else _behind_a_synapse(lif, dt)
        if len(now) == 3 and min(now[1:]) > 3 and draw(st.booleans()):
            nodes[f"p{n}"], now = pool_node(draw(st.sampled_from((nir.AvgPool2d, nir.SumPool2d))), 2), (3, 3, 3)
        if len(now) == 3 and draw(st.booleans()):
            start, end = draw(st.sampled_from(((0, -1), (0, 2), (-3, -1))))
            shape = {"input": np.array(now)}
            nodes[f"f{n}"] = make_node(nir.Flatten, input_type=shape, start_dim=start, end_dim=end)
            now = (int(np.prod(now)),)
    shape = given_raster.shape[2:]
    return chain(shape, **nodes), nd.Convention(dt=dt, **fields), given_raster


def _behind_a_synapse(lif, dt):
    values = {name: getattr(lif, name) for name in ("r", "v_leak", "v_threshold", "v_reset")}
    full = np.ones_like(lif.tau)
    return make_node(nir.CubaLIF, tau_mem=lif.tau, tau_syn=2 * dt * full, w_in=0.5 * full, **values)


def check_importer(drawn, folder):
    graph, convention, given_raster = drawn
    nd.write(folder / "n.nir", graph, convention, for_library="snntorch")
    wanted = np.asarray(nd.run(graph, given_raster, convention=convention).outputs)
    assert np.array_equal(imported_output(folder / "n.nir", given_raster), wanted)
    adapted = nd.run(nd.read(folder / "n.nir"), given_raster)
    assert adapted.convention == PRESET
    assert np.array_equal(np.asarray(adapted.outputs), wanted)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs_for_it())
def test_its_importer_makes_the_same_network_of_our_file(tmp_path_factory, drawn):
    check_importer(drawn, tmp_path_factory.mktemp("there"))


def lif_chain(**options):
    return chain((6,), fc=linear_node(np.eye(6)), lif=lif_node((6,), tau=1e-3, **options))


def recurrent():
    nodes = dict(lif_chain().nodes) | {"rec": linear_node(np.eye(6))}
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")]
    return make_graph(nodes, edges)


@pytest.mark.parametrize(
    ("graph", "fields", "message"),
    [
        (lif_chain(), {"reset": "subtract"}, "node 'lif': .*reset to zero in the step of the spike.*reset is subtract"),
        (lif_chain(), {"reset_time": "next_step"}, "node 'lif': .*reset_time is next_step"),
        (lif_chain(), {"crossing": "inclusive"}, "node 'lif': .*crossing is inclusive"),
        (lif_chain(), {"v_min": -1.0}, "node 'lif': .*v_min is -1.0"),
        (lif_chain(), {"integrator": "exact"}, "node 'lif': .*integrator is exact"),
        (lif_chain(v_leak=0.5), {}, "node 'lif': .*v_leak is other than 0"),
        (lif_chain(v_reset=0.5), {"reset": "v_reset"}, "node 'lif': .*reset is v_reset other than 0"),
        (lif_chain(threshold=-1.0), {}, "node 'lif': .*v_threshold is below 0"),
        (lif_chain(r=-1.0), {}, "node 'lif': .*divides thresholds by the input gain, here -0.1"),
        (lif_chain(threshold=np.arange(1.0, 7.0)), {}, "node 'lif': .*one threshold a layer; .* is 10 to 60"),
        (recurrent(), {}, "node 'rec': .*through its recurrent weights"),
        (chain((6,), s=make_node(nir.Scale, scale=np.ones(6))), {}, "node 's': .*has no layer for Scale"),
        (
            chain((2, 6, 6), p=pool_node(nir.SumPool2d, 2, 1, 1)),
            {},
            "node 'p': .*leaves out the padding",
        ),
        (chain((2, 6, 6), c=conv_node(np.ones((2, 1, 3, 3)), (6, 6), groups=2)), {}, "node 'c': .*has no groups"),
        (chain((2, 6, 6), c=conv_node(np.ones((2, 2, 3, 1)), (6, 6))), {}, "node 'c': .*takes height for width"),
    ],
)
def test_what_the_importer_makes_something_else_of_is_refused(graph, fields, message, tmp_path):
    convention = nd.convention("snntorch", dt=1e-4, **fields)
    with pytest.raises(UnsupportedError, match=message):
        nd.write(tmp_path / "n.nir", graph, convention, for_library="snntorch")
    assert not (tmp_path / "n.nir").exists()


def test_a_graph_without_a_convention_is_refused(tmp_path):
    with pytest.raises(ConventionError, match="none is known.*Pass convention="):
        nd.write(tmp_path / "n.nir", lif_chain(), for_library="snntorch")


def test_without_adaption_the_importer_makes_another_network_of_an_if(tmp_path):
    graph = chain((6,), fc=linear_node(np.eye(6) * 0.3), n=if_node((6,), 1.01))
    wanted = np.asarray(nd.run(graph, raster(), convention=PRESET).outputs)
    nd.write(tmp_path / "plain.nir", graph, PRESET)
    nd.write(tmp_path / "adapted.nir", graph, PRESET, for_library="snntorch")
    assert not np.array_equal(imported_output(tmp_path / "plain.nir", raster()), wanted)
    assert np.array_equal(imported_output(tmp_path / "adapted.nir", raster()), wanted)
