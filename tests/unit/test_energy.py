"""Energy and time of a run: counts times published figures, summed by hand here."""

import json
from pathlib import Path

import numpy as np
import pytest
from nets import ROOT, chain, if_node, linear_node

import nirdeploy as nd
from nirdeploy.energy import with_unit
from nirdeploy.errors import ComparisonError, TargetError
from nirdeploy.outline import Outline, OutlineNode
from nirdeploy.target import load_table

PJ = 1e-12


def trajectory(target, counters, *, spikes=None, outline=None):
    """A run of 10 steps and 2 samples of node a with 3 neurons."""
    data = np.zeros((10, 2, 3), np.int32) if spikes is None else spikes
    records = {("a", "spikes"): nd.Record("a", "spikes", data, units="count")}
    return nd.Trajectory(records, target=target, executor="emulator", counters=counters, outline=outline)


def rows(found):
    return {(row.node, row.quantity): row for row in found.rows}


# ---------------------------------------------------------------- sums


def test_loihi_1_is_the_sum_of_operations_spikes_and_updates():
    found = nd.estimate(trajectory("loihi1", {"a": {"synaptic_operations": 1000, "spikes": 40, "wraps": 7}}))
    # 1000 * 23.6 + 40 * 1.7 + 3 neurons * 10 steps * 2 samples * 52 = 23600 + 68 + 3120 pJ
    assert found.joules == pytest.approx(26788 * PJ, rel=1e-12)
    assert found.joules_per_sample == pytest.approx(13394 * PJ, rel=1e-12)
    each = rows(found)
    assert {key: (row.count, row.joules_each) for key, row in each.items()} == {
        ("a", "synaptic_operations"): (1000, 23.6e-12),
        ("a", "spikes"): (40, 1.7e-12),
        ("a", "neuron_updates"): (60, 52e-12),
    }
    assert all("Davies et al., IEEE Micro 38(1), 2018, Table 2" in row.source for row in found.rows)
    assert each["a", "spikes"].joules == pytest.approx(68 * PJ, rel=1e-12)


def test_time_is_steps_times_what_is_given_or_a_published_lower_bound():
    run = trajectory("loihi1", {"a": {"synaptic_operations": 0, "spikes": 0}})
    assert nd.estimate(run, seconds_per_step=1e-3).seconds == pytest.approx(10e-3, rel=1e-12)
    least = nd.estimate(run)
    assert least.seconds == pytest.approx(1.13e-6, rel=1e-12)
    assert "The time is a lower bound of 113 ns a step" in least.notes[-1]
    assert nd.estimate(trajectory("loihi2", {})).seconds is None


@pytest.mark.parametrize("target", ["loihi2", "speck2e", "speck2f", "dynapcnn", "speck2cmini", "speck2dmini"])
def test_without_a_published_figure_there_are_counts_and_no_sum(target):
    found = nd.estimate(trajectory(target, {"a": {"synaptic_operations": 5, "spikes": 1}}))
    assert found.joules is found.joules_per_sample is None
    assert [(row.quantity, row.count, row.joules, row.source) for row in found.rows] == [
        ("synaptic_operations", 5, None, ""),
        ("spikes", 1, None, ""),
    ]
    assert found.notes[0].startswith("No energy of a")
    assert "energy not known, time not known" in found.summary()


def test_a_speck_at_rest_takes_power_for_as_long_as_the_run():
    found = nd.estimate(trajectory("speck2f", {"a": {"synaptic_operations": 5, "spikes": 1}}), seconds_per_step=1e-3)
    rest = rows(found)["", "seconds_at_rest"]
    assert (rest.count, rest.joules_each) == (pytest.approx(0.02), 0.42e-3)  # 2 samples of 10 ms
    assert rest.joules == pytest.approx(8.4e-6, rel=1e-12)
    assert found.joules is None  # the operations still have no figure


# ---------------------------------------------------------------- what is counted, and what is not


def test_what_a_run_does_not_count_is_named_and_no_sum_is_made():
    found = nd.estimate(trajectory("loihi1", {}, spikes=np.ones((10, 2, 3), np.int32)))
    assert found.joules is None
    assert rows(found)["a", "spikes"].count == 60  # what is recorded whole need not be counted
    assert "Not counted by this run: synaptic operations of a." in found.notes


def test_spikes_of_some_neurons_only_do_not_stand_for_all():
    some = nd.Record("a", "spikes", np.ones((10, 2, 2), np.int32), neurons=np.array([0, 2]))
    found = nd.estimate(nd.Trajectory({("a", "spikes"): some}, target="loihi1", executor="simulator"))
    assert not found.rows
    assert "Not counted by this run: spikes of a." in found.notes
    assert "Not counted by this run: neuron updates of a." in found.notes


def test_neurons_of_a_node_that_is_not_recorded_come_from_the_outline():
    outline = Outline({"a": OutlineNode("IF", (3,)), "b": OutlineNode("IF", (2, 2))}, (("a", "b"),))
    counters = {name: {"synaptic_operations": 0, "spikes": 0} for name in "ab"}
    found = rows(nd.estimate(trajectory("loihi1", counters, outline=outline)))
    assert found["b", "neuron_updates"].count == 4 * 10 * 2


@pytest.mark.parametrize("known", [True, False])
def test_cores_of_a_split_population_are_not_counted_twice(known):
    outline = Outline({"a": OutlineNode("IF", (3,))}, ()) if known else None
    part = {"synaptic_operations": 5, "spikes": 1}
    counters = {"a": {"synaptic_operations": 10, "spikes": 2}, "a (core 3)": part, "a (core 5)": part}
    found = nd.estimate(trajectory("speck2f", counters, outline=outline))
    assert [row.count for row in found.rows] == [10, 2]


