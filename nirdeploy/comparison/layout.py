"""Where the nodes and edges of a network go in its drawing: layers from left to right, long chains in rows.

Nodes of one layer (longest path from a source) stand above each other, ordered by what feeds them. Edges between
neighbouring layers are curves; all others run through channels between the rows, so that none crosses a box.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Box", "Drawing", "Link", "Sizes", "layout"]

Edge = tuple[str, str]
_LANE = 7.0  # between two edges in a channel
_LANES, _PIECES = 40, 60  # most lanes of a channel, and pieces of a lane
_CORNER = 6.0


class Sizes(NamedTuple):
    """Of a box, the gaps around it (pixels), and how many layers stand side by side."""

    width: float
    height: float
    gap: float
    between: float
    columns: int


LARGE = Sizes(120, 60, 34, 14, 6)
SMALL = Sizes(92, 38, 24, 8, 8)
_MANY = 60


class Box(NamedTuple):
    """A node's place: its name, layer, left and upper edge."""

    name: str
    layer: int
    x: float
    y: float


class Link(NamedTuple):
    """An edge's way as an SVG path; whether it carries the previous step's output."""

    source: str
    target: str
    path: str
    feedback: bool


@dataclass(frozen=True)
class Drawing:
    """A drawing in pixels.

    Attributes:
        width: of everything.
        height: of everything.
        sizes: of the boxes.
        boxes: the nodes, in the order given.
        links: the edges.
    """

    width: float
    height: float
    sizes: Sizes
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]


def layout(
    nodes: Sequence[str], edges: Iterable[Edge], feedback: Iterable[Edge] = (), loose: Sequence[str] = ()
) -> Drawing:
    """Place nodes and edges.

    Args:
        nodes: in execution order.
        edges: (source, target), those of `feedback` included.
        feedback: edges that carry the previous step's output.
        loose: further nodes, about whose edges nothing is known; each gets a layer of its own behind the others.
    """
    order = {name: i for i, name in enumerate(dict.fromkeys(nodes))}
    back = set(feedback)
    known = [edge for edge in dict.fromkeys(edges) if edge[0] in order and edge[1] in order]
    # whatever runs against the order is drawn as feedback, so that no cycle is left
    forward = [edge for edge in known if edge not in back and order[edge[0]] < order[edge[1]]]
    layers = _layers(order, forward)
    last = max(layers.values(), default=-1)
    layers |= {name: last + 1 + i for i, name in enumerate(n for n in dict.fromkeys(loose) if n not in order)}
    sizes = SMALL if len(layers) > _MANY else LARGE
    ahead = set(forward)
    return _Canvas(layers, forward, [edge for edge in known if edge not in ahead], sizes).drawing()


def _layers(order: Mapping[str, int], forward: Sequence[Edge]) -> dict[str, int]:
    """Longest path from a source."""
    sources: dict[str, list[str]] = {}
    for source, target in forward:
        sources.setdefault(target, []).append(source)
    layers: dict[str, int] = {}
    for name in order:
        layers[name] = max((layers[source] + 1 for source in sources.get(name, ())), default=0)
    return layers


