"""A sweep: the rows of single evaluations side by side, refusals among them, nothing computed twice or dropped."""

import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import SLOW
from nets import chain, conv_net, if_node, lif_node, linear_node, raster

import nirdeploy as nd
from nirdeploy.cli import main
from nirdeploy.errors import (
    CheckError,
    ConfigurationError,
    ConventionError,
    FileError,
    QuantizationError,
    RasterError,
    TargetError,
    UnsupportedError,
    VendorError,
)
from nirdeploy.evaluation import daskwise, sweep_runs
from nirdeploy.evaluation.file import read_table
from nirdeploy.evaluation.points import Point
from nirdeploy.evaluation.sweep_table import SweepRow

ROOT = Path(__file__).resolve().parents[2]
CONVENTION = nd.Convention(dt=1e-3, if_gain="r", reset="zero")
AXES = {"targets": ("speck2f", "loihi1"), "quantizers": ("max", "calibrated"), "dt": (None, 2e-3)}


@pytest.fixture(scope="module")
def graph():
    return conv_net()


@pytest.fixture(scope="module")
def data():
    """21 samples of 24 steps."""
    return raster((1, 6, 6), steps=24, batch=21, rate=0.5), np.arange(21) % 4


@pytest.fixture(scope="module")
def calibration(data):
    return data[0][:, :2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep") / "new" / "folder"


@pytest.fixture(scope="module")
def found(graph, data, calibration, folder):
    return nd.sweep(graph, data, convention=CONVENTION, calibration=calibration, output=folder, **AXES)


def pairs(counts):
    """Two steps in one, by hand."""
    return counts[0::2].astype(np.int64) + counts[1::2]


def at(dt):
    return nd.Convention(dt=dt, if_gain="r", reset="zero")


def quiet(*arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nd.errors.QuantizationWarning)
        return nd.deploy(*arguments, **keywords)


def speck(graph, data, own, **rest):
    """A small sweep; `own` is the calibration."""
    given = {"targets": "speck2f", "quantizers": "max", "convention": CONVENTION, "calibration": own}
    return nd.sweep(graph, data, **{**given, **rest})


# ---------------------------------------------------------------- rows


def test_there_is_a_row_for_every_point_the_reference_first(found):
    chips = list(itertools.product(("speck2f", "loihi1"), ("max", "calibrated")))
    expected = [(t, q, None, dt) for dt in (1e-3, 2e-3) for t, q in [("reference", ""), *chips]]
    assert [(row.target, row.quantizer, row.bits, row.dt) for row in found.rows] == expected
    assert {row.n for row in found.rows} == {21}


def test_rows_are_what_single_evaluations_say(found, graph, data, calibration):
    for dt, counts, own in ((1e-3, data[0], calibration), (2e-3, pairs(data[0]), pairs(calibration))):
        alone = nd.evaluate(graph, (counts, data[1]), convention=at(dt))
        reference, *chips = [row for row in found.rows if row.dt == dt]
        assert reference.accuracy == alone.accuracy
        assert reference.spikes == sum(s.sum() for s in alone.spikes.values()) / 21
        assert (reference.agreement, reference.cores, reference.joules) == (None, None, None)
        for row in chips:
            if row.refusals:
                continue
            dep = quiet(graph, row.target, convention=at(dt), calibration=own, quantizer=row.quantizer)
            one = nd.evaluate(dep, (counts, data[1]), against=alone)
            assert (row.accuracy, row.agreement) == (one.accuracy, one.agreement)
            assert row.spikes == sum(s.sum() for s in one.spikes.values()) / 21
            assert row.reference_spikes == reference.spikes
            stored = nd.load_evaluation(row.file)
            np.testing.assert_array_equal(stored.outputs, one.outputs)
            assert row.cores == len({core for cores in dep.placement.cores.values() for core in cores})
            assert row.of_cores == {"speck2f": 9, "loihi1": 128}[row.target]
            assert row.notes == dep.quantized.notes
    assert sum(bool(row.refusals) for row in found.rows) == 2, "speck2f takes counts of two, loihi1 does not"


def test_energy_is_that_of_the_estimate_and_none_without_figures(found, graph, data, calibration):
    row = next(row for row in found.rows if (row.target, row.quantizer) == ("loihi1", "calibrated"))
    dep = nd.deploy(graph, "loihi1", convention=CONVENTION, calibration=calibration)
    chosen = sorted({21 * k // 16 for k in range(16)})
    each = [nd.estimate(dep.run(data[0][:, [k]], record=("spikes",))).joules for k in chosen]
    assert row.joules == pytest.approx(sum(each) / 16, rel=1e-12)  # another order of adding
    assert row.joules > 0
    assert {r.joules for r in found.rows if r.target in ("speck2f", "reference")} == {None}


def test_bits_are_those_of_deploy(graph, data, calibration):
    found = speck(graph, data, calibration, bits=(None, 4), quantizers="calibrated")
    for row in found.chips:
        dep = nd.deploy(graph, "speck2f", convention=CONVENTION, calibration=calibration, weight_bits=row.bits)
        one = nd.evaluate(dep, data)
        assert row.spikes == sum(s.sum() for s in one.spikes.values()) / 21
        assert row.accuracy == one.accuracy
    assert len({row.spikes for row in found.chips}) > 1


def test_the_reference_is_one_row_a_dt_asked_for_or_not(graph, data):
    alone = nd.sweep(graph, data, targets="reference", bits=(None, 4), dt=(None, 2e-3, 3e-3), convention=CONVENTION)
    assert [str(row) for row in alone.rows] == [f"reference, dt {dt} s" for dt in (0.001, 0.002, 0.003)]
    assert (alone.executor, alone.chips) == ("reference", ())
    assert alone.best.accuracy == max(row.accuracy for row in alone.rows)
    both = nd.sweep(graph, data, targets=("speck2f", "reference"), quantizers="max", convention=CONVENTION)
    assert [row.target for row in both.rows] == ["reference", "speck2f"]


def test_results_depend_neither_on_workers_nor_on_files(found, graph, data, calibration):
    again = nd.sweep(graph, data, convention=CONVENTION, calibration=calibration, **AXES)
    assert again == found
    two = speck(graph, data, calibration, quantizers="calibrated", workers=2, batch=4)
    assert two.rows == (found.rows[0], found.rows[2])
    assert [row.evaluation is None for row in again.rows] == [bool(row.refusals) for row in again.rows]
    assert {row.file for row in again.rows} == {None}


def test_a_dask_cluster_of_this_machine_is_started_once_for_all_points(found, graph, data, calibration, monkeypatch):
    started = []
    real = daskwise.cluster_of_this_machine
    monkeypatch.setattr(daskwise, "cluster_of_this_machine", lambda workers: started.append(workers) or real(workers))
    two = speck(graph, data, calibration, quantizers="calibrated", scheduler="local", workers=1, batch=4)
    assert two.rows == (found.rows[0], found.rows[2])
    assert started == [1]


def test_without_labels_the_best_is_that_of_highest_agreement(graph, data, calibration):
    found = speck(graph, (data[0], None), calibration, quantizers=("max", "calibrated"))
    assert {row.accuracy for row in found.rows} == {None}
    assert found.best == max(found.chips, key=lambda row: row.agreement)
    assert f"best agreement {found.best.agreement:.4f}: {found.best}" in found.summary()


def test_the_summary_names_the_best_and_why_others_refuse(found):
    text = found.summary()
    assert text.splitlines()[0] == "10 points, 21 samples (emulator), 2 refused"
    best = max((row for row in found.chips if not row.refusals), key=lambda row: row.accuracy)
    assert f"best accuracy {best.accuracy:.4f}: {best}" in text
    assert text.count("refused [") == 2
    assert text.count("at most 1 a step is possible here") == 1, "a reason stands once"
    assert "no lower bound of v" in text  # what 'max' warns of
    assert "Energy is an estimate" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("[")) < 140


def test_an_event_mode_and_its_options_reach_the_chips_alone(graph, data, calibration):
    found = speck(graph, data, calibration, mode="event", options={"leak_clock_hz": 0})
    dep = quiet(graph, "speck2f", convention=CONVENTION, quantizer="max")
    one = nd.evaluate(dep, data, mode="event", options={"leak_clock_hz": 0})
    np.testing.assert_array_equal(found.rows[1].evaluation.outputs, one.outputs)


def test_progress_goes_through_all_samples_of_all_points(graph, data, calibration):
    seen = []
    speck(graph, data, calibration, targets=("speck2f", "loihi1"), bits=(None, 99), progress=lambda *p: seen.append(p))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (5 * 21, 5 * 21)
    assert {every for _, every in seen} == {5 * 21}


# ---------------------------------------------------------------- refusals


def test_a_target_that_refuses_is_a_row_with_all_reasons(graph, data, calibration):
    convention = nd.convention("sinabs", dt=1e-3, v_min="-threshold")
    found = speck(graph, data, calibration, targets=("loihi2", "speck2f"), convention=convention)
    refused, fine = found.chips
    with pytest.raises(CheckError) as caught:
        nd.deploy(graph, "loihi2", convention=convention, calibration=calibration)
    assert refused.refusals == caught.value.report.errors
    assert refused.refusal.node == "if1"
    assert refused.refusal.remedy
    assert (refused.accuracy, refused.agreement, refused.spikes, refused.cores) == (None,) * 4
    assert refused.reference_spikes == fine.reference_spikes
    assert fine.accuracy is not None
    assert found.best is fine
    assert f"And {len(refused.refusals) - 1} more." in found.summary()
    assert found.to_dict()["rows"][1]["refusals"][0]["code"] == refused.refusal.code


def test_bits_and_quantizers_that_a_target_lacks_are_rows(graph, data, calibration):
    found = speck(graph, data, calibration, targets=("speck2f", "loihi2"), bits=(None, 99), quantizers=("max", "exact"))
    reasons = {str(row): row.refusal for row in found.chips}
    assert len(reasons) == 8
    assert reasons["speck2f, max, dt 0.001 s"] is None
    assert "99" in reasons["speck2f, max, 99 bits, dt 0.001 s"].problem
    exact = reasons["speck2f, exact, dt 0.001 s"]
    assert (exact.code, exact.node) == ("quantization", "conv1")
    assert "quantizer 'exact': as integers" in exact.problem
    assert exact.remedy.startswith("Use quantizer='calibrated'")
    assert exact.remedy not in exact.problem
    exact = reasons["loihi2, exact, dt 0.001 s"]
    assert (exact.code, exact.node) == ("quantization", "conv1")
    assert "quantizer 'exact': as integers" in exact.problem
    assert "8 bits hold -128 to 127" in exact.problem


def test_a_network_too_large_for_a_chip_is_a_row(data):
    weights = np.random.default_rng(0).normal(0.1, 0.3, (2, 2))
    wide = chain((2,), **{f"{kind}{k}": linear_node(weights) if kind == "w" else if_node((2,))
                          for k in range(7) for kind in ("w", "n")})  # fmt: skip
    given = raster((2,), steps=6, batch=4)
    found = speck(wide, (given, None), given, targets=("speck2cmini", "speck2f"))
    assert "7 layers, the chip has 5 cores" in found.chips[0].refusal.problem
    assert found.chips[1].agreement is not None


def test_an_option_that_one_target_has_is_refused_by_the_other_alone(graph, data, calibration):
    found = speck(graph, data, calibration, targets=("speck2f", "loihi1"), options={"read_out": "chip"})
    assert [row.refusal and row.refusal.code for row in found.chips] == ["unsupported", None]
    assert "read_out" in found.chips[0].refusal.problem


def test_a_simulator_that_is_not_there_is_a_row(graph, data, calibration, monkeypatch, tmp_path):
    monkeypatch.setenv("NIRDEPLOY_HOME", str(tmp_path))
    found = speck(graph, data, calibration, on="chip")
    assert found.executor == "chip"
    assert found.chips[0].refusal.code == "unavailable"
    assert "samples are kept" not in str(found.chips[0].refusal)
    assert found.best is None


def test_errors_of_the_data_end_the_sweep_also_when_they_come_late(graph, data, calibration):
    class Late:
        reads = 0

        def __len__(self):
            return 21

        def __getitem__(self, i):
            self.reads += i == 20
            if self.reads == 3:  # the fingerprint's, the reference's, and now the chip's
                raise KeyError("gone")
            return data[0][:, i], int(data[1][i])

    with pytest.raises(RasterError, match="sample 20: the data set raises KeyError: 'gone'"):
        speck(graph, Late(), calibration)
    bad = data[0].astype(float)
    bad[3, 7] = -1
    with pytest.raises(RasterError, match="sample 7: .*negative"):
        speck(graph, (bad, data[1]), calibration)


def test_a_vendor_that_fails_ends_the_sweep_and_keeps_what_is_there(graph, data, calibration, tmp_path, monkeypatch):
    real = sweep_runs.evaluate

    def failing(network, *arguments, **rest):
        if isinstance(network, nd.Deployment) and network.target.name == "loihi1":
            raise VendorError("the simulator hung")
        return real(network, *arguments, **rest)

    monkeypatch.setattr(sweep_runs, "evaluate", failing)
    with pytest.raises(VendorError, match="hung"):
        speck(graph, data, calibration, targets=("speck2f", "loihi1"), output=tmp_path / "out")
    stored = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert stored == ["reference_dt0.001.h5", "speck2f_max_dt0.001.h5"]


@pytest.mark.parametrize(
    ("kind", "words", "given"),
    [
        (TargetError, "unknown target 'spek2f'. Did you mean 'speck2f'", {"targets": ("speck2f", "spek2f")}),
        (TargetError, "unknown target 3", {"targets": 3}),
        (ConfigurationError, "targets has no value", {"targets": ()}),
        (ConfigurationError, "bits has 4 twice", {"bits": (4, 2, 4)}),
        (ConfigurationError, "dt has 0.001 twice", {"dt": (None, 1e-3)}),
        (ConfigurationError, "bits has 2.5, expected whole numbers", {"bits": 2.5}),
        (ConfigurationError, "bits has True", {"bits": (True,)}),
        (ConfigurationError, "dt has -1, expected seconds above 0", {"dt": -1}),
        (ConfigurationError, "dt has nan", {"dt": float("nan")}),
        (ConfigurationError, "dt has 1000.*, expected seconds", {"dt": 10**400}),
        (ConfigurationError, "dt has 0.002 twice", {"dt": (torch.tensor(2e-3, dtype=torch.float64), 2e-3)}),
        (ConfigurationError, r"bits has array\(\[1, 2\]\)", {"bits": [np.array([1, 2]), np.array([1, 3])]}),
        (ConfigurationError, "bits has True", {"bits": (1, np.True_)}),
        (ConfigurationError, "step_us is 0", {"step_us": 0}),
        (ConfigurationError, "step_us is 1.5", {"step_us": 1.5}),
        (ConventionError, "convention is 'nir', expected a Convention", {"convention": "nir"}),
        (QuantizationError, "unknown quantizer 'foo', expected one of", {"quantizers": ("max", "foo")}),
        (QuantizationError, "'calibrated' needs calibration data", {"quantizers": "calibrated", "calibration": None}),
        (ConfigurationError, "resume needs output", {"resume": True}),
        (ConfigurationError, "step_us and dt are both given", {"step_us": 1000, "dt": 2e-3}),
        (UnsupportedError, "on='nowhere' is unknown", {"on": "nowhere"}),
        (ConfigurationError, "workers is 0", {"workers": 0}),
        (RasterError, "the calibration data: the raster has shape", {"calibration": np.zeros((5, 2, 3))}),
    ],
)  # fmt: skip
def test_arguments_without_meaning_are_refused_before_anything_runs(
    graph, data, calibration, tmp_path, kind, words, given
):
    with pytest.raises(kind, match=words):
        speck(graph, data, calibration, **({} if "resume" in given else {"output": tmp_path / "out"}), **given)
    assert not list(tmp_path.rglob("*.h5"))


def test_what_is_no_network_is_refused(data, calibration):
    with pytest.raises(UnsupportedError, match="a sweep of a Linear"):
        speck(torch.nn.Linear(2, 2), data, calibration)
    with pytest.raises(ConventionError, match="carries no convention"):
        nd.sweep(conv_net(), data, targets="reference")


# ---------------------------------------------------------------- dt


def test_steps_of_a_raster_are_added_up_exactly(graph, data, calibration):
    bytes_ = np.full((6, 2, 1, 6, 6), 200, np.uint8)  # four of them are more than a byte
    found = nd.sweep(graph, (bytes_, None), targets="reference", dt=(3e-3,), convention=CONVENTION)
    alone = nd.evaluate(graph, (np.full((2, 2, 1, 6, 6), 600), None), convention=at(3e-3))
    np.testing.assert_array_equal(found.rows[0].evaluation.outputs, alone.outputs)
    assert alone.outputs.any()
    assert found.rows[0].evaluation.steps.tolist() == [2, 2]


def test_time_constants_see_the_dt_of_the_point():
    network = chain((3,), w=linear_node(np.eye(3)), n=lif_node((3,), tau=0.02, threshold=0.2))
    counts = raster((3,), steps=24, batch=5, rate=0.6)
    found = nd.sweep(network, (counts, None), targets="reference", dt=(1e-3, 4e-3), convention=nd.Convention(dt=1e-3))
    summed = counts.reshape(6, 4, 5, 3).sum(axis=1)
    for row, given in zip(found.rows, (counts, summed), strict=True):
        alone = nd.run(network, given, convention=nd.Convention(dt=row.dt))
        np.testing.assert_array_equal(row.evaluation.outputs, np.asarray(alone.outputs).sum(axis=0))
    assert found.rows[0].spikes != found.rows[1].spikes


@pytest.fixture(scope="module")
def recorded():
    rng = np.random.default_rng(3)
    found = []
    for label in range(4):
        time_us = np.sort(rng.integers(0, 24_000, 300))
        index = [np.zeros(300, int), *rng.integers(0, 6, (2, 300))]
        found.append(nd.Events(time_us, index=index, shape=(1, 6, 6), stop_us=24_000, label=label))
    return found


@pytest.mark.parametrize("mode", ["step", "event"])
def test_recorded_events_are_counted_into_steps_of_each_dt(graph, recorded, mode):
    steps = (5e-4, 1e-3, 1.5e-3, 5e-3)  # finer and coarser than the convention's, and no multiples of it
    found = speck(graph, recorded, recorded[:2], quantizers="calibrated", dt=steps, mode=mode)
    for dt in steps:
        reference, chip = (row for row in found.rows if row.dt == dt)
        binned = [nd.events_to_raster(events, step_us=round(dt * 1e6)) for events in recorded]
        alone = nd.evaluate(graph, [(one, k) for k, one in enumerate(binned)], convention=at(dt))
        np.testing.assert_array_equal(reference.evaluation.outputs, alone.outputs)
        own = np.stack(binned[:2], axis=1)
        dep = nd.deploy(graph, "speck2f", convention=at(dt), calibration=own)
        given = recorded if mode == "event" else [(one, k) for k, one in enumerate(binned)]
        one = nd.evaluate(dep, given, mode=mode)
        np.testing.assert_array_equal(chip.evaluation.outputs, one.outputs)
        np.testing.assert_array_equal(chip.evaluation.labels, np.arange(4))
        assert chip.agreement == (one.predictions == alone.predictions).mean()


def test_a_dt_that_the_data_cannot_have_is_refused_by_name(graph, data, calibration, recorded):
    cases = [
        (data, calibration, 5e-4, r"dt=0\.0005 s with the arrays given, a raster of steps of 0\.001 s: finer.*events"),
        (data, calibration, 1.5e-3, "no whole multiple of them"),
        (data, calibration, 5e-3, r"sample 0 has 24 steps; adding up 5 of them to one leaves 4 over. Append 1 step of"),
        (
            data,
            calibration,
            1e300,
            r"sample 0 has 24 steps, fewer than the 1e\+303 that are added up",
        ),
        ((data[0].astype(np.int64) << 61, None), calibration, 4e-3, r"holds 2305843009213693952: 4 of them are more"),
        (data, calibration[:23], 2e-3, "the calibration data has 23 steps"),
        (recorded, recorded, 1.5e-6, "no whole number of microseconds"),
        (recorded, calibration, 5e-4, "with the calibration data, a raster of steps of 0.001 s: finer"),
    ]
    for given, own, dt, words in cases:
        with pytest.raises(RasterError, match=words):
            speck(graph, given, own, dt=dt)
    with pytest.raises(RasterError, match="the convention has no dt"):
        speck(graph, data, calibration, dt=1e-3, convention=nd.Convention(if_gain="r", reset="zero"))


def test_samples_of_another_kind_or_length_are_named_when_they_come(graph, data, calibration, recorded):
    uneven = [(data[0][: 24 - (k == 3), k], 0) for k in range(5)]
    with pytest.raises(RasterError, match="sample 3 has 23 steps; adding up 2"):
        speck(graph, uneven, calibration, dt=2e-3)
    mixed = [(data[0][:, 0], 0), recorded[1]]
    with pytest.raises(RasterError, match="sample 1 is recorded events, sample 0 a raster"):
        speck(graph, mixed, calibration, dt=2e-3)


# ---------------------------------------------------------------- the folder


def test_the_folder_holds_every_run_the_table_and_the_plot(found, folder):
    names = {row.file.name for row in found.rows if row.file}
    assert names == {"reference_dt0.001.h5", "reference_dt0.002.h5", "speck2f_max_dt0.001.h5", "speck2f_max_dt0.002.h5",
                     "speck2f_calibrated_dt0.001.h5", "speck2f_calibrated_dt0.002.h5", "loihi1_max_dt0.001.h5",
                     "loihi1_calibrated_dt0.001.h5"}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names | {"sweep.json", "sweep.csv", "sweep.png", "sweep.svg"}
    stored = json.loads((folder / "sweep.json").read_text())
    assert stored == json.loads(json.dumps(found.to_dict()))
    assert stored["format"] == "nirdeploy-sweep"
    assert stored["best"]["target"] == found.best.target
    rows = list(csv.DictReader(io.StringIO((folder / "sweep.csv").read_text())))
    assert [row["target"] for row in rows] == [row.target for row in found.rows]
    for row, expected in zip(rows, found.rows, strict=True):
        for name in ("accuracy", "agreement", "spikes", "joules", "dt"):
            value = getattr(expected, name)
            assert row[name] == ("" if value is None else repr(value))
        assert bool(row["refusal"]) == bool(expected.refusals)
    assert (folder / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "<svg" in (folder / "sweep.svg").read_text()


def test_names_of_points_are_safe_and_their_own():
    assert Point("a/b _c", "max", 4, 1e-05).name == "a%2Fb%20%5Fc_max_4bits_dt1e-05"
    assert Point("..").name == "%2E%2E"
    assert len({Point("a", "b_c").name, Point("a_b", "c").name, Point("a_b_c").name}) == 3


def test_a_folder_in_use_is_refused_without_resume(graph, data, calibration, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match="has files already. Pass resume=True"):
        speck(graph, data, calibration, output=tmp_path)
    with pytest.raises(FileError, match="cannot write into"):
        speck(graph, data, calibration, output=tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resume_of_another_sweep_is_refused_and_of_more_points_goes_on(graph, data, calibration, tmp_path):
    first = speck(graph, data, calibration, output=tmp_path / "out")
    table = tmp_path / "out" / "sweep.json"
    before = table.read_text()
    for other, given, what in (
        (conv_net(seed=1), data, "network"),
        (graph, (data[0], data[1][::-1].copy()), "data set"),
    ):
        with pytest.raises(FileError, match=rf"sweep.json' is of a sweep of another {what}, and would be replaced"):
            # no file of a point is of this dt, so that none of them could tell
            speck(other, given, calibration, dt=2e-3, output=tmp_path / "out", resume=True)
    assert table.read_text() == before
    table.write_text('{"rows": []}')
    with pytest.raises(FileError, match=r"sweep.json' is no table of a sweep, and would be replaced"):
        speck(graph, data, calibration, output=tmp_path / "out", resume=True)
    table.write_text(before[:100])  # half written; made anew below
    with pytest.raises(FileError, match="reference_dt0.001.h5' holds another network"):
        speck(conv_net(seed=1), data, calibration, output=tmp_path / "out", resume=True)
    seen = []
    point = tmp_path / "out" / first.chips[0].file.name
    whole = point.read_bytes()
    point.write_bytes(whole[:3000])
    with pytest.raises(FileError, match="is truncated.*Remove it: what it should hold is then computed again"):
        speck(graph, data, calibration, output=tmp_path / "out", resume=True)
    point.write_bytes(whole)
    more = speck(graph, data, calibration, bits=(None, 4), output=tmp_path / "out", resume=True,
                 progress=lambda done, _: seen.append(done))  # fmt: skip
    assert more.rows[:2] == first.rows
    assert seen == [21, 42, 58, 63, 63], "only the new point went through its samples"


KILLED = f"""{SLOW}
if __name__ == "__main__":
    net, data, output = sys.argv[1:]
    found = nd.sweep(nd.read(net), Slow(data, 0.005), targets="speck2f", quantizers="max", bits=(None, 4, 2), batch=4,
                     output=output, resume=True, progress=lambda done, total: print(done, flush=True))
"""


def test_a_killed_sweep_goes_on_within_and_between_points(graph, data, tmp_path):
    nd.write(tmp_path / "net.nir", graph, convention=CONVENTION)
    np.savez(tmp_path / "data.npz", raster=data[0], labels=data[1])
    (tmp_path / "client.py").write_text(KILLED)
    output = tmp_path / "out"
    command = [sys.executable, tmp_path / "client.py", tmp_path / "net.nir", tmp_path / "data.npz", output]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}
    for told in (21 + 21, 42 + 12):  # between two points, within a chip's point
        before = {path.name: read_table(path).done.sum() for path in output.glob("*.h5")}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as client:
            while int(client.stdout.readline()) < told:
                pass
            client.send_signal(signal.SIGKILL)
            client.stdout.close()
        assert client.wait() == -signal.SIGKILL
        now = {path.name: read_table(path).done.sum() for path in output.glob("*.h5")}
        assert sum(now.values()) >= told
        assert all(now[name] >= done for name, done in before.items()), "a finished sample is lost"
    assert not (output / "sweep.json").exists()
    finished = output / "speck2f_max_dt0.001.h5"
    before = finished.stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert finished.stat().st_mtime_ns == before, "a finished point was written again"
    whole = nd.sweep(graph, data, targets="speck2f", quantizers="max", bits=(None, 4, 2), convention=CONVENTION)
    stored = json.loads((output / "sweep.json").read_text())["rows"]
    for row, expected in zip(stored, whole.rows, strict=True):
        theirs = {**expected.to_dict(), "file": row["file"], "seconds": row["seconds"]}
        assert row == json.loads(json.dumps(theirs))
        np.testing.assert_array_equal(nd.load_evaluation(output / row["file"]).outputs, expected.evaluation.outputs)


# ---------------------------------------------------------------- the plot


def table_of(targets, quantizers=("calibrated",), bits=(None,), dt=(1e-3,), refused=lambda row: False, labels=True):
    """A sweep with made-up shares."""
    rows = []
    for step in dt:
        rows.append(SweepRow("reference", dt=step, n=9, accuracy=0.9 if labels else None, spikes=3.0))
        for k, values in enumerate(itertools.product(targets, quantizers, bits)):
            row = SweepRow(*values, step, n=9, accuracy=(0.5 + k / 200) if labels else None, agreement=0.6 + k / 200)
            reason = (nd.Finding("fan_in", "x", "too many", "Prune."),)
            rows.append(SweepRow(*values, step, n=9, refusals=reason) if refused(row) else row)
    return nd.Sweep(tuple(rows), 9, "g", "d")


def drawn(sweep):
    """For each panel, by its label: how many points each kind of line has."""
    from nirdeploy.evaluation.sweep_plot import figure

    picture = figure(sweep)
    picture.draw_without_rendering()
    panels = {}
    for panel in picture.axes:
        counted = {}
        for line in panel.get_lines():
            counted[line.get_label()] = counted.get(line.get_label(), 0) + len(line.get_xdata())
        panels[panel.get_ylabel().replace("\n", " ")] = counted
    legend = [text.get_text().strip() for box in picture.legends for text in box.get_texts()]
    return picture, panels, legend


def test_a_plot_has_a_mark_for_every_point_and_says_what_it_is():
    sweep = table_of(("speck2f", "loihi2"), ("max", "calibrated"), (8, 4, None), refused=lambda row: row.bits == 4)
    picture, panels, legend = drawn(sweep)
    assert list(panels) == ["accuracy (%)", "agreement with the reference (%)"]
    for name, panel in zip(("accuracy", "agreement"), panels.values(), strict=True):
        assert (panel[name], panel["refused"], panel["best"]) == (8, 4, 1)
    assert panels["accuracy (%)"]["reference"] == 2  # the ends of one line
    assert picture.axes[-1].get_xlabel() == "weight bits"
    assert [text.get_text() for text in picture.axes[-1].get_xticklabels()] == ["4", "8", "own"]
    for wanted in ("target", "speck2f", "loihi2", "quantiser", "max", "calibrated", "reference", "refused", "best"):
        assert wanted in legend
    title = picture.axes[0].get_title(loc="left")
    assert "9 samples, 12 points (emulator), 4 refused" in title
    assert f"best accuracy {100 * sweep.best.accuracy:.2f} %: {sweep.best}" in title


def test_refused_points_lie_below_all_others_and_below_the_scale():
    picture, _, _ = drawn(table_of(("a", "b", "c"), refused=lambda row: row.target == "b"))
    for panel in picture.axes:
        lines = {line.get_label(): line for line in panel.get_lines()}
        lost = lines["refused"]
        assert lost.get_markerfacecolor() == "none" or lost.get_fillstyle() == "none"
        assert list(lost.get_xdata()) == [1]
        others = [y for name, line in lines.items() for y in line.get_ydata() if name in ("accuracy", "agreement")]
        assert max(lost.get_ydata()) < min(others)
        assert max(lost.get_ydata()) < min(panel.get_yticks())
        assert panel.get_ylim()[0] < min(lost.get_ydata())


def test_axes_are_told_apart_by_colour_marker_and_filling():
    sweep = table_of(("a", "b", "c", "d"), ("max", "calibrated"), (8, 4), (1e-3, 2e-3))
    picture, panels, _ = drawn(sweep)
    assert panels["accuracy (%)"]["accuracy"] == 32
    lines = [line for line in picture.axes[0].get_lines() if line.get_label() == "accuracy"]
    looks = {(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in lines}
    assert len(looks) == len(lines) == 8
    assert picture.axes[-1].get_xlabel() == "target"
    xs = [x for line in lines for x in line.get_xdata()]
    assert len(set(np.round(xs, 9))) == 32, "points lie on each other"


def test_dt_across_has_a_reference_at_each_place():
    picture, _, legend = drawn(table_of(("speck2f",), ("max", "calibrated"), dt=(1e-3, 2e-3, 5e-3)))
    assert picture.axes[-1].get_xlabel() == "dt (ms)"
    assert [text.get_text() for text in picture.axes[-1].get_xticklabels()] == ["1", "2", "5"]
    references = [line for line in picture.axes[0].get_lines() if line.get_label() == "reference"]
    assert [np.mean(line.get_xdata()) for line in references] == pytest.approx([0, 1, 2])
    assert legend.count("reference") == 1


@pytest.mark.parametrize(
    ("given", "panels"),
    [
        ({"targets": ("speck2f",)}, ["accuracy (%)", "agreement with the reference (%)"]),
        ({"targets": ("speck2f",), "labels": False}, ["agreement with the reference (%)"]),
        ({"targets": ()}, ["accuracy (%)"]),
        ({"targets": (), "labels": False}, ["spikes a sample"]),
        ({"targets": ("a", "b"), "refused": lambda row: True}, ["accuracy (%)", "agreement with the reference (%)"]),
        ({"targets": [f"a chip with a name as long as {k}" for k in range(9)], "bits": range(2, 9)},
         ["accuracy (%)", "agreement with the reference (%)"]),
    ],
    ids=["one point", "no labels", "reference", "reference without labels", "all refused", "63 points"],
)  # fmt: skip
def test_plots_of_every_shape_can_be_drawn(tmp_path, given, panels):
    sweep = table_of(**given)
    assert list(drawn(sweep)[1]) == panels
    for suffix in (".png", ".svg", ".pdf"):
        sweep.save_plot(tmp_path / f"sweep{suffix}")
        assert (tmp_path / f"sweep{suffix}").stat().st_size > 1000
    sweep.save_plot(tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "sweep.svg").read_bytes()
    with pytest.raises(ConfigurationError, match=r"sweep.bmp' is no picture: expected one of .png, .svg, .pdf"):
        sweep.save_plot(tmp_path / "sweep.bmp")


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command here; exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nirdeploy", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave, warnings.catch_warnings():
            main()
        said = capsys.readouterr()
        return leave.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def files(graph, data, calibration, tmp_path):
    nd.write(tmp_path / "net.nir", graph, convention=CONVENTION)
    np.savez(tmp_path / "data.npz", raster=data[0], labels=data[1])
    np.savez(tmp_path / "cal.npz", raster=calibration)
    return tmp_path


def test_the_command_sweeps_resumes_and_tells(call, files, found):
    command = [files / "net.nir", files / "data.npz", "--calibration", files / "cal.npz", "--output", files / "out",
               "--sweep", "target=speck2f,loihi1", "--sweep", "quantizer=max", "--sweep", "quantizer=calibrated",
               "--sweep", "dt=own,2e-3"]  # fmt: skip
    code, out, err = call(*command)
    assert (code, err) == (0, "")
    assert out == f"{found.summary()}\nwritten to {files / 'out'}\n"
    assert (files / "out" / "sweep.png").exists()
    assert call(*command)[0] == 2
    code, out, _ = call(*command, "--resume", "--json")
    assert code == 0
    theirs = json.loads(json.dumps(found.to_dict()))
    mine = json.loads(out)
    for row in (*theirs["rows"], *mine["rows"]):
        del row["seconds"]
    assert {**mine, "data": ""} == {**theirs, "data": ""}


def test_limits_hold_at_every_point_of_the_command(call, files):
    command = [files / "net.nir", files / "data.npz", "--sweep", "target=speck2f", "--sweep", "quantizer=max"]
    assert call(*command, "--min-accuracy", 0, "--min-agreement", 0)[0] == 0
    code, out, _ = call(*command, "--min-agreement", 1)
    assert code == 1
    assert "beyond the limits: speck2f, max, dt 0.001 s: agreement 0." in out
    code, out, _ = call(*command, "--sweep", "bits=own,99", "--min-accuracy", 0)
    assert code == 1
    assert "speck2f, max, 99 bits, dt 0.001 s: accuracy not measured" in out
    assert call(*command, "--sweep", "bits=own,99")[0] == 0, "a refusal alone is a row"
    assert call(*command, "--sweep", "bits=99")[0] == 1, "nothing has run"
    only = [files / "net.nir", files / "data.npz", "--sweep", "target=reference"]
    assert call(*only, "--min-accuracy", 0)[0] == 0
    code, _, err = call(*only, "--min-agreement", 0)
    assert code == 2
    assert "needs a chip" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["target"], "--sweep 'target' has no '='"),
        (["targets=speck2f"], "has no axis 'targets'. Did you mean 'target'? Axes: target, quantizer, bits, dt"),
        (["bits=8"], "--sweep has no targets. Add --sweep target="),
        (["target=speck2f", "bits=8,x"], "--sweep 'bits=8,x' has 'x'. Give a whole number, or own."),
        (["target=speck2f", "dt=1ms"], "--sweep 'dt=1ms' has '1ms'. Give seconds, or own."),
        (["target=speck9"], "unknown target 'speck9'"),
        (["target=speck2f", "quantizer=best"], "unknown quantizer 'best', expected one of"),
        (["target=speck2f"], "quantizer 'calibrated' needs calibration data"),
        (["target=speck2f", "target=speck2f", "quantizer=max"], "targets has 'speck2f' twice"),
    ],
)
def test_mistakes_of_a_sweep_are_usage_errors(call, files, arguments, words):
    options = [option for item in arguments for option in ("--sweep", item)]
    code, out, err = call(files / "net.nir", files / "data.npz", *options)
    assert (code, out) == (2, "")
    assert words in err


def test_options_of_one_network_are_refused_in_a_sweep_and_the_other_way_round(call, files, graph):
    sweep = ["--sweep", "target=reference"]
    quiet(graph, "speck2f", convention=CONVENTION, quantizer="max").save(files / "build")
    cases = [
        ([files / "build", files / "data.npz", *sweep], "is quantised already"),
        ([files / "net.nir", files / "data.npz", *sweep, "--method", "loop"], "--sweep with --against or --method"),
        ([files / "net.nir", files / "data.npz", *sweep, "--against", "ref.h5"], "--sweep with --against or --method"),
        ([files / "net.nir", files / "data.npz", "--calibration", files / "cal.npz"], "--calibration is a sweep's"),
    ]
    for arguments, words in cases:
        code, _, err = call(*arguments)
        assert code == 2
        assert words in err


def test_calibration_of_the_command_may_be_recorded_events(call, files, recorded):
    for k, events in enumerate(recorded):
        path = files / "recorded" / str(k) / "a.npz"
        path.parent.mkdir(parents=True)
        nd.save_events(path, events)
    for calibration in (files / "recorded", files / "recorded" / "0" / "a.npz"):
        command = [files / "net.nir", files / "recorded", "--sweep", "target=speck2f", "--sweep", "dt=5e-4,3e-3"]
        code, out, err = call(*command, "--calibration", calibration, "--json")
        assert code == 0, err
        given = recorded if calibration.is_dir() else recorded[0]
        alone = nd.sweep(conv_net(), recorded, targets="speck2f", dt=(5e-4, 3e-3), convention=CONVENTION,
                         calibration=given)  # fmt: skip
        assert [row["spikes"] for row in json.loads(out)["rows"]] == [row.spikes for row in alone.rows]
