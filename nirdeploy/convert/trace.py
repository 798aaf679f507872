"""torch -> NIR by symbolic tracing: nothing is run, nothing is dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import nir
import torch
from torch import fx, nn

from nirdeploy import graph as graphs
from nirdeploy.convert.build import GraphModule
from nirdeploy.convert.forward import graph_of
from nirdeploy.convert.frameworks.framework import ONE_STEP, check_mode, leading_axes, row_of, traceable
from nirdeploy.convert.guards import refuse_hooks
from nirdeploy.convert.maps import Maps, ModuleMap
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.convert.restore import restored_graph
from nirdeploy.convert.samples import Sample, length_of, shapes_of
from nirdeploy.convert.tracer import NOT_SYMBOLIC, states_of, trace_forward
from nirdeploy.errors import ConversionError
from nirdeploy.reference.convention import Convention

__all__ = ["called_modules", "torch_to_nir"]


def torch_to_nir(
    module: nn.Module,
    module_map: ModuleMap | None = None,
    default_map: ModuleMap | None = None,
    *,
    sample_input: Any = None,
    input_shape: Any = None,
    stateful_modules: Collection[type[nn.Module]] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    type_check: bool = True,
    dt: float | None = None,
) -> Any:
    """Convert a torch module into a NIR graph.

    Args:
        module: the network; its forward takes one step, or, with layers of snnTorch, loops over equal steps, as many as
            the sample input has or a fixed number, and stacks what they give. It is not run and not changed. BatchNorm
            is folded with its running statistics, Dropout and Identity are left out.
        module_map: module type -> function of the module that returns a NIR node or graph, or None to bypass it;
            wins over the defaults and is looked up along the class hierarchy.
        default_map: replaces the built-in table.
        sample_input: an input of forward, [batch, ...]; only its shape is used. With several inputs a dict or a
            sequence.
        input_shape: shape of one sample, without batch; instead of `sample_input`. Likewise.
        stateful_modules: types whose forward returns (output, state); those that are unpacked in forward are
            recognised without it.
        concrete_args: arguments of forward fixed to a value. A state argument (default None, or named 'state') that
            forward reads and returns under the same key becomes state of the modules it is passed to, or a recurrent
            edge where it is an earlier output.
        type_check: whether to check all shapes at the end.
        dt: seconds a step stands for where layers of a library count steps only (snnTorch, sinabs, SpikingJelly); None:
            1e-4.

    Returns:
        A NIRGraph with nodes named after module paths; for a module that is mapped itself, its node.

    Raises:
        ConversionError: an operation that NIR cannot express; the message has the operation, the module path, the
            source line and the remedy.
    """
    if not isinstance(module, nn.Module):
        raise ConversionError(
            f"expected a torch.nn.Module, got {type(module).__name__}",
            remedy="Wrap a function in a module whose forward calls it.",
        )
    if isinstance(module, GraphModule):
        shapes_of(sample_input, input_shape, 1)
        return restored_graph(module, module_map or {})
    shapes = shapes_of(sample_input, input_shape, leading_axes(module) if sample_input is not None else 1)
    if dt is not None:
        Convention(dt=dt)  # which refuses what is no step
    _refuse_wrapped(module)
    if default_map is None:
        check_mode(module)
        refuse_hooks(module)
        module = traceable(module)
    maps = Maps(dict(module_map or {}), default_map, tuple(stateful_modules or ()), dt)
    if maps.is_mapped(module):
        single = shapes if isinstance(shapes, tuple) else None
        return maps.alone(module, TraceContext("module", single, bare=True, dt=dt))
    graph = _converted(module, maps, Sample(shapes, length_of(sample_input)), dict(concrete_args or {}))
    if type_check:
        graphs.shapes(graph)
    return graph


def _converted(module: nn.Module, maps: Maps, sample: Sample, concrete: dict[str, Any]) -> nir.NIRGraph:
    """Trace with symbolic states; where forward needs to know whether they are there, with none."""
    states = [name for name in states_of(module) if name not in concrete]
    if states:
        try:
            symbolic = trace_forward(module, maps, concrete, length=sample.length)
        except ConversionError:
            raise
        except NOT_SYMBOLIC:
            symbolic = None
        if symbolic is not None:
            return graph_of(module, maps, symbolic, sample, states)
    fixed = {**concrete, **dict.fromkeys(states)}
    try:
        traced = trace_forward(module, maps, fixed, length=sample.length)
    except ConversionError:
        raise
    except fx.proxy.TraceError as error:
        raise ConversionError(
            f"forward of {type(module).__name__} depends on its data: {error}",
            remedy="Move the condition out of forward, or fix its argument with concrete_args.",
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, NotImplementedError) as error:
        if "cannot be interpreted as an integer" in str(error):
            raise ConversionError(
                f"forward of {type(module).__name__} loops over an axis of its input, such as its steps",
                remedy=f"A graph is one step. {ONE_STEP}",
            ) from error
        # tracing runs the user's forward, which may raise anything of these on symbolic values
        layers = any(row_of(part) is not None for part in module.modules())
        raise ConversionError(
            f"forward of {type(module).__name__} cannot be traced: {type(error).__name__}: {error}",
            remedy="Put what needs real values into a module of its own and map that with module_map."
            + (f" {ONE_STEP}" if layers else ""),
        ) from error
    return graph_of(module, maps, traced, sample, [], assumes_states=bool(states or concrete))


def called_modules(module: nn.Module) -> set[str] | None:
    """Paths of the mapped modules that forward calls, as far as that does not depend on its input; None: not known."""
    maps = Maps()
    if isinstance(module, GraphModule) or maps.is_mapped(module):
        return None
    try:
        traced = trace_forward(traceable(module), maps, dict.fromkeys(states_of(module)))
    except (ConversionError, *NOT_SYMBOLIC, RuntimeError, LookupError, NotImplementedError):
        return None
    return {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}


def _refuse_wrapped(module: nn.Module) -> None:
    inner = None
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = "the module it holds: network.module"
    elif isinstance(module, torch.jit.ScriptModule):
        inner = "the module that it was made from"
    elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
        inner = "the module it was compiled from: network._orig_mod"
    if inner is not None:
        raise ConversionError(
            f"{type(module).__name__} wraps a network and cannot be traced", remedy=f"Convert {inner}."
        )
