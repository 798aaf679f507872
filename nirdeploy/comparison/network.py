"""The page's drawing of the network: boxes with kind, shape and agreement, edges between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nirdeploy.comparison.layout import layout
from nirdeploy.comparison.text import number, percent, shorten, shown

if TYPE_CHECKING:
    from nirdeploy.comparison.per_node import NodeComparison
    from nirdeploy.comparison.result import Comparison
    from nirdeploy.outline import Outline

__all__ = ["GRADES", "network", "outline_of"]

GRADES = (
    ("g0", "exact"),
    ("g1", "99 % or more"),
    ("g2", "from 95 %"),
    ("g3", "from 80 %"),
    ("g4", "from 50 %"),
    ("g5", "less"),
    ("values", "values differ"),
    ("none", "not compared"),
)
_BOUNDS = (0.99, 0.95, 0.8, 0.5)


def outline_of(comparison: Comparison) -> Outline | None:
    """The graph's outline: the reference's, else the chip's where it names the compared nodes."""
    if comparison.reference.outline is not None:
        return comparison.reference.outline
    found = comparison.chip.outline
    return found if found is not None and set(comparison.per_node) & set(found.nodes) else None


def network(comparison: Comparison, outline: Outline | None) -> dict[str, Any]:
    """Boxes and links for the template; without an outline the compared nodes stand in order of recording.

    Returns:
        'drawing' (`layout.Drawing`), 'boxes' (one a node of the drawing, in its order), 'grades' (those in use).
    """
    compared = list(comparison.per_node)
    if outline is None:
        drawing = layout((), (), loose=compared)
    else:
        drawing = layout(list(outline.nodes), outline.edges, outline.feedback, compared)
    first = comparison.first_divergence
    boxes = []
    for place in drawing.boxes:
        node = comparison.per_node.get(place.name)
        known = outline.nodes.get(place.name) if outline else None
        box = {
            "name": place.name,
            "kind": shown(known.kind) if known else "",
            "shape": "×".join(map(str, known.shape)) if known and known.shape else "",
            "grade": grade(node),
            "value": _value(node),
            "first": first is not None and first.node == place.name,
        }
        boxes.append({**box, "place": place, "lines": _lines(box, drawing.sizes.width, drawing.sizes.height)})
    used = {box["grade"] for box in boxes}
    return {
        "drawing": drawing,
        "boxes": boxes,
        "grades": [entry for entry in GRADES if entry[0].startswith("g") or entry[0] in used],
        "feedback": any(link.feedback for link in drawing.links),
        "outlined": outline is not None,
    }


def grade(node: NodeComparison | None) -> str:
    """The class of a node's colour, one of `GRADES`."""
    if node is None:
        return "none"
    apart = any(difference.sums.differing for difference in node.variables.values())
    agreement = node.spike_agreement
    if agreement is None:
        return "values" if apart else "g0"
    if not node.differing_entries:
        return "g0"
    return f"g{1 + sum(agreement < bound for bound in _BOUNDS)}"


def _value(node: NodeComparison | None) -> str:
    if node is None:
        return ""
    if node.spike_agreement is not None:
        return percent(node.spike_agreement, 1)
    differing = [difference for difference in node.variables.values() if difference.sums.differing]
    return f"RMS {number(differing[0].rmse)}" if differing else "equal"


def _lines(box: dict[str, Any], width: float, height: float) -> list[tuple[str, str, float]]:
    """(text, class, height of its base line in the box), cut to the box's width."""
    bold, plain = int((width - 10) / 7.4), int((width - 8) / 6.3)  # letters that fit
    kind = " ".join(text for text in (box["kind"], box["shape"]) if text)
    kind = kind if len(kind) <= plain else shorten(box["kind"], plain)
    lines = [(shorten(shown(box["name"]), bold), "name"), (kind, "kind"), (box["value"], "value")]
    if height < 50:  # small boxes have room for two
        lines = [lines[0], lines[2] if box["value"] else lines[1]]
    shown_lines = [line for line in lines if line[0]]
    step = 16.0
    top = (height - step * len(shown_lines)) / 2 + 12
    return [(text, kind, top + step * i) for i, (text, kind) in enumerate(shown_lines)]
