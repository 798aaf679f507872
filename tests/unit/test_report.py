"""The page: self-contained, escaped, complete, small."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nirdeploy.comparison import Section, compare, write_report
from nirdeploy.comparison.arrivals import Arrival
from nirdeploy.comparison.ladder import Ladder, Rung
from nirdeploy.comparison.report import verdict
from nirdeploy.comparison.text import shown
from nirdeploy.energy import EnergyRow, Estimate
from nirdeploy.errors import ComparisonError, FileError
from nirdeploy.outline import Outline, OutlineNode
from nirdeploy.placement import Placement, Usage
from nirdeploy.reference.convention import Convention
from nirdeploy.rules import Finding, Report
from nirdeploy.target import Target
from nirdeploy.trajectory import Record, Trajectory

HOSTILE = '<img src=x onerror="alert(1)">/$\\frac{1}{2}$\n\'&amp;\u202e\x00漢\ud800'
SHAPES = {"conv1/if1": (8, 7, 7), "conv2/if2": (12, 4, 4), "fc/if3": (10,)}


def run(names: dict[str, tuple[int, ...]], seed: int = 0, flips: float = 0.0, **fields: Any) -> Trajectory:
    """Random spikes and voltages, alike for one seed but for `flips` of the entries."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    records: dict[tuple[str, str], Record] = {}
    for name, shape in names.items():
        data = (rng.random((20, 50, *shape)) < 0.1).astype(np.int32)
        v = rng.random(data.shape).astype(np.float32)
        if flips:
            data ^= other.random(data.shape) < flips
            v = v + other.normal(0, 0.01, v.shape).astype(np.float32)
        records[name, "spikes"] = Record(name, "spikes", data, units="count")
        records[name, "v_mem"] = Record(name, "v_mem", v, threshold=1.0)
    return Trajectory(records, **fields)


def section(names: dict[str, tuple[int, ...]] | None = None, flips: float = 0.004, **fields: Any) -> Section:
    names = names or SHAPES
    reference = run(names, convention=Convention(dt=1e-3), producer="nirdeploy 0.1.0")
    chip = run(names, flips=flips, target="speck2f", executor="emulator", graph_sha256="ab" * 32)
    return Section("speck2f", compare(reference, chip), reference, chip, **fields)


def full_section(names: dict[str, tuple[int, ...]] | None = None) -> Section:
    node = next(iter(names or SHAPES))
    return section(
        names,
        accuracy=0.964,
        reference_accuracy=0.967,
        labels=np.arange(50) % 10,
        placement=Placement(
            {node: (0, 3)},
            (
                Usage(0, node, "kernel_memory", 8192, 16384),
                Usage(0, "other", "kernel_memory", 4096, 16384),
                Usage(3, node, "neuron_memory", 2048, 1024),
            ),
        ),
        report=Report("speck2f", (Finding("fan_in", node, "2 000 inputs exceed 1 024", "Prune.", torch_path="net.3"),)),
        seconds=1.25,
        notes=("quantizer 'calibrated': conv1 lost 0.1 %",),
        target=Target("speck2f", "speck", "Speck 2f", {"emulator": "sinabs 3.1.3"}, "not run on silicon", {}),
    )


