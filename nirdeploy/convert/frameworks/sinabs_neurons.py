"""What sinabs's spiking and integrating layers compute, as NIR nodes and fields of a Convention.

One step of `sinabs.layers.LIF` (sinabs 3.1.3, layers/functional/lif.py), with a = exp(-1 / tau) and tau in steps:
i = a_syn (i + x), or i = x without tau_syn; v = a_mem v + g i with g = 1 - a_mem (norm_input=True) or 1; then spikes,
reset and v = max(v, min_v_mem). IAF has a_mem = 1 and g = 1; ExpLeak emits v itself.
"""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import torch
from torch import nn

from nirdeploy.convert.arrays import array_of, one_a_neuron
from nirdeploy.convert.frameworks.framework import STEP
from nirdeploy.convert.primitives import TraceContext
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import make_graph, make_node

__all__ = ["NEURON", "RECURRENT", "SYNAPSE", "fields", "nearest_tau", "refuse_memory", "to_nir"]

Shape = tuple[int, ...]
SYNAPSE, NEURON, RECURRENT = "synapse", "neuron", "recurrent"  # nodes inside a layer that is more than one
_SPIKES = "sinabs.activation.spike_generation"
_RESETS = "sinabs.activation.reset_mechanism"
_STATES = ("v_mem", "i_syn")
_ULPS = sorted(range(-8, 9), key=abs)


# ---------------------------------------------------------------- what a layer is


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _integrates(module: nn.Module) -> bool:
    """Whether it is of the IAF family: no membrane time constant."""
    return any(kind.__module__ == "sinabs.layers.iaf" for kind in type(module).__mro__)


def _spikes(module: Any) -> bool:
    return bool(module.spike_fn)


def _has_synapse(module: Any) -> bool:
    return module.alpha_syn_calculated is not None


def _name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _has_own_synapse(module: nn.Module) -> bool:
    """Whether the synapse is a node of its own: NIR has none with a synapse and a membrane without leak."""
    return _integrates(module) and _has_synapse(module)


def _is_one_node(module: nn.Module) -> bool:
    return not hasattr(module, "rec_connect") and not _has_own_synapse(module)


# ---------------------------------------------------------------- what the Convention holds


