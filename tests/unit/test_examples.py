"""Every script of `examples/`, run as a program, and what it prints."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from example_runs import prepared, printed
from make_gallery import differences
from nets import ROOT

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
TESTED = {}


def example(name):
    """Marks the test of a script."""

    def mark(function):
        TESTED[name] = function
        return function

    return mark


def page(folder, name):
    """Text of a page the script wrote."""
    return (folder / "out" / "examples" / name).read_text(encoding="utf-8")


@example("loihi2_trace")
def test_real_loihi_2_agrees_with_the_emulator_in_every_spike_and_voltage(tmp_path):
    text = printed("loihi2_trace", tmp_path, **prepared("loihi2_trace", tmp_path))
    assert differences("loihi2_trace", text) == []
    assert "600 steps, 2 spikes: 0 spikes and 0 voltages differ from the emulator\n" in text
    assert "2 entries that the chip's read-out hides (refractory_128) are left out" in text
    assert "100.00 % of spikes agree, v_mem differs by 0.004825 thresholds" in text
    assert "v RMS of the paper's integers 0.00483, of ours 0.00047 thresholds" in text
    assert "loihi2" in page(tmp_path, "loihi2_trace.html")


def test_a_trace_with_one_wrong_register_does_not_pass(tmp_path):
    environment = prepared("loihi2_trace", tmp_path)
    trace = tmp_path / "paper" / "01_lif" / "lif_lava_loihi_fixed.csv"
    table = np.loadtxt(trace, delimiter=",")
    table[100, 1] += 1
    np.savetxt(trace, table, delimiter=",")
    text = printed("loihi2_trace", tmp_path, **environment)
    assert differences("loihi2_trace", text) != []
    assert "0 spikes and 1 voltages differ from the emulator\n" in text


@example("speck_counts")
def test_real_speck_counts_against_emulator_and_conventions(tmp_path):
    text = printed("speck_counts", tmp_path, **prepared("speck_counts", tmp_path))
    assert differences("speck_counts", text) == []
    assert "digit 0 1 2 4 6 7\nevents 5293 1665 4840 3150 4773 3330\n" in text
    assert "neurons that differ, of 4096: 166 0 164 33 121 80; by 2 at most\n" in text
    assert "with two lanes: 7 1 29 32 26 34\n" in text
    assert re.findall(r"cosine to the chip (\S+)", text) == ["0.8418", "0.8503", "0.9980"]
    assert "speck2f" in page(tmp_path, "speck_counts.html")


@example("one_graph_three_libraries")
def test_three_libraries_differ_and_the_fields_to_blame_are_found(tmp_path):
    text = printed("one_graph_three_libraries", tmp_path)
    assert differences("one_graph_three_libraries", text) == []
    pairs = re.findall(r"^(\w+) and (\w+): (\S+) of spikes agree, (\d+) entries differ$", text, re.MULTILINE)
    assert [pair[:2] for pair in pairs] == [("snntorch", "norse"), ("snntorch", "sinabs"), ("norse", "sinabs")]
    assert all(int(pair[3]) > 100 for pair in pairs)
    assert "first: lif_1 neuron 1, sample 1, step 0" in text  # r is 1 in the first layer: Norse is right there
    assert "first: lif neuron 0, sample 0, step 0" in text
    norse, sinabs = text.split("from norse to snntorch\n")[1].split("from sinabs to snntorch\n")
    left = [[int(n) for n in re.findall(r"(\d+) differ", part)] for part in (norse, sinabs)]
    assert left[0] == [int(pairs[0][3]), 0]
    assert (left[1][0], left[1][-1]) == (int(pairs[1][3]), 0)
    assert re.search(r"crossing 'strict' +0 differ, v RMS 0 thresholds", sinabs)
    assert "sinabs" in page(tmp_path, "snntorch_sinabs.html")


@example("own_chip_dump")
def test_a_flipped_bit_is_found_in_a_dump(tmp_path):
    text = printed("own_chip_dump", tmp_path)
    assert differences("own_chip_dump", text) == []
    assert "first difference: if3 neuron 8, sample 0, step 10: 0 spikes expected, 1 observed" in text
    assert "neurons whose v differs: 8\n" in text
    assert "first in step 4, by 128 << 6; spikes of input 36 that arrived in it: 2\n" in text
    assert "if3" in page(tmp_path, "board.html")


# ---------------------------------------------------------------- all of them


def test_every_script_has_a_test():
    live = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "frameworks").glob("live_*.py"))
    elsewhere = {
        path.stem for path in SCRIPTS if f'printed("{path.stem}"' in live
    }  # in an interpreter that holds the library
    assert {path.stem for path in SCRIPTS} == set(TESTED) | elsewhere


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_open_as_notebooks(path):
    """jupytext's percent format: cells from the first line on; a cell of text is all comments."""
    before, *cells = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert before == ""
    assert cells[0].startswith(" [markdown]\n# # ")
    for cell in cells:
        if cell.startswith(" [markdown]"):
            assert all(line.startswith("#") or not line for line in cell.splitlines()[1:]), cell
        else:
            compile(cell.split("\n", 1)[1], path.name, "exec")
    assert len(path.read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("name", ["loihi2_trace", "speck_counts"])
def test_missing_data_are_named_with_where_to_get_them(name, tmp_path):
    found = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py")],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "NIR_PAPER": str(tmp_path / "gone"), "NMNIST": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 1
    assert "gone" in found.stderr
    assert "is not there" in found.stderr
    assert "NIR_PAPER" in found.stderr
    assert "Traceback" not in found.stderr
