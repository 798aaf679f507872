"""Process models that simulate: Lava's own arithmetic, all samples of a run in one start, states written in place.

A part of `lava_worker`, imported by its interpreter alone.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def guarded(run: Callable[[Any], None]) -> Callable[[Any], None]:
    """`run` of a process model that ends its process with the reason: Lava alone keeps the reason and waits on."""

    def run_or_end(self: Any) -> None:
        try:
            run(self)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    return run_or_end


def model(base: Any, run_spk: Callable[[Any], None], **attributes: Any) -> Any:
    """Lava's model `base` with another `run_spk`, which calls Lava's own."""
    return type(base.__name__, (base,), {"run": guarded(base.run), "run_spk": run_spk, **attributes})


def place_in_run(self: Any) -> tuple[int, int]:
    """Sample and step of a model's present step, counted from 0."""
    sample, step = divmod(self.time_step - 1, self.proc_params["steps"])
    return sample, step


def source_model(base: Any) -> Any:
    """RingBuffer that plays a raster of `input.h5`, a sample at a time, or spikes that never end."""
    import h5py
    import numpy as np

    networks = importlib.import_module("lava_network")

    def run_spk(self: Any) -> None:
        sample, step = place_in_run(self)
        start, shape = self.proc_params["start"], self.data.shape[:-1]
        if start is not None:
            self.s_out.send(np.full(shape, step >= start, np.int32))
            return
        if step == 0:
            path, name = self.proc_params["raster"]
            with h5py.File(path, "r") as file:
                self.played = file[name][sample]
        self.s_out.send(networks.to_ports(self.played[step].astype(np.int32), shape))

    return model(base, run_spk)


def population_model(base: Any) -> Any:
    """LIF that starts every sample from rest and writes its states at the end of every step."""
    import numpy as np

    networks = importlib.import_module("lava_network")

    def run_spk(self: Any) -> None:
        sample, step = place_in_run(self)
        if self.time_step == 1:
            self.start = self.v.copy()
            self.written = {
                name: np.memmap(path, kind, "r+", shape=tuple(shape))
                for name, (path, kind, shape) in self.proc_params["written"].items()
            }
        if step == 0:
            self.u[:] = 0
            self.v[:] = self.start
        base.run_spk(self)
        for name, values in (("i_syn", self.u), ("v_mem", self.v), ("spikes", self.s_out_buff)):
            if name in self.written:
                self.written[name][sample, step] = networks.from_ports(values)

    return model(base, run_spk)


def synapse_model(base: Any, buffer: str, **attributes: Any) -> Any:
    """Dense, DelayDense or Conv whose spikes under way are gone at the start of every sample."""

    def run_spk(self: Any) -> None:
        if place_in_run(self)[1] == 0:
            getattr(self, buffer)[...] = 0
        base.run_spk(self)

    return model(base, run_spk, **attributes)


def weights_by_delay(base: Any) -> Any:
    """Lava's matrix of weights by delay, made once instead of once a step."""
    made: list[Any] = []

    def get_delay_wgts_mat(weights: Any, delays: Any, max_delay: int) -> Any:
        if not made:
            made.append(base.get_delay_wgts_mat(weights, delays, max_delay))
        return made[0]

    return staticmethod(get_delay_wgts_mat)


def simulated_models(processes: Any) -> dict[Any, Any]:
    """Which model simulates which process."""
    import numpy as np
    from lava.magma.core.model.py.type import LavaPyType
    from lava.proc.conv.models import PyConvModelFixed
    from lava.proc.dense.models import PyDelayDenseModelBitAcc, PyDenseModelBitAcc
    from lava.proc.io.source import PySendModelFixed
    from lava.proc.lif.models import PyLifModelBitAcc

    # Lava holds these in 8 bits, where more than 127 groups become negative
    wide = {n: LavaPyType(np.ndarray, np.int32) for n in ("kernel_size", "stride", "padding", "dilation", "groups")}
    delayed = weights_by_delay(PyDelayDenseModelBitAcc)
    return {
        processes.RingBuffer: source_model(PySendModelFixed),
        processes.LIF: population_model(PyLifModelBitAcc),
        processes.Dense: synapse_model(PyDenseModelBitAcc, "a_buff"),
        processes.DelayDense: synapse_model(PyDelayDenseModelBitAcc, "a_buff", get_delay_wgts_mat=delayed),
        processes.Conv: synapse_model(PyConvModelFixed, "a_buf", **wide),
    }
