"""The reference run: a graph over a whole raster, every requested state recorded."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy import graph as graphs
from nirdeploy.convert.build import GraphModule, lookup, nir_to_torch, store
from nirdeploy.convert.trace import torch_to_nir
from nirdeploy.errors import ConventionError, ConversionError, GraphError, RasterError, UnsupportedError
from nirdeploy.events import Events
from nirdeploy.names import suggest
from nirdeploy.outline import Outline
from nirdeploy.reference.convention import Convention
from nirdeploy.reference.engine import Engine
from nirdeploy.reference.graph_convention import resolve_convention, stored_convention
from nirdeploy.reference.input import Source, sources_of
from nirdeploy.reference.neurons import Delay, Membrane
from nirdeploy.reference.precision import full_precision
from nirdeploy.reference.program import POPULATIONS, Program, numbers_of
from nirdeploy.reference.recording import Recorder, Selection
from nirdeploy.schedule import NodePath, dotted, feedback_key
from nirdeploy.trajectory import Trajectory, load_trajectory
from nirdeploy.trajectory_writer import TrajectoryWriter
from nirdeploy.version import __version__

__all__ = ["program_of", "run"]

METHODS = ("dense", "event", "loop")
_FOLD_BYTES, _FOLD_IMAGES = 4 << 20, 64  # of a dense chunk: what stays in cache, and what a GEMM needs
_EVENT_BYTES = 64 << 20
_MOST_STEPS = 4096
_PROGRAMS: weakref.WeakKeyDictionary[GraphModule, Program] = weakref.WeakKeyDictionary()


def run(
    graph_or_module: nir.NIRGraph | nn.Module,
    raster: Any,
    *,
    convention: Convention | None = None,
    record: Iterable[str] = ("spikes", "v_mem"),
    nodes: Iterable[str] | None = None,
    state: Mapping[str, Any] | None = None,
    method: str = "dense",
    neurons: Mapping[str, Any] | None = None,
    steps: slice | range | None = None,
    packed: bool = False,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectory:
    """Run the float reference over a raster.

    Args:
        graph_or_module: a NIRGraph, what `nir_to_torch` returned, or a module `torch_to_nir` can trace.
        raster: counts, [step, batch, ...] or [step, ...]: an array, a tensor, an HDF5 dataset or memory map (read
            chunk by chunk), or Events (with a convention whose dt is whole microseconds). A dict by name where the
            graph has several Inputs.
        convention: None: the one the graph or module carries.
        record: variables to record: 'spikes', 'v_mem' (after the reset), 'i_syn', 'output' (nodes without state).
        nodes: nodes to record; None: all that have one of the variables.
        state: initial state; missing entries mean rest. What a run ended in is `Trajectory.state`.
        method: 'dense': time folded into the batch of stateless layers, native loops over populations and cyclic
            parts. 'event': the same, with layers driven by their input spikes where those are few; sums are taken
            in another order, also where a weight's own output is recorded. 'loop': the definition, step after step
            through the module.
        neurons: node -> flat indices of the neurons to record there; other nodes are recorded whole.
        steps: the steps to record, e.g. slice(900, 1000); None: all.
        packed: whether to keep spikes of one a step as bits.
        output: a trajectory file to write records to while the run goes on, instead of into memory; the trajectory
            returned then reads from it on access.
        progress: called now and then with the steps done and the steps of the run.

    Returns:
        Records of every neuron node and an 'output' record of every Output node.

    'dense' and 'loop' emit the same spikes, and v differs by the rounding of the sums over a layer's inputs (at most
    2**-23 times the number of inputs times the largest |weight x count|, in float32), unless a v is that near to its
    threshold. With batches of 4 and more, torch sums folded and unfolded layers in one order on most CPUs, and
    acyclic graphs are then equal bit for bit.

    Raises:
        ConventionError: none is known, or the module was built with another.
        RasterError: a raster of wrong shape, type or device, or with negative or NaN counts.
        GraphError, UnsupportedError: a graph that cannot be run, naming node and type.
        FileError: `output` cannot be written; a full disk leaves it readable up to the last step.
    """
    if method not in METHODS:
        raise UnsupportedError(f"method {method!r} is not known", remedy=f"Use one of {', '.join(METHODS)}.")
    module = _as_module(graph_or_module, raster, convention)
    program = program_of(module)
    _check_parameters(program)
    dtype, device = program.numbers()
    if dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(f"a run in {dtype}", remedy="Use module.float() or module.double().")
    sources = sources_of(module, raster, dtype)
    if output is not None or method == "loop":  # nothing is written of a run that is refused
        for source in sources.values():
            source.check()
    first = next(iter(sources.values()))
    n_steps, batch, batched = first.steps, first.batch, first.batched
    selection = Selection.of(module, record, nodes, neurons, steps, packed, n_steps)
    started = _batched_state(module, {} if state is None else state, batch, batched, dtype, device)
    with ExitStack() as stack:
        stack.enter_context(full_precision(device))
        writer = None
        if output is not None:
            writer = stack.enter_context(
                TrajectoryWriter(
                    output,
                    convention=module.convention,
                    graph_sha256=_digest(graph_or_module, program),
                    producer=f"nirdeploy {__version__}",
                    outputs=tuple(module.output_names),
                    outline=_outline(graph_or_module, program),
                )
            )
        ended: Callable[[], dict[str, Any]]
        recorder = Recorder(
            module,
            selection,
            n_steps=n_steps,
            batch=batch,
            batched=batched,
            dtype=dtype,
            writer=writer,
            made=program.made,
        )
        stack.enter_context(torch.no_grad())
        if method == "loop":
            last = _loop(module, sources, started, recorder, dtype, device, progress)
            ended = lambda: last  # noqa: E731
        else:
            engine = Engine(
                program, batch, started, dtype=dtype, device=device, sink=recorder, events=method == "event"
            )
            for start, stop in _chunks(program, n_steps, batch, dtype, method):
                engine.chunk({path: source.signal(start, stop, dtype, device) for path, source in sources.items()})
                if progress is not None:
                    progress(stop, n_steps)
            engine.release()
            ended = engine.state

    def state_at_end() -> dict[str, Any]:
        return ended() if batched else _unbatched(module, ended())

    if output is not None:
        streamed = load_trajectory(output, lazy=True).ending(state_at_end)
        return replace(streamed, graph=_graph(graph_or_module, program), raster=raster)
    return Trajectory(
        recorder.records(),
        output_names=tuple(module.output_names),
        convention=module.convention,
        graph_sha256=_digest(graph_or_module, program),
        producer=f"nirdeploy {__version__}",
        state_at_end=state_at_end,
        outline=_outline(graph_or_module, program),
        graph=_graph(graph_or_module, program),
        raster=raster,
    )


# ---------------------------------------------------------------- modules


def _as_module(given: Any, raster: Any, convention: Convention | None) -> GraphModule:
    if isinstance(given, GraphModule):
        if convention is not None and given.convention is not None and convention != given.convention:
            raise ConventionError(
                "the module was built with another convention than the one given to run",
                remedy="Build it again with nir_to_torch(graph, convention=...).",
            )
        return given
    dtype = torch.float32
    if isinstance(given, nn.Module):
        dtype = numbers_of(given)[0]
        given = _traced(given, raster)
        own = stored_convention(given)
        if convention is not None and own is not None and own != convention:
            raise ConventionError(
                "the module's neurons were built with another convention than the one given to run",
                remedy="Leave convention out, or build the module with it.",
            )
    if not isinstance(given, nir.NIRGraph):
        runs = callable(getattr(given, "run", None))
        remedy = "Run a deployment with its own run(raster)." if runs else "Read a file with nirdeploy.read(path)."
        raise RasterError(f"expected a NIRGraph or a torch module, got {type(given).__name__}", remedy=remedy)
    graphs.check_finite(given)
    module = nir_to_torch(given, convention=resolve_convention(given, convention), dtype=dtype)
    if not isinstance(module, GraphModule):
        raise UnsupportedError(f"a run of a {type(module).__name__}")
    return module


def program_of(module: GraphModule) -> Program:
    """How a module is run, worked out once for each module; anew where a submodule or hook was put into it."""
    found = _PROGRAMS.get(module)
    if found is None or not found.fits():
        found = _PROGRAMS[module] = Program(module)
    return found


def _check_parameters(program: Program) -> None:
    program.refresh()

    def check() -> bool:
        for name, parameter in program.module.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                node, _, field = name.rpartition(".")
                raise GraphError(f"{field} holds NaN or infinity", node=node, remedy="Train or load it again.")
        return True

    program.made("finite", check)


def _digest(given: Any, program: Program) -> str:
    """Hash of the graph that was run; '' where modules of the user's own have no way back to NIR."""
    if isinstance(given, nir.NIRGraph):
        return graphs.sha256(given)

    def make() -> str:
        graph = _graph(given, program)
        return "" if graph is None else graphs.sha256(graph)

    found: str = program.made("sha256", make)
    return found


