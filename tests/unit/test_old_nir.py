"""The oldest supported nir, 1.0.4: the conversion tests again, in a process that finds it first."""

import os
import subprocess
import sys

from nets import ROOT, vendor_folder

SUITES = ("unit/test_import.py", "unit/test_trace.py", "unit/test_convert.py", "unit/test_graph.py", "reference")


def test_conversion_works_with_the_nir_that_sinabs_pins():
    environment = {**os.environ, "PYTHONPATH": str(vendor_folder(".venv-nir104", "nir"))}
    version = [sys.executable, "-c", "import nir; print(nir.version)"]
    found = subprocess.run(version, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "1.0.4"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{s}" for s in SUITES)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=280
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout
