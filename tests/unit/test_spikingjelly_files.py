"""Graphs for SpikingJelly's importer, and its exporter's files, without the library."""

import itertools

import nir
import numpy as np
import pytest
from nets import f32

import nirdeploy as nd
from nirdeploy.convert.frameworks.spikingjelly_files import adapt, repair
from nirdeploy.errors import ConventionError, UnsupportedError
from nirdeploy.graph import make_graph, metadata

CONVENTION = nd.convention("spikingjelly", dt=1e-3)


def chain(*named, size=2):
    names = ["input", *(name for name, _ in named), "output"]
    ends = {
        "input": nir.Input(input_type={"input": np.array([size])}),
        "output": nir.Output(output_type={"output": np.array([size])}),
    }
    return make_graph({**ends, **dict(named)}, list(itertools.pairwise(names)))


def lif(**values):
    values = {"tau": 5e-3, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **values}
    return nir.LIF(**{name: np.broadcast_to(np.asarray(value, float), 2).copy() for name, value in values.items()})


def cuba(**values):
    values = {"tau_syn": 2e-3, "tau_mem": 4e-3, "r": 4.0, "w_in": 2.0, "v_leak": 0.0, "v_threshold": 1.0, **values}
    return nir.CubaLIF(**{name: np.full(2, value) for name, value in {"v_reset": 0.0, **values}.items()})


def test_a_graph_in_its_terms_stays_as_it_is():
    graph = adapt(chain(("lif", lif()), ("undecayed", lif(r=5.0)), ("cuba", cuba())), CONVENTION)
    assert graph.nodes["lif"].tau[0] == pytest.approx(5e-3)
    assert graph.nodes["lif"].r[0] == 1.0
    assert graph.nodes["undecayed"].r[0] == pytest.approx(5.0)
    assert graph.nodes["cuba"].w_in[0] == pytest.approx(2.0)
    carried = nd.Convention.from_dict(metadata(graph)["convention"])
    assert carried.for_node("lif", "LIF").gain == "euler"
    assert carried.for_node("undecayed", "LIF").gain == "unit"


def test_an_exponential_decay_becomes_the_time_constant_that_euler_needs():
    convention = nd.Convention(dt=1e-3, integrator="exponential", gain="unit")
    node = adapt(chain(("lif", lif())), convention).nodes["lif"]
    assert 1 - 1e-3 / node.tau[0] == pytest.approx(np.exp(-0.2))
    assert node.r[0] == pytest.approx(node.tau[0] / 1e-3)


@pytest.mark.parametrize(
    ("node", "fields", "text"),
    [
        (
            lif(),
            {"reset": "subtract"},
            "node 'n': reset='subtract'; SpikingJelly's importer makes a layer with 'v_reset'",
        ),
        (lif(), {"spikes_per_step": "many"}, "node 'n': spikes_per_step='many'"),
        (lif(), {"v_min": 0.0}, "node 'n': v_min=0.0; SpikingJelly's importer makes a layer with None"),
        (lif(), {"reset_time": "next_step"}, "node 'n': reset_time='next_step'"),
        (lif(), {"fires": "before_update"}, "node 'n': fires='before_update'"),
        (lif(), {"integrator": "exact"}, "node 'n': integrator='exact'"),
        (lif(), {"population_delay": 1}, "node 'n': population_delay=1"),
        (lif(v_reset=-0.5, v_leak=-0.5), {"v_start": "zero"}, "node 'n': it starts at 0.0 and is reset to -0.5"),
        (lif(r=2.0), {}, "node 'n': input gain of LIF is 0.4, SpikingJelly's importer takes 1 or dt / tau = 0.2 only"),
        (lif(v_leak=0.5), {}, "node 'n': v_leak is 0.5, SpikingJelly's importer takes 0 only"),
        (lif(tau=(5e-3, 6e-3)), {}, r"node 'n': tau differs between neurons \(0.005 to 0.006\)"),
        (lif(tau=1e-3), {}, "node 'n': tau is 1 steps; SpikingJelly takes a finite number above 1"),
        (cuba(r=2.0), {}, "node 'n': input gain of the membrane is 0.5, SpikingJelly's importer takes 1 only"),
        (cuba(w_in=1.0), {}, "node 'n': input gain of the synapse is 0.5, SpikingJelly's importer takes 1 only"),
        (nir.IF(r=np.ones(2), v_threshold=np.ones(2), v_reset=np.zeros(2)), {}, "node 'n': input gain of IF is 0.001"),
        (nir.Scale(scale=f32(1, 2)), {}, "node 'n': SpikingJelly's importer knows no Scale. Use Affine"),
        (nir.Delay(delay=f32(1e-3, 1e-3)), {}, "node 'n': SpikingJelly's importer knows no Delay"),
    ],
)
def test_what_the_importer_would_make_something_else_of_is_refused(node, fields, text):
    with pytest.raises(UnsupportedError, match=text):
        adapt(chain(("n", node)), nd.convention("spikingjelly", dt=1e-3, **fields))


