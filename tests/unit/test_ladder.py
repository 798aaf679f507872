import dataclasses
import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import nirdeploy as nd
from nirdeploy import backend
from nirdeploy.comparison.ladder import Step
from nirdeploy.errors import ComparisonError, ConventionError, RasterError, UnavailableError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(scope="module")
def digits():
    graph = nd.read(CONFIGS / "digits.nir")
    stored = np.load(CONFIGS / "digits_calibration.npz")
    raster, labels = stored["raster"][:, :12], stored["labels"][:12]
    return nd.deploy(graph, "speck2f", calibration=stored["raster"]), raster, labels


@pytest.fixture(scope="module")
def climbed(digits):
    return nd.ladder(*digits)


def rung(found, name):
    return next(r for r in found.rungs if r.name == name)


def test_rungs_go_from_the_reference_to_the_chip(climbed):
    names = [r.name for r in climbed.rungs]
    assert names[:4] == ["reference", "chip convention", "quantised parameters", "integer states"]
    assert names[4:] == ["sinabs", "event order", "chip"]
    assert rung(climbed, "reference").cost is None
    assert "samna" in rung(climbed, "chip").reason


def test_integers_in_the_reference_executor_equal_the_emulator(climbed):
    # two executors, one definition: nothing saturates here
    cost = rung(climbed, "integer states").cost
    assert cost.spikes.differing == 0
    assert cost.spikes.reference > 1000


def test_the_dominating_rung_is_named_in_a_sentence(climbed):
    assert climbed.dominating.name == "event order"
    changed = climbed.dominating.differing
    assert changed == max(r.differing for r in climbed.rungs)
    assert "comes with 'event order' (v is compared, and held to 16 bits, after every event): " in climbed.verdict()
    assert "the first is if1 neuron" in climbed.verdict()


def test_accuracy_is_told_for_every_rung_that_ran(digits, climbed):
    deployment, raster, labels = digits
    outputs = deployment.run(raster).outputs.sum(0)
    assert rung(climbed, "integer states").accuracy == np.mean(outputs.argmax(1) == labels)
    assert rung(climbed, "chip").accuracy is None
    assert "accuracy" in climbed.summary().splitlines()[0]


def test_json_and_page_hold_every_rung(climbed, tmp_path):
    values = json.loads(climbed.to_json())
    assert [r["name"] for r in values["rungs"]] == [r.name for r in climbed.rungs]
    assert values["dominating"] == "event order"
    climbed.to_html(tmp_path / "ladder.html")
    page = (tmp_path / "ladder.html").read_text(encoding="utf-8")
    for r in climbed.rungs:
        assert (f"rung before: {r.change}." in page) == (r.cost is not None)
        assert (f"not run: {r.name}" in page) == bool(r.reason)
    assert climbed.verdict() in unescape(page)


def changed(deployment, node, **values):
    layers = {**deployment.quantized.layers, node: dataclasses.replace(deployment.quantized[node], **values)}
    return dataclasses.replace(deployment, quantized=dataclasses.replace(deployment.quantized, layers=layers))


@pytest.mark.parametrize(("node", "population"), [("conv1", "if1"), ("fc", "if3")])
def test_wrong_weights_of_one_output_show_at_the_integers_and_in_its_own_layer(digits, node, population):
    deployment, raster, _ = digits
    weight = deployment.quantized[node].weight.copy()
    weight[0] *= -1
    broken, whole = (nd.ladder(d, raster) for d in (changed(deployment, node, weight=weight), deployment))
    assert rung(broken, "quantised parameters").differing > rung(whole, "quantised parameters").differing
    assert rung(broken, "chip convention").differing == 0
    told = rung(broken, "quantised parameters").cost.per_node
    before = rung(whole, "quantised parameters").cost.per_node
    first = next(n for n in told if told[n].spikes != before[n].spikes)
    assert first == population


def test_what_a_network_was_trained_in_may_differ_from_the_chips(digits):
    deployment, raster, _ = digits
    trained = dataclasses.replace(deployment.convention, reset="subtract", overrides={})
    found = nd.ladder(deployment, raster, convention=trained)
    assert rung(found, "chip convention").differing > 0


def test_labels_that_do_not_fit_are_refused(digits):
    deployment, raster, labels = digits
    with pytest.raises(RasterError, match=r"labels are int64 of shape \(5,\), expected 12 whole numbers"):
        nd.ladder(deployment, raster, np.asarray(labels[:5], dtype=np.int64))
    with pytest.raises(ConventionError, match="convention is 'nir', expected a Convention"):
        nd.ladder(deployment, raster, convention="nir")


class _Plain:
    """A backend without rungs of its own."""


def test_a_backend_without_rungs_has_reference_and_emulator(digits, monkeypatch):
    deployment, raster, _ = digits
    real = backend.backend_of(deployment.target.backend)
    plain = _Plain()
    plain.run = real.run
    monkeypatch.setattr(backend, "backend_of", lambda name: plain)
    found = nd.ladder(deployment, raster)
    assert [r.name for r in found.rungs] == ["reference", "emulator"]


def test_a_ladder_of_the_reference_alone_is_refused(digits, monkeypatch):
    deployment, raster, _ = digits

    def fail(_):
        raise UnavailableError("nothing here")

    monkeypatch.setattr("nirdeploy.comparison.ladder._steps", lambda _: [Step("chip", "silicon", fail)])
    with pytest.raises(ComparisonError, match="no rung but the reference can run: chip: nothing here"):
        nd.ladder(deployment, raster)
