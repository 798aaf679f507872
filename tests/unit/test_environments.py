"""Environments of vendors' software and the programs run in them; nothing here needs a network."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from nirdeploy import environments
from nirdeploy.environments import RECIPES, build, create, doctor, interpreter
from nirdeploy.errors import FileError, UnavailableError, VendorError
from nirdeploy.recipes import Recipe
from nirdeploy.worker import call, job_folder


def python(code, **options):
    return call([sys.executable, "-c", code], what="the program", **{"timeout": 30.0, **options})


def gone(pid, seconds=5.0):
    """Whether a process ends within some seconds; one that is only waiting to be reaped has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ---------------------------------------------------------------- programs


def test_a_program_gives_its_lines_and_shows_them_while_it_runs():
    seen = []
    said = python("import sys; print('one'); print('two', file=sys.stderr)", progress=seen.append)
    assert sorted(said.splitlines()) == ["one", "two"]
    assert sorted(seen) == ["one", "two"]


def test_a_failure_has_the_last_lines_and_keeps_the_others():
    code = "import sys\nfor i in range(40): print('line', i)\nsys.exit(7)"
    with pytest.raises(VendorError, match=r"the program failed with exit code 7; it said last:\nline 28\n") as caught:
        python(code, remedy="Do this.")
    assert str(caught.value).endswith("line 39. Do this.")
    assert caught.value.log.startswith("line 0\n")


def test_a_program_killed_by_a_signal_says_so():
    with pytest.raises(VendorError, match=r"ended by signal 9; it said last:\n\(nothing\)"):
        python("import os; os.kill(os.getpid(), 9)")


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    child = f"import os,time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    with pytest.raises(VendorError, match=r"the program was stopped after 1.5 s; it said last:\nbegun"):
        python(code, timeout=1.5)
    assert time.monotonic() - began < 10
    assert gone(int(pid.read_text()))


def test_a_program_that_prints_garbage_without_end_takes_little_memory():
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = "import os; [os.write(1, os.urandom(1000).replace(b'\\n', b'') * 1000) for _ in range(100)]; os._exit(3)"
    with pytest.raises(VendorError, match="the program failed with exit code 3; it said last:") as caught:
        python(code)
    assert len(caught.value.log) <= 2000 * 4097
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200


def test_what_is_no_program_is_unavailable(tmp_path):
    for text, mode, words in (("#!/bin/sh", 0o644, "Permission denied"), ("\x7fELF", 0o755, "Exec format error")):
        path = tmp_path / "python"
        path.write_text(text)
        path.chmod(mode)
        with pytest.raises(UnavailableError, match=f"the worker cannot be started: .*python': {words}"):
            call([path], what="the worker", timeout=1)
    with pytest.raises(UnavailableError, match="Permission denied"):
        call([tmp_path], what="the worker", timeout=1)


def test_a_child_left_behind_is_killed_and_not_waited_for():
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    began = time.monotonic()
    said = python(code)
    assert time.monotonic() - began < 10
    assert gone(int(said))


def test_a_program_notices_that_nobody_waits_any_more(tmp_path):
    pid = tmp_path / "pid"
    inner = f"import os,sys; open({str(pid)!r}, 'w').write(str(os.getpid())); sys.stdin.read()"
    outer = (
        f"import sys; from nirdeploy.worker import call; call([sys.executable, '-c', {inner!r}], what='x', timeout=60)"
    )
    waiting = subprocess.Popen([sys.executable, "-c", outer])
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    waiting.kill()
    waiting.wait()
    assert gone(int(pid.read_text()))


def test_a_program_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(UnavailableError, match=r"the worker cannot be started: .*nothing.*No such file"):
        call([tmp_path / "nothing"], what="the worker", timeout=1)


def test_a_job_folder_goes_with_its_block():
    with job_folder("test") as folder:
        (folder / "input").write_text("x")
    assert not folder.exists()


