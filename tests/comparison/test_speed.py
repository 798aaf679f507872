"""Ten million values a side in a second, and numpy's figures: the benchmark ends with an error otherwise."""

import re
import subprocess
import sys

from nets import ROOT


def test_ten_million_values_are_compared_within_a_second():
    found = subprocess.run(
        [sys.executable, "-W", "error", "benchmarks/compare.py"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "10,000,000 values a trajectory" in found.stdout
    found = re.findall(r"^(.*?)  +([\d.]+) +([\d.]+)$", found.stdout, re.MULTILINE)
    took = {name: (float(seconds), float(ratio)) for name, seconds, ratio in found}
    assert took["compare, in memory"][0] <= 1
    assert took["as a chip's run, in memory"][0] <= 1
    # reading takes as long as the machine lets it: held against numpy's time instead
    assert took["from files, lazily"][1] <= 40
