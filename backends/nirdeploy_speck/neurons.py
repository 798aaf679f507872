"""Populations: whether the chip's integrate-and-fire neuron can stand for a node, and the node's input gain."""

from __future__ import annotations

from collections.abc import Iterator

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding

__all__ = ["input_gain", "neuron_findings"]


def input_gain(node: nir.IF, here: Convention) -> float:
    """What inputs of an IF node are multiplied by under its convention: 1, r or r dt."""
    r = float(np.asarray(node.r).flat[0]) if here.use_r else 1.0
    if here.gain == "unit":
        return 1.0
    return r if here.if_gain == "r" else r * float(here.dt or 0.0)


def neuron_findings(graph: nir.NIRGraph, name: str, convention: Convention) -> Iterator[Finding]:
    """Everything that keeps the chip's neuron from standing for this one; all errors."""
    node = graph.nodes[name]
    kind = graphs.type_name(node)
    here = convention.for_node(name, kind)
    if not isinstance(node, nir.IF):
        yield Finding("neuron", name, f"{kind}: the chip has integrate-and-fire neurons only", "Use IF.")
    for field_name, value in graphs.parameters(node).items():
        distinct = np.unique(np.asarray(value))
        if distinct.size > 1:
            yield Finding(
                "heterogeneous",
                name,
                f"{field_name} has {distinct.size} different values, one per core is possible",
                f"Use one {field_name} for the population.",
                value=int(distinct.size),
                limit=1,
            )
    if here.reset == "v_reset" and np.any(np.asarray(graphs.parameters(node)["v_reset"]) != 0):
        yield Finding("v_reset", name, "v_reset is not 0: the chip resets to 0 or subtracts", "Use v_reset = 0.")
    if np.any(np.asarray(node.v_threshold) <= 0):
        yield Finding("threshold", name, "v_threshold is not positive", "Use a positive threshold.")
    yield from _convention_findings(node, name, here)


def _convention_findings(node: nir.NIRNode, name: str, here: Convention) -> Iterator[Finding]:
    for option, only in (
        ("fires", "after_update"),
        ("reset_time", "same_step"),
        ("population_delay", 0),
        ("v_start", "zero"),
        ("integrator", "euler"),
    ):
        value = getattr(here, option)
        if option == "v_start" and graphs.starts_at_zero(node, value):
            continue
        # without a leak 'exponential' is 'euler'; 'exact' resets inside the step
        if value not in (only, "exponential"):
            yield Finding("convention", name, f"{option}={value!r} is not how the chip works", f"Use {only!r}.")
    if here.if_gain == "r_dt" and here.gain != "unit" and here.dt is None:
        yield Finding("convention", name, "IF with input gain r dt needs dt", "Give dt, or if_gain='r'.")
