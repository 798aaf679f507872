"""A drawing that stands still, for paper and for readers without scripts: raster and traces of one excerpt.

Colours and line styles are the page's: every element has a class that page.css knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy.comparison.excerpt import Excerpt, Trace
from nirdeploy.comparison.text import neuron_text, number

__all__ = ["Picture", "Shape", "Text", "picture"]

_WIDTH, _LEFT, _RIGHT = 900.0, 64.0, 12.0
_TRACE = 120.0  # height of a trace


class Shape(NamedTuple):
    """An SVG path and its class."""

    path: str
    kind: str


class Text(NamedTuple):
    """A text at a place; `anchor` is SVG's text-anchor."""

    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass
class Picture:
    """Paths and texts in pixels, drawn in order.

    Attributes:
        alt: what is to be seen, in words.
        height: of the picture; its width is 900.
        shapes: paths.
        texts: labels.
    """

    alt: str
    height: float = 0.0
    width: float = _WIDTH
    shapes: list[Shape] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def picture(part: Excerpt) -> Picture:
    """Draw an excerpt: its raster where spikes are compared, below it the first of its traces."""
    both, ours, theirs = part.counts
    first = f"; first difference at step {part.divergence.step}" if part.divergence else ""
    found = Picture(
        f"Spikes and membrane voltage of both sides, sample {part.sample}: {both} spikes on both, "
        f"{ours} of the reference only, {theirs} of the chip only{first}."
    )
    y = 8.0
    if part.neurons:
        y = _raster(found, part, y) + 10
    for trace in part.traces[:1]:
        y = _trace(found, part, trace, y + 8) + 4
    _steps(found, part, y)
    found.height = y + 34
    return found


def _x(part: Excerpt, step: float) -> float:
    return _LEFT + (step - part.first + 0.5) * (_WIDTH - _LEFT - _RIGHT) / len(part.steps)


def _raster(found: Picture, part: Excerpt, top: float) -> float:
    """Marks of every spike; returns the lower edge."""
    row = min(9.0, max(4.0, 220.0 / len(part.neurons)))
    bottom = top + row * len(part.neurons)
    size = max(1.4, min(3.2, 0.42 * row, 0.42 * (_x(part, 1) - _x(part, 0))))
    _frame(found, part, top, bottom)
    for mask, kind in zip(part.masks, ("both", "reference", "chip"), strict=True):
        marks = [
            _mark(kind, _x(part, part.first + int(step)), top + row * (int(neuron) + 0.5), size)
            for step, neuron in zip(*np.nonzero(mask), strict=True)
        ]
        if marks:
            found.shapes.append(Shape("".join(marks), f"mark {kind}"))
    every = max(1, math.ceil(12 / row))
    for i in range(0, len(part.neurons), every):
        found.texts.append(Text(_LEFT - 6, top + row * (i + 0.5) + 3.5, str(part.neurons[i]), "end"))
    return bottom


def _mark(kind: str, x: float, y: float, r: float) -> str:
    if kind == "chip":
        return f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"
    arc = f"a{r:.1f} {r:.1f} 0 1 0"
    return f"M{x - r:.1f} {y:.1f}{arc} {2 * r:.1f} 0{arc} {-2 * r:.1f} 0"


def _trace(found: Picture, part: Excerpt, trace: Trace, top: float) -> float:
    """Values, thresholds; returns the lower edge."""
    known = [float(v) for side in trace.values for v in side if np.isfinite(v)]
    known += [t for t in trace.thresholds if t is not None and math.isfinite(t)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    span = (high - low) or 1.0
    low, high = low - 0.06 * span, high + 0.06 * span
    if not 0 < high - low < math.inf:  # values so large that nothing is between them
        low, high = low - 0.06 * (abs(low) or 1.0), high + 0.06 * (abs(high) or 1.0)
    head, bottom = top + 16, top + 16 + _TRACE

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * _TRACE

    found.texts.append(Text(_LEFT, top + 8, f"{part.variable} of neuron {neuron_text(trace.neuron)}", "start"))
    _frame(found, part, head, bottom)
    for value in ticks(low, high, 4):
        found.texts.append(Text(_LEFT - 6, height(value) + 3.5, number(value), "end"))
    for threshold, kind in zip(trace.thresholds, ("reference", "chip"), strict=True):
        if threshold is not None and math.isfinite(threshold):
            path = f"M{_LEFT:.1f} {height(threshold):.1f}H{_WIDTH - _RIGHT:.1f}"
            found.shapes.append(Shape(path, f"threshold {kind}"))
    for values, kind in zip(trace.values, ("reference", "chip"), strict=True):
        path = "".join(_line(part, values, height))
        if path:
            found.shapes.append(Shape(path, f"trace {kind}"))
    return bottom


def _line(part: Excerpt, values: NDArray[Any], height: Any) -> Iterator[str]:
    """Pieces of a line, interrupted where a value is missing."""
    pen = "M"
    for step, value in zip(part.steps, values, strict=True):
        if np.isfinite(value):
            yield f"{pen}{_x(part, step):.1f} {height(float(value)):.1f}"
            pen = "L"
        else:
            pen = "M"


def _frame(found: Picture, part: Excerpt, top: float, bottom: float) -> None:
    found.shapes.append(Shape(f"M{_LEFT:.1f} {top:.1f}V{bottom:.1f}H{_WIDTH - _RIGHT:.1f}", "axis"))
    if part.divergence and part.divergence.step in part.steps:
        found.shapes.append(Shape(f"M{_x(part, part.divergence.step):.1f} {top:.1f}V{bottom:.1f}", "here"))


def _steps(found: Picture, part: Excerpt, y: float) -> None:
    for value in ticks(part.first, part.steps.stop - 1, 12):
        if value == int(value):
            found.texts.append(Text(_x(part, value), y + 10, str(int(value))))
    found.texts.append(Text((_LEFT + _WIDTH - _RIGHT) / 2, y + 26, "step of the reference"))


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers inside [low, high]: multiples of 1, 2 or 5 times a power of ten, at most about `most`."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    spacing = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= most)
    first = math.ceil(low / spacing)
    return [round(i * spacing, 12) for i in range(first, math.floor(high / spacing) + 1)]
