"""The page: self-contained, escaped, complete, small."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from nirdeploy.comparison import Section, compare, write_report
from nirdeploy.comparison import excerpt as ex
from nirdeploy.comparison.plots import _drawable
from nirdeploy.comparison.report import verdict
from nirdeploy.errors import ComparisonError, FileError
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
    """Tags with attributes, visible text and pictures of a page; open elements must be closed in order."""

    VOID = frozenset({"meta", "img", "br", "source", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
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
        self.words.append(data)

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
    assert "url(" not in text
    assert "@import" not in text
    assert not parsed.named("script")
    assert not parsed.named("link")
    for _, attributes in parsed.tags:
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:").startswith("data:image/png;base64,") or name not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert any("default-src 'none'" in attributes.get("content", "") for attributes in parsed.named("meta"))


def test_page_of_two_targets_stays_under_two_megabytes(page: tuple[str, Page]) -> None:
    assert len(page[0].encode()) < 2_000_000


def test_every_picture_has_alternative_text_and_a_dark_twin(page: tuple[str, Page]) -> None:
    pictures = page[1].named("img")
    assert len(pictures) == 4
    assert all(len(attributes["alt"]) > 40 for attributes in pictures)
    assert "first difference at step" in pictures[1]["alt"]
    dark = [source for source in page[1].named("source") if "dark" in source["media"]]
    assert len(dark) == 4


def test_pictures_are_drawn_at_twice_their_shown_width(page: tuple[str, Page]) -> None:
    for attributes in page[1].named("img"):
        data = base64.b64decode(attributes["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.width == 2 * int(attributes["width"])


def test_page_begins_with_one_sentence_per_target(page: tuple[str, Page]) -> None:
    text = page[1].text
    first = text.index("speck2f agrees in ")
    assert first < text.index("loihi2 agrees in ") < text.index("Targets")
    assert "accuracy 0.964 against 0.967; first difference: conv" in text[first : first + 200]


def test_page_shows_every_part_of_a_target(page: tuple[str, Page]) -> None:
    text = page[1].text
    for expected in (
        "First difference",
        "Agreement per layer",
        "Spikes of reference and speck2f (emulator) over each other",
        "Membrane traces",
        "Core occupancy",
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
        "(label ",
    ):
        assert expected in text, expected


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = {HOSTILE: (6,), "conv\n2": (3, 2, 2)}
    hostile = full_section(names)
    hostile = replace(
        hostile, name=HOSTILE, notes=(HOSTILE,), chip=replace(hostile.chip, counters={HOSTILE: {"saturations": 2}})
    )
    text, parsed = written(tmp_path, hostile, title=HOSTILE, facts={HOSTILE: HOSTILE})
    assert "<img src=x" not in text
    assert len(parsed.named("img")) == 2
    assert not [attributes for _, attributes in parsed.tags if "onerror" in attributes]
    assert "\x00" not in text
    assert "\u202e" not in text  # would turn the direction of what follows
    assert '<img src=x onerror="alert(1)">/$\\frac{1}{2}$\\n' in parsed.text
    assert "conv\\n2" in parsed.text


def test_dollars_and_strange_characters_in_names_are_drawn_without_a_warning() -> None:
    assert _drawable("$x_1$ é") == "$x_1$ é"
    assert _drawable("漢") == "□"


def test_report_is_the_same_under_any_matplotlib_settings(tmp_path: Path) -> None:
    plain, _ = written(tmp_path, section())
    before = settings()
    with mpl.rc_context({"text.usetex": True, "font.family": ["serif"], "axes.grid": True, "text.color": "red"}):
        changed, _ = written(tmp_path, section())
    assert changed == plain
    assert settings() == before


def settings() -> dict[str, Any]:
    # reading 'backend' would make matplotlib choose one
    return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}


LAZY = """
import sys
import nirdeploy.comparison
loaded = {"matplotlib", "jinja2", "torch", "PIL"} & set(sys.modules)
assert not loaded, loaded
import numpy as np
from nirdeploy.comparison import compare
from nirdeploy.trajectory import Record, Trajectory
run = Trajectory({("a", v): Record("a", v, np.ones((3, 2, 4), int)) for v in ("spikes", "v_mem")})
compare(run, run).to_html(sys.argv[1])
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""


