"""The picture of a sweep: accuracy and agreement against the axis with most values, refused points at the foot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nirdeploy import files
from nirdeploy.comparison.text import shorten, shown
from nirdeploy.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from nirdeploy.evaluation.sweep_table import Sweep, SweepRow

__all__ = ["figure", "save"]

FORMATS = (".png", ".svg", ".pdf")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito, no yellow
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FILLS = ("full", "left", "bottom", "top")  # none is for the refused
_GREY = "#767676"
_SMALL: dict[str, Any] = {"color": _GREY, "fontsize": 8}
_DASHES = (0, (5, 2))
_RING: dict[str, Any] = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "color": _GREY}
_TITLES = {"target": "target", "quantizer": "quantiser", "bits": "weight bits", "dt": "dt (ms)"}
_FOOT = 0.09  # of a panel's height, where refused points are
_SPAN = 0.04  # least span of an axis of shares


@dataclass(frozen=True)
class _Scheme:
    """Which axis of the sweep is drawn how; `axes` has those with several values, the one with most first."""

    axes: tuple[str, ...]
    values: dict[str, list[Any]]

    @property
    def across(self) -> str:
        """What the horizontal axis shows."""
        return self.axes[0]

    def place(self, row: SweepRow) -> int:
        """Position on it."""
        return self.values[self.across].index(getattr(row, self.across))

    def style(self, row: SweepRow) -> dict[str, Any]:
        """Colour by the second axis, marker by the third, filling by the fourth."""
        picked = [_COLOURS[0], _MARKERS[0], _FILLS[0]]
        for k, (axis, choice) in enumerate(zip(self.axes[1:], (_COLOURS, _MARKERS, _FILLS), strict=False)):
            picked[k] = choice[self.values[axis].index(getattr(row, axis)) % len(choice)]
        return {**dict(zip(("color", "marker", "fillstyle"), picked, strict=True)), "markerfacecoloralt": "white"}

    def series(self, rows: Sequence[SweepRow]) -> list[list[SweepRow]]:
        """Rows that a line joins: they differ in the horizontal axis alone; each in its order."""
        found: dict[Any, list[SweepRow]] = {}
        for row in rows:
            found.setdefault(tuple(getattr(row, axis) for axis in self.axes[1:]), []).append(row)
        return [sorted(group, key=self.place) for group in found.values()]


def save(sweep: Sweep, path: Path) -> None:
    """Draw a sweep into a file.

    Raises:
        ConfigurationError: no suffix of `FORMATS`.
        FileError: the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"{str(path)!r} is no picture: expected one of {', '.join(FORMATS)}")
    import matplotlib as mpl

    kind = path.suffix.lower().removeprefix(".")
    undated: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with mpl.rc_context({"svg.hashsalt": "nirdeploy"}), files.atomic(path) as temporary:
        figure(sweep).savefig(temporary, format=kind, dpi=150, metadata=undated)


def figure(sweep: Sweep) -> Figure:
    """The picture: a panel for accuracy, where there are labels, and one for agreement, where there are chips."""
    from matplotlib.figure import Figure

    rows = sweep.chips or sweep.rows
    scheme = _scheme(rows)
    panels: list[tuple[str, str, Callable[[SweepRow], float | None]]] = []
    if any(row.accuracy is not None for row in sweep.rows):
        panels.append(("accuracy", "accuracy (%)", lambda row: row.accuracy))
    if sweep.chips:
        panels.append(("agreement", "agreement with\nthe reference (%)", lambda row: row.agreement))
    if not panels:  # references alone, without labels
        panels.append(("spikes", "spikes a sample", lambda row: row.spikes))
    places = len(scheme.values[scheme.across])
    crowd = max(0.75, 0.16 * len(scheme.series(rows)))  # inches a place
    drawn = Figure(figsize=(min(18.0, max(6.4, 3.4 + crowd * places)), 1.2 + 2.5 * len(panels)), layout="constrained")
    grid = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, title, value) in zip(grid, panels, strict=True):
        _draw(panel, sweep, rows, scheme, name, value)
        panel.set_ylabel(title)
    _label_places(grid[-1], scheme, (drawn.get_figwidth() - 2.6) / places)
    grid[0].set_title(_heading(sweep), fontsize=10, loc="left")
    _legend(drawn, sweep, rows, scheme)
    return drawn