def test_what_a_chip_measured_itself_is_told():
    found = nd.estimate(trajectory("speck2f", {"chip": {"spikes": 3, "power_ram_uw": 812}}))
    assert "Measured in this run, on rail ram: 812 uW." in found.notes
    assert {row.node for row in found.rows} == {"a"}


def test_a_run_on_no_chip_has_no_figures():
    found = nd.estimate(trajectory("reference", {}), seconds_per_step=1e-3)
    assert (found.rows, found.joules, found.seconds) == ((), None, pytest.approx(0.01))
    assert found.notes == ("reference is no target of an installed backend: no figures are known of it.",)


@pytest.mark.parametrize("wrong", [0, -1e-3, float("inf"), float("nan"), True, "1 ms"])
def test_a_step_that_takes_no_time_is_refused(wrong):
    with pytest.raises(ComparisonError, match="seconds_per_step is .*, expected a number above 0"):
        nd.estimate(trajectory("loihi1", {}), seconds_per_step=wrong)


def test_emulated_run_in_memory_and_from_a_file_are_estimated_alike(tmp_path):
    rng = np.random.default_rng(0)
    graph = chain((4,), w1=linear_node(rng.normal(0.2, 0.4, (6, 4))), a=if_node((6,)))
    deployment = nd.deploy(graph, "loihi1", convention=nd.Convention(dt=1e-3, if_gain="r"), quantizer="max")
    raster = (rng.random((20, 3, 4)) < 0.4).astype(int)
    run = deployment.run(raster)
    found = nd.estimate(run)
    synapses = int(np.count_nonzero(deployment.quantized["w1"].weight))
    assert synapses == 24
    operations = 6 * int(raster[:-1].sum())  # what comes in the last step would arrive after the run
    spikes = int(run["a", "spikes"].data.sum())
    assert rows(found)["a", "synaptic_operations"].count == operations
    expected = operations * 23.6 + spikes * 1.7 + 6 * 20 * 3 * 52
    assert found.joules == pytest.approx(expected * PJ, rel=1e-12)
    run.save(tmp_path / "run.h5")
    assert nd.estimate(nd.load_trajectory(tmp_path / "run.h5")) == found


# ---------------------------------------------------------------- as text and data


def test_data_are_json_and_say_that_they_are_an_estimate():
    found = nd.estimate(trajectory("loihi1", {"a": {"synaptic_operations": 1, "spikes": 0}}))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["estimate"] is True
    assert values["joules"] == found.joules
    assert values["rows"][0]["source"].startswith("Davies")


def test_summary_cites_a_source_beside_every_figure():
    text = nd.estimate(trajectory("loihi1", {"a": {"synaptic_operations": 1000, "spikes": 40}})).summary()
    first, *_ = text.splitlines()
    assert first == "estimate for loihi1, not a measurement: 13.39 nJ a sample, 1.13 us a sample"
    assert "a     synaptic operations  1 000  23.6 pJ  23.6 nJ  [1]" in text
    assert "[3] Davies et al., IEEE Micro 38(1), 2018, Table 2: energy per neuron update (inactive)" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0 J"), (23.6e-12, "23.6 pJ"), (1e-15, "0.001 pJ"), (2.5e-6, "2.5 uJ"), (1500.0, "1500 J")],
)
def test_values_have_a_prefix(value, text):
    assert with_unit(value, "J") == text


# ---------------------------------------------------------------- the tables


def test_every_figure_of_every_target_has_a_source_and_every_target_says_what_is_missing():
    for name, target in nd.targets().items():
        figures = [*target.energy.operations, *(f for f in (target.energy.rest, target.energy.step) if f)]
        assert all(figure.value > 0 and figure.source for figure in figures), name
        assert target.energy.notes, name
        assert "energy" not in target.table


def test_page_has_every_figure_and_its_source():
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name, target in nd.targets().items():
        mine = " ".join(row for row in rows if f"`{name}`" in row.split("|")[1])
        units = [(figure, "J") for figure in target.energy.operations]
        units += [(f, unit) for f, unit in ((target.energy.rest, "W"), (target.energy.step, "s")) if f]
        assert mine, name
        for figure, unit in units:
            assert with_unit(figure.value, unit) in mine.replace("0.42 mW", "420 uW"), (name, figure)
            assert figure.source.split(" et al.")[0] in mine, (name, figure)


HEAD = '[target]\nname = "x"\ntitle = "X"\non_chip = ""\n[target.verified]\n'


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[energy]\nwatt = 1", "energy has the unknown field 'watt'"),
        ("[energy.operations.spikes]\njoules = 1e-12", r"operations\.spikes has the fields \['joules'\], expected"),
        ('[energy.operations.spikes]\njoules = 0\nsource = "a"', r"spikes\.joules is 0, expected a number above 0"),
        ('[energy.rest]\nwatts = true\nsource = "a"', r"rest\.watts is True, expected a number above 0"),
        ('[energy.step]\nseconds = nan\nsource = "a"', r"step\.seconds is nan, expected a number above 0"),
        ('[energy.rest]\nwatts = 1\nsource = " "', "every figure needs one"),
        ("[energy]\nrest = 3", "broken"),
        ('[energy]\nnotes = "one"', "energy.notes is 'one', expected a list of sentences"),
    ],
)
def test_a_table_with_a_figure_that_is_none_is_refused(tmp_path, section, message):
    path = Path(tmp_path) / "x.toml"
    path.write_text(HEAD + section + "\n")
    with pytest.raises(TargetError, match=message):
        load_table(path, "x")
