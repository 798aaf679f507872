"""The page's pictures: spike rasters over each other and membrane traces, as PNG at twice the shown size.

Only matplotlib's object API is used, imported on first use. Its global state is never written, and the
settings that change what a name looks like (usetex, mathtext, fonts) are fixed here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nirdeploy.comparison.excerpt import Excerpt, RasterPanel, TracePanel
from nirdeploy.comparison.text import neuron_text, number, shorten, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Theme", "draw_rasters", "draw_traces"]

_FONT = "DejaVu Sans"  # comes with matplotlib
_WIDTH = 9.2  # inches, shown as 920 CSS pixels
_DPI = 200


class Theme(NamedTuple):
    """Colours: Okabe and Ito's, which people with any colour vision tell apart, on light or dark ground."""

    ground: str
    ink: str
    faint: str
    reference: str
    both: str
    chip: str


LIGHT = Theme("#ffffff", "#24292f", "#d8dee4", "#6e7781", "#0072b2", "#d55e00")
DARK = Theme("#161b22", "#e6edf3", "#30363d", "#9aa4ae", "#56b4e9", "#ff8c3b")


def draw_rasters(shown_part: Excerpt, theme: Theme) -> str:
    """Spikes of reference and chip over each other, one panel a layer; a data URI of a PNG."""
    panels = shown_part.rasters
    heights = [min(2.9, max(0.8, 0.036 * len(panel.neurons))) for panel in panels]
    figure, axes = _stack(heights, 0.66, theme)
    for panel, ax, height in zip(panels, axes, heights, strict=True):
        _raster(ax, panel, shown_part, theme, height)
    _step_axis(axes[-1], shown_part.window)
    _raster_legend(figure, panels, theme)
    return _png(figure, theme)


def draw_traces(shown_part: Excerpt, theme: Theme) -> str:
    """v_mem of reference and chip with threshold, spikes and first difference; a data URI of a PNG."""
    panels = shown_part.traces
    figure, axes = _stack([1.75] * len(panels), 1.3, theme)
    for panel, ax in zip(panels, axes, strict=True):
        _trace(ax, panel, theme)
    _step_axis(axes[-1], shown_part.window)
    _trace_legend(figure, panels, theme)
    return _png(figure, theme)


def _stack(heights: Sequence[float], left: float, theme: Theme) -> tuple[Figure, list[Axes]]:
    """Panels of the given heights (inches) under each other with one step axis, room for a legend on top."""
    from matplotlib.figure import Figure

    top, gap, bottom = 0.2, 0.34, 0.45
    height = top + sum(heights) + gap * len(heights) + bottom
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor=theme.ground)
    axes: list[Axes] = []
    y = height - top
    for inner in heights:
        y -= inner + gap
        box = (left / _WIDTH, y / height, (_WIDTH - left - 0.1) / _WIDTH, inner / height)
        axes.append(figure.add_axes(box, sharex=axes[0] if axes else None))
    for ax in axes[:-1]:
        ax.tick_params(labelbottom=False)
    return figure, axes


def _style(ax: Axes, title: str, theme: Theme) -> None:
    ax.set_facecolor(theme.ground)
    ax.set_title(_drawable(title), loc="left", fontsize=9, color=theme.ink, pad=5)
    ax.grid(visible=False)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.reference)
        spine.set_linewidth(0.8)
    ax.tick_params(colors=theme.reference, labelcolor=theme.ink, labelsize=8, length=3, width=0.8, direction="out")


