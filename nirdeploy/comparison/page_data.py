"""What the page's script gets: numbers of every node, spikes and traces of excerpts, as JSON of a bounded size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.align import labels
from nirdeploy.comparison.excerpt import Excerpt, Limits, excerpt
from nirdeploy.comparison.text import neuron_text, number, percent, shown

if TYPE_CHECKING:
    from nirdeploy.comparison.per_node import NodeComparison
    from nirdeploy.comparison.report import Section
    from nirdeploy.comparison.result import Comparison
    from nirdeploy.outline import Outline

__all__ = ["as_json", "payload", "shape_text"]

_PAGE = 2_200_000  # bytes of excerpts on the whole page
_EXCERPT = 120_000  # most bytes of one, so that it opens at once
_EXCERPTS = 120  # most on the whole page
_NEURONS, _TRACES, _STEPS = 1024, 6, 4000
_CORES = 64  # named of one node


def as_json(values: Any) -> str:
    """JSON in ASCII that ends no script element and starts no comment or tag inside one."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shape_text(shape: Sequence[int] | None) -> str:
    """A shape as '8 × 8 × 8'."""
    return " × ".join(str(n) for n in shape) if shape else ""


def payload(section: Section, nodes: Sequence[str], outline: Outline | None, n_sections: int) -> dict[str, Any]:
    """Everything the script shows of one section.

    Args:
        section: the comparison with its runs.
        nodes: all nodes of the drawing; a node's place here is its number on the page.
        outline: kinds and shapes, where known.
        n_sections: how many sections share the page's size.
    """
    comparison = section.comparison
    wanted = list(_wanted(comparison))[: max(1, _EXCERPTS // n_sections)]
    size = min(_EXCERPT, _PAGE // n_sections // max(1, len(wanted)))
    limits = Limits(_NEURONS, _TRACES, _STEPS, size)
    views: dict[str, list[dict[str, Any]]] = {}
    for node, sample, why in wanted:
        part = excerpt(comparison, node, sample, limits)
        if part is not None:
            views.setdefault(node, []).append(_view(part, f"{sample}{_label(section, sample)}, {why}"))
    first = comparison.first_divergence
    left_out = bool({node for node, _ in comparison.pairs} - set(views))
    return {
        "sides": list(labels(section.reference, section.chip)),
        "first": nodes.index(first.node) if first else next((i for i, n in enumerate(nodes) if n in views), 0),
        "nodes": [
            {
                "name": shown(node),
                "facts": _facts(section, node, outline),
                "cores": _cores(section, node),
                "views": views.get(node, []),
                "why": _why(comparison, node, left_out),
            }
            for node in nodes
        ],
    }


def _wanted(comparison: Comparison) -> Iterator[tuple[str, int, str]]:
    """(node, sample, why) of the excerpts, what matters most first."""
    first = comparison.first_divergence
    nodes = list(comparison.per_node.values())
    differing = sorted((n for n in nodes if n.first_divergence), key=_first_step)
    for node in differing:
        if node.first_divergence:
            yield node.node, node.first_divergence.sample, "first to differ in this node"
    same = [n for n in nodes if first and n.first_divergence and n.first_divergence.sample != first.sample]
    for node in nodes:
        if not node.first_divergence:
            yield (
                node.node,
                first.sample if first else 0,
                "first to differ in the run" if first else "no spike differs",
            )
    for node in same:
        if first:
            yield node.node, first.sample, "first to differ in the run"


def _first_step(node: NodeComparison) -> int:
    return node.first_divergence.step if node.first_divergence else 0


def _label(section: Section, sample: int) -> str:
    labelled = section.labels is not None and sample < len(section.labels)
    return f" (label {section.labels[sample]})" if labelled and section.labels is not None else ""


def _facts(section: Section, node: str, outline: Outline | None) -> list[tuple[str, str]]:
    known = outline.nodes.get(node) if outline else None
    found = [("kind", shown(known.kind))] if known else []
    if known and known.shape:
        found.append(("shape", shape_text(known.shape)))
    compared = section.comparison.per_node.get(node)
    if compared is None:
        return found
    if compared.spike_agreement is not None:
        found += [
            ("spike agreement", percent(compared.spike_agreement)),
            ("spikes, reference / chip", f"{number(compared.spikes_reference)} / {number(compared.spikes_chip)}"),
            ("differing entries", f"{number(compared.differing_entries)} of {number(compared.entries)}"),
        ]
    for name, difference in compared.variables.items():
        unit = "thresholds" if difference.unit == "threshold" else "model units"
        found.append(
            (f"{name} error, RMS / largest", f"{number(difference.rmse)} / {number(difference.max_error)} {unit}")
        )
    band = section.comparison.bands.get(node)
    if band is not None:
        share = f"{percent(band.agreement.lowest)} to {percent(band.agreement.highest)}"
        found.append(("agreement of all trials", share))
    if compared.lag:
        found.append(("lag of the chip", f"{compared.lag} steps"))
    return found


def _cores(section: Section, node: str) -> list[int]:
    """Cores that hold a node: the placement's, else what the chip's records say."""
    if section.placement is not None:
        return list(section.placement.cores.get(node, ()))[:_CORES]
    found = [np.unique(r.cores) for r in section.chip.records.values() if r.source == node and r.cores is not None]
    return [int(core) for core in np.unique(np.concatenate(found))[:_CORES]] if found else []


def _why(comparison: Comparison, node: str, left_out: bool) -> str:
    """Why a node without an excerpt has none."""
    reasons = [f"{entry.variable}: {shown(entry.reason)}" for entry in comparison.unaligned if entry.node == node]
    if node in comparison.per_node:
        return "Its spikes and values are not on this page, which keeps those that differ first." if left_out else ""
    return "Not compared: " + "; ".join(reasons) + "." if reasons else "Not recorded on both sides, so not compared."


def _view(part: Excerpt, title: str) -> dict[str, Any]:
    both, ours, theirs = ([] if not part.neurons else _gaps(mask) for mask in part.masks)
    whole = part.neurons == tuple(range(part.total))
    return {
        "title": title,
        "first": part.first,
        "steps": len(part.steps),
        "compared": [part.compared.start, part.compared.stop],
        "rows": len(part.neurons),
        "neurons": None if whole else list(part.neurons),
        "total": part.total,
        "shape": list(part.shape),
        "both": both,
        "reference": ours,
        "chip": theirs,
        "many": _many(part) if part.neurons else [],
        "variable": part.variable,
        "traces": [
            {
                "row": part.neurons.index(trace.flat) if trace.flat in part.neurons else -1,
                "neuron": neuron_text(trace.neuron),
                "values": [_numbers(side) for side in trace.values],
                "thresholds": [_finite(t) for t in trace.thresholds],
                "differs": trace.differs,
            }
            for trace in part.traces
        ],
        "here": _here(part),
    }


def _here(part: Excerpt) -> Mapping[str, int] | None:
    """Step and row of the node's first difference."""
    if part.divergence is None or not part.neurons:
        return None
    flat = int(np.ravel_multi_index(part.divergence.neuron, part.shape))
    return {"step": part.divergence.step, "row": part.neurons.index(flat)} if flat in part.neurons else None


def _gaps(mask: NDArray[np.bool_]) -> list[int]:
    """Places of the marked entries in row-major order, each as its distance to the one before."""
    found: list[int] = np.diff(np.flatnonzero(mask), prepend=0).tolist()
    return found


def _many(part: Excerpt) -> list[list[int]]:
    """[place, reference, chip] of entries with more than one spike."""
    places = np.flatnonzero(np.maximum(part.reference, part.chip) > 1)
    ours, theirs = part.reference.reshape(-1), part.chip.reshape(-1)
    return [[int(i), int(ours[i]), int(theirs[i])] for i in places]


def _numbers(values: NDArray[Any]) -> list[float | int | None]:
    return [_finite(float(value)) for value in values]


def _finite(value: float | None) -> float | int | None:
    """Six significant digits; whole numbers without a point; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
