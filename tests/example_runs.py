"""Running the scripts of `examples/`: the data they want where they look for them, and what they print."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from nets import ROOT, shared

import nirdeploy as nd

__all__ = ["prepared", "printed"]


def printed(name: str, folder: Path, *, python: str | Path = sys.executable, **environment: str) -> str:
    """What the script prints when run in a folder that holds `configs`."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    found = subprocess.run(
        [str(python), "-W", "error", str(ROOT / "examples" / f"{name}.py")],
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def prepared(name: str, folder: Path) -> dict[str, str]:
    """Published data as the script wants them, and the variables that name them; skipped where they are missing."""
    if name == "loihi2_trace":
        traces = folder / "paper" / "01_lif"
        traces.mkdir(parents=True)
        recorded = shared("reference", "lif", "lif_lava_loihi_fixed_steps000-599.csv")
        shutil.copy(recorded, traces / "lif_lava_loihi_fixed.csv")
    elif name == "speck_counts":
        _published_cnn(folder)
    else:
        return {}
    return {"NIR_PAPER": str(folder), "NMNIST": str(folder)}


def _published_cnn(folder: Path) -> None:
    """Folders `paper/02_cnn` and `Test` as published, with the six recordings there are."""
    counts = np.load(shared("reference", "cnn", "speck_layer1_counts.npz"))
    events = np.load(shared("reference", "cnn", "nmnist_test_events.npz"))
    paper = folder / "paper" / "02_cnn"
    paper.mkdir(parents=True)
    shutil.copy(shared("reference", "cnn", "cnn_sinabs.nir"), paper)
    every = np.zeros((1, 10, 16, 16, 16))
    every[0, counts["digit"]] = counts["counts"]
    np.save(paper / "speck_activity.npy", every)
    for digit, sample in zip(counts["digit"], counts["sample_id"], strict=True):
        at = events["sample_id"].tolist().index(sample)
        part = slice(events["offset"][at], events["offset"][at + 1])
        path = folder / "Test" / str(digit) / f"{sample:05d}.bin"
        path.parent.mkdir(parents=True)
        nd.save_events(path, nd.Events(*(events[key][part] for key in ("t_us", "p", "y", "x")), shape=(2, 34, 34)))
