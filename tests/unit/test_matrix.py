"""What the table of targets says, held against the stages behind `check` and against NIR."""

import inspect
import json
import typing

import nir
import numpy as np
import pytest
from nets import raster

import nirdeploy as nd
from nirdeploy.cli import main
from nirdeploy.errors import CheckError, TargetError
from nirdeploy.graph import input_names
from nirdeploy.matrix import always, matrix, sections
from nirdeploy.nodes import stored_shape
from nirdeploy.probes import POPULATIONS, PROBES
from nirdeploy.reference.convention import Convention

TARGETS = ("speck2f", "loihi2")


@pytest.fixture(scope="module")
def answers():
    return matrix(TARGETS)


@pytest.fixture(scope="module")
def found(answers):
    return sections(answers)


def build(answer):
    probe = next((p for p in PROBES if (p.section, p.name) == (answer.section, answer.name)), None)
    return None if probe is None else probe.build(POPULATIONS[answer.population])


def test_every_primitive_of_nir_is_asked_for(found):
    kinds = {n for n, v in vars(nir).items() if inspect.isclass(v) and issubclass(v, nir.NIRNode)} - {"NIRNode"}
    assert set(found["Primitives"]) == kinds


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: f"{probe.section}: {probe.name}")
def test_a_network_has_the_primitive_that_it_asks_for(probe):
    kind = probe.name.split(",")[0].split(" ")[0]
    graph = probe.build(POPULATIONS[(probe.populations or ("IF",))[0]])
    kinds = {type(node).__name__ for node in graph.nodes.values()}
    assert kind in kinds or not hasattr(nir, kind)
    nd.check(graph, "loihi2", convention=nd.convention("nir", dt=1e-3))


def test_every_field_of_a_convention_is_asked_with_each_value(found):
    for field, hint in typing.get_type_hints(Convention).items():
        values = typing.get_args(hint) or (True, False)
        if field == "v_min":
            values = (None, -1.0, "-threshold")
        if field in ("dt", "feedback_edges", "overrides", "preset"):
            continue
        asked = " ".join(name for kind in POPULATIONS for name in found[f"Convention, {kind}"])
        assert all(f"{field}={value!r}" in asked for value in values), field


def test_what_is_taken_is_deployed_and_runs_and_what_is_refused_is_not(answers):
    done = {"yes": 0, "warning": 0, "no": 0}
    for answer in answers:
        graph = build(answer)
        if graph is None or answer.convention is None:
            continue
        shape = tuple(int(n) for n in stored_shape(graph.nodes[input_names(graph)[0]], "input"))
        counts = raster(shape, steps=4, batch=1)
        options = {"convention": answer.convention, "calibration": counts, "quantizer": "calibrated"}
        if answer.answer == "no":
            with pytest.raises(CheckError) as refused:
                nd.deploy(graph, answer.target, **options)
            assert {f.code for f in refused.value.report.errors} == set(answer.codes)
        else:
            outputs = nd.deploy(graph, answer.target, **options).run(counts).outputs
            several = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
            assert {len(np.asarray(one)) for one in several} == {4}, answer
        done[answer.answer] += 1
    assert done["yes"] > 60
    assert done["warning"] >= 2
    assert done["no"] > 20


@pytest.mark.parametrize(
    ("section", "name", "speck", "loihi"),
    [
        # DYNAP-CNN: strides 1, 2, 4, 8; integrate-and-fire only; two destinations a core
        ("Options of layers", "Conv2d, stride 3", "no: stride", "yes"),
        ("Primitives", "LIF", "no: neuron", "yes"),
        ("Networks", "a population that feeds three", "no: destinations", "yes"),
        ("Convention, IF", "crossing='strict'", "yes, with crossing", "yes"),
        # Lava's LIF on Loihi resets to zero and fires once a step
        ("Convention, LIF", "reset='subtract'", "no: neuron", "no: reset"),
        ("Convention, IF", "spikes_per_step='many'", "yes", "no: spikes_per_step"),
        ("Options of populations", "v_reset other than 0", "no: v_reset", "yes"),
    ],
)
def test_known_limits_are_in_the_table(found, section, name, speck, loihi):
    row = found[section][name]
    assert (str(row["speck2f"]), str(row["loihi2"])) == (speck, loihi)


def test_a_warning_of_every_network_is_said_once(answers):
    assert always("speck2f") == {"event_driven"}
    assert always("loihi2") == frozenset()
    assert not any("event_driven" in answer.codes for answer in answers)


def test_an_unknown_target_is_refused():
    with pytest.raises(TargetError, match="unknown target 'speck9'"):
        matrix(["speck9"])


def test_the_command_prints_every_answer(capsys, monkeypatch, answers):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["nirdeploy", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    known = {name: nd.targets()[name] for name in TARGETS}
    monkeypatch.setattr("nirdeploy.backend.targets", lambda: known)
    monkeypatch.setattr("nirdeploy.matrix.matrix", lambda _: answers)
    code, out, _ = call("targets", "--matrix", "--json")
    assert code == 0
    given = json.loads(out)
    assert [(a["section"], a["name"], a["target"], a["answer"]) for a in given["answers"]] == [
        (a.section, a.name, a.target, a.answer) for a in answers
    ]
    assert given["always"] == {"speck2f": ["event_driven"], "loihi2": []}
    code, out, _ = call("targets", "--matrix")
    assert code == 0
    assert "speck2f warns of every network: event_driven" in out
    assert all(answer.name.split(",")[0].split("'")[0] in out for answer in answers)
