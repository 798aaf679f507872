"""The built wheel, installed outside the repository; and every example of the documentation."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nets import ROOT

import nirdeploy as nd

CODE = re.compile(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", re.DOTALL)
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_code_tables_and_templates(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "nirdeploy/py.typed",
        "nirdeploy/comparison/page.css",
        "nirdeploy/comparison/page.js",
        "nirdeploy/comparison/report.html.j2",
        "nirdeploy_speck/targets/speck2f.toml",
        "nirdeploy_loihi/targets/loihi2.toml",
    ):
        assert wanted in names
    assert not [n for n in names if n.startswith(("tests/", "configs/", "backends/"))]


def test_installed_wheel_works_outside_the_repository(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what installing a pure wheel does, without pip's minutes
    work = tmp_path / "work"
    work.mkdir()
    code = (
        "import nirdeploy as nd, nirdeploy_speck, nirdeploy_loihi.netx; "
        "print(nd.__file__); print(nirdeploy_speck.__file__); print(sorted(nd.targets()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert found[0].startswith(str(site))
    assert found[1].startswith(str(site))
    assert "'loihi2'" in found[2]
    assert "'speck2f'" in found[2]


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_the_documentation_run_and_print_what_they_say(page, tmp_path, monkeypatch):
    blocks = CODE.findall((ROOT / page).read_text(encoding="utf-8"))
    if page == "README.md":
        assert blocks
    for name in ("configs", "examples"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    script = tmp_path / "page.py"
    # one page is one program: later blocks use what earlier ones made
    marker = "---- end of block ----"
    script.write_text("".join(f"{code}\nprint({marker!r})\n" for code, _ in blocks), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr
    printed = [part.strip() for part in found.stdout.split(marker)]
    for (_, expected), actual in zip(blocks, printed, strict=False):
        if expected:
            assert [line.rstrip() for line in actual.splitlines()] == [
                line.rstrip() for line in expected.strip().splitlines()
            ]


PROGRAM = """
import numpy as np
import torch
from torch import nn

import nirdeploy as nd


def departs(module: nn.Module, raster: np.ndarray) -> str | None:
    graph = nd.torch_to_nir(module, sample_input=torch.zeros(1, 4))
    convention: nd.Convention = nd.convention("snntorch", dt=1e-3)
    reference: nd.Trajectory = nd.run(graph, raster, convention=convention)
    report: nd.Report = nd.check(graph, "loihi2")
    deployment: nd.Deployment = nd.deploy(graph, "loihi2", calibration=raster)
    result: nd.Comparison = nd.compare(reference, deployment.run(raster))
    first = result.first_divergence
    return None if first is None or not report.ok else first.node
"""


def checked(path):
    """What mypy says of a program; its configuration and its cache are those of `make types`."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False).stdout


def test_a_users_program_is_typed_though_names_are_resolved_late(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM + "".join(f"reveal_type(nd.{name})\n" for name in nd.__all__), encoding="utf-8")
    said = checked(path)
    assert "Success: no issues found in 1 source file" in said
    revealed = re.findall(r'Revealed type is "(.*)"$', said, re.MULTILINE)
    assert len(revealed) == len(nd.__all__)
    assert "Any" not in revealed


def test_a_users_mistakes_are_found_by_the_type_checker(tmp_path):
    path = tmp_path / "program.py"
    wrong = PROGRAM.replace("nd.check(", "nd.chekc(").replace("first.node", "first.nodes").replace("dt=1e-3", 'dt="1"')
    path.write_text(wrong, encoding="utf-8")
    said = checked(path)
    assert "Found 3 errors" in said
    assert 'has no attribute "chekc"' in said
    assert '"Divergence" has no attribute "nodes"' in said
    assert 'Argument "dt" to "convention" has incompatible type "str"' in said


def test_repository_names_no_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    places = {f"{path}/" for path in (ROOT, Path.home(), ROOT.parent / "shared") if len(path.parts) > 1}
    for name in files:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml"}:
            text = path.read_text(encoding="utf-8")
            assert not [place for place in places if place in text], name
