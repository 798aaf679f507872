"""Node names that are hard on files, terminals and pages go through everything unchanged."""

import json
import re
import sys
import time

import h5py
import numpy as np
import pytest
from nets import chain, if_node, linear_node, raster

import nirdeploy as nd
from nirdeploy.cli import main
from nirdeploy.comparison.report import Section, write_report
from nirdeploy.errors import FileError
from nirdeploy.raster import save_raster

CONVENTION = nd.Convention(dt=1e-3, if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0)
NAMES = {
    "markup": "[bold red]x[/bold red][link=file:///etc/passwd]y[/link]",
    "html": "<script>alert(1)</script>\"'&amp;</title>",
    "slashes": "/a//b/../../etc/passwd",
    "dots": "..",
    "dot": ".",
    "newlines": "a\nb\r\nc\t\x1b[31md",
    "unicode": "ニューロン 🧠 é e\u0301 \u202eright\u200b",
    "percent": "100%2Fx%%",
    "format": "{0}{name}%s$(id)`id`;rm -rf *",
    "long": "n" * 10_000,
    "space": " ",
}


def graph(name):
    return chain((3,), **{"fc": linear_node(np.eye(3) * 0.7 + 0.2), name: if_node((3,))})


@pytest.fixture(params=NAMES, ids=str)
def name(request):
    return NAMES[request.param]


def test_networks_keep_the_name(tmp_path, name):
    nd.write(tmp_path / "n.nir", graph(name), convention=CONVENTION)
    found = nd.read(tmp_path / "n.nir")
    assert set(found.nodes) == {"input", "fc", name, "output"}
    assert ("fc", name) in found.edges


def test_trajectories_and_deployments_keep_the_name(tmp_path, name):
    run = nd.run(graph(name), raster((3,)), convention=CONVENTION)
    run.save(tmp_path / "t.h5")
    assert np.array_equal(nd.load_trajectory(tmp_path / "t.h5")[name, "spikes"].data, run[name, "spikes"].data)
    for target in ("speck2f", "loihi2"):
        used = CONVENTION if target == "speck2f" else nd.Convention(dt=1e-3, if_gain="r", reset="zero")
        made = nd.deploy(graph(name), target, convention=used, calibration=raster((3,)))
        made.save(tmp_path / target)
        found = nd.load_deployment(tmp_path / target)
        assert np.array_equal(found.run(raster((3,)))[name, "spikes"].data, made.run(raster((3,)))[name, "spikes"].data)
    # whatever the name, nothing is written but where it was asked for
    assert {path.name for path in tmp_path.iterdir()} == {"t.h5", "speck2f", "loihi2"}


def test_the_command_line_prints_the_name_as_it_is(tmp_path, name, monkeypatch, capsys):
    nd.write(tmp_path / "n.nir", graph(name), convention=CONVENTION)
    save_raster(tmp_path / "r.npz", raster((3,)).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    for arguments in (("check", "n.nir", "-t", "loihi2", "--json"), ("check", "n.nir", "-t", "loihi2")):
        monkeypatch.setattr(sys, "argv", ["nirdeploy", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert left.value.code in (0, 1)
        if "--json" in arguments:
            assert name in {finding["node"] for finding in json.loads(out)["findings"]}
        elif name == NAMES["markup"]:
            assert "[bold" in out


def test_pages_hold_the_name_as_text(tmp_path, name):
    first = nd.run(graph(name), raster((3,)), convention=CONVENTION)
    other = nd.run(graph(name), raster((3,), seed=1), convention=CONVENTION)
    write_report(tmp_path / "r.html", [Section("s", nd.compare(first, other), first, other)], title=name)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text
    assert "</title>\"'" not in text
    scripts = re.findall(r"<script[^>]*>", text)
    plain = [Section("s", nd.compare(*both), *both) for both in [_plain_runs()]]
    write_report(tmp_path / "p.html", plain, title="plain")
    assert scripts == re.findall(r"<script[^>]*>", (tmp_path / "p.html").read_text(encoding="utf-8"))


def _plain_runs():
    return [nd.run(graph("n"), raster((3,), seed=seed), convention=CONVENTION) for seed in (0, 1)]


# ---------------------------------------------------------------- groups in circles


@pytest.mark.parametrize("links", [1, 20_000])
def test_a_group_that_holds_itself_is_refused_at_once(tmp_path, links):
    nd.write(tmp_path / "n.nir", graph("n"))
    with h5py.File(tmp_path / "n.nir", "a") as file:
        for number in range(links):
            file[f"node/nodes/again{number}"] = file["node"]
    begin = time.monotonic()
    with pytest.raises(FileError, match="is a group that another name has, too"):
        nd.read(tmp_path / "n.nir")
    assert time.monotonic() - begin < 5


def test_groups_that_share_their_groups_are_refused_at_once(tmp_path):
    """Twenty levels of ten links each would be 10^20 paths."""
    nd.write(tmp_path / "n.nir", graph("n"))
    with h5py.File(tmp_path / "n.nir", "a") as file:
        group = file.create_group("node/level0")
        for level in range(1, 20):
            inner = file.create_group(f"store/level{level}") if level > 1 else group.create_group("x0")
            for number in range(1, 10):
                group[f"y{number}"] = inner
            group = inner
    begin = time.monotonic()
    with pytest.raises(FileError, match="another name"):
        nd.read(tmp_path / "n.nir")
    assert time.monotonic() - begin < 5
