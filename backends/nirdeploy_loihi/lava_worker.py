"""Runs programs of integers through Lava's own processes; a script of its own for an interpreter that has lava-nc.

    python lava_worker.py FOLDER [--watched]
    python lava_worker.py --detect

Imports numpy, h5py and lava, nothing of nirdeploy but the files `lava_*.py` beside it. FOLDER holds

- `job.json`: `{"format": 1, "networks": [network]}` with network `{"input": shape, "image": image, "always_on":
  [{"count", "start"}], "populations": [{"name", "shape", "image", "bias_exponent", "keep": some of "spikes", "v_mem",
  "i_syn"}], "synapses": [{"name", "source", "target", "shift", "delayed", "window"}]}`. An image is null or channel, y,
  x: what convolutions see. A source is counted through the Input (0), the always-on axons and the populations; a target
  through the populations. Weights are stored `shift` bits up. A window is null or `{"source_shape", "target_shape",
  "stride", "padding", "dilation", "groups"}`, pairs y, x;
- `input.h5`: `networks/<n>/raster` [batch, step, neurons], `networks/<n>/populations/<k>/decay_u`, `decay_v`,
  `threshold` (a mantissa), `bias_mantissa`, `v_start` (1 entry or one a neuron), `networks/<n>/synapses/<k>/weight`
  ([target, source] or [out, in / groups, y, x]) and, where it is delayed, `delay` [target, source]; all integers.

With an entry `"chip": {"probes": most StateProbes in a run, "environment": {variable: value}}` in job.json it runs on a
Loihi 2 (lava_chip.py); `--detect` prints what is missing for that.

Writes `trajectory.h5`, under a temporary name first: attributes `format` and `lava`, and
`networks/<n>/populations/<k>/<variable>` int32 [step, batch, neurons], neurons row-major over channel, y, x; prints
lines on its progress, and into `shared_memory.txt` the names of what has to be freed if it is killed.

What a population and a connection compute is Lava's (proc/lif/models.py, proc/dense/models.py, proc/conv/models.py).
Ours is what lies around it: all samples run in one start, one after the other, with every state and delay line put to
rest before each, and states are written where they are computed. Lava's Monitor would send them a number at a time.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FORMAT = 1
KINDS = {"spikes": "int8", "v_mem": "int32", "i_syn": "int32"}
_SLOTS = 4  # messages a channel holds; Lava's processes are never more than a step apart
_CHUNK = 1.0  # seconds of steps between two looks at the clock
_SAID = 10.0  # seconds between two lines on the progress
_CELLS = 1 << 24  # values copied at once
_DIED = 4  # exit code: a process of Lava ended


# ---------------------------------------------------------------- what may go wrong


def end_group(code: int) -> None:
    """Leave at once with everything that was started; Lava's processes do not end by themselves."""
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    free_shared_memory()
    os._exit(code)


