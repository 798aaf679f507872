"""The worker's mode for a Loihi 2 through lava-loihi: adapters in and out, StateProbes, repeated runs.

A part of `lava_worker`, imported by its interpreter alone. Tested against a stand-in of lava-loihi, never on silicon.

What is not documented is measured in a run of its own before every job: how many steps spikes take through the adapters
in and out, and in which order a StateProbe lists steps and neurons. The network rests, without bias, for as many steps
as the way in takes; then v and bias are set, so that the first spikes of the input arrive in its step 0.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDED = (
    "lava.utils.loihi2_profiler",
    "lava.utils.loihi2_state_probes",
    "lava.proc.embedded_io.spike",
    "lava.magma.core.model.nc.model",
)
ENVIRONMENT = ("SLURM", "NOSLURM", "LOIHI_GEN", "PARTITION", "BOARD", "NXSDKHOST", "HOST_BINARY")
_TRIAL, _SENT = 32, 2  # steps of the measuring run, and the one in which its spike is sent
_REGISTERS = {"v_mem": "v", "i_syn": "u"}


class ChipError(Exception):
    """What the chip or lava-loihi answered is not what was agreed."""


def is_there(name: str) -> bool:
    """Whether a module can be found; neither it nor a package around it is imported.

    By files: lava's packages are spread over several folders (namespace packages), whose finders look into sys.modules.
    """
    *packages, module = name.split(".")
    for entry in sys.path:
        folder = Path(entry or ".", *packages)
        if (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file():
            return True
        if folder.is_dir() and any(folder.glob(f"{module}.*so")):
            return True
    return False


def detect() -> None:
    """Print as JSON which modules of lava-loihi are missing and what the environment says of a board."""
    missing = [name for name in NEEDED if not is_there(name)]
    found = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    sys.stdout.write(json.dumps({"missing": missing, "environment": found}) + "\n")


@dataclass
class Measured:
    """What the measuring run has found.

    Attributes:
        way_in: steps through PyToNxAdapter.
        way_out: steps through NxToPyAdapter.
        by_neuron: whether a StateProbe lists neuron after neuron, or step after step.
    """

    way_in: int
    way_out: int
    by_neuron: bool


def steps_of(series: Any, count: int, neurons: int, by_neuron: bool) -> Any:
    """A StateProbe's values of the last `count` steps [step, neuron]."""
    import numpy as np

    values = np.asarray(series).reshape(-1)
    recorded, rest = divmod(values.size, neurons)
    if rest or recorded < count:
        raise ChipError(f"a StateProbe has {values.size} values of {neurons} neurons, expected {count} steps or more")
    return (values.reshape(neurons, recorded).T if by_neuron else values.reshape(recorded, neurons))[-count:]


def measure(processes: Any) -> Measured:
    """Send one spike through both adapters to the second of two neurons, and look when it is seen where."""
    import numpy as np
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2HwCfg
    from lava.proc.embedded_io.spike import NxToPyAdapter, PyToNxAdapter
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.utils.loihi2_state_probes import StateProbe

    data = np.zeros((2, _TRIAL), np.int32)
    data[1, _SENT] = 1
    source, into, out = processes.RingBuffer(data=data), PyToNxAdapter(shape=(2,)), NxToPyAdapter(shape=(2,))
    weights = np.eye(2, dtype=int) * 100
    synapses = processes.Dense(weights=weights, weight_exp=0, num_weight_bits=8)
    relay = processes.LIF(shape=(2,), du=4095, dv=4096, vth=50)
    sink = Sink(shape=(2,), buffer=_TRIAL)
    for port, to in (
        (source.s_out, into.inp),
        (into.out, synapses.s_in),
        (synapses.a_out, relay.a_in),
        (relay.s_out, out.inp),
        (out.out, sink.a_in),
    ):
        port.connect(to)
    probe = StateProbe(relay.u)
    configuration = Loihi2HwCfg(select_tag="fixed_pt", callback_fxs=[probe])
    relay.run(condition=RunSteps(num_steps=_TRIAL), run_cfg=configuration)
    current = np.flatnonzero(np.asarray(probe.time_series).reshape(-1))
    arrived = np.argwhere(np.asarray(sink.data.get()))
    relay.stop()
    if len(current) != 1 or len(arrived) != 1 or arrived[0][0] != 1:
        raise ChipError(f"one spike was sent; currents were seen at {current.tolist()}, spikes at {arrived.tolist()}")
    by_neuron = int(current[0]) >= _TRIAL
    step = int(current[0]) - _TRIAL if by_neuron else int(current[0]) // 2
    found = Measured(step - _SENT - 1, int(arrived[0][1]) - step, by_neuron)
    if found.way_in < 0 or found.way_out < 0:
        raise ChipError(f"a spike seems to have arrived before it was sent: {found}")
    sys.stdout.write(f"measured: {found}\n")
    return found