# ---------------------------------------------------------------- environments


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("NIRDEPLOY_HOME", str(tmp_path / "home"))
    for name in RECIPES:
        monkeypatch.delenv(f"NIRDEPLOY_PYTHON_{name.upper()}", raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package of one module, as a wheel."""
    path = tmp_path_factory.mktemp("wheel") / "tinyvendor-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinyvendor.py", "import numpy\n")
        archive.writestr("tinyvendor-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinyvendor\nVersion: 1.0\n")
        archive.writestr(
            "tinyvendor-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinyvendor-1.0.dist-info/RECORD", "")
    return path


def recipe(wheel, **changes):
    values = {"packages": (str(wheel),), "imports": ("tinyvendor",), "shared": ("numpy",), **changes}
    return Recipe(name="speck", purpose="a test", **values)


def leftovers(folder):
    return sorted(p.name for p in folder.parent.iterdir() if p.name != folder.name)


def test_an_environment_is_built_once_and_again_when_its_recipe_changes(wheel, tmp_path):
    folder, seen = tmp_path / "env" / "tiny", []
    assert build(recipe(wheel), folder, progress=seen.append)
    assert any("installing" in line for line in seen)
    where = "import tinyvendor, numpy; print(tinyvendor.__file__); print(numpy.__file__)"
    said = call([folder / "bin" / "python", "-I", "-c", where], what="it", timeout=30).splitlines()
    assert said[0].startswith(str(folder))
    assert Path(said[1]).parent == Path(sys.modules["numpy"].__file__).parent
    assert {p.name[:6] for p in (folder / "bin").iterdir()} == {"python"}
    made = (folder / "bin").stat().st_ino
    assert not build(recipe(wheel), folder)
    assert (folder / "bin").stat().st_ino == made
    assert build(recipe(wheel, imports=("tinyvendor", "json"), packages=(str(wheel), str(wheel))), folder)
    assert (folder / "bin").stat().st_ino != made
    assert leftovers(folder) == []


def test_a_failed_build_has_pips_last_lines_and_leaves_what_was_there(wheel, tmp_path):
    folder = tmp_path / "env" / "tiny"
    build(recipe(wheel), folder)
    kept = (folder / "bin").stat().st_ino
    missing = tmp_path / "missing-1.0-py3-none-any.whl"
    with pytest.raises(VendorError, match=r"(?s)'speck' \(installing .*missing-1.0.*ERROR.*Check the network"):
        build(recipe(missing), folder)
    with pytest.raises(VendorError, match=r"(?s)importing nosuchmodule.*No module named 'nosuchmodule'"):
        build(recipe(wheel, imports=("nosuchmodule",), packages=(str(wheel),) * 2), folder)
    assert (folder / "bin").stat().st_ino == kept
    assert leftovers(folder) == []


def test_a_killed_build_leaves_nothing_that_counts(wheel, own_home):
    code = (
        "import time; from nirdeploy import environments as e; real = e._exchange\n"
        "def late(*a): print('complete', flush=True); time.sleep(60)\n"
        "e._exchange = late; from nirdeploy.recipes import Recipe\n"
        f"e.build(Recipe('speck', 'a test', ({str(wheel)!r},), ('json',)), e.home() / 'env' / 'speck')"
    )
    building = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert building.stdout.readline() == "complete\n"
    building.kill()
    building.wait()
    building.stdout.close()
    assert environments.environments()["speck"].state == "missing"
    with pytest.raises(UnavailableError, match=r"'speck', which is not built. Run `nirdeploy env create speck`"):
        interpreter("speck")
    (part,) = (own_home / "env").iterdir()
    os.utime(part, (time.time() - 7200,) * 2)
    assert build(recipe(wheel, shared=(), imports=("json",)), own_home / "env" / "speck")
    assert leftovers(own_home / "env" / "speck") == []


def test_an_environment_of_another_recipe_is_stale_and_not_used(wheel, own_home, monkeypatch):
    build(recipe(wheel), own_home / "env" / "speck")
    found = environments.environments()["speck"]
    assert found.state == "stale"
    assert found.holds[0] == str(wheel)
    with pytest.raises(UnavailableError, match=r"'speck' holds something else .*tinyvendor.*env create speck"):
        interpreter("speck")
    assert doctor()["environments"]["speck"]["state"] == "stale"
    stamp = own_home / "env" / "speck" / "nirdeploy-environment.json"
    monkeypatch.setattr(environments, "RECIPES", {"speck": recipe(wheel)})
    assert interpreter("speck") == own_home / "env" / "speck" / "bin" / "python"
    assert create("speck").state == "ready"
    stamp.write_text("{")
    assert environments.environments()["speck"].state == "missing"


def test_an_interpreter_can_be_given(own_home, monkeypatch):
    monkeypatch.setenv("NIRDEPLOY_PYTHON_SPECK", sys.executable)
    assert interpreter("speck") == Path(sys.executable)
    monkeypatch.setenv("NIRDEPLOY_PYTHON_SPECK", "/nowhere/python")
    with pytest.raises(UnavailableError, match=r"\$NIRDEPLOY_PYTHON_SPECK is '/nowhere/python', which is no file"):
        interpreter("speck")


def test_what_cannot_be_built_says_why(own_home, monkeypatch, tmp_path):
    with pytest.raises(UnavailableError, match=r"no environment 'spek'.*speck"):
        create("spek")
    monkeypatch.setenv("NIRDEPLOY_PYTHON310", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match=r"'loihi' needs Python 3.10.*NIRDEPLOY_PYTHON310"):
        create("loihi")
    assert environments.environments()["loihi"].state == "missing"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NIRDEPLOY_HOME", str(tmp_path / "file"))
    with pytest.raises(FileError, match=r"cannot build in .*file/env"):
        create("speck")


def test_home_follows_the_environment(monkeypatch):
    monkeypatch.delenv("NIRDEPLOY_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert environments.home() == Path("/data/nirdeploy")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert environments.home() == Path.home() / ".local/share/nirdeploy"


def test_no_recipe_installs_samna():
    for found in RECIPES.values():
        assert not [p for p in found.packages if "samna" in p]
        assert all("==" in p for p in found.packages)
    assert dataclasses.is_dataclass(RECIPES["speck"])


# ---------------------------------------------------------------- command line


def nirdeploy(*arguments):
    command = [sys.executable, "-m", "nirdeploy", "env", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_lists_environments_and_says_what_it_cannot_create(own_home):
    listed = nirdeploy("list", "--json")
    assert listed.returncode == 0, listed.stderr
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["speck"]["state"] == "missing"
    assert rows["speck"]["folder"] == str(own_home / "env" / "speck")
    assert "sinabs" in nirdeploy("list").stdout
    failed = nirdeploy("create", "spek")
    assert failed.returncode == 2
    assert "there is no environment 'spek'" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("verb", ["list", "create"])
def test_each_command_has_help_with_an_example(verb):
    said = nirdeploy(verb, "--help").stdout
    assert f"nirdeploy env {verb}" in said
    assert "--json" in said
