"""examples/snntorch_digits.py, run as a program with warnings as errors."""

from __future__ import annotations

import re
import subprocess
import sys

from nets import ROOT


def test_the_tutorial_takes_a_trained_network_to_two_chips(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "snntorch_digits.py")]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    text = found.stdout
    assert "convention: reset zero, same_step, dt 0.001\n" in text
    assert "reference: 0 of 72000 output entries differ from snnTorch's\n" in text
    shares = {name: float(right) for name, right in re.findall(r"^(\w+): ([\d.]+)% right", text, re.MULTILINE)}
    assert set(shares) == {"snnTorch", "speck2f", "loihi2"}
    assert min(shares.values()) > 90
    assert len(re.findall("of spikes agree", text)) == 2
    assert "loihi2, node 2: reset is 'subtract'" in text
    assert "loihi2, node 2: reset_time is 'next_step'" in text
    assert (tmp_path / "out" / "examples" / "snntorch_speck2f.html").exists()
