"""What the page is made of: excerpts, the data for its script, the drawing of the network."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nirdeploy.comparison import Section, compare
from nirdeploy.comparison.excerpt import PAPER, Excerpt, Limits, excerpt
from nirdeploy.comparison.layout import Drawing, layout
from nirdeploy.comparison.network import grade
from nirdeploy.comparison.page_data import as_json, payload
from nirdeploy.comparison.picture import picture, ticks
from nirdeploy.comparison.result import Comparison
from nirdeploy.trajectory import Record, Trajectory

WIDE = Limits(neurons=1024, traces=6, steps=4000, size=1_000_000)


def two_runs(
    steps: int, neurons: int, *changes: tuple[int, int, int], batch: int = 2, v_mem: bool = True
) -> tuple[Trajectory, Trajectory]:
    """Every third neuron of 'a' spikes in every step; on the chip the entries named are the other way."""
    data = np.zeros((steps, batch, neurons), np.int32)
    data[:, :, ::3] = 1
    chip = data.copy()
    for index in changes:
        chip[index] ^= 1

    def run(values: Any, **fields: Any) -> Trajectory:
        records = {("a", "spikes"): Record("a", "spikes", values)}
        if v_mem:
            records["a", "v_mem"] = Record("a", "v_mem", values * 0.5, threshold=1.0)
        return Trajectory(records, **fields)

    return run(data), run(chip, target="x", executor="emulator")


def compared(*arguments: Any, **options: Any) -> Comparison:
    return compare(*two_runs(*arguments, **options))


def cut(comparison: Comparison, limits: Limits, sample: int = 0) -> Excerpt:
    found = excerpt(comparison, "a", sample, limits)
    assert found is not None
    return found


# --- excerpts ----------------------------------------------------------------------------------------------------


def test_the_window_lies_around_the_first_difference_a_third_before_it() -> None:
    part = cut(compared(1000, 5, (500, 1, 2)), WIDE._replace(steps=120), sample=1)
    assert part.steps == range(460, 580)
    assert part.compared == range(1000)
    assert part.reference.shape == part.chip.shape == (120, 5)
    assert part.counts == (240, 0, 1)
    assert part.divergence is not None
    assert part.divergence.step == 500


@pytest.mark.parametrize(("step", "window"), [(0, range(120)), (999, range(880, 1000))])
def test_the_window_stays_inside_the_run(step: int, window: range) -> None:
    assert cut(compared(1000, 2, (step, 0, 0)), WIDE._replace(steps=120)).steps == window


def test_a_short_run_is_shown_whole() -> None:
    assert cut(compared(10, 2, (9, 0, 0)), WIDE).steps == range(10)


def test_another_sample_than_that_of_the_difference_is_shown_from_its_start() -> None:
    part = cut(compared(1000, 5, (500, 1, 2)), WIDE._replace(steps=120), sample=0)
    assert part.steps == range(120)
    assert part.divergence is None


def test_a_sample_that_is_not_there_gives_nothing() -> None:
    assert excerpt(compared(10, 2), "a", 2, WIDE) is None


def test_differing_neurons_come_first_then_the_most_active_in_order_of_their_index() -> None:
    part = cut(compared(10, 1000, (3, 0, 998), (3, 0, 500)), WIDE._replace(neurons=80))
    assert len(part.neurons) == 80
    assert {500, 998} <= set(part.neurons)
    assert list(part.neurons) == sorted(part.neurons)
    assert sum(neuron % 3 == 0 for neuron in part.neurons) == 78
    assert part.total == 1000


def test_traces_follow_the_neurons_that_differ_earliest_first() -> None:
    part = cut(compared(10, 6, (7, 0, 1), (3, 0, 4), (5, 0, 3)), WIDE._replace(traces=2))
    assert [(trace.neuron, trace.differs) for trace in part.traces] == [((4,), 3), ((3,), 5)]
    assert np.flatnonzero(part.traces[0].values[1]).tolist() == [3]
    assert part.traces[0].thresholds == (1.0, 1.0)
    assert part.variable == "v_mem"


def test_where_no_spike_differs_the_most_active_neuron_is_traced() -> None:
    (trace,) = cut(compared(10, 6), WIDE).traces
    assert (trace.neuron, trace.differs) == ((0,), None)


def test_a_traced_neuron_is_in_the_raster_even_where_others_differ_more() -> None:
    changes = [(5, 0, 0), *((step, 0, neuron) for step in range(6, 10) for neuron in range(1, 9))]
    part = cut(compared(10, 20, *changes), WIDE._replace(neurons=3, traces=1))
    assert part.traces[0].flat == 0
    assert 0 in part.neurons


def test_a_window_shrinks_until_it_fits_its_bytes_and_keeps_the_difference() -> None:
    comparison = compared(4000, 90, (2000, 0, 1))
    for size in (50, 1000, 20_000):
        part = cut(comparison, WIDE._replace(size=size))
        assert 2000 in part.steps
        assert len(part.steps) == 1 or len(part.steps) * 30 * 4 <= size
    assert cut(comparison, WIDE._replace(size=20_000)).steps.start < 2000


def test_values_that_are_missing_are_gaps() -> None:
    a, b = two_runs(6, 2, (3, 0, 1))
    values = a["a", "v_mem"].data.copy()
    values[2] = np.nan
    a = replace(a, records={**a.records, ("a", "v_mem"): replace(a["a", "v_mem"], data=values)})
    part = cut(compare(a, b), WIDE)
    assert np.flatnonzero(np.isnan(part.traces[0].values[0])).tolist() == [2]
    trace = next(shape for shape in picture(part).shapes if shape.kind == "trace reference")
    assert trace.path.count("M") == 2
    text = as_json(payload(Section("x", compare(a, b), a, b), ["a"], None, 1))
    assert "null" in text
    assert "NaN" not in text


def test_voltages_recorded_later_than_spikes_are_gaps_before() -> None:
    a, b = two_runs(8, 2, (1, 0, 1))
    late = {("a", "v_mem"): replace(b["a", "v_mem"], lag=-2)}  # the chip's v of a step is the reference's two later
    part = cut(compare(a, replace(b, records={**b.records, **late})), WIDE)
    assert part.steps == range(8)
    assert np.flatnonzero(np.isnan(part.traces[0].values[0])).tolist() == [0, 1]


def test_of_steps_recorded_now_and_then_those_between_hold_no_spike_and_no_value() -> None:
    a, b = two_runs(10, 2, (4, 0, 1))

    def seldom(run: Trajectory) -> Trajectory:
        kept = {key: replace(r, data=r.data[1::3], steps=range(1, 10, 3)) for key, r in run.records.items()}
        return replace(run, records=kept)

    part = cut(compare(seldom(a), seldom(b)), WIDE)
    assert part.compared == part.steps == range(1, 8)
    assert np.flatnonzero(part.reference[:, 0]).tolist() == [0, 3, 6]
    assert part.traces[0].differs == 4
    assert np.flatnonzero(~np.isnan(part.traces[0].values[0])).tolist() == [0, 3, 6]
    narrow = cut(compare(seldom(a), seldom(b)), WIDE._replace(steps=2))
    assert narrow.steps == range(4, 6)
    assert narrow.chip[:, 1].tolist() == [1, 0]


def test_of_several_trials_what_is_inside_the_bands_is_shown_as_equal() -> None:
    a, b = two_runs(10, 4, (4, 0, 1), (6, 0, 2), batch=1)
    _, other = two_runs(10, 4, (6, 0, 2), batch=1)  # the difference at step 4 is not in every trial
    found = compare(a, [b, other])
    part = cut(found, WIDE)
    assert part.counts == (20, 0, 1)
    assert part.traces[0].differs == 6
    (node,) = payload(Section("x", found, a, b), ["a"], None, 1)["nodes"]
    assert "agreement of all trials" in dict(node["facts"])


# --- the script's data -------------------------------------------------------------------------------------------


def test_spikes_and_counts_come_back_from_the_data() -> None:
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 3, (30, 1, 4, 5))
    chip = np.where(rng.random(reference.shape) < 0.1, 0, reference)
    a = Trajectory({("n", "spikes"): Record("n", "spikes", reference)})
    b = Trajectory({("n", "spikes"): Record("n", "spikes", chip)}, target="x")
    (node,) = payload(Section("x", compare(a, b), a, b), ["n"], None, 1)["nodes"]
    (view,) = node["views"]
    assert (view["rows"], view["steps"], view["first"], view["neurons"]) == (20, 30, 0, None)
    counts = np.zeros((2, 600), int)
    for gaps, sides in ((view["both"], (1, 1)), (view["reference"], (1, 0)), (view["chip"], (0, 1))):
        for place in np.cumsum(gaps, dtype=int):
            counts[:, place] = np.maximum(counts[:, place], sides)
    for place, ours, theirs in view["many"]:
        counts[:, place] = ours, theirs
    assert np.array_equal(counts[0], reference.reshape(-1))
    assert np.array_equal(counts[1], chip.reshape(-1))


def test_voltages_keep_six_digits() -> None:
    values = np.array([0.123456789, -1234567.0, 3.0, 1e-9]).reshape(4, 1, 1)
    a = Trajectory({("n", "v_mem"): Record("n", "v_mem", values)})
    (node,) = payload(Section("x", compare(a, a), a, a), ["n"], None, 1)["nodes"]
    assert node["views"][0]["traces"][0]["values"][0] == [0.123457, -1234570, 3, 1e-09]


def test_the_data_of_big_runs_keeps_its_size() -> None:
    rng = np.random.default_rng(0)
    records, other = {}, {}
    for i in range(12):
        data = (rng.random((1500, 1, 2000)) < 0.2).astype(np.int8)
        records[f"n{i}", "spikes"] = Record(f"n{i}", "spikes", data)
        other[f"n{i}", "spikes"] = Record(f"n{i}", "spikes", data ^ (rng.random(data.shape) < 0.01))
    a, b = Trajectory(records), Trajectory(other, target="x")
    found = as_json(payload(Section("x", compare(a, b), a, b), [f"n{i}" for i in range(12)], None, 2))
    assert 300_000 < len(found) < 1_000_000


def test_of_very_many_nodes_those_that_differ_first_keep_their_excerpts() -> None:
    names = [f"n{i}" for i in range(150)]
    data = np.ones((5, 1, 2), int)
    changed = data.copy()
    changed[2, 0, 1] = 0
    a = Trajectory({(n, "spikes"): Record(n, "spikes", data) for n in names})
    late = {("n149", "spikes"): Record("n149", "spikes", changed)}
    b = Trajectory({**a.records, **late}, target="x")
    found = payload(Section("x", compare(a, b), a, b), names, None, 1)
    assert found["first"] == 149
    assert len(found["nodes"][149]["views"]) == 1
    assert sum(len(node["views"]) for node in found["nodes"]) == 120
    assert "keeps those that differ first" in found["nodes"][148]["why"]


def test_a_node_shows_its_own_first_difference_and_the_runs() -> None:
    a, b = two_runs(6, 3, (1, 1, 2))
    second = Record("b", "spikes", a["a", "spikes"].data)
    changed = second.data.copy()
    changed[4, 0, 1] = 1
    a = replace(a, records={**a.records, ("b", "spikes"): second})
    b = replace(b, records={**b.records, ("b", "spikes"): replace(second, data=changed)})
    found = payload(Section("x", compare(a, b), a, b, labels=np.array([7, 8])), ["a", "b"], None, 1)
    assert [view["title"] for view in found["nodes"][0]["views"]] == ["1 (label 8), first to differ in this node"]
    assert [view["title"] for view in found["nodes"][1]["views"]] == [
        "0 (label 7), first to differ in this node",
        "1 (label 8), first to differ in the run",
    ]
    assert found["nodes"][1]["views"][0]["here"] == {"step": 4, "row": 1}


def test_cores_come_from_the_chips_records_where_there_is_no_placement() -> None:
    a, b = two_runs(3, 4)
    record = replace(b["a", "spikes"], cores=np.array([5, 2, 2, 5]))
    b = replace(b, records={**b.records, ("a", "spikes"): record})
    found = payload(Section("x", compare(a, b), a, b), ["a"], None, 1)
    assert found["nodes"][0]["cores"] == [2, 5]


def test_data_holds_no_markup() -> None:
    text = as_json({"a": "</script><!-- & \u2028\ud800"})
    assert re.fullmatch(r"[ -~]+", text)
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028\ud800"}


# --- pictures that stand still ------------------------------------------------------------------------------------


def test_a_picture_marks_every_spike_and_the_first_difference() -> None:
    found = picture(cut(compared(20, 9, (12, 0, 1), (14, 0, 0)), PAPER))
    marks = {shape.kind: shape.path.count("M") for shape in found.shapes if shape.kind.startswith("mark")}
    assert marks == {"mark both": 59, "mark reference": 1, "mark chip": 1}
    assert [shape.kind for shape in found.shapes].count("here") == 2
    assert "v_mem of neuron 1" in [text.text for text in found.texts]
    assert found.alt.endswith("1 of the chip only; first difference at step 12.")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 19, [0, 5, 10, 15]),
        (-0.3, 0.25, [-0.2, 0.0, 0.2]),
        (3, 3, [3]),
        (1e6, 1.00001e6, [1e6, 1000005.0, 1000010.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4) == expected


# --- the drawing of the network -----------------------------------------------------------------------------------


def chain(n: int) -> tuple[list[str], list[tuple[str, str]]]:
    names = [f"n{i}" for i in range(n)]
    return names, list(itertools.pairwise(names))


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(v) for v in re.findall(r"-?\d+\.?\d*", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def crossings(drawing: Drawing) -> list[tuple[str, str, str]]:
    """(source, target, box) wherever a piece of an edge runs through a box."""
    found = []
    width, height = drawing.sizes.width, drawing.sizes.height
    for link in drawing.links:
        corners = points(link.path)
        for (x1, y1), (x2, y2) in itertools.pairwise(corners):
            for box in drawing.boxes:
                inside_x = max(x1, x2) > box.x + 0.2 and min(x1, x2) < box.x + width - 0.2
                inside_y = max(y1, y2) > box.y + 0.2 and min(y1, y2) < box.y + height - 0.2
                if inside_x and inside_y:
                    found.append((link.source, link.target, box.name))
    return found


def test_a_long_chain_wraps_and_reads_from_left_to_right() -> None:
    names, edges = chain(20)
    drawing = layout(names, edges)
    assert drawing.width < 960
    places = {box.name: box for box in drawing.boxes}
    assert places["n0"].x == places["n6"].x < places["n1"].x == places["n7"].x
    assert places["n0"].y == places["n5"].y < places["n6"].y < places["n12"].y
    assert crossings(drawing) == []


def test_many_nodes_get_small_boxes() -> None:
    names, edges = chain(300)
    drawing = layout(names, edges)
    assert drawing.sizes.height < 50
    assert drawing.width < 960
    assert len(drawing.boxes) == 300
    assert crossings(drawing) == []


def test_feedback_runs_below_and_skips_above_the_boxes() -> None:
    names, edges = chain(5)
    drawing = layout(names, [*edges, ("n0", "n3"), ("n3", "n1"), ("n2", "n2")], [("n3", "n1"), ("n2", "n2")])
    links = {(link.source, link.target): link for link in drawing.links}
    top, bottom = drawing.boxes[0].y, drawing.boxes[0].y + drawing.sizes.height
    assert min(y for _, y in points(links["n0", "n3"].path)) < top
    assert max(y for _, y in points(links["n3", "n1"].path)) > bottom
    assert {edge for edge, link in links.items() if link.feedback} == {("n3", "n1"), ("n2", "n2")}
    assert crossings(drawing) == []


def test_an_edge_against_the_order_is_drawn_as_feedback_even_where_the_file_does_not_say_so() -> None:
    drawing = layout(["a", "b"], [("a", "b"), ("b", "a")])
    assert [(link.source, link.feedback) for link in drawing.links] == [("a", False), ("b", True)]


def test_branches_stand_above_each_other() -> None:
    drawing = layout(["i", "a", "b", "o"], [("i", "a"), ("i", "b"), ("a", "o"), ("b", "o")])
    places = {box.name: box for box in drawing.boxes}
    assert places["a"].x == places["b"].x
    assert places["b"].y >= places["a"].y + drawing.sizes.height
    assert places["i"].y == places["o"].y == (places["a"].y + places["b"].y) / 2


def test_very_many_edges_share_their_lanes() -> None:
    names, edges = chain(200)
    rng = np.random.default_rng(0)
    far = [(f"n{a}", f"n{b}") for a, b in rng.integers(0, 200, (5000, 2))]
    drawing = layout(names, [*edges, *far])
    assert len(drawing.links) == len({*edges, *far})
    assert drawing.width < 1400
    assert drawing.height < 12_000


def test_nodes_without_known_edges_follow_the_others() -> None:
    drawing = layout(["a", "b"], [("a", "b")], loose=["c", "a"])
    assert [(box.name, box.layer) for box in drawing.boxes] == [("a", 0), ("b", 1), ("c", 2)]
    assert layout((), ()).boxes == ()


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]]]:
    names = [f"n{i}" for i in range(draw(st.integers(1, 24)))]
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names))
    return names, draw(st.lists(pairs, max_size=40))


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_no_boxes_overlap_no_edge_crosses_a_box_and_all_is_inside(graph: Any) -> None:
    drawing = layout(*graph)
    width, height = drawing.sizes.width, drawing.sizes.height
    for i, box in enumerate(drawing.boxes):
        assert 0 <= box.x <= drawing.width - width
        assert 0 <= box.y <= drawing.height - height
        for other in drawing.boxes[:i]:
            assert abs(box.x - other.x) >= width or abs(box.y - other.y) >= height
    assert {(link.source, link.target) for link in drawing.links} == set(graph[1])
    for link in drawing.links:
        for x, y in points(link.path):
            assert -0.1 <= x <= drawing.width + 0.1
            assert -0.1 <= y <= drawing.height + 0.1
    # of curves between neighbours only the ends are on a box's edge
    straight = replace(drawing, links=tuple(link for link in drawing.links if "C" not in link.path))
    assert crossings(straight) == []


@pytest.mark.parametrize(
    ("flips", "expected"), [(0, "g0"), (1, "g1"), (30, "g2"), (150, "g3"), (400, "g4"), (900, "g5")]
)
def test_colours_follow_the_agreement(flips: int, expected: str) -> None:
    data = np.ones((1000, 1, 1), int)
    changed = data.copy()
    changed[:flips] = 0
    a, b = (Trajectory({("n", "spikes"): Record("n", "spikes", values)}) for values in (data, changed))
    node = compare(a, replace(b, target="x")).per_node["n"]
    assert grade(node) == expected
    assert math.isclose(node.spike_agreement or 0, 2 * (1000 - flips) / (2000 - flips))
    assert grade(None) == "none"
