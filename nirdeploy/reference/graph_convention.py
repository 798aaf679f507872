"""The convention that a graph is run with: what it carries, or what is given."""

from __future__ import annotations

import nir

from nirdeploy import graph as graphs
from nirdeploy.errors import ConventionError
from nirdeploy.reference.convention import Convention, require_convention

__all__ = ["resolve_convention", "stored_convention"]


def stored_convention(graph: nir.NIRGraph) -> Convention | None:
    """The convention that a graph carries in its metadata."""
    stored = graphs.metadata(graph).get("convention")
    return Convention.from_dict(stored) if isinstance(stored, dict) else None


def resolve_convention(graph: nir.NIRGraph, convention: Convention | None) -> Convention:
    """The convention given, else the one stored in the graph.

    Raises:
        ConventionError: neither is there although the graph has neurons, or what is given is none.
    """
    if convention is not None:
        require_convention(convention)
        return convention
    stored = stored_convention(graph)
    if stored is not None:
        return stored
    neurons = [name for name, node in graph.nodes.items() if graphs.is_neuron(node)]
    if neurons:
        raise ConventionError(
            f"the graph carries no convention, and neuron {neurons[0]!r} needs one",
            remedy="Pass convention=nd.convention('nir', dt=...) or store one with nd.write.",
        )
    return Convention()
