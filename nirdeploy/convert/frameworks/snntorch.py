"""Layers of snnTorch 1.0, as its own code steps them (snntorch/_neurons/*.py).

Leaky: v = beta v + x, spike where v > threshold, beta clamped to [0, 1]. Synaptic: i = alpha i + x, v = beta v + i.
Lapicque: v = (1 - T/(R C)) v + (T/C) x, whatever beta is. RLeaky and RSynaptic add what their own spikes of the step
before give through `recurrent`. The reset that a crossing causes happens in the next step (reset_delay=True, the
default, and always in Lapicque): subtraction after decay and input; to zero before them in Leaky, after them elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from nirdeploy.convert.frameworks.framework import ONE_STEP, STEP, Framework, LayerRow
from nirdeploy.convert.frameworks.snntorch_files import adapt, repair
from nirdeploy.convert.frameworks.snntorch_numbers import broadcast, time_constant
from nirdeploy.convert.primitives import MODULES, TraceContext, find
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_graph, make_node

__all__ = ["FRAMEWORK"]

Array = np.ndarray
_LARGEST_DIAGONAL = 4096  # neurons; a matrix of that side takes 64 MiB
_RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
# what a step of a layer is made of; a subclass that changes one of them is another neuron
_STEP_METHODS = (
    "fire",
    "mem_reset",
    "fire_inhibition",
    "_base_state_function",
    "_base_state_reset_zero",
    *_RESETS,
)


# ---------------------------------------------------------------- what a layer does


def _reset_of(module: Any) -> str:
    """'subtract', 'zero' or 'none', as the layer's step does it: chosen when it was built, whatever was set since."""
    return _RESETS.get(getattr(module.state_function, "__name__", ""), "")


def _is_late(module: Any) -> bool:
    # RSynaptic's own forward changes nothing for reset_delay=False (snnTorch 1.0.0)
    return bool(getattr(module, "reset_delay", True)) or _kind(module) == "RSynaptic"


def _kind(module: Any) -> str:
    """The class of snnTorch's own that a layer is, or derives from."""
    return next(k.__qualname__ for k in type(module).__mro__ if k.__module__.startswith("snntorch."))


def _fields(module: Any) -> Mapping[str, Mapping[str, Any]]:
    reset = _reset_of(module)
    values: dict[str, Any] = {}
    if reset != "none":
        at_once = "brought_forward" if reset == "subtract" else "same_step"
        values = {"reset": reset, "reset_time": "next_step" if _is_late(module) else at_once}
        if reset == "zero" and _is_late(module) and _kind(module) != "Leaky":
            values["late_reset"] = "after_update"
    if _kind(module) == "Lapicque":
        values["gain"] = "euler"
    return {"lif" if _is_graph(module) else "": values}


def _is_graph(module: Any) -> bool:
    """Whether a layer becomes more than one node."""
    return _reset_of(module) == "none" or hasattr(module, "recurrent") or not _is_one(module.graded_spikes_factor)


def _is_one(value: Tensor) -> bool:
    return bool((value == 1).all())


def _returns_state(module: Any) -> bool:
    return bool(module.output) or not module.init_hidden


# ---------------------------------------------------------------- refusals


def _refuse(path: str, problem: str, remedy: str) -> ConversionError:
    return ConversionError(problem, node=path, remedy=remedy)


