import json

import numpy as np
import pytest
from browser import browser, chromium
from make_gallery import differences

import nirdeploy as nd
from nirdeploy import demonstration
from nirdeploy.commands import tools
from nirdeploy.comparison.metrics import accuracy
from nirdeploy.comparison.text import neuron_text
from nirdeploy.demonstration import SILENT_STEPS, demo, digits, encode


def test_encoding_spreads_each_pixel_evenly():
    raster = encode(np.arange(17).repeat(64)[: 17 * 64].reshape(17, 8, 8))
    assert raster.shape == (20, 17, 1, 8, 8)
    assert np.array_equal(raster.sum(0)[:, 0, 0, 0], np.arange(17))
    assert raster.max() == 1
    assert not raster[-SILENT_STEPS:].any()
    # intensity 4 of 16: once every four steps
    assert np.flatnonzero(raster[:, 4, 0, 0, 0]).tolist() == [1, 5, 9, 13]


def test_split_is_fixed_and_holds_out_360_images():
    data, again = digits(), digits()
    assert data.train.shape[1] == 1437
    assert data.test.shape[1] == 360
    assert np.array_equal(data.test, again.test)
    assert np.bincount(data.test_labels).min() >= 34


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo"), show_progress=False)


def test_demo_reaches_its_accuracies_on_both_chips(result):
    assert result.reference_accuracy >= 0.95
    for name, target in result.targets.items():
        assert target.accuracy >= result.reference_accuracy - 0.02, name


def test_summary_has_the_promised_form(result):
    summary = json.loads((result.folder / "summary.json").read_text())
    assert set(summary) == {"dataset", "train_images", "test_images", "reference", "targets", "seconds"}
    assert (summary["train_images"], summary["test_images"]) == (1437, 360)
    assert set(summary["targets"]) == {"speck2f", "loihi2"}
    for target in summary["targets"].values():
        assert set(target) == {"accuracy", "spike_agreement", "first_divergence", "cores", "seconds"}
        assert set(target["spike_agreement"]) == {"if1", "if2", "if3"} == set(target["cores"])
        assert all(0 < value <= 1 for value in target["spike_agreement"].values())
        first = target["first_divergence"]
        assert first is None or set(first) == {"node", "neuron", "step"}
    assert accuracy(result.reference.outputs, result.data.test_labels) == summary["reference"]["accuracy"]


def test_gallery_shows_what_the_demo_prints(result, capsys):
    tools.print_demo(result)
    assert differences("demo", capsys.readouterr().out) == []


def test_page_stands_alone_and_files_read_back(result):
    page = (result.folder / "report.html").read_text()
    assert "speck2f" in page
    assert "loihi2" in page
    assert "<script src" not in page
    for name in ("reference", "speck2f", "loihi2"):
        assert nd.load_trajectory(result.folder / f"{name}.h5").outputs.shape == (20, 360, 10)
    again = nd.load_deployment(result.folder / "loihi2").run(result.data.test[:, :8])
    assert np.array_equal(again.outputs, result.targets["loihi2"].trajectory.outputs[:, :8])


def test_page_is_given_an_estimate_of_each_chip(result, monkeypatch):
    sections = []
    monkeypatch.setattr(demonstration, "write_report", lambda path, given, **facts: sections.extend(given))
    demonstration._report(result)
    assert [section.estimate.target for section in sections] == ["speck2f", "loihi2"]
    for section in sections:
        assert section.estimate.seconds == pytest.approx(20e-3)  # 20 steps of the convention's dt
        assert {row.node for row in section.estimate.rows} >= {"if1", "if2", "if3"}
        assert all(row.source for row in section.estimate.rows if row.joules is not None)


def test_page_is_small_opens_within_a_second_and_shows_a_clicked_node(result, tmp_path):
    assert (result.folder / "report.html").stat().st_size < 3_000_000
    with browser(chromium(), tmp_path / "profile") as tab:
        seconds = []
        for _ in range(3):  # the machine may be busy
            tab.open(result.folder / "report.html")
            seconds.append(tab.value("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
        assert 0 < min(seconds) <= 1
        for i, name in enumerate(("if1", "if2", "if3")):
            tab.click(f"#target-2-network a[data-node='{[1, 3, 7][i] + 1}'] rect")
            assert tab.value("document.querySelector('#target-2-explorer h4').textContent") == name
            told = tab.value("document.querySelector('#target-2-explorer .neurons select').value")
            first = result.targets["loihi2"].comparison.per_node[name].first_divergence
            assert told == f"{neuron_text(first.neuron)}, differs at step {first.step}"
        assert tab.complaints == []


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(NotImplementedError, match=r"pip install 'nirdeploy\[demo\]'"):
        digits()


def test_unwritable_folder_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make folder"):
        demo(tmp_path / "file" / "out")
    assert demonstration.TARGETS == ("speck2f", "loihi2")
