"""Pages of the API reference: the public names by stage, and the types they take and give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import griffe

import nirdeploy as nd
from nirdeploy import errors

__all__ = ["GROUPS", "api_pages", "further_types"]

# page -> title, one sentence, names in the order of use
GROUPS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "conversion": (
        "Conversion",
        "Modules of PyTorch to NIR graphs, and back with explicit state.",
        ("torch_to_nir", "nir_to_torch", "convention_of", "feedback_edges"),
    ),
    "conventions": (
        "Conventions",
        "What NIR leaves open: step, integrator, reset.",
        ("convention", "Convention"),
    ),
    "run": (
        "Reference run",
        "The float reference, and what every run leaves behind.",
        ("run", "Trajectory", "Record"),
    ),
    "events": (
        "Rasters and events",
        "Recorded events, counted into steps and back, exactly.",
        ("Events", "bin_events", "events_to_raster", "raster_to_events", "stack_events"),
    ),
    "deployment": (
        "Deployment",
        "From a graph to the integers and cores of a chip.",
        (
            "targets",
            "Target",
            "check",
            "Report",
            "Finding",
            "deploy",
            "Deployment",
            "quantize",
            "Quantized",
            "place",
            "Placement",
            "estimate",
            "Estimate",
        ),
    ),
    "comparison": (
        "Comparison",
        "Two runs held against each other, state by state.",
        ("compare", "Comparison", "ladder", "Ladder"),
    ),
    "evaluation": (
        "Evaluation and training",
        "Whole data sets, and training with a chip's integers.",
        ("evaluate", "Evaluation", "sweep", "Sweep", "quantization_aware", "QuantizationAware", "Surrogate"),
    ),
    "files": (
        "Files",
        "What is written and read.",
        (
            "read",
            "write",
            "load_trajectory",
            "load_deployment",
            "load_evaluation",
            "load_events",
            "save_events",
            "__version__",
        ),
    ),
    "errors": ("Errors", "Every refusal is one of these.", ("NirdeployError",)),
}


def api_pages() -> dict[str, str]:
    """One page a group of public names, and one of the types that they take and give.

    Raises:
        ValueError: a public name is in no group, or in two.
    """
    placed = [name for _, _, names in GROUPS.values() for name in names]
    if sorted(placed) != sorted(nd.__all__):
        raise ValueError(f"public names without one place in GROUPS: {sorted(set(placed) ^ set(nd.__all__))}")
    pages = {}
    for page, (title, sentence, names) in GROUPS.items():
        entries = [f"nirdeploy.{name}" for name in names]
        text = f"# {title}\n\n{sentence}\n\n"
        if page == "errors":
            tree = (errors.__doc__ or "").split("\n\n")
            text += "".join(f"```text\n{_dedented(part)}\n```\n\n" for part in tree[1:3])
            entries += [f"nirdeploy.errors.{name}" for name in errors.__all__ if name not in names]
        pages[f"api/{page}.md"] = text + _entries(entries)
    types = "# Types of arguments and results\n\nWhat the public names take and give beyond themselves.\n\n"
    pages["api/types.md"] = types + _entries(further_types())
    return pages


def further_types() -> list[str]:
    """Types of ours in the signatures and attributes of the public names, and in their own; by path."""
    root = Path(__file__).resolve().parents[1]
    loader = griffe.GriffeLoader(search_paths=[root])
    package = loader.load("nirdeploy")
    loader.resolve_aliases(implicit=True)
    public = {_target(package[name]).path for name in nd.__all__}
    found: set[str] = set()
    new = sorted(public)
    while new:
        seen = {path for start in new for path in _mentioned(package[start.removeprefix("nirdeploy.")])}
        ours = {path for path in seen if path.startswith("nirdeploy.")}
        new = sorted(ours - found - public)
        found |= set(new)
    return sorted(found, key=lambda path: (path.split(".")[-1].lower(), path))


def _target(thing: griffe.Object | griffe.Alias) -> griffe.Object:
    return thing.final_target if isinstance(thing, griffe.Alias) else thing


def _mentioned(thing: griffe.Object | griffe.Alias) -> Iterable[str]:
    """Canonical paths of the names in annotations of a function, an attribute or a class's public members."""
    thing = _target(thing)
    if isinstance(thing, griffe.Class):
        for member in thing.members.values():
            if not isinstance(member, griffe.Alias) and not member.name.startswith("_"):
                yield from _mentioned(member)
        return
    annotations: list[object] = []
    if isinstance(thing, griffe.Function):
        annotations = [thing.returns, *(parameter.annotation for parameter in thing.parameters)]
    elif isinstance(thing, griffe.Attribute):
        annotations = [thing.annotation]
    for annotation in annotations:
        if isinstance(annotation, griffe.Expr):
            for part in annotation.iterate(flat=True):
                if isinstance(part, griffe.ExprName):
                    yield part.canonical_path


def _entries(paths: Iterable[str]) -> str:
    return "".join(f"::: {path}\n\n" for path in paths)


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.splitlines())