def _check(module: Any, context: TraceContext) -> None:
    """Refuse what the node and the convention would not step as the layer does.

    Raises:
        ConversionError: naming the layer, its option and the remedy.
    """
    path, kind = context.path, type(module).__name__
    base: Any = next(k for k in type(module).__mro__ if k.__module__.startswith("snntorch."))
    changed = [n for n in _STEP_METHODS if getattr(type(module), n, None) is not getattr(base, n, None)]
    changed += [n for n in _STEP_METHODS if n in vars(module)]
    stepped: Any = getattr(module.state_function, "__self__", None)
    if changed or not _reset_of(module) or id(stepped) != id(module):
        what = ", ".join(changed) or "state_function"
        raise _refuse(
            path,
            f"{kind} has a {what} of its own, so it is no plain {base.__name__}",
            f"Map it with module_map={{{kind}: lambda m: nir.IF(...)}}.",
        )
    if int(module.reset_mechanism_val) != ("subtract", "zero", "none").index(_reset_of(module)):
        raise _refuse(
            path,
            f"{kind} was built with reset_mechanism={_reset_of(module)!r}, which its step still follows, and was given "
            f"{('subtract', 'zero', 'none')[int(module.reset_mechanism_val)]!r} since",
            "Build it with the reset_mechanism it was trained with.",
        )
    for option, given, why, remedy in (
        ("state_quant", bool(module.state_quant), "quantises v in each step", "Train without it, then quantise here."),
        ("inhibition", bool(module.inhibition), "lets one neuron of a layer fire a step", "Leave inhibition out."),
    ):
        if given:
            raise _refuse(path, f"{kind} with {option} {why}, which NIR cannot hold", remedy)
    _check_spike(module, path)
    _check_reset(module, path)
    _check_hidden(module, context)


def _check_spike(module: Any, path: str) -> None:
    """The forward pass of spike_grad is 1 where v > threshold, and 0 elsewhere, each time."""
    tiny = torch.finfo(torch.float32).tiny
    grid = torch.tensor([-4.0, -1.0, -0.1, -1e-3, -tiny, 0.0, tiny, 1e-3, 0.1, 1.0, 4.0]).repeat(16, 1)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = module.spike_grad(grid.to(module.threshold.device)).cpu()
        same = torch.equal(found.float(), (grid > 0).float())
    except (RuntimeError, TypeError, ValueError, AttributeError):
        same = False
    if not same:
        name = getattr(module.spike_grad, "__qualname__", type(module.spike_grad).__name__)
        name = name.partition(".<locals>")[0].rpartition(".")[2]
        raise _refuse(
            path,
            f"{type(module).__name__} has spike_grad {name}, whose forward pass is not 1 where v > threshold, else 0",
            "Give it a surrogate whose forward pass is that step, such as snntorch.surrogate.atan().",
        )


def _check_reset(module: Any, path: str) -> None:
    kind, reset = type(module).__name__, _reset_of(module)
    if getattr(module, "reset_delay", True):
        return
    if _kind(module) == "RSynaptic":
        if module.init_hidden:
            raise _refuse(
                path,
                f"{kind} with reset_delay=False and init_hidden=True cannot be run in snnTorch 1.0, whose forward "
                "divides an argument it did not get",
                "Use reset_delay=True.",
            )
        return
    if reset == "zero" and not bool((module.threshold >= 0).all()):
        raise _refuse(
            path,
            f"{kind} with reset_delay=False has the threshold {float(module.threshold.min())}, above which v is after "
            "a reset to zero",
            "Use a threshold of at least 0, or reset_delay=True.",
        )


def _check_hidden(module: Any, context: TraceContext) -> None:
    """Nothing left of an earlier run, where that would be what the next one starts from."""
    left = [n for n in ("spk", "syn", "mem") if isinstance(getattr(module, n, None), Tensor)]
    left = [n for n in left if getattr(module, n).numel() and bool((getattr(module, n) != 0).any())]
    if left and not context.gets_state:
        raise _refuse(
            context.path,
            f"{type(module).__name__} still holds {' and '.join(left)} of an earlier run, from which the next would "
            "start",
            "Call reset_mem() on it, or snntorch.utils.reset(network), before it is converted.",
        )


# ---------------------------------------------------------------- nodes


