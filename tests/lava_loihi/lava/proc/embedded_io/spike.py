"""Stand-in of lava-loihi's spike adapters: they take 2 steps in and 1 step out."""

import os
from collections import deque

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

if os.environ.get("LOIHI_GEN") != "N3C1" or os.environ.get("SLURM") != "1":
    raise RuntimeError("no board: LOIHI_GEN and SLURM are not set")


class Adapter(AbstractProcess):
    def __init__(self, *, shape):
        if not isinstance(shape, tuple):
            raise TypeError(f"shape is {shape!r}")
        super().__init__(shape=shape)
        self.inp = InPort(shape=shape)
        self.out = OutPort(shape=shape)


class PyToNxAdapter(Adapter):
    """Into the chip."""


class NxToPyAdapter(Adapter):
    """Out of the chip."""


class Late(PyLoihiProcessModel):
    inp = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    out = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    steps = 0

    def __init__(self, proc_params):
        super().__init__(proc_params)
        self.held = deque(np.zeros(proc_params["shape"], np.int32) for _ in range(self.steps))

    def run_spk(self):
        self.out.send(self.held.popleft())
        self.held.append(self.inp.recv().astype(np.int32))


@implements(proc=PyToNxAdapter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyToNxModel(Late):
    steps = 2


@implements(proc=NxToPyAdapter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class NxToPyModel(Late):
    steps = 1
