import contextlib
import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys

import numpy as np
import pytest
from nets import ROOT, chain, conv_net, conv_node, if_node, lif_node, raster

import nirdeploy as nd
from nirdeploy.cli import main
from nirdeploy.environments import samna_state
from nirdeploy.raster import save_raster
from nirdeploy.trajectory import Record, Trajectory

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)
FLAGS = ("--set", "if_gain=r", "--set", "reset=zero", "--set", "crossing=inclusive", "--set", "v_min=-4.0")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a graph, one without a convention, one no chip takes, and a raster with labels."""
    monkeypatch.chdir(tmp_path)
    nd.write("net.nir", conv_net(), convention=PLAIN)
    nd.write("bare.nir", conv_net())
    wide = chain((1, 20, 20), conv=conv_node(np.ones((1, 1, 17, 17)), None), n=if_node((1, 4, 4)))
    nd.write("wide.nir", wide, convention=PLAIN)
    save_raster("data.npz", raster((1, 6, 6)).astype(np.uint8), np.zeros(3, int))
    return tmp_path


@pytest.fixture
def call(work, monkeypatch, capsys):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nirdeploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def test_whole_road_by_commands(call, work):
    code, out, _ = call("check", "net.nir", "--target", "speck2f")
    assert (code, "0 errors, 1 warnings" in out) == (0, True)
    code, out, _ = call("run", "net.nir", "data.npz", "--output", "ref.h5")
    assert code == 0
    assert "accuracy" in out
    code, out, _ = call("deploy", "net.nir", "-t", "speck2f", "-o", "build", "--calibration", "data.npz")
    assert code == 0
    assert "kernel_memory" in out
    assert {p.name for p in (work / "build").iterdir()} == {"deployment.h5", "chip.json"}
    code, out, _ = call("run", "build", "data.npz", "--output", "chip.h5", "--json")
    assert code == 0
    assert json.loads(out)["counters"]["if1"]["input_events"] == int(raster((1, 6, 6)).sum())
    code, out, _ = call("compare", "ref.h5", "chip.h5", "--html", "page.html", "--json")
    found = json.loads(out)
    assert code == int(found["first_divergence"] is not None)
    assert "<html" in (work / "page.html").read_text()
    code, out, _ = call("compare", "ref.h5", "ref.h5")
    assert code == 0
    assert "if1" in out


def test_bits_a_weight_and_the_quantizer_exact_are_options(call, work):
    options = ("-t", "speck2f", "-o", "build", "--quantizer")
    assert call("deploy", "net.nir", *options, "max", "--weight-bits", 3)[0] == 0
    most = max(int(np.abs(nd.load_deployment("build").quantized[node].weight).max()) for node in ("conv1", "fc"))
    assert most <= 4
    code, _, err = call("deploy", "net.nir", *options, "exact")
    assert code == 2
    assert "quantizer 'exact': as integers times one number" in " ".join(err.split())
    nd.write("trained.nir", nd.quantization_aware(nd.read("net.nir"), "speck2f", bits=3).graph())
    code, _, err = call("deploy", "trained.nir", *options, "exact", "--weight-bits", 3)
    assert code == 0, err
    assert nd.load_deployment("build").quantized.quantizer == "exact"
    (work / "few.toml").write_text(
        'graph = "trained.nir"\ntarget = "speck2f"\noutput = "b"\n'
        '[quantization]\nquantizer = "exact"\nweight_bits = 2\n'
    )
    code, _, err = call("deploy", "--config", "few.toml")
    assert code == 2
    assert "the register holds -2 to 1" in " ".join(err.split())


def test_a_deployment_runs_event_by_event(call, work):
    assert call("deploy", "net.nir", "-t", "speck2f", "-o", "build", "--quantizer", "max")[0] == 0
    deployment, data = nd.load_deployment("build"), np.load("data.npz")["raster"]
    code, _, err = call("run", "build", "data.npz", "-o", "e.h5", "--mode", "event", "--option", "sweep=cyx")
    assert code == 0, err
    wanted = deployment.run(data, mode="event", sweep="cyx")
    found = nd.load_trajectory("e.h5")
    assert found.producer == wanted.producer
    np.testing.assert_array_equal(found["if1", "spikes"].data, wanted["if1", "spikes"].data)
    # recorded events keep their own order; here the later channels come first
    recorded = nd.Events([5, 5, 2500], [0, 0, 0], [3, 1, 2], [4, 1, 2], shape=(1, 6, 6))
    nd.save_events("events.npz", recorded)
    code, _, err = call("run", "build", "events.npz", "-o", "r.h5", "--mode", "event", "--step-us", 1000)
    assert code == 0, err
    wanted = deployment.run(recorded, mode="event", step_us=1000)
    np.testing.assert_array_equal(nd.load_trajectory("r.h5")["if1", "spikes"].data, wanted["if1", "spikes"].data)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "net.nir", "data.npz", "--mode", "event"), "--mode and --option are those of deployments"),
        (("run", "net.nir", "data.npz", "--on", "chip"), "--on chip with 'net.nir', which the reference runs"),
        (("evaluate", "net.nir", "data.npz", "--on", "chip"), "on='chip' with a graph, which the reference runs"),
        (("run", "build", "data.npz", "--exported-by", "norse"), "--exported-by repairs a .nir file. Leave it"),
        (("evaluate", "build", "data.npz", "--exported-by", "norse"), "--exported-by repairs a .nir file. Leave it"),
        (("run", "build", "data.npz", "--mode", "events"), "mode 'events' is unknown. Did you mean 'event'?"),
        (("run", "build", "data.npz", "--mode", "event", "--option", "sweep"), "--option 'sweep' has no '='"),
        (("run", "build", "data.npz", "--mode", "event", "--option", "sweeps=cyx"), "has no option 'sweeps'"),
        (("run", "build", "data.npz", "--option", "sweep=cyx"), "is an option of mode 'event', this is mode 'step'"),
    ],
)
def test_options_of_a_run_without_meaning_are_wrong_usage(call, arguments, words):
    assert call("deploy", "net.nir", "-t", "speck2f", "-o", "build", "--quantizer", "max")[0] == 0
    code, _, err = call(*arguments)
    assert code == 2
    assert words in " ".join(err.split())


def test_what_a_command_wrote_is_named(call):
    _, out, _ = call("run", "net.nir", "data.npz", "--output", "ref.h5")
    assert out.startswith("reference, 12 steps\n")
    assert out.endswith("written to ref.h5\n")
    _, out, _ = call("compare", "ref.h5", "ref.h5", "--html", "page.html")
    assert out.endswith("written to page.html\n")
    assert call("deploy", "net.nir", "-t", "speck2f", "-o", "build", "--quantizer", "max")[0] == 0
    _, out, _ = call("ladder", "build", "data.npz", "--html", "ladder.html")
    assert out.endswith("written to ladder.html\n")
    _, out, _ = call("compare", "ref.h5", "ref.h5", "--html", "page.html", "--json")
    assert json.loads(out)["equal"] is True


def test_help_lists_the_verbs_as_a_user_comes_to_them(call):
    _, out, _ = call("--help")
    verbs = ("demo", "targets", "check", "deploy", "run", "compare", "ladder", "evaluate", "doctor", "env")
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and line.split()[1] in verbs]
    assert tuple(listed) == verbs


def test_findings_exit_with_one(call):
    code, out, _ = call("check", "wide.nir", "--target", "speck2f")
    assert code == 1
    assert "kernel 17x17 exceeds 16" in " ".join(out.split())
    code, out, _ = call("check", "wide.nir", "--target", "speck2f", "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["code"] == "kernel_size"
    code, out, err = call("deploy", "wide.nir", "-t", "speck2f", "-o", "b", "--quantizer", "max")
    assert code == 1
    assert "speck2f cannot hold this graph" in err
    code, out, err = call("deploy", "wide.nir", "-t", "speck2f", "-o", "b", "--quantizer", "max", "--json")
    assert code == 1
    assert json.loads(out)["report"]["findings"][0]["code"] == "kernel_size"
    assert err == "nirdeploy: speck2f cannot hold this graph\n"


def test_convention_by_options(call):
    assert call("check", "bare.nir", "-t", "speck2f")[0] == 1
    assert call("check", "bare.nir", "-t", "speck2f", *FLAGS)[0] == 0
    assert call("run", "bare.nir", "data.npz", *FLAGS, "--json")[0] == 0
    code, _, err = call("check", "bare.nir", "-t", "speck2f", "--set", "rset=zero")
    assert (code, "Did you mean 'reset'" in err) == (2, True)


BAD = [
    (("check", "none.nir", "-t", "speck2f"), "'none.nir' does not exist"),
    (("check", "text.nir", "-t", "speck2f"), "'text.nir' is not an HDF5 file or is damaged, expected a NIR graph"),
    (("check", "cut.nir", "-t", "speck2f"), "'cut.nir' is truncated, expected a NIR graph"),
    (("check", "empty.nir", "-t", "speck2f"), "the graph has no nodes"),
    (("check", "net.nir", "-t", "spec2f"), "unknown target 'spec2f'. Did you mean 'speck2f'?"),
    (("run", "net.nir", "wrong.npy"), "the raster has shape (4, 2, 1, 6, 5), expected [step, 1, 6, 6]"),
    (("run", "net.nir", "negative.npy"), "the raster holds -1 at (0, 0, 0, 0, 0): a negative count"),
    (("run", "net.nir", "nan.npy"), "the raster holds nan at (0, 0, 0, 0, 0)"),
    (("run", "net.nir", "text.nir"), "is no .npz or .npy raster"),
    (("run", "net.nir", "data.npz", "-o", "no/such/t.h5"), "cannot write 'no/such/t.h5': No such file or directory"),
    (("run", "net.nir", "data.npz", "--record", "v"), "cannot record 'v'"),
    (("run", "build", "data.npz"), "does not exist"),
    (("deploy", "net.nir", "-t", "speck2f", "-o", "text.nir/x", "--calibration", "data.npz"), "cannot make folder"),
    (("deploy", "net.nir", "-t", "speck2f", "-o", "b"), "needs calibration data"),
    (("deploy", "net.nir"), "--target, --output missing. Give them, or --config FILE."),
    (("deploy", "--config", "none.toml"), "'none.toml' does not exist"),
    (("deploy", "--config", "bad.toml"), "target: field required; nonsense: extra inputs are not permitted"),
    (("compare", "net.nir", "net.nir"), "is HDF5 but not a trajectory"),
    (("check", "net.nir"), "--target"),
    (("chek",), "chek"),
    (("check", "net.nir", "-t", "speck2f", "--set", "preset=x"), "'preset' among the fields of --set. Use --preset"),
    (("check", "net.nir", "-t", "speck2f", "--set", "dt=5"), "'dt' among the fields of --set. Use --preset and --dt."),
    (("check", "net.nir", "-t", "speck2f", "--set", "overrides=5"), "overrides"),
    (("check", "net.nir", "-t", "speck2f", "--set", "feedback_edges=5"), "feedback_edges"),
    (
        ("deploy", "--config", "fields.toml"),
        "'dt' among the fields of [convention]. Write preset and dt beside fields.",
    ),
    (("deploy", "--config", "deep.toml"), "'deep.toml' is no readable TOML"),
    (("deploy", "--config", "/dev/null"), "'/dev/null' is a device, expected a configuration"),
    (("run", "net.nir", "data.npz", "-o", "/dev/null"), "cannot write '/dev/null': it is a device"),
    (("run", "net.nir", "/dev/zero"), "'/dev/zero' is a device"),
    (("run", "net.nir", "labels.npz", "-o", "t.h5"), "'labels.npz' has 3 labels for 2 samples"),
    (("run", "net.nir", "single.npz", "-o", "t.h5"), "has 1 labels, and a raster without a batch axis"),
    (("run", "net.nir", "float.npz", "-o", "t.h5"), "expected one whole number a sample"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_input_is_one_clear_line_exit_two_and_nothing_half_written(call, work, arguments, words):
    (work / "text.nir").write_text("hello")
    (work / "cut.nir").write_bytes((work / "net.nir").read_bytes()[:3000])
    (work / "bad.toml").write_text('graph = "net.nir"\noutput = "x"\nnonsense = 1\n')
    import h5py

    with h5py.File("empty.nir", "w") as file:
        file["node/type"] = "NIRGraph"
        file.create_group("node/nodes")
        file["node/edges"] = np.zeros((0, 2))
    for name, values in (
        ("wrong", np.zeros((4, 2, 1, 6, 5))),
        ("negative", -np.ones((4, 2, 1, 6, 6), int)),
        ("nan", np.full((4, 2, 1, 6, 6), np.nan)),
    ):
        np.save(f"{name}.npy", values)
    toml = 'graph = "net.nir"\ntarget = "speck2f"\noutput = "x"\n'
    (work / "fields.toml").write_text(toml + "[convention]\nfields = {dt = 5}\n")
    (work / "deep.toml").write_text("a = " + "[" * 50_000)
    counts = raster((1, 6, 6), batch=2)
    save_raster("labels.npz", counts, np.zeros(3, int))
    save_raster("single.npz", counts[:, 0], np.zeros(1, int))
    save_raster("float.npz", counts, np.zeros(2))
    before = sorted(os.listdir(work))
    code, out, err = call(*arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in out + err
    if err.startswith("nirdeploy: "):
        assert err.count("\n") == 1
    assert sorted(os.listdir(work)) == before


@pytest.mark.parametrize("text", ["foo = 1", "cores = 5", "avoid_cores = 5", 'cores = {if1 = "a"}'])
def test_placement_options_that_cannot_be_used_are_one_line(call, work, text):
    toml = 'graph = "net.nir"\ntarget = "speck2f"\noutput = "x"\n[quantization]\ncalibration = "data.npz"\n'
    (work / "p.toml").write_text(f"{toml}[placement]\n{text}\n")
    code, _, err = call("deploy", "--config", "p.toml")
    assert code in (1, 2)
    assert text.split()[0] in err
    assert err.startswith("nirdeploy: ")
    assert err.count("\n") == 1
    assert "internal error" not in err
    assert not (work / "x").exists()


def test_unexpected_errors_are_one_line_too(call, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr("nirdeploy.io.read", broken)
    code, _, err = call("check", "net.nir", "-t", "speck2f")
    assert code == 2
    assert "internal error, please report it: RuntimeError: boom" in err


def test_targets_and_doctor_as_json(call):
    code, out, _ = call("targets", "--json")
    names = {row["name"] for row in json.loads(out)["targets"]}
    assert code == 0
    assert {"speck2f", "loihi2"} <= names
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["packages"]["torch"]
    assert found["vendors"]["samna"]["state"] in ("missing", "installer", "real")
    assert found["backends"] == {"loihi": "ok", "speck": "ok"}
    assert call("targets")[0] == call("doctor")[0] == 0


@pytest.mark.parametrize("verb", ["demo", "targets", "check", "deploy", "run", "compare", "evaluate", "doctor"])
def test_every_verb_has_help_with_an_example(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert "Example" in out
    assert f"nirdeploy {verb}" in out
    assert "--json" in out


def test_version_and_console_script():
    found = subprocess.run([sys.executable, "-m", "nirdeploy", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == nd.__version__


def test_installer_of_samna_is_recognised_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "samna"
    package.mkdir()
    (package / "__init__.py").write_text("PYPI_SAMNA = True\nraise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert samna_state() == "installer"
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    assert samna_state() == "real"
    assert "samna" not in sys.modules


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.toml")))
def test_configurations_of_the_repository_deploy(call, work, name):
    configuration = str(ROOT / "configs" / f"{name}.toml")
    code, out, err = call("deploy", "--config", configuration, "--output", "built", "--json")
    assert code == 0, err
    assert json.loads(out)["target"] == name.removeprefix("digits_")
    deployment = nd.load_deployment(work / "built")
    data = np.load(ROOT / "configs" / "digits_calibration.npz")
    right = deployment.run(data["raster"]).outputs.sum(0).argmax(-1) == data["labels"]
    assert right.mean() >= 0.95


def test_every_target_has_a_configuration():
    files = {path.stem for path in (ROOT / "configs").glob("*.toml")}
    assert files == {f"digits_{target}" for target in nd.targets()}


def test_configuration_resolves_paths_against_its_folder(work):
    from nirdeploy.configuration import load_configuration

    found = load_configuration(ROOT / "configs" / "digits_speck2f.toml")
    assert found.graph == ROOT / "configs" / "digits.nir"
    assert found.convention.build() == nd.Convention(dt=1e-3, reset="zero", if_gain="r")


def test_options_change_the_convention_that_the_file_stores(call, work):
    nd.write("stored.nir", conv_net(), convention=nd.convention("sinabs", dt=1e-3))
    code, plain, _ = call("run", "stored.nir", "data.npz", "--json")
    assert code == 0
    assert call("run", "stored.nir", "data.npz", "--dt", "1e-3", "--json")[1] == plain
    assert call("run", "stored.nir", "data.npz", "--set", "spikes_per_step=many", "--json")[1] == plain
    one = call("run", "stored.nir", "data.npz", "--set", "spikes_per_step=one", "-o", "one.h5")
    assert one[0] == 0
    assert nd.load_trajectory("one.h5").convention == nd.convention("sinabs", dt=1e-3, spikes_per_step="one")
    call("run", "stored.nir", "data.npz", "--preset", "nir", "--set", "if_gain=r", "-o", "nir.h5")
    assert nd.load_trajectory("nir.h5").convention == nd.convention("nir", if_gain="r")


def test_events_are_counted_into_steps_of_dt(call, work):
    graph = chain((2, 34, 34), conv=conv_node(np.ones((1, 2, 17, 17)) / 8, None, 17), n=if_node((1, 2, 2)))
    nd.write("camera.nir", graph, convention=nd.convention("sinabs", dt=1e-3))
    number = np.arange(400)
    axes = {"channel": number % 2, "y": number * 5 % 34, "x": number * 3 % 34}
    nd.save_events("e.bin", nd.Events.sorted(1000 + number * 97 % 20000, **axes))
    code, by_dt, _ = call("run", "camera.nir", "e.bin", "--json")
    assert code == 0
    assert json.loads(by_dt)["spikes"]["n"] > 0
    assert call("run", "camera.nir", "e.bin", "--step-us", "1000", "--json")[1] == by_dt
    code, _, err = call("run", "camera.nir", "e.bin", "--step-us", "500")
    assert (code, "--step-us 500 with a convention whose dt is 0.001 s" in err) == (2, True)
    assert call("run", "camera.nir", "e.bin", "--step-us", "500", "--dt", "5e-4")[0] == 0


@pytest.mark.parametrize("method", ["dense", "loop"])
def test_ctrl_c_leaves_the_steps_so_far_and_says_so(call, work, monkeypatch, method):
    from nirdeploy.reference import executor

    monkeypatch.setattr(executor, "_MOST_STEPS", 4)
    np.savez("long.npz", raster=np.ones((40, 2, 1, 6, 6), np.uint8))
    put, came = executor.Recorder.put, []

    def interrupted(recorder, path, variable, start, values):
        if start >= 8 and not came:
            came.append(start)
            signal.raise_signal(signal.SIGINT)
        put(recorder, path, variable, start, values)

    monkeypatch.setattr(executor.Recorder, "put", interrupted)
    code, _, err = call("run", "net.nir", "long.npz", "--output", "cut.h5", "--method", method)
    assert code == 130
    assert "interrupted" in err
    assert "marked as incomplete" in err
    found = nd.load_trajectory("cut.h5")
    assert not found.complete
    assert found.n_steps == (9 if method == "loop" else 12)  # the step or chunk that was under way is kept


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    stored = np.load(ROOT / "configs" / "digits_calibration.npz")
    np.savez(folder / "some.npz", raster=stored["raster"][:, :6], labels=stored["labels"][:6])
    nd.deploy(nd.read(ROOT / "configs" / "digits.nir"), "speck2f", calibration=stored["raster"]).save(folder / "build")
    return folder


def test_ladder_prints_every_rung_and_the_dominating_one(built, call):
    code, said, _ = call("ladder", built / "build", built / "some.npz", "--html", built / "ladder.html")
    assert code == 0
    assert "comes with 'event order'" in said
    assert "accuracy" in said
    assert "event order" in (built / "ladder.html").read_text(encoding="utf-8")


def test_ladder_fails_below_the_agreement_asked_for(built, call):
    arguments = ("ladder", built / "build", built / "some.npz", "--min-agreement", "0.99")
    code, said, _ = call(*arguments)
    assert code == 1
    assert "beyond the limit: 'event order' agrees in 0." in said
    code, said, _ = call(*arguments, "--json")
    assert code == 1
    assert json.loads(said)["dominating"] == "event order"


def test_ladder_wants_a_deployment(built, call):
    code, _, complaint = call("ladder", built / "some.npz", built / "some.npz")
    assert code == 2
    assert "some.npz' is no deployment. Run `nirdeploy deploy` first." in complaint


def test_compare_takes_limits_for_a_laboratorys_own_checks(built, call):
    reference, chip = built / "ref.h5", built / "chip.h5"
    stored = np.load(built / "some.npz")["raster"]
    nd.run(nd.read(ROOT / "configs" / "digits.nir"), stored).save(reference)
    nd.load_deployment(built / "build").run(stored).save(chip)
    assert call("compare", reference, chip)[0] == 1
    assert call("compare", reference, chip, "--min-agreement", "0.9")[0] == 0
    code, said, _ = call("compare", reference, chip, "--min-agreement", "0.999", "--max-v-error", "0.001")
    assert code == 1
    assert "beyond the limits: agreement 0.9" in said
    assert "at most 0.001 asked" in said


def test_compare_takes_trials_lags_and_what_came_in(built, call):
    reference, chip = built / "ref.h5", built / "chip.h5"
    graph = ROOT / "configs" / "digits.nir"
    assert call("compare", reference, chip, chip, "--json")[0] == 1
    code, said, _ = call("compare", reference, chip, "--graph", graph, "--raster", built / "some.npz", "--lag", "find")
    assert code == 1
    assert "In that step " in said
    code, said, _ = call("compare", reference, chip, "--node", "if3", "--json")
    assert list(json.loads(said)["per_node"]) == ["if3"]
    code, said, _ = call("compare", reference, chip, "--window", "1", "--json")
    within = json.loads(said)["window"]
    assert within["precision"] == within["matched"] / within["chip"] > json.loads(said)["spike_agreement"]
    assert "within 1 steps: precision " in call("compare", reference, chip, "--window", "1")[1]
    code, said, _ = call("compare", reference, chip, chip, "--lag", "if1=1", "--lag", "if2=0", "--json")
    found = json.loads(said)
    assert {name: node["lag"] for name, node in found["per_node"].items()}["if1"] == 1
    assert found["bands"]["if1"]["among_chip"] == {"lowest": 1.0, "mean": 1.0, "highest": 1.0}
    for wrong in (("--lag", "soon"), ("--lag", "if1=x"), ("--lag", "1", "--lag", "2"), ("--lag", "=2")):
        code, _, complaint = call("compare", reference, chip, *wrong)
        assert code == 2
        assert "expected steps, NODE=STEPS for each node, or 'find'" in complaint
    code, _, complaint = call("compare", reference, chip, "--lag", "of1=2")
    assert code == 2
    assert "lag names the unknown node 'of1'" in complaint


def test_compare_fails_on_values_where_no_spikes_are_compared_and_never_writes_over_what_it_reads(tmp_path, call):
    for name, value in (("a", 1.0), ("b", 1.5), ("c", np.nan)):
        record = Record("out", "output", np.full((4, 1, 2), value))
        Trajectory({("out", "output"): record}).save(tmp_path / f"{name}.h5")
    a, b, c = (tmp_path / f"{name}.h5" for name in "abc")
    assert [call("compare", a, other)[0] for other in (a, b, c)] == [0, 1, 1]
    before = a.read_bytes()
    (tmp_path / "link.html").symlink_to(a)
    for page in (a, tmp_path / "link.html"):
        code, _, said = call("compare", b, a, "--html", page)
        assert code == 2
        assert "which is read. Give the page another name." in said
    assert a.read_bytes() == before
    code, _, said = call("compare", a, b, "--lag", "out=1", "--lag", "out=2")
    assert code == 2
    assert "--lag is 'out=1 out=2', expected steps, NODE=STEPS for each node, or 'find'" in said


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line_each_and_no_line_of_python(call, work):
    graph = chain((1, 6, 6), conv=conv_node(np.ones((4, 1, 3, 3)), None), n=if_node((4, 4, 4)))
    nd.write("free.nir", graph, convention=dataclasses.replace(PLAIN, v_min=None))
    code, out, err = call("deploy", "free.nir", "-t", "speck2f", "-o", "build", "--quantizer", "max")
    assert (code, err) == (0, "")  # said once, among the notes
    assert out.count("n: no lower bound of v, so 'max' scales by 1") == 1
    nd.write("stiff.nir", chain((2,), n=lif_node((2,), tau=1e-3)), convention=nd.Convention(dt=2e-3))
    save_raster("ones.npz", np.ones((4, 1, 2), np.uint8))
    code, _, err = call("run", "stiff.nir", "ones.npz")
    assert code == 0
    assert err.startswith("nirdeploy: warning: ")
    assert "networks.py" not in err
    assert len(err.splitlines()) == 1


def on_a_terminal(*arguments):
    """What a command writes to standard error where that is a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "nirdeploy", *arguments], stdout=subprocess.DEVNULL, stderr=theirs
        ) as running:
            os.close(theirs)
            said = b""
            with contextlib.suppress(OSError):  # the other end is closed
                while piece := os.read(ours, 1 << 16):
                    said += piece
        return said.decode(), running.returncode
    finally:
        os.close(ours)


@pytest.mark.parametrize("arguments", [("run", "build", "long.npz"), ("run", "net.nir", "long.npz")])
def test_a_run_shows_a_bar_on_a_terminal_which_is_gone_afterwards(work, arguments):
    nd.deploy(nd.read("net.nir"), "speck2f", calibration=raster((1, 6, 6))).save("build")
    save_raster("long.npz", raster((1, 6, 6), steps=400, batch=20).astype(np.uint8))
    said, code = on_a_terminal(*arguments)
    assert code == 0
    assert "steps" in said
    assert "100%" in said
    assert said.endswith(("\x1b[2K", "\x1b[?25h", "\x1b[1A\x1b[2K"))


def test_what_cannot_tell_how_far_it_is_shows_that_it_works(work):
    said, code = on_a_terminal("deploy", "net.nir", "-t", "speck2f", "-o", "build", "--calibration", "data.npz")
    assert code == 0
    assert "quantising and placing" in said