class Sample:
    """One run of one sample: its network with adapters, sinks and some probes."""

    def __init__(self, job: dict[str, Any], arrays: Any, sample: int, processes: Any, measured: Measured) -> None:
        import numpy as np
        from lava.proc.embedded_io.spike import PyToNxAdapter

        networks = importlib.import_module("lava_network")
        self.job, self.measured = job, measured
        self.steps = int(arrays["raster"].shape[1])
        self.total = self.steps + measured.way_in + measured.way_out
        shapes = networks.source_shapes(job)

        def params(kind: str, k: int) -> dict[str, Any]:
            if kind != "source":
                return {}
            played = np.zeros((self.total, int(np.prod(shapes[k]))), np.int32)
            if k == 0:
                played[: self.steps] = arrays["raster"][sample]
            else:
                played[job["always_on"][k - 1]["start"] : self.steps] = 1
            return {"data": np.stack([networks.to_ports(row, shapes[k]) for row in played], axis=-1)}

        def feed(source: Any, k: int) -> Any:
            adapter = PyToNxAdapter(shape=shapes[k])
            source.s_out.connect(adapter.inp)
            return adapter.out

        self.network = networks.build(job, arrays, processes, params=params, feed=feed, at_rest=measured.way_in > 0)
        self.starts = [
            {
                var: np.broadcast_to(networks.to_ports(self._of_all(values, lif), lif.a_in.shape), lif.a_in.shape)
                for var, values in (
                    ("v", arrays[f"populations/{k}/v_start"][...]),
                    ("bias_mant", arrays[f"populations/{k}/bias_mantissa"][...]),
                )
            }
            for k, lif in enumerate(self.network.populations)
        ]
        self.from_ports = networks.from_ports

    @staticmethod
    def _of_all(values: Any, lif: Any) -> Any:
        import numpy as np

        return np.broadcast_to(values, (int(np.prod(lif.a_in.shape)),))

    def run(self, probed: list[tuple[int, str]]) -> dict[tuple[int, str], Any]:
        """Run it; spikes of every population that keeps them and the probed states, [step, neuron]."""
        import numpy as np
        from lava.magma.core.run_conditions import RunSteps
        from lava.magma.core.run_configs import Loihi2HwCfg
        from lava.proc.embedded_io.spike import NxToPyAdapter
        from lava.proc.io.sink import RingBuffer as Sink
        from lava.utils.loihi2_state_probes import StateProbe

        lifs = self.network.populations
        sinks = {}
        for k, population in enumerate(self.job["populations"]):
            if "spikes" in population["keep"]:
                adapter = NxToPyAdapter(shape=lifs[k].s_out.shape)
                sinks[k] = Sink(shape=lifs[k].s_out.shape, buffer=self.total)
                lifs[k].s_out.connect(adapter.inp)
                adapter.out.connect(sinks[k].a_in)
        probes = {(k, name): StateProbe(getattr(lifs[k], _REGISTERS[name])) for k, name in probed}
        configuration = Loihi2HwCfg(select_tag="fixed_pt", callback_fxs=list(probes.values()))
        lead, first = self.measured.way_in, lifs[0]
        if lead:
            first.run(condition=RunSteps(num_steps=lead), run_cfg=configuration)
        else:
            first.create_runtime(run_cfg=configuration)
        if any(lif.runtime is not first.runtime for lif in lifs):
            raise ChipError("populations that nothing connects with the others cannot run beside them")
        if lead:
            for lif, values in zip(lifs, self.starts, strict=True):
                for name, value in values.items():
                    getattr(lif, name).set(np.ascontiguousarray(value))
        first.run(condition=RunSteps(num_steps=self.total - lead), run_cfg=configuration)
        found = {}
        for (k, name), probe in probes.items():
            size = int(np.prod(lifs[k].v.shape))
            rows = steps_of(probe.time_series, self.total - lead, size, self.measured.by_neuron)
            found[k, name] = np.stack([self.from_ports(row.reshape(lifs[k].v.shape)) for row in rows[: self.steps]])
        for k, sink in sinks.items():
            came = np.moveaxis(np.asarray(sink.data.get()), -1, 0)[-self.steps :]
            found[k, "spikes"] = np.stack([self.from_ports(row) for row in came])
        first.stop()
        return found


def run(job: dict[str, Any], arrays: Any, processes: Any, measured: Measured, most: int, out: Any) -> None:
    """Every sample as often as its probes take; spikes must be the same every time."""
    import numpy as np

    kept = [(k, name) for k, population in enumerate(job["populations"]) for name in population["keep"]]
    states = [key for key in kept if key[1] in _REGISTERS]
    groups = [states[at : at + most] for at in range(0, len(states), most)] or [[]]
    samples = []
    for sample in range(arrays["raster"].shape[0]):
        found: dict[tuple[int, str], Any] = {}
        for turn, group in enumerate(groups):
            again = Sample(job, arrays, sample, processes, measured).run(group)
            for key, values in again.items():
                if key in found and not np.array_equal(found[key], values):
                    name = job["populations"][key[0]]["name"]
                    raise ChipError(f"spikes of {name!r} differ between runs of sample {sample}")
                found[key] = values
            sys.stdout.write(f"sample {sample}, run {turn + 1} of {len(groups)}\n")
        samples.append(found)
    for k, name in kept:
        values = np.stack([found[k, name] for found in samples], axis=1)
        whole = values.astype(np.int32)
        if not np.array_equal(whole, values):
            raise ChipError(f"{name} of {job['populations'][k]['name']!r} holds values that are no 32-bit integers")
        out.create_dataset(f"populations/{k}/{name}", data=whole)