def _step_axis(ax: Axes, window: tuple[int, int]) -> None:
    first, last = window
    ax.set_xlim(first - 0.7, last + 0.7)
    spacing = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1 << 40) if (last - first) / s <= 24)
    at = range(-(-first // spacing) * spacing, last + 1, spacing)
    ax.set_xticks(list(at), labels=[str(step) for step in at])
    ax.set_xlabel("step of the reference", fontsize=9)


def _raster(ax: Axes, panel: RasterPanel, part: Excerpt, theme: Theme, height: float) -> None:
    both, ours, theirs = panel.counts
    chosen = (
        f"{len(panel.neurons)} of {number(panel.total)}" if len(panel.neurons) < panel.total else f"all {panel.total}"
    )
    name = shorten(shown(panel.node), 48)
    _style(ax, f"{name}: {chosen} neurons; {both} both, {ours} reference only, {theirs} chip only", theme)
    steps = part.window[1] - part.window[0] + 1
    row = 72 * height / (len(panel.neurons) + 1)  # points between two neurons
    size = float(np.clip(0.85 * min(row, 72 * 8 / steps), 3.0, 6.5))
    for mask, marker in zip(_masks(panel), _markers(theme, size), strict=True):
        step, neuron = np.nonzero(mask)
        ax.plot(step + panel.first, neuron, linestyle="none", **marker)
    ax.set_ylim(len(panel.neurons) - 0.2, -0.8)
    count = min(int(2 + 1.6 * height), len(panel.neurons))
    at = np.unique(np.linspace(0, len(panel.neurons) - 1, count).round().astype(int))
    ax.set_yticks(at.tolist(), labels=[str(panel.neurons[i]) for i in at])
    ax.set_ylabel("neuron", fontsize=8, color=theme.ink)
    if part.divergence:
        mine = part.divergence.node == panel.node
        ax.axvline(
            part.divergence.step,
            color=theme.ink,
            linewidth=0.9 if mine else 0.6,
            linestyle=(0, (4, 3)),
            zorder=0,
        )


def _masks(panel: RasterPanel) -> tuple[Any, Any, Any]:
    shared = np.minimum(panel.reference, panel.chip) > 0
    return shared, panel.reference > panel.chip, panel.chip > panel.reference


def _markers(theme: Theme, size: float) -> tuple[dict[str, Any], ...]:
    edge = max(0.7, size / 6)
    return (
        {"marker": "o", "markersize": 0.8 * size, "markerfacecolor": theme.both, "markeredgewidth": 0},
        {
            "marker": "o",
            "markersize": 1.25 * size,
            "markerfacecolor": "none",
            "markeredgecolor": theme.reference,
            "markeredgewidth": edge,
        },
        {
            "marker": "x",
            "markersize": 1.15 * size,
            "markeredgecolor": theme.chip,
            "markeredgewidth": 1.5 * edge,
        },
    )


def _raster_legend(figure: Figure, panels: Sequence[RasterPanel], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    totals = np.sum([panel.counts for panel in panels], axis=0)
    names = [f"both ({totals[0]})", f"reference only ({totals[1]})", f"chip only ({totals[2]})"]
    handles = [
        Line2D([], [], linestyle="none", label=name, **marker)
        for name, marker in zip(names, _markers(theme, 6), strict=True)
    ]
    handles.append(Line2D([], [], color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), label="first difference"))
    _legend(figure, handles)


def _trace(ax: Axes, panel: TracePanel, theme: Theme) -> None:
    name = shorten(shown(panel.node), 48)
    _style(ax, f"{name}: neuron {neuron_text(panel.neuron)}, sample {panel.sample}", theme)
    reference, chip = panel.voltages
    steps = np.arange(panel.first, panel.first + len(reference))
    ax.plot(steps, reference, color=theme.both, linewidth=2.4, alpha=0.75, marker="o", markersize=3.2)
    ax.plot(steps, chip, color=theme.chip, linewidth=1.3, linestyle=(0, (4, 2)), marker="s", markersize=2.4)
    for threshold, colour in zip(panel.thresholds, (theme.both, theme.chip), strict=True):
        if threshold is not None:
            ax.axhline(threshold, color=colour, linewidth=1, linestyle=":")
    if panel.divergence:
        ax.axvline(panel.divergence.step, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    finite = [v for v in (*reference, *chip, *panel.thresholds) if v is not None and np.isfinite(v)] or [0.0]
    low, high = float(min(finite)), float(max(finite))
    span = (high - low) or 1.0
    rows = (high + 0.32 * span, high + 0.16 * span)
    if panel.spikes:
        for counts, y, colour in zip(panel.spikes, rows, (theme.both, theme.chip), strict=True):
            at = panel.spikes_first + np.flatnonzero(counts)
            ax.vlines(at, y - 0.06 * span, y + 0.06 * span, colors=colour, linewidth=2.2)
    _voltage_axis(ax, low, high, span, rows if panel.spikes else ())
    ax.set_ylabel("v_mem, model units", fontsize=8, color=theme.ink)


def _voltage_axis(ax: Axes, low: float, high: float, span: float, rows: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    ticks = [t for t in MaxNLocator(4).tick_values(low, high) if low - 0.02 * span <= t <= high + 0.02 * span]
    names = [number(float(t)) for t in ticks] + ["reference spikes", "chip spikes"][: len(rows)]
    ax.set_yticks([*ticks, *rows], labels=names)
    ax.set_ylim(low - 0.08 * span, high + (0.46 if rows else 0.08) * span)


def _trace_legend(figure: Figure, panels: Sequence[TracePanel], theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=theme.both, linewidth=2.4, alpha=0.75, marker="o", markersize=3.2, label="reference"),
        Line2D(
            [],
            [],
            color=theme.chip,
            linewidth=1.3,
            linestyle=(0, (4, 2)),
            marker="s",
            markersize=2.4,
            label="chip",
        ),
    ]
    if any(threshold is not None for panel in panels for threshold in panel.thresholds):
        handles.append(Line2D([], [], color=theme.ink, linewidth=1, linestyle=":", label="threshold of each"))
    if any(panel.divergence for panel in panels):
        label = "first difference of the layer"
        handles.append(Line2D([], [], color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), label=label))
    _legend(figure, handles)


def _legend(figure: Figure, handles: list[Any]) -> None:
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
    )


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())


def _drawable(text: str) -> str:
    """What the font has no glyph for becomes a box, without a warning a character."""
    return "".join(c if ord(c) in _glyphs() else "\u25a1" for c in text)


def _png(figure: Figure, theme: Theme) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_usetex(False)
            text.set_parse_math(False)
            text.set_fontfamily(_FONT)
            text.set_color(theme.ink)
    canvas: Any = FigureCanvasAgg(figure)  # its methods carry no types
    canvas.draw()
    return "data:image/png;base64," + base64.b64encode(_encode(canvas.buffer_rgba())).decode("ascii")


def _encode(pixels: Any) -> bytes:
    """PNG with a palette of 64 colours: a third of the bytes, and nothing lost that a reader could see."""
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(np.asarray(pixels)[..., :3].copy())
    picture.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, "PNG")
    return file.getvalue()