def _population(module: Any, context: TraceContext) -> nir.NIRNode:
    """LIF, or IF where nothing leaks; CubaLIF where it has a synapse; LI, I and CubaLI without a reset.

    With gain 'unit' the convention leaves r and w_in out; they are tau / dt, with which Euler's gain is the same 1.
    """
    shape, dt = context.required_shape(type(module).__name__), context.dt or STEP
    path = context.path

    def full(name: str) -> Array:
        return broadcast(getattr(module, name), shape, name, path)

    values: dict[str, Array] = {}
    if _kind(module) == "Lapicque":
        decay, gain = _lapicque(module, path)
        tau = time_constant(broadcast(decay, shape, "decay", path), dt)
        values |= {
            "tau": tau,
            "r": (broadcast(gain, shape, "gain", path) * (tau.astype(np.float64) / dt)).astype(tau.dtype),
        }
    else:
        tau = time_constant(np.clip(full("beta"), 0, 1), dt)
        values |= {"tau": tau, "r": (tau.astype(np.float64) / dt).astype(tau.dtype)}
    zeros = np.zeros_like(values["tau"])
    fires = _reset_of(module) != "none"
    kind = "LIF" if fires else "LI"
    if hasattr(module, "alpha"):
        kind = f"Cuba{kind}"
        synapse = time_constant(np.clip(full("alpha"), 0, 1), dt)
        values = {
            "tau_mem": values["tau"],
            "r": values["r"],
            "tau_syn": synapse,
            "w_in": (synapse.astype(np.float64) / dt).astype(synapse.dtype),
        }
    values["v_leak"] = zeros
    if kind in ("LIF", "LI") and _kind(module) != "Lapicque" and bool((full("beta") >= 1).all()):
        kind, values = ("IF" if fires else "I"), {"r": np.ones_like(zeros)}
    if fires:
        values |= {"v_threshold": full("threshold"), "v_reset": zeros}
    if not hasattr(nir, kind):
        raise _refuse(path, f"{type(module).__name__} with reset_mechanism='none' is a {kind}", "Install nir >= 1.0.5.")
    return make_node(getattr(nir, kind), **values)


def _lapicque(module: Any, path: str) -> tuple[Tensor, Tensor]:
    """Decay and input gain, in the order in which the layer itself multiplies (Lapicque._base_state_function)."""
    resistance, capacity, step = (torch.as_tensor(v).detach().float() for v in (module.R, module.C, module.time_step))
    decay = 1 - (step / (resistance * capacity))
    gain = resistance * (1 / (resistance * capacity)) * step
    if not bool(torch.isfinite(decay).all() and torch.isfinite(gain).all() and (gain != 0).all()):
        raise _refuse(
            path,
            f"Lapicque has R={float(resistance.max())} and C={float(capacity.max())}, with which nothing comes in",
            "Give it finite R and C, or a beta below 1.",
        )
    return decay, gain


def _recurrent(module: Any, context: TraceContext) -> nir.NIRNode:
    """What the layer's spikes of the step before go through."""
    inner, shape = module.recurrent, context.required_shape(type(module).__name__)
    row = find(MODULES, type(inner))
    if row is not None:
        node: nir.NIRNode = row.to_nir(inner, TraceContext(f"{context.path}.recurrent", shape))
        return node
    if type(inner).__name__ != "RecurrentOneToOne":
        raise _refuse(
            context.path,
            f"the recurrent part of {type(module).__name__} is a {type(inner).__name__}",
            "Use all_to_all=True with linear_features or conv2d_channels, or all_to_all=False.",
        )
    weight = broadcast(inner.V, shape, "V", context.path)
    if len(shape) == 1 and shape[0] <= _LARGEST_DIAGONAL:
        return make_node(nir.Linear, weight=np.diag(weight))
    return make_node(nir.Scale, scale=weight)


