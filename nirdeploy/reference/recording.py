"""What a run records: which variables of which nodes, neurons and steps, into memory or into a file as it goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nirdeploy.bits import PackedSpikes
from nirdeploy.convert.build import GraphModule
from nirdeploy.errors import RasterError
from nirdeploy.names import suggest
from nirdeploy.reference.memory import NUMPY, lend
from nirdeploy.reference.neurons import Membrane, Neuron
from nirdeploy.reference.program import POPULATIONS
from nirdeploy.reference.sink import Sink
from nirdeploy.schedule import NodePath, dotted, lateness
from nirdeploy.trajectory import Record, check_record
from nirdeploy.trajectory_writer import TrajectoryWriter

__all__ = ["Recorder", "Selection"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Selection:
    """What to record.

    Attributes:
        variables: of `VARIABLES`.
        nodes: names; None: all that have one of the variables.
        neurons: node -> flat indices in its shape, where not all are recorded.
        steps: which steps of the run; None: all.
        packed: whether spikes of 0 and 1 are kept as bits.
    """

    variables: tuple[str, ...]
    nodes: frozenset[str] | None = None
    neurons: Mapping[str, Array] = field(default_factory=dict)
    steps: range | None = None
    packed: bool = False

    @classmethod
    def of(
        cls,
        module: GraphModule,
        record: Iterable[str],
        nodes: Iterable[str] | None,
        neurons: Mapping[str, Any] | None,
        steps: Any,
        packed: bool,
        n_steps: int,
    ) -> Selection:
        """What the arguments of `run` ask for.

        Raises:
            RasterError: a variable, node, neuron or step that is not there.
        """
        chosen = None
        if nodes is None and neurons is None:  # nothing to look up, and a short run takes some 60 us
            return cls(check_record(record), steps=_range(steps, n_steps), packed=bool(packed))
        names = {dotted(path): path for path in module.plan.order}
        if nodes is not None:
            if not isinstance(nodes, Iterable):
                raise RasterError(f"nodes is {nodes!r}, expected names of nodes")
            chosen = frozenset({nodes} if isinstance(nodes, str) else nodes)
            for name in sorted(chosen, key=str):
                if name not in names:
                    raise RasterError(f"no node {name!r} to record", remedy=suggest(str(name), names))
        subset = {}
        if neurons is not None and not isinstance(neurons, Mapping):
            raise RasterError(f"neurons is a {type(neurons).__name__}, expected a dict by node name")
        for name, indices in (neurons or {}).items():
            if name not in names:
                raise RasterError(f"no node {name!r} to record neurons of", remedy=suggest(str(name), names))
            subset[name] = _indices(name, indices, math.prod(module.shapes[names[name]].output))
        return cls(check_record(record), chosen, subset, _range(steps, n_steps), bool(packed))

    def includes(self, name: str) -> bool:
        """Whether a node is recorded at all."""
        return self.nodes is None or name in self.nodes


def _indices(name: str, given: Any, size: int) -> Array:
    found = np.asarray(given)
    if found.dtype == np.bool_ and found.size == size:
        found = np.flatnonzero(found)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        raise RasterError("neurons to record are not a row of flat indices", node=name)
    beyond = found[(found < 0) | (found >= size)]
    if beyond.size:
        raise RasterError(f"neuron {int(beyond[0])} to record, there are {size}", node=name)
    if len(np.unique(found)) != len(found):
        raise RasterError("a neuron to record is named twice", node=name)
    return found.astype(np.int64)


def _range(steps: Any, n_steps: int) -> range | None:
    if steps is None:
        return None
    try:
        found = range(*steps.indices(n_steps)) if isinstance(steps, slice) else steps
    except (TypeError, ValueError):  # a stride of 0, or what are no whole numbers
        found = None
    if not isinstance(found, range) or found.step < 1 or not len(found) or found[0] < 0 or found[-1] >= n_steps:
        raise RasterError(
            f"steps to record are {steps!r}, expected a slice or range that goes up within the run's {n_steps} steps",
            remedy="Use e.g. slice(100, 200) or range(0, 1000, 10).",
        )
    return found


# ---------------------------------------------------------------- recording


@dataclass
class _Entry:
    """One record in the making."""

    name: str
    variable: str
    shape: tuple[int, ...]  # of a sample, as recorded
    dtype: np.dtype[Any]
    neurons: Array | None
    unit: Array | None  # what v is divided by
    packed: bool
    whole: bool  # whether to make sure that spikes are whole numbers
    details: dict[str, Any]  # of the Record
    buffer: Array | None = None
    bits: list[PackedSpikes] = field(default_factory=list)
    scratch: Array | None = None


class Recorder(Sink):
    """Collects the records of a run.

    Args:
        module: what is run.
        selection: what to record; Outputs always are.
        n_steps: steps of the run.
        batch: samples.
        batched: whether records have a batch axis.
        dtype: of v and i.
        writer: where records go instead of memory.
        made: `Program.made`, to keep what does not change from run to run.
    """

    def __init__(
        self,
        module: GraphModule,
        selection: Selection,
        *,
        n_steps: int,
        batch: int,
        batched: bool,
        dtype: torch.dtype,
        writer: TrajectoryWriter | None = None,
        made: Callable[[Any, Callable[[], Any]], Any] | None = None,
    ) -> None:
        self.module, self.selection = module, selection
        self.n_steps, self.batch, self.batched, self.writer = n_steps, batch, batched, writer
        self.kept = n_steps if selection.steps is None else len(selection.steps)
        self.float = NUMPY[dtype]
        self.wanted = (selection.variables, selection.nodes)
        self.lags: Mapping[NodePath, int] = {}
        if module.convention.population_delay:
            self.lags = lateness(module.plan, {step.path for step in module._steps if step.stateful})
        self._chunk = 0
        self.entries: dict[tuple[NodePath, str], _Entry] = {}
        for path, template in self._templates(made):
            entry = _Entry.__new__(_Entry)  # copy() takes as long as a short run
            vars(entry).update(vars(template), bits=[])
            self.entries[path, entry.variable] = entry
            self._declare(entry)

    def _templates(self, made: Callable[[Any, Callable[[], Any]], Any] | None) -> list[tuple[NodePath, _Entry]]:
        """What is recorded, worked out once for runs that record alike."""
        chosen = self.selection

        def make() -> list[tuple[NodePath, _Entry]]:
            return [found for path in self.module.plan.order for found in self._entries(path)]

        if made is None or chosen.neurons:
            return make()
        found: list[tuple[NodePath, _Entry]] = made(("entries", self.wanted, chosen.packed, self.float), make)
        return found

    def _entries(self, path: NodePath) -> list[tuple[NodePath, _Entry]]:
        module, name, selection = self.module.get(path), dotted(path), self.selection
        variables: list[str] = []
        if path in self.module.plan.outputs:
            variables = ["output"]
        elif selection.includes(name) and path not in self.module.plan.inputs:
            if isinstance(module, Membrane):
                own = ["spikes" if isinstance(module, Neuron) else "output", "v_mem"]
                variables = own + (["i_syn"] if "tau_syn" in module.fields else [])
            else:
                variables = ["output"]
            variables = [v for v in variables if v in selection.variables]
        return [(path, self._entry(path, name, variable, module)) for variable in variables]

    def _entry(self, path: NodePath, name: str, variable: str, module: Any) -> _Entry:
        shape = self.module.shapes[path].output
        neurons = self.selection.neurons.get(name)
        threshold: Any = None
        unit = None
        spikes = variable == "spikes"
        if variable == "v_mem" and isinstance(module, Neuron):
            threshold = module.threshold_values()
            if neurons is not None and np.ndim(threshold):
                threshold = np.broadcast_to(threshold, shape).reshape(-1)[neurons]
            elif np.ndim(threshold):
                threshold = np.broadcast_to(threshold, shape)
        if variable == "v_mem" and module.convention.v_unit != "model" and _divides(module):
            unit = module.unit().detach().cpu().expand(shape).reshape(-1).numpy()
        packed = spikes and self.selection.packed
        if packed and module.convention.spikes_per_step == "many":
            raise RasterError("several spikes a step do not fit a bit", node=name, remedy="Record without packed=True.")
        dtype = np.dtype(np.int32) if spikes else self.float
        kept = shape if neurons is None else (len(neurons),)
        own = spikes and type(module) not in POPULATIONS
        units = {"gain": "input gain", "threshold": "threshold"}
        details = {
            "units": "count" if spikes else "model" if unit is None else units[module.convention.v_unit],
            "threshold": threshold,
            "lag": self.lags.get(path, 0),
            "neurons": neurons,
        }
        return _Entry(name, variable, tuple(kept), dtype, neurons, unit, packed, own, details)

    def _declare(self, entry: _Entry) -> None:
        if self.writer is not None:
            batch = self.batch if self.batched else None
            self.writer.declare(
                entry.name,
                entry.variable,
                dtype=np.uint8 if entry.packed else entry.dtype,
                sample_shape=entry.shape,
                batch=batch,
                packed=entry.packed,
                steps=self.selection.steps,
                **entry.details,
            )
        elif not entry.packed:
            size = math.prod(entry.shape)
            entry.buffer = lend((self.kept, self.batch, size), entry.dtype)

    # ------------------------------------------------------------ as a sink

    def begin(self, steps: int) -> None:
        """A chunk of so many steps begins."""
        self._chunk = steps

    def wants(self, path: NodePath, variable: str) -> bool:
        """Whether a variable of a node is recorded."""
        return (path, variable) in self.entries

    def target(self, path: NodePath, variable: str, start: int, steps: int) -> Array | None:
        """Where to write a chunk: the record itself, or memory that the next chunk uses again."""
        entry = self.entries.get((path, variable))
        if entry is None:
            return None
        if self._direct(entry):
            assert entry.buffer is not None
            return entry.buffer[start : start + steps]
        size = math.prod(self.module.shapes[path].output)
        shape = (steps, self.batch, size)
        if entry.scratch is None or entry.scratch.shape != shape:
            entry.scratch = np.empty(shape, entry.dtype)
        return entry.scratch

    def _direct(self, entry: _Entry) -> bool:
        """Whether chunks are written straight into the record."""
        return entry.buffer is not None and entry.neurons is None and self.selection.steps is None

    def put(self, path: NodePath, variable: str, start: int, values: Array | None) -> None:
        """Take a chunk."""
        entry = self.entries[path, variable]
        direct, steps = self._direct(entry), self._chunk
        if values is None:
            values = entry.buffer[start : start + steps] if direct else entry.scratch  # type: ignore[index]
            assert values is not None
            if entry.unit is not None:
                values /= entry.unit
            if direct:
                return
        elif entry.unit is not None:
            values = values / entry.unit
        if self.selection.steps is not None:
            kept = self.selection.steps
            ahead = np.arange(len(kept))[slice(*np.searchsorted(kept, (start, start + steps)))]
            if not len(ahead):
                return
            first = int(ahead[0])
            values = values[np.asarray(kept[first : first + len(ahead)]) - start]
        else:
            first = start
        if entry.neurons is not None:
            values = values[..., entry.neurons]
        self._keep(entry, first, values)

    def _keep(self, entry: _Entry, first: int, values: Array) -> None:
        if entry.variable == "spikes" and values.size and not values.max() < 2**31:
            raise RasterError(f"{values.max()} spikes in a step do not fit 32 bits", node=entry.name)
        if entry.whole and not (values == np.rint(values)).all():
            raise RasterError(
                "it emits fractions, which are no counts of spikes", node=entry.name, remedy="Record its 'v_mem' alone."
            )
        shape = (len(values), *((self.batch,) if self.batched else ()), *entry.shape)
        if self.writer is not None:
            kind = np.uint8 if entry.packed else entry.dtype
            self.writer.append(entry.name, entry.variable, values.reshape(shape).astype(kind, copy=False))
        elif entry.packed:
            entry.bits.append(PackedSpikes.pack(values.reshape(shape).astype(entry.dtype, copy=False)))
        else:
            assert entry.buffer is not None
            entry.buffer[first : first + len(values)] = values

    def records(self) -> dict[tuple[str, str], Record]:
        """The finished records."""
        found = {}
        for (_, variable), entry in self.entries.items():
            shape = (self.kept, *((self.batch,) if self.batched else ()), *entry.shape)
            data: Any = PackedSpikes.concatenate(entry.bits) if entry.packed else None
            if data is None:
                assert entry.buffer is not None
                data = entry.buffer.reshape(shape)
            details, steps = entry.details, self.selection.steps
            found[entry.name, variable] = Record(
                entry.name, variable, data, batched=self.batched, steps=steps, **details
            )
        return found


def _divides(module: Membrane) -> bool:
    return module.convention.v_unit == "gain" or "v_threshold" in module.fields