class Watch:
    """Ends this program as soon as a process of Lava has ended while it runs; Lava would wait for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = False
        self._known: dict[int | None, Any] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def over(self) -> None:
        """From here on processes may end."""
        with self._lock:
            self._over = True

    def learn(self) -> None:
        """Know the processes there are now: one that ends before it has been seen would not be missed."""
        with self._lock:
            self._known |= {child.pid: child for child in multiprocessing.active_children()}

    def _look(self) -> None:
        while True:
            time.sleep(0.05)
            with self._lock:
                if self._over:
                    return
                alive = {child.pid: child for child in multiprocessing.active_children()}
                gone = [child for pid, child in self._known.items() if pid not in alive]
                if gone:
                    time.sleep(0.2)  # for what they have to say
                    codes = ", ".join(str(child.exitcode) for child in gone)
                    sys.stderr.write(f"processes of Lava ended early, with exit code {codes}\n")
                    end_group(_DIED)
                self._known |= alive


def end_with_parent() -> None:
    """Leave as soon as standard input closes: whoever waits for this worker is gone."""
    while os.read(0, 4096):  # not sys.stdin, whose lock the interpreter wants when it leaves
        pass
    free_shared_memory()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    end_group(3)


_segments: list[str] = []


def note_shared_memory(folder: Path) -> None:
    """Write down every segment of shared memory that Lava makes: what is killed does not free its own."""
    from lava.magma.runtime.message_infrastructure.shared_memory_manager import SharedMemoryManager

    create = SharedMemoryManager.create_shared_memory
    log = folder / "shared_memory.txt"

    def create_and_note(self: Any, size: int) -> Any:
        made = create(self, size)
        _segments.append(made.name)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{made.name}\n")
        return made

    SharedMemoryManager.create_shared_memory = create_and_note


def free_shared_memory() -> None:
    """Free what Lava has not freed."""
    for name in _segments:
        Path("/dev/shm", name.lstrip("/")).unlink(missing_ok=True)  # noqa: S108 - where Linux keeps it


# ---------------------------------------------------------------- networks


def lava_processes() -> Any:
    """The classes that networks are built of."""
    from lava.proc.conv.process import Conv
    from lava.proc.dense.process import DelayDense, Dense
    from lava.proc.io.source import RingBuffer
    from lava.proc.lif.process import LIF

    return SimpleNamespace(Conv=Conv, Dense=Dense, DelayDense=DelayDense, LIF=LIF, RingBuffer=RingBuffer)


def say_progress(what: str, done: int, total: int, said: float) -> float:
    """Print how far a run is, not too often; when that was last done."""
    now = time.monotonic()
    if now - said < _SAID or done == total:
        return said
    sys.stdout.write(f"{what}: step {done} of {total}\n")
    sys.stdout.flush()
    return now


def run_steps(process: Any, steps: int, configuration: Any, what: str, watch: Watch) -> None:
    """Compile what `process` is connected with, run it, and stop it."""
    from lava.magma.core.run_conditions import RunSteps

    process.create_runtime(run_cfg=configuration, compile_config={"pypy_channel_size": _SLOTS})
    watch.learn()
    done, chunk, said = 0, 8, time.monotonic()
    while done < steps:
        chunk = min(chunk, steps - done)
        started = time.monotonic()
        process.run(condition=RunSteps(num_steps=chunk), run_cfg=configuration)
        done += chunk
        if time.monotonic() - started < _CHUNK:
            chunk *= 2
        said = say_progress(what, done, steps, said)


def simulate(n: int, job: dict[str, Any], folder: Path, out: Any) -> None:
    """Run one network over its raster, into a group of `trajectory.h5`."""
    import h5py
    import numpy as np
    from lava.magma.core.run_configs import Loihi2SimCfg

    models, networks = importlib.import_module("lava_models"), importlib.import_module("lava_network")
    processes = lava_processes()
    with h5py.File(folder / "input.h5", "r") as file:
        arrays = file[f"networks/{n}"]
        batch, steps, _ = arrays["raster"].shape
        files: dict[tuple[int, str], Path] = {}

        def params(kind: str, k: int) -> dict[str, Any]:
            found: dict[str, Any] = {"steps": steps}
            if kind == "source":
                found["raster"] = (str(folder / "input.h5"), f"networks/{n}/raster")
                found["start"] = None if k == 0 else job["always_on"][k - 1]["start"]
            if kind == "population":
                size = math.prod(job["populations"][k]["shape"])
                found["written"] = {}
                for name in job["populations"][k]["keep"]:
                    files[k, name] = folder / f"{n}.{k}.{name}"
                    np.memmap(files[k, name], KINDS[name], "w+", shape=(batch, steps, size))
                    found["written"][name] = (str(files[k, name]), KINDS[name], (batch, steps, size))
            return found

        network = networks.build(job, arrays, processes, params=params)
    for lif in network.populations:
        if lif.runtime is None:  # else it is connected with one that has run
            configuration = Loihi2SimCfg(
                select_tag="fixed_pt", exception_proc_model_map=models.simulated_models(processes)
            )
            watch = Watch()
            run_steps(lif, batch * steps, configuration, f"network {n}", watch)
            watch.over()
            lif.stop()
    for (k, name), path in files.items():
        found = np.memmap(path, KINDS[name], "r", shape=(batch, steps, math.prod(job["populations"][k]["shape"])))
        into = out.create_dataset(f"populations/{k}/{name}", (steps, batch, found.shape[2]), np.int32)
        block = max(1, _CELLS // max(1, batch * found.shape[2]))
        for first in range(0, steps, block):
            into[first : first + block] = np.swapaxes(found[:, first : first + block], 0, 1)
        path.unlink()


def run_on_chip(job: dict[str, Any], folder: Path, out: Any) -> None:
    """Run every network on a Loihi 2."""
    import h5py

    chip, processes = importlib.import_module("lava_chip"), lava_processes()
    measured = chip.measure(processes)
    with h5py.File(folder / "input.h5", "r") as file:
        for n, network in enumerate(job["networks"]):
            group = out.create_group(f"networks/{n}")
            chip.run(network, file[f"networks/{n}"], processes, measured, job["chip"]["probes"], group)


def main(folder: Path) -> int:
    """Do the job of a folder; 1 with a line on standard error where it cannot be done."""
    import h5py

    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job["format"] != FORMAT:
        sys.stderr.write(f"job.json has format {job['format']!r}, this worker knows {FORMAT}\n")
        return 1
    chip = job.get("chip")
    if chip is not None:
        os.environ.update(chip["environment"])  # before lava-loihi is imported
    note_shared_memory(folder)
    part = folder / "trajectory.h5.part"
    with h5py.File(part, "w") as out:
        out.attrs.update({"format": FORMAT, "lava": importlib.metadata.version("lava-nc")})
        if chip is not None:
            run_on_chip(job, folder, out)
            part.replace(folder / "trajectory.h5")
            return 0
        for n, network in enumerate(job["networks"]):
            simulate(n, network, folder, out.create_group(f"networks/{n}"))
    part.replace(folder / "trajectory.h5")
    return 0


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))  # -I leaves it out
    # multiprocessing's own helper gets these options; its complaints would hide the last words of what failed
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    if sys.argv[1:] == ["--detect"]:
        importlib.import_module("lava_chip").detect()
        sys.exit(0)
    if "--watched" in sys.argv[2:]:
        threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        code = main(Path(sys.argv[1]))
    except Exception:  # whatever it is: its traceback is the last word, and the processes it started must go
        traceback.print_exc()
        code = 1
    end_group(code)