def _graph(given: Any, program: Program) -> nir.NIRGraph | None:
    """The graph that was run; None where modules of the user's own have no way back to NIR."""
    if isinstance(given, nir.NIRGraph):
        return given

    def make() -> nir.NIRGraph | None:
        try:
            return torch_to_nir(program.module)
        except (ConversionError, GraphError):  # the latter of what the installed nir is too old for
            return None

    found: nir.NIRGraph | None = program.made("graph", make)
    return found


def _outline(given: Any, program: Program) -> Outline | None:
    def make() -> Outline | None:
        graph = _graph(given, program)
        return None if graph is None else Outline.of(graph)

    found: Outline | None = program.made("outline", make)
    return found


def _traced(module: nn.Module, raster: Any) -> nir.NIRGraph:
    """The graph of a module whose input shape, where it matters, is the raster's with or without batch."""
    failure: ConversionError | None = None
    shape = () if isinstance(raster, Mapping | Events) else np.shape(raster)
    events = raster.shape if isinstance(raster, Events) else None
    for guess in (None, events, shape[2:], shape[1:]):
        try:
            return torch_to_nir(module, input_shape=guess)
        except ConversionError as error:
            failure = failure or error
    raise failure or ConversionError("the module cannot be traced")


# ---------------------------------------------------------------- steps