def test_a_convention_with_dt_is_needed():
    with pytest.raises(ConventionError, match="node 'n': LIF is written for SpikingJelly without a convention. Pass"):
        adapt(chain(("n", lif())), None)
    with pytest.raises(ConventionError, match="node 'n': LIF is written for SpikingJelly without dt"):
        adapt(chain(("n", lif())), nd.convention("spikingjelly"))


def test_names_that_the_importer_cannot_keep():
    with pytest.raises(UnsupportedError, match="node 'keys': the name 'keys' belongs to torch"):
        adapt(chain(("keys", lif())), CONVENTION)
    with pytest.raises(UnsupportedError, match="the importer calls it 'a_b', as it does 'a[._]b'. Rename one"):
        adapt(chain(("a.b", lif()), ("a_b", lif())), CONVENTION)


def test_structures_that_nirtorch_wires_wrongly():
    graph = chain(("one", lif()), ("two", lif()))
    with pytest.raises(UnsupportedError, match="node 'output': several edges into an Output"):
        adapt(make_graph(graph.nodes, [*graph.edges, ("one", "output")]), CONVENTION)
    crossed = make_graph(graph.nodes, [*graph.edges, ("two", "one"), ("input", "two")])
    with pytest.raises(
        UnsupportedError, match="delay different edges of a loop: '.+' -> '.+' is delayed by one of them"
    ):
        adapt(crossed, CONVENTION)
    two = {**graph.nodes, "second": nir.Input(input_type={"input": np.array([2])})}
    with pytest.raises(UnsupportedError, match="a graph with 2 Input nodes; SpikingJelly imports graphs with one"):
        adapt(make_graph(two, [*graph.edges, ("second", "two")]), CONVENTION)
    grouped = nir.Conv1d(
        input_shape=4, weight=np.zeros((2, 1, 3)), stride=1, padding=1, dilation=1, groups=2, bias=np.zeros(2)
    )
    image = make_graph(
        {**chain(("conv", grouped)).nodes, "input": nir.Input(input_type={"input": np.array([2, 4])})},
        [("input", "conv"), ("conv", "output")],
    )
    with pytest.raises(UnsupportedError, match="node 'conv': Conv1d with groups=2; SpikingJelly imports groups=1"):
        adapt(image, CONVENTION)


def test_repairs_tell_dt_where_r_does():
    integrator = nir.IF(r=np.full(2, 1000.0), v_threshold=np.ones(2), v_reset=np.zeros(2))
    graph, (found,) = repair(chain(("lif", lif()), ("if", integrator), ("cuba", cuba())))
    assert found.node == "if"
    assert nd.Convention.from_dict(metadata(graph)["convention"]).dt == 1e-3
    plain = chain(("lif", lif()))
    assert repair(plain) == (plain, ())
    with pytest.raises(UnsupportedError, match="node 'cuba': its r belongs to dt=0.0005 s, that of 'if' to 0.001 s"):
        repair(chain(("if", integrator), ("cuba", cuba(r=8.0))))
