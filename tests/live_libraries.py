"""Running a library's tests (live_<library>.py, live_<library>_*.py) in an interpreter that holds the library.

Each library has a file of tests of its own, so that several run side by side.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from nets import ROOT, vendor_python

HERE = Path(__file__).parent / "frameworks"


def run_live(library: str, *options: str) -> None:
    """Its live tests; fails with what they say."""
    python = vendor_python(f".venv-with-{library}")
    tests = [str(HERE / f"live_{library}.py"), *map(str, sorted(HERE.glob(f"live_{library}_*.py")))]
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=env, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert " passed" in found.stdout.splitlines()[-1]


def run_block(library: str, folder: Path) -> None:
    """Its block of the guide prints what the guide says."""
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    ((code, expected),) = re.findall(rf"```python {library}\n(.*?)```\n+```text\n(.*?)```", page, re.DOTALL)
    script = folder / "block.py"
    script.write_text(code, encoding="utf-8")
    python = vendor_python(f".venv-with-{library}")
    found = subprocess.run([str(python), str(script)], capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == expected
