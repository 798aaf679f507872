"""How fast is the Loihi emulator, and how fast is Lava on the same machine?

    PYTHONPATH=.:backends .venv/bin/python benchmarks/loihi.py
    PYTHONPATH=.:backends .venv/bin/python benchmarks/loihi.py --lava python   # an interpreter that has Lava

Lava 0.10 needs a Python 3.10 of its own, as `nirdeploy env create loihi` makes it; by default `.venv-lava/bin/python`.
Without one nirdeploy is timed alone. Both get the same integers and the same spikes, and u, v and spikes of every
neuron are compared, integer by integer. The first step is left out of Lava's time, with its 0.3 to 1.5 s of start.

Networks: 784-256-10 of LIF neurons at some densities of input, and 64-256-256-242 of CubaLIF with delays of 0 to 62
steps over 3,000 steps, like the recogniser of spoken digits that lava-dl brings along. Weights are seeded.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from nirdeploy_loihi.execute import VARIABLES, Executed, execute
from nirdeploy_loihi.program import Compartments, Program, Shown, Synapses
from rich.console import Console
from rich.table import Table
from timing import seconds

ROOT = Path(__file__).resolve().parents[1]
LAVA = ROOT / ".venv-lava" / "bin" / "python"
REPEATS = 7


@dataclass(frozen=True)
class Case:
    """A network and what it is given; `lava_steps` is how much of it Lava gets."""

    name: str
    program: Program
    raster: np.ndarray
    lava_steps: int


def network(sizes: tuple[int, ...], *, threshold: int, decay_u: int, delays: bool) -> Program:
    """Dense layers, one behind the other."""
    rng = np.random.default_rng(0)
    populations, connections = [], []
    for k, (before, size) in enumerate(pairwise(sizes)):
        registers = [np.array([n]) for n in (decay_u, 256, threshold << 6, 0)]
        populations.append(Compartments(str(k), (size,), *registers, bias_exponent=0, v_start=np.array([0])))
        weight = rng.integers(-60, 66, (size, before)) * 2
        delay = rng.integers(0, 63, (1, before)) if delays else np.zeros((1, 1), np.int64)
        connections.append(Synapses(f"w{k}", str(k - 1) if k else "input", str(k), weight, delay))
    output = Shown("output", str(len(sizes) - 2), (sizes[-1],))
    return Program("input", (sizes[0],), tuple(populations), tuple(connections), (), (output,))


def raster(steps: int, neurons: int, density: float) -> np.ndarray:
    """Seeded spikes of one sample."""
    return (np.random.default_rng(1).random((steps, 1, neurons)) < density).astype(np.int32)


def cases() -> list[Case]:
    """What is timed."""
    mlp = network((784, 256, 10), threshold=400, decay_u=4096, delays=False)
    digits = network((64, 256, 256, 242), threshold=150, decay_u=1000, delays=True)
    found = [Case(f"784-256-10, input {d:.0%}", mlp, raster(2000, 784, d), 300) for d in (0.02, 0.05, 0.1, 0.2)]
    return [*found, Case("64-256-256-242, delays", digits, raster(3000, 64, 0.0062), 60)]


def everything(program: Program) -> dict[str, tuple[str, ...]]:
    """u, v and spikes of every population."""
    return {p.name: VARIABLES for p in program.populations}


def lava(interpreter: Path, case: Case, *, record: bool) -> dict[str, Any]:
    """A run in Lava; see `loihi_lava.py` for what comes back."""
    job: dict[str, Any] = {"raster": case.raster[: case.lava_steps, 0]}
    for k, (p, s) in enumerate(zip(case.program.populations, case.program.synapses, strict=True)):
        delay = np.broadcast_to(s.delay, s.weight.shape) if s.delay.any() else np.zeros(0)
        job |= {f"weight{k}": s.weight, f"delay{k}": delay, f"threshold{k}": p.threshold[0] >> 6}
        job |= {f"decay_u{k}": p.decay_u[0], f"decay_v{k}": p.decay_v[0]}
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "job.npz", Path(folder) / "out.npz"
        np.savez(given, **job)
        command = [str(interpreter), str(Path(__file__).with_name("loihi_lava.py")), str(given), str(out)]
        done = subprocess.run(command + ["--record"] * record, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise SystemExit(f"Lava failed:\n{done.stderr[-2000:]}")
        with np.load(out) as found:
            return dict(found)


def same(case: Case, run: Executed, recorded: dict[str, Any]) -> str:
    """Whether Lava has the same integers."""
    wrong = 0
    for k, p in enumerate(case.program.populations):
        for key, variable in (("u", "i_syn"), ("v", "v_mem"), ("s", "spikes")):
            ours = run.traces[p.name, variable][: case.lava_steps, 0]
            wrong += int((ours != recorded[f"{key}{k}"]).sum())
    return "all equal" if wrong == 0 else f"{wrong} DIFFER"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lava", type=Path, default=LAVA, help="interpreter that has lava-nc")
    interpreter = parser.parse_args().lava
    table = Table(
        title=f"ms a step, one sample; nirdeploy: best of {REPEATS} runs, Lava: one run; integers: all u, v and spikes"
    )
    for name in ("network", "spikes", "kept", "nirdeploy", "Lava", "times", "integers", "whole run, s"):
        table.add_column(name, justify="left" if name == "network" else "right")
    with_lava = interpreter.is_file()
    for case in cases():
        program, steps = case.program, len(case.raster)
        run = execute(program, case.raster, everything(program))
        cells = [run.counters[p.name]["spikes"] / (steps * p.size) for p in program.populations]
        for record in (True, False):
            keep = everything(program) if record else {}
            took = seconds(lambda p=program, c=case, k=keep: execute(p, c.raster, k), REPEATS)
            row = [case.name if record else "", ", ".join(f"{c:.0%}" for c in cells) if record else ""]
            row += ["u, v, s" if record else "output", f"{took / steps * 1e3:.5f}"]
            if with_lava:
                found = lava(interpreter, case, record=record)
                theirs = float(found["seconds"]) / (case.lava_steps - 1)
                equal = same(case, run, found) if record else ""
                row += [f"{theirs * 1e3:.2f}", f"{theirs / (took / steps):,.0f}", equal]
            else:
                row += ["", "", ""]
            table.add_row(*row, f"{took:.4f}")
    if not with_lava:
        table.caption = f"no Lava at {interpreter}"
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
