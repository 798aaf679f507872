import nir
import numpy as np
import pytest
from lava_programs import population, program, synapses
from nirdeploy_loihi import BACKEND
from nirdeploy_loihi.emulator import emulate
from nirdeploy_loihi.program import Shown
from nirdeploy_loihi.results import trajectory

from nirdeploy.comparison import compare
from nirdeploy.errors import UnsupportedError
from nirdeploy.graph import make_node
from nirdeploy.quantization import Quantized, QuantizedNeuron, QuantizedWeight
from nirdeploy.reference.convention import Convention
from nirdeploy.trajectory import REFRACTORY_VIEW


@pytest.fixture
def quantized(nets):
    """Two neurons that fire, and two that only integrate them."""
    graph = nets.chain(
        input=nets.source(2),
        w=nets.linear(np.eye(2)),
        n=nets.lif(2),
        x=nets.linear(np.eye(2)),
        i=nets.if_(2),
        output=nets.output(2),
    )
    layers = {
        "w": QuantizedWeight(np.diag([40, 80]), None, 0.5),
        "n": QuantizedNeuron(
            np.array([64, 2 << 6]), None, 0.25, v_start=np.array([3, 0]), offset=np.array([0.5, 0.0]), scale_u=0.125
        ),
        "x": QuantizedWeight(np.eye(2, dtype=np.int64), None, 0.5),
        "i": QuantizedNeuron(131071 << 6, None, 2.0, offset=1.0, fires=False),
    }
    return Quantized(graph, BACKEND.targets()["loihi2"], Convention(dt=1e-3), "given", layers)


RASTER = np.array([[1, 1], [0, 1], [0, 0], [0, 0]])


def run(quantized, **options):
    return emulate(quantized, RASTER, record=("spikes", "v_mem", "i_syn"), nodes=None, **options)


def test_records_carry_what_an_integer_stands_for(quantized):
    found = run(quantized)
    v = found["n", "v_mem"]
    assert (v.scale, v.units, v.lag, v.view) == (0.25, "model", 1, None)
    assert v.threshold.tolist() == [64, 128]
    assert v.data.tolist() == [[3, 0], [0, 0], [0, 0], [0, 0]]
    assert v.values[:, 0].tolist() == [1.25, 0.5, 0.5, 0.5]
    assert found["n", "i_syn"].scale == 0.125
    assert found["n", "i_syn"].data[1].tolist() == [40 * 64, 80 * 64]
    assert found["n", "spikes"].units == "count"
    # not told: as v
    assert found["i", "i_syn"].scale == 2.0


def test_a_population_that_only_integrates_has_no_spikes_and_its_output_shows_v(quantized):
    found = run(quantized)
    assert ("i", "spikes") not in found.records
    assert found["i", "v_mem"].threshold is None
    output = found["output", "output"]
    # the neurons spike in steps 1 and 1, 2; each adds 64 one step later
    assert output.data.tolist() == [[0, 0], [0, 0], [64, 64], [64, 128]]
    assert found.outputs[-1].tolist() == [129.0, 257.0]
    assert (output.units, output.lag) == ("model", 2)


def test_the_chips_view_of_v_is_marked_where_there_are_spikes(quantized):
    found = run(quantized, read_out="chip")
    assert found["n", "v_mem"].data.tolist() == [[3, 0], [128, 128], [0, 128], [0, 0]]
    assert found["n", "v_mem"].view == REFRACTORY_VIEW
    assert found["i", "v_mem"].view is None
    assert found["n", "spikes"].view is None


def test_comparing_the_two_views_of_v_names_what_is_left_out(quantized):
    text = compare(run(quantized), run(quantized, read_out="chip")).summary()
    assert "refractory_128" in text


def test_traces_of_another_executor_become_a_trajectory_of_the_same_form(quantized):
    cells = [population("n", 2), population("i", 2)]
    outputs = [Shown("output", "i", (2,), "v_mem")]
    found = program((2,), cells, [synapses("w", "in", "n", np.eye(2))], outputs=outputs)
    data = np.arange(12, dtype=np.int32).reshape(2, 3, 2)
    made = trajectory(
        quantized,
        found,
        {("n", "v_mem"): data},
        {"output": data},
        lags={"n": 4, "output": 5},
        batched=True,
        executor="chip",
        producer="lava 0.10",
        view=REFRACTORY_VIEW,
    )
    assert (made.executor, made.producer, made.target) == ("chip", "lava 0.10", "loihi2")
    assert list(made) == [("n", "v_mem"), ("output", "output")]
    assert (made["n", "v_mem"].lag, made["n", "v_mem"].view) == (4, REFRACTORY_VIEW)
    assert np.array_equal(made["output", "output"].data, data)


def test_v_in_units_of_the_input_gain_is_divided_by_it(quantized, nets):
    ones = np.ones(2)
    node = make_node(nir.IF, r=4 * ones, v_threshold=ones, v_reset=0 * ones)
    graph = nets.chain(input=nets.source(2), w=nets.linear(np.eye(2)), n=node, output=nets.output(2))
    convention = Convention(dt=1e-3, if_gain="r", v_unit="gain")
    layers = {"w": quantized["w"], "n": quantized["n"]}
    found = emulate(
        Quantized(graph, quantized.target, convention, "given", layers), RASTER, record=("v_mem",), nodes=None
    )["n", "v_mem"]
    assert (found.scale, found.units) == (0.25 / 4, "input gain")
    assert found.offset.tolist() == [0.125, 0.0]


def test_a_gain_that_differs_between_neurons_is_refused(quantized, monkeypatch):
    class Uneven:
        @staticmethod
        def unit(_v_unit):
            return np.array([1.0, 2.0])

    monkeypatch.setattr("nirdeploy_loihi.results.dynamics", lambda *_: Uneven)
    object.__setattr__(quantized, "convention", Convention(dt=1e-3, v_unit="gain"))
    with pytest.raises(UnsupportedError, match=r"'n': v_unit='gain' divides v .* differs between neurons: 1 to 2"):
        run(quantized)