class _Canvas:
    """Boxes placed, then edges led around them."""

    def __init__(self, layers: Mapping[str, int], forward: list[Edge], back: list[Edge], sizes: Sizes) -> None:
        self.layers, self.forward, self.back, self.sizes = layers, forward, back, sizes
        self.columns = _columns(layers, forward)
        self.ranks = {name: i for column in self.columns for i, name in enumerate(column)}
        self.n_rows = -(-len(self.columns) // sizes.columns)
        self.lanes: list[list[list[tuple[float, float]]]] = [[] for _ in range(self.n_rows + 1)]  # of each channel
        self.users: dict[tuple[int, int], int] = {}  # vertical pieces in each gap, (row, column before which it is)
        self.gutters: list[list[tuple[float, float]]] = []  # rows passed by edges that run left of all
        self.leftmost = 0.0

    def drawing(self) -> Drawing:
        ways = [*((edge, False) for edge in self.forward), *((edge, True) for edge in self.back)]
        routed = [(edge, back, self._route(*edge, back)) for edge, back in ways]
        left = 8.0 - self.leftmost
        tops, y = [], 0.0
        for row in range(self.n_rows):
            y += self._channel(row)
            tops.append(y)
            y += self._row_height(row)
        height = y + self._channel(self.n_rows)
        self.left, self.tops, self.height = left, tops, height
        places = {name: self._place(name) for name in self.layers}
        links = [Link(*edge, self._path(edge, route, places), back) for edge, back, route in routed]
        columns = min(self.sizes.columns, len(self.columns))
        width = left + columns * (self.sizes.width + self.sizes.gap) - (0 if self.users else self.sizes.gap - 8)
        boxes = tuple(Box(name, self.layers[name], *places[name]) for name in self.layers)
        return Drawing(width, height, self.sizes, boxes, tuple(links))

    def _row_height(self, row: int) -> float:
        columns = self.columns[row * self.sizes.columns : (row + 1) * self.sizes.columns]
        most = max(len(column) for column in columns)
        return most * self.sizes.height + (most - 1) * self.sizes.between

    def _channel(self, index: int) -> float:
        """Height of a channel: none at the top and at the bottom where no edge runs there."""
        inner = 0 < index < self.n_rows
        lanes = len(self.lanes[index])
        return (22.0 if inner else 10.0) + _LANE * lanes

    def _place(self, name: str) -> tuple[float, float]:
        layer = self.layers[name]
        row, column = divmod(layer, self.sizes.columns)
        mates = self.columns[layer]
        taken = len(mates) * self.sizes.height + (len(mates) - 1) * self.sizes.between
        top = self.tops[row] + (self._row_height(row) - taken) / 2
        y = top + self.ranks[name] * (self.sizes.height + self.sizes.between)
        return self.left + column * (self.sizes.width + self.sizes.gap), y

    def _row(self, name: str) -> int:
        return self.layers[name] // self.sizes.columns

    def _column_x(self, name: str) -> float:
        """Left edge of a node's column, without the margin."""
        return (self.layers[name] % self.sizes.columns) * (self.sizes.width + self.sizes.gap)

    def _route(self, source: str, target: str, back: bool) -> _Route | None:
        """Channels and lanes of an edge; None: straight to the next layer."""
        a, b = self._row(source), self._row(target)
        if not back and self.layers[target] == self.layers[source] + 1 and a == b:
            return None
        behind = self._use(a, self.layers[source] % self.sizes.columns + 1)
        before = self._use(b, self.layers[target] % self.sizes.columns)
        start = self._column_x(source) + self.sizes.width + behind
        end = self._column_x(target) - self.sizes.gap + before
        if a == b:
            passed = [(a + 1 if back else a)]
        elif abs(a - b) == 1:
            passed = [max(a, b)]
        else:
            passed = [a + 1, b] if b > a else [a, b + 1]
        if len(passed) == 1:
            self.leftmost = min(self.leftmost, end - 4)
            return _Route(behind, before, ((passed[0], self._lane(passed[0], start, end)),), None)
        out = -self.sizes.gap - _LANE * (1 + _free(self.gutters, min(passed), max(passed)))
        self.leftmost = min(self.leftmost, out)
        lanes = tuple((channel, self._lane(channel, out, x)) for channel, x in zip(passed, (start, end), strict=True))
        return _Route(behind, before, lanes, out)

    def _use(self, row: int, column: int) -> float:
        """Where the next vertical piece runs in the gap before a column, from the gap's left."""
        count = self.users.get((row, column), 0)
        self.users[row, column] = count + 1
        return self.sizes.gap * (0.32 + 0.12 * (count % 4))

    def _lane(self, channel: int, a: float, b: float) -> int:
        """The first lane of a channel that is free between two places."""
        return _free(self.lanes[channel], min(a, b) - 4, max(a, b) + 4)

    def _lane_y(self, channel: int, lane: int) -> float:
        bottom = self.tops[channel] if channel < self.n_rows else self.height
        top = bottom - self._channel(channel)
        return top + (11.0 if 0 < channel < self.n_rows else 5.0) + _LANE * lane + _LANE / 2

    def _path(self, edge: Edge, route: _Route | None, places: Mapping[str, tuple[float, float]]) -> str:
        (x1, y1), (x2, y2) = places[edge[0]], places[edge[1]]
        width, half = self.sizes.width, self.sizes.height / 2
        if route is None:
            bend = (x2 - x1 - width) / 2
            return (
                f"M{x1 + width:.1f} {y1 + half:.1f}C{x1 + width + bend:.1f} {y1 + half:.1f} "
                f"{x2 - bend:.1f} {y2 + half:.1f} {x2 - 1:.1f} {y2 + half:.1f}"
            )
        shift = half / 2
        start, end = x1 + width + route.behind, x2 - self.sizes.gap + route.before
        points = [(x1 + width, y1 + half + shift), (start, y1 + half + shift)]
        ys = [self._lane_y(*lane) for lane in route.lanes]
        if route.gutter is None:
            points += [(start, ys[0]), (end, ys[0])]
        else:
            out = self.left + route.gutter
            points += [(start, ys[0]), (out, ys[0]), (out, ys[1]), (end, ys[1])]
        points += [(end, y2 + half - shift), (x2 - 1, y2 + half - shift)]
        return _rounded(points)


class _Route(NamedTuple):
    """Offsets of the vertical pieces in their gaps, (channel, lane) passed, and the gutter's place or None."""

    behind: float
    before: float
    lanes: tuple[tuple[int, int], ...]
    gutter: float | None


def _free(lanes: list[list[tuple[float, float]]], low: float, high: float) -> int:
    """The first lane in which nothing lies between two places, now taken; a new one where there is none.

    With all of `_LANES` taken or long, edges share them in turn: such a network cannot be followed by eye anyhow.
    """
    for i, taken in enumerate(lanes):
        if len(taken) < _PIECES and all(high < first or last < low for first, last in taken):
            taken.append((low, high))
            return i
    if len(lanes) < _LANES:
        lanes.append([(low, high)])
        return len(lanes) - 1
    return int(low + high) % _LANES


def _columns(layers: Mapping[str, int], forward: Sequence[Edge]) -> list[list[str]]:
    """Nodes of each layer, ordered by the mean place of what feeds them."""
    found: list[list[str]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for name, layer in layers.items():
        found[layer].append(name)
    sources: dict[str, list[str]] = {}
    for source, target in forward:
        sources.setdefault(target, []).append(source)
    place: dict[str, float] = {}
    for column in found:
        centre = {
            name: sum(place[s] for s in sources[name]) / len(sources[name]) if name in sources else 0.5
            for name in column
        }
        column.sort(key=centre.__getitem__)  # stable: execution order where alike
        place.update({name: (i + 0.5) / len(column) for i, name in enumerate(column)})
    return found


def _rounded(points: Sequence[tuple[float, float]]) -> str:
    """A line of horizontal and vertical pieces with round corners."""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near, far = (_toward(corner, other) for other in (before, after))
        path += f"L{near[0]:.1f} {near[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {far[0]:.1f} {far[1]:.1f}"
    return path + f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _toward(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The point `_CORNER` away from a corner, at most half way."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)
    share = min(_CORNER, length / 2) / length if length else 0.0
    return corner[0] + dx * share, corner[1] + dy * share