class Page(HTMLParser):
    """Tags with attributes, visible text, scripts and styles of a page; open elements must be closed in order."""

    VOID = frozenset({"meta", "img", "br", "source", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.code: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        (self.code.get(where, self.words)).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(path: Path, *sections: Section, **options: Any) -> tuple[str, Page]:
    write_report(path / "page.html", sections, **options)
    text = (path / "page.html").read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the report opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    other = replace(full_section(), name="loihi2", accuracy=None)
    return written(
        tmp_path_factory.mktemp("report"), full_section(), other, title="Digits", facts={"data": "360 digits"}
    )


def test_page_loads_nothing_from_outside(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text
    assert not parsed.named("link")
    assert not parsed.named("img")
    for _, attributes in parsed.tags:
        assert not {"src", "srcset", "style"} & set(attributes)  # the policy forbids them, so they would do nothing
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]


def test_policy_allows_the_pages_own_script_and_style_and_nothing_else(page: tuple[str, Page]) -> None:
    parsed = page[1]
    (policy,) = [a["content"] for a in parsed.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    code = [t for t, a in zip(parsed.code["script"], parsed.named("script"), strict=True) if "type" not in a]
    assert len(code) == 1
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (*code, *parsed.code["style"])]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_every_link_of_the_page_has_its_place(page: tuple[str, Page]) -> None:
    parsed = page[1]
    names = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(names) == len(set(names))
    compared = {a["href"][1:] for a in parsed.named("a") if "row" not in a["href"]}
    assert compared <= set(names)


def test_page_of_two_targets_stays_under_two_megabytes(page: tuple[str, Page]) -> None:
    assert len(page[0].encode()) < 2_000_000


def test_every_picture_says_in_words_what_it_shows(page: tuple[str, Page]) -> None:
    pictures = [attributes for attributes in page[1].named("svg") if attributes.get("class") == "still"]
    assert len(pictures) == 6
    assert all(len(attributes["aria-label"]) > 40 for attributes in pictures)
    assert "first difference at step" in pictures[0]["aria-label"]


def test_page_begins_with_one_sentence_per_target(page: tuple[str, Page]) -> None:
    text = page[1].text
    first = text.index("speck2f agrees in ")
    assert first < text.index("loihi2 agrees in ") < text.index("Targets")
    assert "accuracy 0.964 against 0.967; first difference: conv" in text[first : first + 200]


def test_page_shows_every_part_of_a_target(page: tuple[str, Page]) -> None:
    text = page[1].text
    for expected in (
        "First difference",
        "Network",
        "Agreement per node",
        "Spikes of reference and speck2f (emulator) over each other",
        "2 of 4 cores in use",
        "12 288 / 16 384 · 75 %",
        "2 048 / 1 024 · 200 %",
        "2 000 inputs exceed 1 024",
        "net.3",
        "1 error, 0 warnings",
        "quantizer 'calibrated'",
        "1.25 s",
        "Dice coefficient",
        "emulator verified against sinabs 3.1.3",
        "this run is from the emulator, not from silicon; the target: not run on silicon",
        "convention of the reference dt 0.001",
        "convention of the chip not recorded",
        "ab" * 32,
        "nirdeploy 0.1.0",
        "data 360 digits",
    ):
        assert expected in text, expected
    assert "(label " in page[1].code["script"][0]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = {HOSTILE: (6,), "conv\n2": (3, 2, 2)}
    hostile = full_section(names)
    hostile = replace(
        hostile, name=HOSTILE, notes=(HOSTILE,), chip=replace(hostile.chip, counters={HOSTILE: {"saturations": 2}})
    )
    text, parsed = written(tmp_path, hostile, title=HOSTILE, facts={HOSTILE: HOSTILE})
    assert "<img src=x" not in text
    assert not parsed.named("img")
    assert not [attributes for _, attributes in parsed.tags if "onerror" in attributes]
    assert "\x00" not in text
    assert "\u202e" not in text  # would turn the direction of what follows
    assert '<img src=x onerror="alert(1)">/$\\frac{1}{2}$\\n' in parsed.text
    assert "conv\\n2" in parsed.text
    (data,) = [json.loads(t) for t in parsed.code["script"] if t.startswith("{")]
    assert [node["name"] for node in data["nodes"]] == [shown(HOSTILE), "conv\\n2"]


def test_data_ends_no_script_element(tmp_path: Path) -> None:
    text, parsed = written(tmp_path, section({"</script><!--<script>": (4,)}))
    assert len(parsed.named("script")) == 2
    assert text.count("<script") == text.count("</script") == 2
    assert "<!--" not in text


LAZY = """
import sys
import nirdeploy.comparison
loaded = {"jinja2", "torch"} & set(sys.modules)
assert not loaded, loaded
import numpy as np
from nirdeploy.comparison import compare
from nirdeploy.trajectory import Record, Trajectory
run = Trajectory({("a", v): Record("a", v, np.ones((3, 2, 4), int)) for v in ("spikes", "v_mem")})
compare(run, run).to_html(sys.argv[1])
assert "jinja2" in sys.modules
assert "matplotlib" not in sys.modules
"""


def test_the_template_library_loads_on_first_use_and_no_drawing_library_at_all(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAZY, str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_comparison_gives_the_same_page(tmp_path: Path) -> None:
    assert written(tmp_path, full_section())[0] == written(tmp_path, full_section())[0]


def test_a_comparison_writes_the_page_with_itself_as_the_only_section(tmp_path: Path) -> None:
    section().comparison.to_html(tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text()).text
    assert text.count("Agreement per node") == 1
    assert "speck2f: comparison with the reference" in text


def test_a_report_without_sections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComparisonError, match="at least one section"):
        write_report(tmp_path / "page.html", [])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        section().comparison.to_html(tmp_path / "no" / "page.html")


def test_equal_runs_say_so_and_still_show_pictures(tmp_path: Path) -> None:
    equal = section(flips=0.0)
    _, parsed = written(tmp_path, equal)
    assert verdict(equal) == "speck2f agrees in every spike"
    assert len([a for a in parsed.named("svg") if a.get("class") == "still"]) == 1
    (data,) = [json.loads(t) for t in parsed.code["script"] if t.startswith("{")]
    assert {view["title"] for node in data["nodes"] for view in node["views"]} == {"0, no spike differs"}


def test_values_without_spikes_are_traced(tmp_path: Path) -> None:
    one = Trajectory({("out", "output"): Record("out", "output", np.ones((3, 2, 4)))})
    two = replace(one, target="x", executor="simulator")
    found = Section("x", compare(one, two), one, two)
    _, parsed = written(tmp_path, found)
    assert verdict(found) == "x: no spikes could be compared"
    (data,) = [json.loads(t) for t in parsed.code["script"] if t.startswith("{")]
    (view,) = data["nodes"][0]["views"]
    assert (view["rows"], view["variable"], view["traces"][0]["values"]) == (0, "output", [[1, 1, 1], [1, 1, 1]])
    assert "output: RMS 0, largest 0 model units" in parsed.text
    assert "not known: no installed backend has this target" in parsed.text


def test_a_run_without_voltages_says_why_there_are_no_traces(tmp_path: Path) -> None:
    full = section()
    chip = replace(full.chip, records={k: r for k, r in full.chip.records.items() if k[1] == "spikes"})
    found = Section("s", compare(full.reference, chip), full.reference, chip)
    _, parsed = written(tmp_path, found)
    (data,) = [json.loads(t) for t in parsed.code["script"] if t.startswith("{")]
    assert all(not view["traces"] for node in data["nodes"] for view in node["views"])
    assert "Not compared" in parsed.text
    assert verdict(found).endswith("3 records not or not wholly compared")


def test_a_run_on_the_chip_itself_is_called_that(tmp_path: Path) -> None:
    full = full_section()
    chip = replace(full.chip, executor="chip")
    _, parsed = written(tmp_path, replace(full, chip=chip))
    assert "this run is from the chip itself" in parsed.text


def test_many_cores_are_cut_to_the_fullest_on_paper_and_the_page_says_so(tmp_path: Path) -> None:
    usage = tuple(Usage(core, "a", "axons", core, 100) for core in range(40))
    _, parsed = written(tmp_path, section(placement=Placement({"a": tuple(range(40))}, usage)))
    assert "16 further cores, none fuller than 15 %, are left out on paper." in parsed.text
    cards = [a for a in parsed.named("div") if a.get("class", "").startswith("core ") or a.get("class") == "core"]
    assert [a["data-core"] for a in cards if a["class"] == "core"] == [str(i) for i in range(16, 40)]
    assert len(cards) == 40


def test_free_cores_of_the_chip_are_on_the_map(tmp_path: Path) -> None:
    target = Target("t", "b", "T", {}, "", {"cores": {"count": 12}})
    placement = Placement({"a": (2,)}, (Usage(2, "a", "axons", 95, 100),))
    _, parsed = written(tmp_path, section(placement=placement, target=target))
    assert "1 of 12 cores in use" in parsed.text
    cells = [a for _, a in parsed.tags if a.get("class", "").split(" ")[0] == "cell" and "title" in a]
    assert [a["class"] for a in cells] == ["cell", "cell", "cell f4", *["cell"] * 9]


def test_a_placement_without_usage_names_the_cores(tmp_path: Path) -> None:
    _, parsed = written(tmp_path, section(placement=Placement({"a": (2, 5)})))
    assert re.search(r"names no usage; cores: a on 2, 5\s?\.", parsed.text)


# --- network, ladder, estimate ------------------------------------------------------------------------------------


def outlined(found: Section) -> Section:
    nodes = {"input": OutlineNode("Input", (1, 7, 7)), "conv1/if1": OutlineNode("IF", (8, 7, 7))}
    nodes |= {"conv2/if2": OutlineNode("LIF", (12, 4, 4)), "fc/if3": OutlineNode("LIF", (10,))}
    names = list(nodes)
    edges = (*itertools.pairwise(names), ("fc/if3", "conv2/if2"))
    reference = replace(found.reference, outline=Outline(nodes, edges, (("fc/if3", "conv2/if2"),)))
    return replace(found, reference=reference, comparison=compare(reference, found.chip))


def test_the_network_shows_kind_shape_agreement_and_the_first_difference(tmp_path: Path) -> None:
    found = outlined(full_section())
    _, parsed = written(tmp_path, found)
    boxes = [a for a in parsed.named("a") if a.get("class", "").startswith("node")]
    assert [a["data-node"] for a in boxes] == ["0", "1", "2", "3"]
    first = found.comparison.first_divergence
    assert first is not None
    assert [i for i, a in enumerate(boxes) if "first" in a["class"].split()] == [["input", *SHAPES].index(first.node)]
    assert boxes[0]["class"] == "node none"
    links = [a["class"] for a in parsed.named("path") if a.get("class", "").startswith("link") and "marker-end" in a]
    assert links == ["link", "link", "link", "link feedback"]
    assert "LIF 12×4×4" in parsed.text
    (data,) = [json.loads(t) for t in parsed.code["script"] if t.startswith("{")]
    assert data["nodes"][0]["why"] == "Not recorded on both sides, so not compared."
    assert data["first"] == ["input", *SHAPES].index(first.node)


def test_the_first_difference_shows_its_core_and_what_arrived(tmp_path: Path) -> None:
    found = section()
    first = found.comparison.first_divergence
    assert first is not None
    told = replace(
        first,
        core=7,
        chip_step=first.step + 2,
        inputs=(Arrival("pre<i>", (1, 2), 1, 0, 0.5, 3), Arrival("pre<i>", (0, 1), 2, 2, -0.125)),
        inputs_note="2 more are left out",
    )
    node = replace(found.comparison.per_node[first.node], first_divergence=told)
    comparison = replace(found.comparison, per_node={**found.comparison.per_node, first.node: node})
    _, parsed = written(tmp_path, replace(found, comparison=comparison))
    for expected in (
        "core 7",
        f"step {first.step} (chip: {first.step + 2})",
        "2 inputs arrived in this step, together 0.25 in the reference, -0.25 on the chip",
        "pre<i> (1, 2) 1 0 0.5 3",
        "pre<i> (0, 1) 2 2 -0.125 0",
        "Spikes that arrived: 2 more are left out.",
        first.cause,
    ):
        assert expected in parsed.text, expected


def test_hints_stand_with_the_first_difference(tmp_path: Path) -> None:
    found = section()
    hinted = replace(found.comparison, hints=("the chip's spikes <b> come one step later",))
    found = replace(found, comparison=hinted)
    _, parsed = written(tmp_path, found)
    text = parsed.text
    assert text.index("First difference") < text.index("the chip's spikes <b> come one step later")
    assert text.index("the chip's spikes <b> come one step later") < text.index("Network")


def ladder_of(*found: Section) -> Ladder:
    rungs = [Rung("reference", "", found[0].reference)]
    rungs += [Rung(s.name, f"change <{i}>", s.chip, cost=s.comparison, total=s.comparison) for i, s in enumerate(found)]
    return Ladder("speck2f", (*rungs, Rung("chip", "silicon", None, "no samna <here>")))


def test_a_ladder_comes_first_and_folds_its_rungs_but_the_dominating_one(tmp_path: Path) -> None:
    some, more = section(flips=0.001), replace(section(flips=0.01), name="more")
    found = ladder_of(some, more)
    found.to_html(tmp_path / "ladder.html")
    text = (tmp_path / "ladder.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.text.index(found.verdict()) < parsed.text.index("What each rung changes")
    assert parsed.text.index("What each rung changes") < parsed.text.index("First difference")
    assert "change <1>" in parsed.text
    assert "not run: no samna <here>" in parsed.text
    assert ["open" in a for a in parsed.named("details")] == [False, True]
    rows = [a.get("class") for a in parsed.named("tr") if a.get("class") in ("dominating", "absent")]
    assert rows == ["dominating", "absent"]
    bars = [a["width"] for a in parsed.named("rect") if a.get("class") == "fill"][:2]
    assert bars[1] == "100.00%"
    assert 0 < float(bars[0][:-1]) < 30


def test_a_section_may_have_its_own_ladder(tmp_path: Path) -> None:
    some = section(flips=0.001)
    _, parsed = written(tmp_path, replace(some, ladder=ladder_of(some)))
    assert "What each rung changes" in parsed.text
    assert not parsed.named("details")


def test_many_sections_are_folded_but_the_first(tmp_path: Path) -> None:
    _, parsed = written(tmp_path, *[section()] * 4)
    assert ["open" in a for a in parsed.named("details")] == [True, False, False, False]


def test_an_estimate_is_called_one_and_names_its_sources(tmp_path: Path) -> None:
    row = EnergyRow("if1", "synaptic_operations", 1000, 23.6e-12, 23.6e-9, "Davies <2018>")
    estimate = Estimate("loihi1", (row,), 23.6e-9, 1.5e-3, 2, ("Leakage is not counted.",))
    _, parsed = written(tmp_path, section(estimate=estimate))
    for expected in (
        "Energy and time, an estimate",
        "11.8 nJ a sample; 1.5 ms a sample",
        "not a measurement; the table is of all 2 samples together",
        "synaptic operations",
        "23.6 pJ",
        "Davies <2018>",
        "Leakage is not counted.",
    ):
        assert expected in parsed.text, expected