def _to_nir(module: Any, context: TraceContext) -> nir.NIRNode:
    _check(module, context)
    population = _population(module, context)
    if not _is_graph(module):
        return population
    shape = np.array(context.required_shape(type(module).__name__))
    nodes = {"input": make_node(nir.Input, input_type={"input": shape}), "lif": population}
    edges, last = [("input", "lif")], "lif"
    following: list[tuple[str, nir.NIRNode]] = []
    if _reset_of(module) == "none":
        threshold = broadcast(module.threshold, tuple(shape), "threshold", context.path)
        following.append(("spike", make_node(nir.Threshold, threshold=threshold)))
    if not _is_one(module.graded_spikes_factor):
        factor = broadcast(module.graded_spikes_factor, tuple(shape), "graded_spikes_factor", context.path)
        following.append(("graded", make_node(nir.Scale, scale=factor)))
    for name, node in following:
        nodes[name] = node
        edges.append((last, name))
        last = name
    if hasattr(module, "recurrent"):
        nodes["w_rec"] = _recurrent(module, context)
        edges += [(last, "w_rec"), ("w_rec", "lif")]
    nodes["output"] = make_node(nir.Output, output_type={"output": shape})
    return make_graph(nodes, [*edges, (last, "output")])


def _unsupported(why: str, remedy: str) -> Callable[[Any, TraceContext], nir.NIRNode]:
    def refuse(module: nn.Module, context: TraceContext) -> nir.NIRNode:
        raise _refuse(context.path, f"{type(module).__name__} {why}", remedy)

    return refuse


def _row(name: str, states: tuple[int, ...]) -> LayerRow:
    return LayerRow(
        (f"snntorch._neurons.{name.lower()}.{name}",),
        _to_nir,
        _fields,
        returns_state=_returns_state,
        states=lambda module: states,
        resets=("reset_mem", f"init_{name.lower()}"),
        input_shape=lambda module: (n,) if (n := getattr(module, "linear_features", None)) else None,
    )


_ALL_STEPS = ("takes all steps at once and resets nothing", "Use a layer that takes one step, such as Leaky.")
_LSTM = ("is an LSTM whose output is compared with a threshold, which no NIR node holds", "Use Synaptic.")
_REFUSED: Mapping[str, tuple[str, str]] = {
    "_neurons.alpha.Alpha": ("has two synapses of opposite sign a neuron, which no NIR node has", "Use Synaptic."),
    "_neurons.deltaleaky.DeltaLeaky": ("fires where v changes, not where it crosses a threshold", "Use Leaky."),
    "_neurons.slstm.SLSTM": _LSTM,
    "_neurons.sconv2dlstm.SConv2dLSTM": _LSTM,
    "_neurons.stateleaky.StateLeaky": _ALL_STEPS,
    "_neurons.linearleaky.LinearLeaky": _ALL_STEPS,
    "_neurons.leakyparallel.LeakyParallel": _ALL_STEPS,
    "_neurons.leakykernel.LeakyKernel": _ALL_STEPS,
    "_neurons.associative.AssociativeLeaky": _ALL_STEPS,
    "_layers.graded_spikes.GradedSpikes": (
        "multiplies along the batch, not along the neurons",
        "Use the graded_spikes_factor of the layer before it.",
    ),
}

FRAMEWORK = Framework(
    "snnTorch",
    "snntorch",
    rows=(
        _row("Leaky", (1,)),
        _row("Lapicque", (1,)),
        _row("Synaptic", (1, 2)),
        _row("RLeaky", (0, 1)),
        _row("RSynaptic", (0, 1, 2)),
        *(LayerRow((f"snntorch.{name}",), _unsupported(why, remedy)) for name, (why, remedy) in _REFUSED.items()),
    ),
    fields={"gain": "unit", "if_gain": "r"},
    repair=repair,
    adapt=adapt,
    hints={
        "/_neurons/": (
            "forward resets or reads the state of a layer itself",
            f"Leave that to who calls it. {ONE_STEP}",
        ),
        "/surrogate.": (
            "a surrogate by itself is a spike without a neuron",
            "Give it to a layer as spike_grad; or map the module around it to nir.Threshold with module_map.",
        ),
    },
)