def _scheme(rows: Sequence[SweepRow]) -> _Scheme:
    values = {axis: list(dict.fromkeys(getattr(row, axis) for row in rows)) for axis in _TITLES}
    for axis in ("bits", "dt"):  # numbers in their order, the chip's own at the end
        values[axis].sort(key=lambda v: (v is None, 0 if v is None else v))
    several = [axis for axis in sorted(_TITLES, key=lambda axis: -len(values[axis])) if len(values[axis]) > 1]
    # of equals a scale of numbers goes across
    across = max(several, key=lambda axis: (len(values[axis]), axis in ("bits", "dt")), default="target")
    several = [across, *(axis for axis in several if axis != across)]
    return _Scheme(tuple(several), values)


def _heading(sweep: Sweep) -> str:
    refused = sum(bool(row.refusals) for row in sweep.rows)
    head = f"{sweep.n} samples, {len(sweep.chips or sweep.rows)} points ({sweep.executor})"
    head = head.replace(" 1 points", " 1 point") + (f", {refused} refused" if refused else "")
    best = sweep.best
    if best is None:
        return head
    name = "agreement" if best.accuracy is None else "accuracy"
    return f"{head}\nbest {name} {100 * getattr(best, name):.2f} %: {shorten(shown(str(best)), 70)}"


# ---------------------------------------------------------------- a panel


def _draw(
    panel: Panel,
    sweep: Sweep,
    rows: Sequence[SweepRow],
    scheme: _Scheme,
    name: str,
    value: Callable[[SweepRow], float | None],
) -> None:
    series, scale = scheme.series(rows), 1.0 if name == "spikes" else 100.0
    heights = [scale * found for row in sweep.rows if (found := value(row)) is not None]
    low, high = _limits(heights, shares=name != "spikes")
    foot = low - _FOOT * (high - low) * 0.75
    joined = scheme.across in ("bits", "dt")
    for k, group in enumerate(series):
        shift = 0.76 * ((k + 0.5) / len(series) - 0.5) * (len(series) > 1)
        run = [(scheme.place(row) + shift, scale * found) for row in group if (found := value(row)) is not None]
        style = {**scheme.style(group[0]), "linestyle": "-" if joined else "none", "markersize": 6.5}
        if run:
            panel.plot(*zip(*run, strict=True), **style, label=name, linewidth=1.2)
        lost = [scheme.place(row) + shift for row in group if row.refusals]
        if lost:
            panel.plot(lost, [foot] * len(lost), **{**style, "linestyle": "none", "fillstyle": "none"}, label="refused")
        best = sweep.best
        if len(rows) > 1 and best in group and (found := value(best)) is not None:
            panel.plot([scheme.place(best) + shift], [scale * found], **_RING, linestyle="none", label="best")
    lowest = low
    if any(row.refusals for row in rows):
        low = low - 1.5 * _FOOT * (high - low)
        panel.axhspan(low, foot + (foot - low), color="#eeeeee", zorder=0, label="foot")
        panel.text(1.0, foot, " refused", transform=panel.get_yaxis_transform(), va="center", **_SMALL)
    for k in range(1, len(scheme.values[scheme.across])):
        panel.axvline(k - 0.5, color="#dddddd", linewidth=0.6, zorder=0, label="between")
    panel.set_ylim(low, high)
    panel.set_yticks(
        [tick for tick in panel.get_yticks() if lowest <= tick <= (high if name == "spikes" else min(high, 100))]
    )
    if sweep.chips:
        _references(panel, sweep, scheme, value, scale)
    panel.set_xlim(-0.5, len(scheme.values[scheme.across]) - 0.5)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _references(
    panel: Panel, sweep: Sweep, scheme: _Scheme, value: Callable[[SweepRow], float | None], scale: float
) -> None:
    """A short line over every place that has the reference's dt; its whole width where dt is not across."""
    coloured = scheme.axes[1:2] == ("dt",)
    whole = (-0.5, len(scheme.values[scheme.across]) - 0.5)
    names: list[tuple[float, str]] = []
    for row in sweep.rows:
        found = value(row) if row.is_reference else None
        if found is None:
            continue
        at = scheme.place(row) if scheme.across == "dt" else None
        left, right = whole if at is None else (at - 0.42, at + 0.42)
        colour = _COLOURS[scheme.values["dt"].index(row.dt) % len(_COLOURS)] if coloured else _GREY
        style: dict[str, Any] = {"color": colour, "linestyle": _DASHES, "linewidth": 1.4, "label": "reference"}
        panel.plot([left, right], [scale * found] * 2, **style)
        if at is None and not coloured and len(scheme.values["dt"]) > 1:
            names.append((scale * found, _text("dt", row.dt)))
    low, high = panel.get_ylim()
    for height, name in _apart(sorted(names), 0.06 * (high - low)):
        panel.text(1.0, height, f" {name} ms", transform=panel.get_yaxis_transform(), va="center", **_SMALL)


