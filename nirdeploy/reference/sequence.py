"""Tensors in, tensors out, over many steps: what training calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nirdeploy.errors import RasterError, UnsupportedError
from nirdeploy.reference.engine import Engine
from nirdeploy.reference.executor import program_of
from nirdeploy.reference.signals import Signal
from nirdeploy.schedule import NodePath, dotted

if TYPE_CHECKING:
    from nirdeploy.convert.build import GraphModule

__all__ = ["sequence"]


def sequence(module: GraphModule, raster: Any, state: Mapping[str, Any], method: str) -> Any:
    """`GraphModule.sequence`."""
    if method not in ("dense", "event"):
        raise UnsupportedError(f"method {method!r} is not known", remedy="Use 'dense' or 'event'.")
    program = program_of(module)
    program.refresh()
    dtype, device = program.numbers()
    inputs = _inputs(module, raster, dtype, device)
    steps, batch = next(iter(inputs.values())).shape[:2]
    module._check_state(state)
    grad = torch.is_grad_enabled() and (
        any(p.requires_grad for p in module.parameters())
        or any(x.requires_grad for x in inputs.values())
        or any(t.requires_grad for t in _tensors(state))
    )
    engine = Engine(program, batch, state, dtype=dtype, device=device, events=method == "event", grad=grad)
    with torch.set_grad_enabled(grad):
        signals = {
            path: Signal(module.shapes[path].input, steps, batch, dense=x, dtype=dtype, device=device)
            for path, x in inputs.items()
        }
        found = {dotted(path): signal.dense() for path, signal in engine.chunk(signals).items()}
    return (next(iter(found.values())) if len(found) == 1 else found), engine.state()


def _inputs(module: GraphModule, raster: Any, dtype: torch.dtype, device: torch.device) -> dict[NodePath, Tensor]:
    names = module.input_names
    given = dict(raster) if isinstance(raster, Mapping) else {names[0]: raster} if len(names) == 1 else {}
    if set(given) != set(names):
        raise RasterError(f"rasters of {sorted(map(str, given))} given, the graph has the Inputs {names}")
    found: dict[NodePath, Tensor] = {}
    for path in module.plan.inputs:
        name, shape, x = dotted(path), module.shapes[path].input, given[dotted(path)]
        if not isinstance(x, Tensor):
            raise RasterError(f"the raster is a {type(x).__name__}, expected a tensor", node=name)
        if x.device != device:
            raise RasterError(
                f"the raster is on {x.device}, the module on {device}", node=name, remedy=f"Move it: .to('{device}')."
            )
        if x.is_complex() or x.is_quantized:
            raise RasterError(f"the raster has dtype {x.dtype}, expected counts or numbers", node=name)
        if x.ndim != len(shape) + 2 or tuple(x.shape[2:]) != shape or 0 in x.shape:
            wanted = ", ".join(map(str, ("step", "batch", *shape)))
            raise RasterError(f"the raster has shape {tuple(x.shape)}, expected [{wanted}]", node=name)
        found[path] = x.to(dtype)
    lead = {tuple(x.shape[:2]) for x in found.values()}
    if len(lead) > 1:
        raise RasterError(f"rasters of {sorted(lead)} steps and samples, expected as many for all Inputs")
    return found


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [t for value in state.values() for t in _tensors(value)] if isinstance(state, Mapping) else []