def test_drawing_libraries_load_on_first_use_and_never_pyplot(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAZY, str(tmp_path / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_comparison_gives_the_same_page(tmp_path: Path) -> None:
    assert written(tmp_path, full_section())[0] == written(tmp_path, full_section())[0]


def test_a_comparison_writes_the_page_with_itself_as_the_only_section(tmp_path: Path) -> None:
    section().comparison.to_html(tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text()).text
    assert text.count("Agreement per layer") == 1
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
    assert "No spike differs" in parsed.text
    assert len(parsed.named("img")) == 2


def test_runs_without_spikes_or_voltages_make_a_page_without_pictures(tmp_path: Path) -> None:
    one = Trajectory({("out", "output"): Record("out", "output", np.ones((3, 2, 4)))})
    two = replace(one, target="x", executor="simulator")
    found = Section("x", compare(one, two), one, two)
    _, parsed = written(tmp_path, found)
    assert verdict(found) == "x: no spikes could be compared"
    assert not parsed.named("img")
    assert "output: RMS 0, largest 0 model units" in parsed.text
    assert "not known: no installed backend has this target" in parsed.text


def test_a_run_without_voltages_says_why_there_are_no_traces(tmp_path: Path) -> None:
    full = section()
    chip = replace(full.chip, records={k: r for k, r in full.chip.records.items() if k[1] == "spikes"})
    found = Section("s", compare(full.reference, chip), full.reference, chip)
    _, parsed = written(tmp_path, found)
    assert "there are no traces" in parsed.text
    assert "Not compared" in parsed.text
    assert verdict(found).endswith("3 records not or not wholly compared")


def test_a_run_on_the_chip_itself_is_called_that(tmp_path: Path) -> None:
    full = full_section()
    chip = replace(full.chip, executor="chip")
    _, parsed = written(tmp_path, replace(full, chip=chip))
    assert "this run is from the chip itself" in parsed.text


def test_many_cores_are_cut_to_the_fullest_and_the_page_says_so(tmp_path: Path) -> None:
    usage = tuple(Usage(core, "a", "axons", core, 100) for core in range(40))
    _, parsed = written(tmp_path, section(placement=Placement({"a": tuple(range(40))}, usage)))
    assert "16 further cores, none fuller than 15 %, are left out." in parsed.text
    assert "core 39" in parsed.text
    assert "core 15 " not in parsed.text


def test_a_placement_without_usage_names_the_cores(tmp_path: Path) -> None:
    _, parsed = written(tmp_path, section(placement=Placement({"a": (2, 5)})))
    assert re.search(r"names no usage; cores: a on 2, 5\s?\.", parsed.text)


# --- what the pictures show --------------------------------------------------------------------------------------


def long_run(steps: int, neurons: int, *changes: tuple[int, int, int]) -> ex.Excerpt:
    data = np.zeros((steps, 2, neurons), np.int32)
    data[:, :, ::3] = 1
    chip = data.copy()
    for index in changes:
        chip[index] ^= 1
    a = Trajectory({("a", "spikes"): Record("a", "spikes", data), ("a", "v_mem"): Record("a", "v_mem", data * 0.5)})
    b = Trajectory({("a", "spikes"): Record("a", "spikes", chip), ("a", "v_mem"): Record("a", "v_mem", chip * 0.5)})
    return ex.excerpt(compare(a, replace(b, target="x")))


def test_the_excerpt_shows_the_sample_and_a_window_around_the_first_difference() -> None:
    part = long_run(1000, 5, (500, 1, 2))
    assert part.sample == 1
    assert part.window == (460, 579)
    (raster,) = part.rasters
    assert raster.first == 460
    assert raster.reference.shape == (120, 5)
    assert raster.counts == (240, 0, 1)


@pytest.mark.parametrize(("step", "window"), [(0, (0, 119)), (999, (880, 999))])
def test_the_window_stays_inside_the_run(step: int, window: tuple[int, int]) -> None:
    assert long_run(1000, 2, (step, 0, 0)).window == window


def test_the_raster_keeps_differing_neurons_then_the_most_active_in_order_of_index() -> None:
    part = long_run(10, 1000, (3, 0, 998), (3, 0, 500))
    (raster,) = part.rasters
    assert len(raster.neurons) == ex.MAX_NEURONS
    assert {500, 998} <= set(raster.neurons)
    assert list(raster.neurons) == sorted(raster.neurons)
    assert sum(neuron % 3 == 0 for neuron in raster.neurons) == ex.MAX_NEURONS - 2
    assert raster.total == 1000


def test_the_trace_follows_the_neuron_that_differs_first() -> None:
    part = long_run(10, 6, (3, 1, 4))
    (trace,) = part.traces
    assert (trace.neuron, trace.sample, trace.first) == ((4,), 1, 0)
    assert np.flatnonzero(trace.voltages[1]).tolist() == [3]
    assert trace.spikes is not None
    assert np.flatnonzero(trace.spikes[1]).tolist() == [3]


def test_of_many_layers_those_that_differ_are_shown_and_the_page_says_so(tmp_path: Path) -> None:
    names = {f"n{i}": (2,) for i in range(12)}
    reference = run(names)
    records = dict(reference.records)
    changed = records["n11", "spikes"].data.copy()
    changed[3, 0, 0] ^= 1
    records["n11", "spikes"] = replace(records["n11", "spikes"], data=changed)
    chip = replace(reference, records=records, target="x", executor="emulator")
    found = compare(reference, chip)
    assert [panel.node for panel in ex.excerpt(found).rasters] == [*(f"n{i}" for i in range(7)), "n11"]
    _, parsed = written(tmp_path, Section("x", found, reference, chip))
    assert "8 of 12 layers" in parsed.text
