"""The page in a real browser: no complaints, clicks show what they promise, fast enough, names stay text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser, chromium

from nirdeploy.comparison import Section, compare, write_report
from nirdeploy.comparison.text import neuron_text
from nirdeploy.outline import Outline, OutlineNode
from nirdeploy.placement import Placement, Usage
from nirdeploy.trajectory import Record, Trajectory

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">\n\u202e'&\"漢\ud800"
SHAPES = {"if1": (8, 7, 7), HOSTILE: (12, 4, 4), "if3": (10,)}
EXPLORER = "document.querySelector('#target-1-explorer')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    with browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


def run(names: dict[str, tuple[int, ...]], steps: int, flips: float, **fields: Any) -> Trajectory:
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    records: dict[tuple[str, str], Record] = {}
    for name, shape in names.items():
        data = (rng.random((steps, 4, *shape)) < 0.1).astype(np.int32)
        v = rng.random(data.shape)
        if flips:
            data ^= other.random(data.shape) < flips
            v += other.normal(0, 0.05, v.shape)
        records[name, "spikes"] = Record(name, "spikes", data)
        records[name, "v_mem"] = Record(name, "v_mem", v, threshold=1.0)
    return Trajectory(records, **fields)


def section(name: str = "speck2f", steps: int = 300) -> Section:
    nodes = {"input": OutlineNode("Input", (1, 7, 7))}
    nodes |= {node: OutlineNode("IF", shape) for node, shape in SHAPES.items()}
    names = list(nodes)
    outline = Outline(nodes, tuple(itertools.pairwise(names)))
    reference = run(SHAPES, steps, 0, outline=outline)
    chip = run(SHAPES, steps, 0.002, target="speck2f", executor="emulator")
    cores = {"if1": (0, 3), HOSTILE: (5,)}
    usage = tuple(Usage(core, node, "neurons", 40, 100) for node, found in cores.items() for core in found)
    return Section(name, compare(reference, chip), reference, chip, placement=Placement(cores, usage))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, [section(), section("second <b>")], title=f"Page {HOSTILE}")
    return path


def shown(tab: Browser, selector: str) -> str:
    """Text of an element of the first target's charts."""
    return str(tab.value(f"{EXPLORER}.querySelector({selector!r}).textContent"))


def ink(tab: Browser, canvas: str, colour: str, explorer: str = EXPLORER) -> int:
    """Pixels of a canvas in the colour of a custom property."""
    return int(
        tab.value(f"""(async () => {{
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        const seen = {explorer}.querySelector({canvas!r});
        const copy = Object.assign(document.createElement("canvas"), {{ width: seen.width, height: seen.height }});
        const c = copy.getContext("2d", {{ willReadFrequently: true }});  // the page's own stays as it is
        c.drawImage(seen, 0, 0);
        const d = c.getImageData(0, 0, copy.width, copy.height).data;
        const hex = getComputedStyle(document.documentElement).getPropertyValue("--{colour}").trim();
        const want = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
        let n = 0;
        for (let i = 0; i < d.length; i += 4) n += want.every((v, k) => Math.abs(d[i + k] - v) < 4) && d[i + 3] > 250;
        return n; }})()""")
    )


def window(tab: Browser) -> str:
    return shown(tab, ".range").partition(";")[0]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_opens_without_complaints_and_shows_the_first_difference(tab: Browser, page: Path, dark: bool) -> None:
    tab.open(page, dark=dark)
    first = section().comparison.first_divergence
    assert first is not None
    assert tab.complaints == []
    assert shown(tab, ".neurons select option") == (
        f"({', '.join(map(str, first.neuron))}), differs at step {first.step}"
    )
    for canvas, colour in (("canvas.raster", "both"), ("canvas.raster", "chip"), ("canvas.trace", "both"),
                           ("canvas.trace", "chip")):  # fmt: skip
        assert ink(tab, canvas, colour) > 20, (canvas, colour)


