"""What has no exact integers in training: weights of no node alone, factors no power of 2, shifted read-outs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import nir
import numpy as np

from nirdeploy import graph as graphs
from nirdeploy.errors import QuantizationError
from nirdeploy.reference.convention import Convention
from nirdeploy_loihi.network import Connection
from nirdeploy_loihi.problem import Problem

__all__ = ["require_trainable"]


def require_trainable(graph: nir.NIRGraph, problem: Problem, convention: Convention) -> None:
    """Refuse a population whose integers could not be those that are simulated.

    Raises:
        QuantizationError: naming the node and the value.
    """
    for error in _errors(graph, problem, convention):
        raise error


def _errors(graph: nir.NIRGraph, problem: Problem, convention: Convention) -> Iterator[QuantizationError]:
    name = problem.layer.name
    if not problem.layer.fires and np.any(problem.step.v_start):
        start = float(np.asarray(problem.step.v_start).flat[0])
        yield QuantizationError(
            f"its v starts at {start:.6g}, that of what only integrates must start at 0 in training",
            node=name,
            remedy="Use v_start='zero'.",
        )
    used = convention.for_node(name, graphs.type_name(graph.nodes[name]))
    if not problem.layer.fires and used.v_unit == "gain" and np.any(np.asarray(problem.step.gain) != 1):
        yield QuantizationError(
            "it is shown divided by its input gain, which training folds into the weights",
            node=name,
            remedy="Use v_unit='model'.",
        )
    for connection in problem.layer.connections:
        yield from _of_connection(graph, connection)


def _of_connection(graph: nir.NIRGraph, connection: Connection) -> Iterator[QuantizationError]:
    kernel = connection.kernel
    stages = {stage.node for stage in connection.stages if stage.kind in ("conv", "dense")}
    if kernel is None or kernel.node not in stages:
        reason = f"the path from {connection.source!r} has no weights" if not stages else "its integers are those of "
        reason += "" if not stages else f"a chain ({', '.join(sorted(stages))}), not of a node"
        yield QuantizationError(
            f"{reason}: there is nothing to train by itself",
            node=connection.target,
            remedy="Put one layer of weights between populations, and pools without overlap before it.",
        )
        return
    if connection.name != kernel.node:
        yield QuantizationError(
            "its weights are read along several paths, which have scales of their own",
            node=kernel.node,
            remedy="Give each population weights of its own.",
        )
    if math.frexp(connection.factor)[0] != 0.5:
        pool = next(stage.node for stage in connection.stages if math.frexp(stage.factor)[0] != 0.5)
        yield QuantizationError(
            f"its pooling factor is {connection.factor:.6g}, no power of 2: integers times a step are not exact "
            "behind it",
            node=pool,
            remedy="Use SumPool2d, or average pools of 2 or 4.",
        )