def fields(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Fields of the Convention, by node inside the layer; '' where it is one node.

    Raises:
        ConversionError: an option that no Convention holds; naming it.
    """
    own = _fields(module, _kind(module))
    if _is_one_node(module):
        return {"": own}
    if not _has_own_synapse(module):
        return {NEURON: own}
    # the synapse is a LI of j = i / a_syn, and the neuron multiplies by a_syn as its r
    return {SYNAPSE: {"gain": "unit"}, NEURON: {**own, "gain": "decay", "use_r": True}}


def _fields(module: Any, path: str) -> dict[str, Any]:
    found: dict[str, Any] = {"gain": "decay" if module.norm_input else "unit"}
    if _has_synapse(module) and not _integrates(module):
        found["synapse_gain"] = "decayed"
    if not _spikes(module):
        return found
    found["spikes_per_step"] = _count(module, path)
    found["reset"] = _reset(module, path)
    found["v_min"] = _lower_bound(module, path)
    return found


def _count(module: Any, path: str) -> str:
    """'many' for MultiSpike, (v > 0) trunc(v / threshold), 'one' for SingleSpike, v >= threshold."""
    name = _name(module.spike_fn)
    if name == f"{_SPIKES}.SingleSpike":
        return "one"
    if name == f"{_SPIKES}.MultiSpike":
        return "many"
    if name == f"{_SPIKES}.MaxSpike":
        most = module.spike_fn.max_num_spikes_per_bin
        if most is None or most == 1:
            return "many" if most is None else "one"
        raise ConversionError(
            f"{_kind(module)} has spike_fn=MaxSpike({most}), and a Convention has one spike a step or any number",
            node=path,
            remedy="Use MultiSpike, SingleSpike or MaxSpike(1).",
        )
    raise ConversionError(
        f"{_kind(module)} has the spike_fn {name}, which no Convention stands for",
        node=path,
        remedy="Use sinabs.activation.MultiSpike or SingleSpike.",
    )


def _reset(module: Any, path: str) -> str:
    """'subtract' for MembraneSubtract of the threshold, 'zero' for MembraneReset to 0."""
    name, given = _name(module.reset_fn), module.reset_fn
    if name == f"{_RESETS}.MembraneSubtract":
        value = given.subtract_value
        threshold = _values(module.spike_threshold)
        if value is None or np.all(np.asarray(_values(value), threshold.dtype) == threshold):
            return "subtract"
        raise ConversionError(
            f"{_kind(module)} subtracts {value} at a spike, its threshold is {_shown(threshold)}",
            node=path,
            remedy="Use MembraneSubtract(), which subtracts the threshold.",
        )
    if name == f"{_RESETS}.MembraneReset":
        if np.all(_values(given.reset_value) == 0):
            return "zero"
        raise ConversionError(
            f"{_kind(module)} has MembraneReset(reset_value={given.reset_value}), which sinabs adds to v at every "
            "step, also where nothing fired",
            node=path,
            remedy="Use MembraneReset(0.0).",
        )
    raise ConversionError(
        f"{_kind(module)} has the reset_fn {name}, which no Convention stands for",
        node=path,
        remedy="Use sinabs.activation.MembraneSubtract or MembraneReset.",
    )


def _lower_bound(module: Any, path: str) -> float | str | None:
    if module.min_v_mem is None:
        return None
    low, threshold = _values(module.min_v_mem), _values(module.spike_threshold)
    if np.all(low == -threshold):
        return "-threshold"
    if np.all(low == low.flat[0]):
        return float(low.flat[0])
    raise ConversionError(
        f"{_kind(module)} has a min_v_mem of its own for each neuron ({float(low.min())} to {float(low.max())})",
        node=path,
        remedy="Use one min_v_mem a layer, or minus the threshold.",
    )


# ---------------------------------------------------------------- nodes


def to_nir(module: nn.Module, context: TraceContext) -> nir.NIRNode:
    """The node of a layer; a graph of synapse, neuron and recurrent connection where it is more than one.

    Raises:
        ConversionError: an option that neither NIR nor a Convention holds, or v left over from an earlier run.
    """
    path, shape = context.path, context.known_shape(_kind(module))
    _fields(module, path)
    refuse_memory(module, path)
    _refuse_hollow(module, path)
    node = _population(module, context, shape)
    if _is_one_node(module):
        return node
    shape = context.required_shape(_kind(module))
    nodes: dict[str, nir.NIRNode] = {"input": make_node(nir.Input, input_type={"input": np.array(shape)})}
    entry = NEURON
    if _has_own_synapse(module):
        entry = SYNAPSE
        values = {"r": np.ones(shape, np.float32), "v_leak": np.zeros(shape, np.float32)}
        nodes[SYNAPSE] = make_node(nir.LI, tau=_tau(module, "syn", shape, context), **values)
    nodes[NEURON] = node
    edges = [("input", entry), (NEURON, "output")] + [(SYNAPSE, NEURON)] * (entry == SYNAPSE)
    if hasattr(module, "rec_connect"):
        nodes[RECURRENT] = _recurrent(module, shape, context)
        edges += [(NEURON, RECURRENT), (RECURRENT, entry)]
    nodes["output"] = make_node(nir.Output, output_type={"output": np.array(shape)})
    return make_graph(nodes, edges)


def _population(module: Any, context: TraceContext, shape: Shape | None) -> nir.NIRNode:
    path = context.path
    if shape is None:
        known = (module.spike_threshold, module.alpha_mem_calculated, module.alpha_syn_calculated)
        shape = np.broadcast_shapes(*(np.shape(_values(value)) for value in known if value is not None))
    values: dict[str, Any] = {}
    ones = np.ones(shape, np.float32)
    if _spikes(module):
        values["v_threshold"] = _full(module.spike_threshold, shape, "spike_threshold", module, path)
        values["v_reset"] = 0 * ones
        low = float(values["v_threshold"].min(initial=np.inf))
        if _count(module, path) == "many" and not low > 0:
            raise ConversionError(
                f"{_kind(module)} has a spike_threshold of {low}, with which MultiSpike divides",
                node=path,
                remedy="Use a positive threshold.",
            )
    if _integrates(module):
        r = _alpha(module, "syn", shape, path) if _has_synapse(module) else ones
        return make_node(nir.IF if _spikes(module) else nir.I, r=r, **values)
    values["v_leak"] = 0 * ones
    tau = _tau(module, "mem", shape, context)
    if not _has_synapse(module):
        return make_node(nir.LIF if _spikes(module) else nir.LI, tau=tau, r=ones, **values)
    syn = _tau(module, "syn", shape, context)
    return make_node(nir.CubaLIF, tau_syn=syn, tau_mem=tau, r=ones, w_in=ones, **values)


def _recurrent(module: Any, shape: Shape, context: TraceContext) -> nir.NIRNode:
    """rec_connect, which sees one step's spikes and must give their shape back."""
    from nirdeploy.convert.trace import torch_to_nir
    from nirdeploy.graph import output_names, shapes
    from nirdeploy.shapes import output_shape

    inner, path = module.rec_connect, f"{context.path}.rec_connect"
    if any(_remembers(part) for part in inner.modules()):
        raise ConversionError("rec_connect holds a layer with state", node=path, remedy="Use layers without state.")
    try:
        found = torch_to_nir(inner, input_shape=shape, dt=context.dt)
        whole = isinstance(found, nir.NIRGraph)
        out = shapes(found)[output_names(found)[0]].output if whole else output_shape(RECURRENT, found, shape)
    except ValueError as error:
        raise ConversionError(f"rec_connect cannot be converted: {error}", node=path) from error
    if out != shape:
        raise ConversionError(
            f"rec_connect makes {out} of {shape}, and NIR has nothing that folds it back",
            node=path,
            remedy="Use a connection that keeps the shape, e.g. a Conv2d with padding.",
        )
    converted: nir.NIRNode = found
    return converted


def _remembers(module: nn.Module) -> bool:
    return any(kind.__module__ == "sinabs.layers.stateful_layer" for kind in type(module).__mro__)


# ---------------------------------------------------------------- values


def refuse_memory(module: nn.Module, path: str) -> None:
    """Refuse a layer whose forward would go on from where an earlier run ended.

    Raises:
        ConversionError: naming the state and the remedy.
    """
    for name in _STATES:
        state = getattr(module, name, None)
        if isinstance(state, torch.Tensor) and bool((state != 0).any()):
            largest = float(state.detach().abs().max())
            own = "reset_states() of the layer, which sinabs.reset_states(network) passes by,"
            call = own if hasattr(module, "rec_connect") else "sinabs.reset_states(network)"
            raise ConversionError(
                f"{_kind(module)} still has the {name} of an earlier run (up to {largest:.4g}), and goes on from there",
                node=path,
                remedy=f"Call {call} before it is converted.",
            )


def _refuse_hollow(module: Any, path: str) -> None:
    """Refuse what has no node: an integrator with a lower bound, or one behind a synapse."""
    if _spikes(module):
        if module.spike_threshold is None:
            raise ConversionError(f"{_kind(module)} has no spike_threshold", node=path, remedy="Give it one.")
        return
    if module.min_v_mem is not None:
        raise ConversionError(
            f"{_kind(module)} has min_v_mem={_shown(_values(module.min_v_mem))}, and NIR's integrators have no lower "
            "bound",
            node=path,
            remedy="Use min_v_mem=None.",
        )
    if _has_synapse(module) and not _integrates(module):
        raise ConversionError(
            f"{_kind(module)} with tau_syn and without spike_fn is a CubaLI, which the nir that sinabs needs lacks",
            node=path,
            remedy="Use ExpLeak twice.",
        )


def _values(given: Any) -> np.ndarray:
    return array_of(given) if isinstance(given, torch.Tensor) else np.asarray(given)


def _shown(values: np.ndarray) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"


def _full(given: Any, shape: Shape, what: str, module: nn.Module, path: str) -> np.ndarray:
    """One value a neuron, of a parameter that sinabs broadcasts against [batch, *shape]."""
    array = _values(given)
    array = array.astype(np.float32) if array.dtype.kind != "f" else array
    spread = one_a_neuron(array, shape)
    if spread is None:
        raise ConversionError(
            f"{_kind(module)} has a {what} of shape {array.shape}, its neurons have {shape}",
            node=path,
            remedy="Give it one value, or one a neuron.",
        )
    return spread


def _alpha(module: nn.Module, which: str, shape: Shape, path: str) -> np.ndarray:
    """The decay that the layer itself computes with, one a neuron."""
    found = _full(getattr(module, f"alpha_{which}_calculated"), shape, f"tau_{which}", module, path)
    if not ((found > 0) & (found < 1)).all():
        wrong = found[~((found > 0) & (found < 1))].flat[0]
        remedy = "Use a finite tau of more than 0 steps" + (", or IAF." if which == "mem" else ".")
        raise ConversionError(
            f"{_kind(module)} has alpha_{which} {float(wrong):.6g}, no decay between 0 and 1", node=path, remedy=remedy
        )
    return found


def _tau(module: Any, which: str, shape: Shape, context: TraceContext) -> np.ndarray:
    """The time constant in seconds, whose exp(-dt / tau) is the layer's decay itself."""
    dt = STEP if context.dt is None else context.dt
    alpha = _alpha(module, which, shape, context.path)
    if module.train_alphas:
        return nearest_tau((-dt / np.log(alpha.astype(np.float64))).astype(alpha.dtype), alpha, dt)
    steps = _full(getattr(module, f"tau_{which}"), shape, f"tau_{which}", module, context.path)
    return nearest_tau((steps.astype(np.float64) * dt).astype(alpha.dtype), alpha, dt)


def nearest_tau(tau: np.ndarray, decay: np.ndarray, dt: float) -> np.ndarray:
    """The neighbour of tau, seconds, whose exp(-dt / tau) is the decay, in the arrays' own precision.

    Rounding tau costs exp(-dt / tau) its last bit. Among the neighbours one gives the decay back wherever tau is more
    than two steps; elsewhere the one that comes nearest is taken.
    """
    best, least = tau, np.full(decay.shape, np.inf)
    for ulps in _ULPS:
        near = (tau + ulps * np.spacing(tau)).astype(tau.dtype)
        found = torch.exp(-(dt / torch.as_tensor(near))).numpy()  # as the reference computes it
        error = np.abs(found.astype(np.float64) - decay)
        best, least = np.where(error < least, near, best), np.minimum(error, least)
    return np.asarray(best)
