"""Each library's tests (live_<library>.py, live_<library>_*.py) in an interpreter that holds the library."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from nets import ROOT, vendor_python

HERE = Path(__file__).parent
LIBRARIES = [name for name in ("norse", "sinabs", "snntorch", "spikingjelly") if (HERE / f"live_{name}.py").is_file()]


def run(library: str, *options: str) -> None:
    python = vendor_python(f".venv-with-{library}")
    tests = [str(HERE / f"live_{library}.py"), *map(str, sorted(HERE.glob(f"live_{library}_*.py")))]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    env = dict(os.environ)
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=env, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert " passed" in found.stdout.splitlines()[-1]


@pytest.mark.parametrize("library", LIBRARIES)
def test_networks_give_the_librarys_own_spikes(library):
    run(library, "-m", "not long")


@pytest.mark.long
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("library", LIBRARIES)
def test_many_networks_give_the_librarys_own_spikes(library):
    run(library)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_guides_blocks_print_what_they_say(library, tmp_path):
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    ((code, expected),) = re.findall(rf"```python {library}\n(.*?)```\n+```text\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    python = vendor_python(f".venv-with-{library}")
    found = subprocess.run([str(python), str(script)], capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == expected
