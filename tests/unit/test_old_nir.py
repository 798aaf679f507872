"""The oldest supported nir, 1.0.4: the conversion tests again, in a process that finds it first."""

import os
import subprocess
import sys

import h5py
import nir
from nets import ROOT, chain, if_node, vendor_folder

import nirdeploy as nd

SUITES = (
    "unit/test_files.py",
    "unit/test_import.py",
    "unit/test_trace.py",
    "unit/test_convert.py",
    "unit/test_graph.py",
    "reference",
)


def test_every_nir_reads_a_file_without_v_reset_of_zero(tmp_path):
    nd.write(tmp_path / "zero.nir", chain((1,), n=if_node((1,))))
    with h5py.File(tmp_path / "zero.nir") as file:
        assert "v_reset" not in file["node/nodes/n"]
    code = "import nir, sys; print(nir.version, sorted(nir.read(sys.argv[1]).nodes))"
    environment = {**os.environ, "PYTHONPATH": str(vendor_folder(".venv-nir104", "nir"))}
    command = [sys.executable, "-c", code, str(tmp_path / "zero.nir")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1.0.4 ['input', 'n', 'output']"
    assert nd.read(tmp_path / "zero.nir").nodes["n"].v_reset.tolist() == [0.0]
    if hasattr(nir.IF, "__dataclass_fields__") and "v_reset" in nir.IF.__dataclass_fields__:
        nd.write(tmp_path / "other.nir", chain((1,), n=if_node((1,), v_reset=0.5)))
        assert nd.read(tmp_path / "other.nir").nodes["n"].v_reset.tolist() == [0.5]


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