def test_the_page_opens_within_a_second(tab: Browser, page: Path) -> None:
    tab.open(page)
    milliseconds = tab.value("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert 0 < milliseconds < 1000


def test_a_click_on_a_node_shows_its_traces(tab: Browser, page: Path) -> None:
    tab.open(page)
    before = ink(tab, "canvas.trace", "chip")
    tab.click("#target-1-network a[data-node='3'] rect")
    assert shown(tab, "h4") == "if3"
    assert "IF" in shown(tab, "dl")
    assert tab.value("document.querySelector('#target-1-network .chosen').dataset.node") == "3"
    assert 20 < ink(tab, "canvas.trace", "chip") != before
    assert shown(tab, ".neurons select").startswith(
        str(section().comparison.per_node["if3"].first_divergence.neuron[0])
    )
    # the other target keeps its own choice
    assert tab.value("document.querySelector('#target-2-explorer h4').textContent") != "if3"
    assert tab.complaints == []


def test_a_node_that_was_not_compared_says_why(tab: Browser, page: Path) -> None:
    tab.open(page)
    tab.click("#target-1-network a[data-node='0'] rect")
    assert shown(tab, "h4") == "input"
    assert tab.value(f"{EXPLORER}.querySelector('.charts').hidden") is True
    assert shown(tab, ".why") == "Not recorded on both sides, so not compared."


def test_a_click_in_the_table_shows_the_node_and_brings_its_charts_into_the_window(tab: Browser, page: Path) -> None:
    tab.open(page, height=500)
    tab.value("document.documentElement.style.scrollBehavior = 'auto'")
    tab.click("#target-1-row-3 a.pick")
    assert shown(tab, "h4") == "if3"
    assert 0 <= tab.value(f"{EXPLORER}.getBoundingClientRect().top") < 300


def test_many_nodes_can_be_chosen_by_name(tab: Browser, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(45)]
    reference = run(dict.fromkeys(names, (3,)), 20, 0)
    chip = run(dict.fromkeys(names, (3,)), 20, 0.01, target="x")
    write_report(tmp_path / "names.html", [Section("x", compare(reference, chip), reference, chip)])
    tab.open(tmp_path / "names.html")
    select = f"{EXPLORER}.querySelector('.names select')"
    tab.value(f"{select}.selectedIndex = 41; {select}.dispatchEvent(new Event('change'))")
    assert shown(tab, "h4") == "n41"
    assert tab.value("document.querySelector('#target-1-network .chosen').dataset.node") == "41"
    assert tab.complaints == []


def test_spikes_without_voltages_and_values_without_spikes_are_shown_alone(tab: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = (rng.random((20, 1, 6)) < 0.3).astype(int)
    values = np.where(rng.random((20, 1, 2)) < 0.2, np.nan, rng.random((20, 1, 2)))
    records = {("s", "spikes"): Record("s", "spikes", data), ("out", "output"): Record("out", "output", values)}
    reference = Trajectory(records, output_names=("out",))
    chip = replace(reference, target="x", records={**records, ("out", "output"): replace(
        records["out", "output"], data=values + 0.1)})  # fmt: skip
    write_report(tmp_path / "alone.html", [Section("x", compare(reference, chip), reference, chip)])
    tab.open(tmp_path / "alone.html")
    visible = f"['raster', 'trace'].map((c) => {EXPLORER}.querySelector('canvas.' + c).offsetHeight > 0)"
    tab.click("#target-1-network a[data-node='0'] rect")
    assert tab.value(visible) == [True, False]
    tab.click("#target-1-network a[data-node='1'] rect")
    assert tab.value(visible) == [False, True]
    assert ink(tab, "canvas.trace", "both") > 20
    assert tab.complaints == []


@pytest.mark.parametrize(("key", "code"), [("Enter", 13), ("Space", 32)])
def test_nodes_can_be_chosen_by_keyboard(tab: Browser, page: Path, key: str, code: int) -> None:
    tab.open(page)
    tab.value("document.querySelector(\"#target-1-network a[data-node='3']\").focus()")
    tab.key(key, code)
    assert shown(tab, "h4") == "if3"
    box = "document.querySelector(\"#target-1-network a[data-node='3']\")"
    assert tab.value(f"[{box}.getAttribute('role'), {box}.getAttribute('aria-pressed')]") == ["button", "true"]


def test_names_of_unknown_origin_stay_text(tab: Browser, page: Path) -> None:
    tab.open(page)
    tab.click("#target-1-network a[data-node='2'] rect")
    assert shown(tab, "h4").startswith("</script><img src=x onerror=")
    assert tab.value("document.images.length") == 0
    assert tab.value("document.title").startswith("Page </script>")
    assert tab.complaints == []


def test_the_policy_refuses_any_other_script(tab: Browser, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    changed = tmp_path / "changed.html"
    changed.write_text(text.replace("</body>", "<script>document.title = 'owned'</script></body>"), encoding="utf-8")
    tab.open(changed)
    assert tab.value("document.title") != "owned"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def test_wheel_drag_buttons_and_keys_move_the_window(tab: Browser, page: Path) -> None:
    tab.open(page)
    tab.click("#target-1-explorer [data-do='all']")
    everything = window(tab)
    assert everything.startswith("In view: steps 0 to 299")
    tab.click("#target-1-explorer [data-do='here']")
    first = section().comparison.first_divergence
    assert first is not None
    near = window(tab)
    assert near != everything
    x, y = tab.place("#target-1-explorer canvas.raster")
    tab.click("#target-1-explorer canvas.raster")
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    zoomed = window(tab)
    assert zoomed != near
    tab.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    tab.mouse("mouseMoved", x - 200, y, button="left", buttons=1)
    tab.mouse("mouseReleased", x - 200, y, button="left", clickCount=1)
    assert window(tab) != zoomed
    tab.key("Home", 36)
    assert window(tab) == near
    tab.key("ArrowRight", 39)
    assert window(tab) != near
    assert tab.complaints == []


def test_the_wheel_scrolls_the_page_while_no_chart_is_chosen(tab: Browser, page: Path) -> None:
    tab.open(page)
    x, y = tab.place("#target-1-explorer canvas.raster")
    before = window(tab)
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=200)
    assert window(tab) == before


@pytest.mark.parametrize("node", ["if1", "if3"])
def test_the_pointer_reads_what_the_trajectories_hold(tab: Browser, page: Path, node: str) -> None:
    tab.open(page)
    found = section()
    first = found.comparison.per_node[node].first_divergence
    assert first is not None
    tab.click(f"#target-1-network a[data-node='{1 + list(SHAPES).index(node)}'] rect")
    tab.click("#target-1-explorer [data-do='all']")
    for shift in (-300, -170, 60, 222):
        x, y = tab.place("#target-1-explorer canvas.trace")
        tab.mouse("mouseMoved", x + shift, y)
        words = shown(tab, ".readout")
        step = int(words.split(" ")[1])
        assert words.startswith(f"step {step} · neuron {neuron_text(first.neuron)} · ")
        at = (step, first.sample, *first.neuron)
        spikes = [int(side[node, "spikes"].data[at]) for side in (found.reference, found.chip)]
        v = [float(side[node, "v_mem"].data[at]) for side in (found.reference, found.chip)]
        assert f"spikes: {spikes[0]} reference, {spikes[1]} chip" in words
        told = re.findall(r"v_mem: (\S+) reference, (\S+) chip", words)
        assert [float(value) for value in told[0]] == pytest.approx(v, rel=1e-3)


def test_cores_of_the_chosen_node_are_marked_and_a_click_opens_one(tab: Browser, page: Path) -> None:
    tab.open(page)
    tab.click("#target-1-network a[data-node='1'] rect")
    mine = "[...document.querySelectorAll('#target-1-cores .mine')].map((cell) => cell.textContent)"
    assert tab.value(mine) == ["0", "3"]
    tab.click("#target-1-cores a[data-core='5']")
    cards = "[...document.querySelectorAll('#target-1 .core')].filter((c) => c.offsetHeight).map((c) => c.dataset.core)"
    assert tab.value(cards) == ["5"]


def test_without_scripts_the_page_still_shows_raster_traces_and_cores(tab: Browser, page: Path) -> None:
    tab.open(page, scripts=False)
    tab.send("Emulation.setScriptExecutionDisabled", value=False)  # to ask it
    assert tab.value("[...document.querySelectorAll('#target-1 .still')].filter((s) => s.clientHeight).length") == 3
    assert tab.value("document.querySelector('#target-1-explorer').offsetHeight") == 0
    assert tab.value("[...document.querySelectorAll('#target-1 .core')].filter((c) => c.offsetHeight).length") == 3


def test_on_paper_the_standing_pictures_replace_the_charts(tab: Browser, page: Path) -> None:
    tab.open(page, dark=True)
    tab.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.value("[...document.querySelectorAll('#target-1 .still')].filter((s) => s.clientHeight).length") == 3
    assert tab.value("document.querySelector('#target-1-explorer').offsetHeight") == 0
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.body).color") == "rgb(36, 41, 47)"


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(tab: Browser, page: Path, width: int) -> None:
    tab.open(page, width=width)
    assert tab.value("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_folded_sections_draw_their_charts_once_opened(tab: Browser, tmp_path: Path) -> None:
    found = section(steps=40)
    write_report(tmp_path / "many.html", [replace(found, name=f"run {i}") for i in range(4)])
    tab.open(tmp_path / "many.html")
    explorer = "document.querySelector('#target-3-explorer')"
    assert tab.value(f"{explorer}.closest('details').open") is False
    tab.click("details:nth-of-type(3) summary")
    assert tab.value(f"{explorer}.closest('details').open") is True
    assert ink(tab, "canvas.raster", "both", explorer) > 20
    assert tab.value(f"{explorer}.querySelector('canvas').width") > 300
    assert tab.complaints == []