def _apart(names: Sequence[tuple[float, str]], least: float) -> list[tuple[float, str]]:
    """Labels by height; those nearer to each other than `least` are one, 'a, b'."""
    found: list[tuple[float, str]] = []
    for height, name in names:
        if found and height - found[-1][0] < least:
            found[-1] = (found[-1][0], f"{found[-1][1]}, {name}")
        else:
            found.append((height, name))
    return found


def _limits(heights: Sequence[float], *, shares: bool) -> tuple[float, float]:
    """Room for all values, and above them for a marker's half."""
    if not heights:
        return 0.0, 100.0
    low, high = min(heights), max(heights)
    span = max(high - low, 100 * _SPAN if shares else 0.1 * abs(high) or 1.0)
    low = min(low, high - span)
    return (max(low - 0.1 * span, -0.02 * span) if low >= 0 else low), high + 0.1 * span


def _label_places(panel: Panel, scheme: _Scheme, inches: float) -> None:
    """The values below the horizontal axis, aslant where they are longer than the `inches` each has."""
    texts = [_text(scheme.across, value) for value in scheme.values[scheme.across]]
    panel.set_xticks(range(len(texts)), texts)
    panel.set_xlabel(_TITLES[scheme.across])
    if 0.1 * max(map(len, texts)) > inches:
        panel.tick_params(axis="x", labelrotation=30)
        for label in panel.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")


def _text(axis: str, value: Any) -> str:
    if axis == "dt":
        return "none" if value is None else f"{1e3 * value:g}"
    return "own" if value is None else shorten(shown(str(value)), 24)


def _legend(drawn: Figure, sweep: Sweep, rows: Sequence[SweepRow], scheme: _Scheme) -> None:
    """A block for each axis that is not across, then what else is drawn."""
    handles = [handle for number in range(1, len(scheme.axes)) for handle in _block(rows, scheme, number)]
    if any(row.is_reference and row.accuracy is not None for row in sweep.rows) and sweep.chips:
        handles.append(_swatch("reference", color=_GREY, linestyle=_DASHES))
    if any(row.refusals for row in rows):
        handles.append(_swatch("refused", marker="o", markerfacecolor="none", color=_GREY))
    if sweep.best is not None and len(rows) > 1:
        handles.append(_swatch("best", **_RING))
    if handles:
        drawn.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)


def _block(rows: Sequence[SweepRow], scheme: _Scheme, number: int) -> Iterator[Line2D]:
    """The axis's name and its values, each with what it alone decides: colour, marker or line."""
    axis = scheme.axes[number]
    yield _swatch(_TITLES[axis])
    for value in scheme.values[axis]:
        style = scheme.style(next(row for row in rows if getattr(row, axis) == value))
        own: dict[str, Any] = [
            {"color": style["color"], "marker": "o"},
            {"color": _GREY, "marker": style["marker"]},
            {"color": _GREY, "marker": "o", "fillstyle": style["fillstyle"], "markerfacecoloralt": "white"},
        ][number - 1]
        yield _swatch(f"  {_text(axis, value)}", **own)


def _swatch(label: str, **style: Any) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linestyle": "none", **style}, label=label)