def _chunks(program: Program, n_steps: int, batch: int, dtype: torch.dtype, method: str) -> Iterator[tuple[int, int]]:
    """Steps that are run together: few enough to stay in cache, many enough to fill a GEMM."""
    step = max(1, program.step_size * batch * dtype.itemsize)
    if method == "event" or program.whole:
        length = _EVENT_BYTES // step
    else:
        length = max(_FOLD_BYTES // step, -(-_FOLD_IMAGES // batch))
    length = max(1, min(length, _MOST_STEPS))
    for start in range(0, n_steps, length):
        yield start, min(n_steps, start + length)


def _loop(
    module: GraphModule,
    sources: Mapping[NodePath, Source],
    state: Mapping[str, Any],
    recorder: Recorder,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Step after step through the module: what every other method is held against."""
    current = dict(state)
    first = next(iter(sources.values()))
    recorder.begin(1)
    for step in range(first.steps):
        # a copy: a module of the user's own may work in place
        inputs = {path: s.signal(step, step + 1, dtype, device).dense()[0].clone() for path, s in sources.items()}
        values, current = module.step(inputs, current)
        for path, variable in recorder.entries:
            found = values[path]
            if variable in ("v_mem", "i_syn"):
                own = lookup(current, path)
                found = own[variable] if isinstance(own, Mapping) else own
            recorder.put(path, variable, step, found.reshape(1, first.batch, -1).cpu().numpy())
        if progress is not None:
            progress(step + 1, first.steps)
    return current


# ---------------------------------------------------------------- state


def _batched_state(
    module: GraphModule,
    state: Mapping[str, Any],
    batch: int,
    batched: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Any]:
    """A state as it is inside a run, with a batch axis and in the run's own type.

    Raises:
        ConventionError: an entry of no node, or of another type or shape than the node's.
    """
    if isinstance(state, Mapping) and not state:
        return {}
    module._check_state(state)
    _check_names(module, state)

    def own(value: Any, shape: tuple[int, ...], axis: int, name: str, what: str) -> Tensor:
        wanted = (*shape[:axis], batch, *shape[axis:]) if batched else shape
        if not isinstance(value, Tensor):
            raise ConventionError(f"{what} of type {type(value).__name__}, expected a tensor", node=name)
        if tuple(value.shape) != wanted:
            raise ConventionError(f"{what} of shape {tuple(value.shape)}, expected {wanted}", node=name)
        moved: Tensor = value.detach().to(dtype=dtype, device=device)
        return moved if batched else moved.unsqueeze(axis)

    found: dict[str, Any] = {}
    for step in module._steps:
        value, node, name = lookup(state, step.path), module.get(step.path), dotted(step.path)
        if value is None or not step.stateful:
            continue
        shape = module.shapes[step.path].input
        if isinstance(node, Delay):
            value = own(value, (node.longest, *shape), 1, name, "state")
        elif isinstance(node, Membrane):
            names = ("i_syn", "v_mem") if "tau_syn" in node.fields else ()
            if type(node) not in POPULATIONS:  # a subclass may keep more
                names = tuple(value) if isinstance(value, Mapping) else ()
            if isinstance(value, Mapping) != bool(names) or (names and set(value) != set(names)):
                kind = sorted(value) if isinstance(value, Mapping) else type(value).__name__
                raise ConventionError(f"state of type {kind} is not that of a {node.kind}", node=name)
            if names:
                value = {what: own(value[what], shape, 0, name, what) for what in names}
            else:
                value = own(value, shape, 0, name, "state")
        store(found, step.path, value)
    for source, target in module.plan.feedback:
        key = feedback_key(source, target)
        if state.get(key) is not None:
            found[key] = own(state[key], module.shapes[source].output, 0, dotted(source), f"state {key!r}")
    return found


def _check_names(module: GraphModule, state: Mapping[str, Any], at: NodePath = ()) -> None:
    """Refuse entries of subgraphs that name no node with state."""
    stateful = {step.path for step in module._steps if step.stateful}
    scopes = {path[:depth] for path in stateful for depth in range(1, len(path))}
    for name, value in state.items():
        path = (*at, name)
        if path in scopes and value is not None:
            if not isinstance(value, Mapping):
                raise ConventionError(f"state of type {type(value).__name__}, expected a dict", node=dotted(path))
            _check_names(module, value, path)
        elif at and path not in stateful:
            known = [found[-1] for found in stateful | scopes if found[:-1] == at]
            raise ConventionError(f"the state has an entry {dotted(path)!r}", remedy=suggest(str(name), known))


def _unbatched(module: GraphModule, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state without the batch axis that a run gave it; that of a delay line is its second."""
    found: dict[str, Any] = {}
    for step in module._steps:
        value, node = lookup(state, step.path), module.get(step.path)
        if value is None or not step.stateful:
            continue
        if isinstance(node, Membrane):
            whole = isinstance(value, Mapping)
            value = {k: v.squeeze(0) for k, v in value.items()} if whole else value.squeeze(0)
        elif isinstance(node, Delay):
            value = value.squeeze(1)
        store(found, step.path, value)
    for source, target in module.plan.feedback:
        key = feedback_key(source, target)
        if state.get(key) is not None:
            found[key] = state[key].squeeze(0)
    return found
