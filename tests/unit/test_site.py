"""The site: built strictly, without a warning; complete, without a dead link, and of one piece."""

import dataclasses
import html
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import site_api
import site_pages
from browser import browser, chromium
from nets import ROOT
from nirdeploy_speck import options, samna_runner
from site_api import GROUPS
from site_backends import backend_pages
from site_commands import command_page, verbs
from site_pages import SECTIONS, for_site, linked_files, notebook

import nirdeploy as nd
from nirdeploy import errors

WAIT = """new Promise((done, failed) => {
    const end = Date.now() + 20000
    const look = () => %s ? done() : Date.now() > end ? failed(new Error("in vain")) : setTimeout(look, 50)
    look()
})"""
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site and what building it said."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    return folder, found.stdout + found.stderr


@pytest.fixture(scope="module")
def pages(built):
    """Every page by its path in the site."""
    folder, _ = built
    found = {}
    for path in folder.rglob("*.html"):
        found[path.relative_to(folder).as_posix()] = Page(path.read_text(encoding="utf-8"))
    return found


class Page(HTMLParser):
    """What a page loads, where it links to, and the anchors it has."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.loaded, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag in LOADS and given.get(LOADS[tag]) and given.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(given[LOADS[tag]])
        elif tag in ("a", "link") and given.get("href"):
            self.links.append(given["href"])


def reference(page):
    """Names that have a heading on a page of the reference."""
    return re.findall(r'<h2 id="([\w.]+)" class="doc doc-heading"', page.text)


def test_nothing_was_worth_a_warning(built):
    lines = [line for line in built[1].splitlines() if line.strip()]
    assert any("Documentation built" in line for line in lines)
    assert [line for line in lines if not line.startswith("INFO ")] == []
    assert [line for line in lines if "warning" in line.lower()] == []


def test_nothing_is_loaded_from_elsewhere(built, pages):
    assert len(pages) > 30
    for name, page in pages.items():
        assert [url for url in page.loaded if urlsplit(url).scheme or url.startswith("//")] == [], name
        assert "unpkg" not in page.text, name
    for path in [*built[0].rglob("*.css"), *built[0].rglob("*.html")]:
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"' ]+", path.read_text(encoding="utf-8")) == []


def test_every_link_and_anchor_leads_somewhere(built, pages):
    folder, _ = built
    checked = 0
    for name, page in pages.items():
        base = folder / Path(name).parent
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), (name, url)
                continue
            path = (base / unquote(parts.path)).resolve() if parts.path else folder / name
            if name == "404.html":  # served from anywhere: its links begin at the root
                path = folder / unquote(parts.path).lstrip("/")
            path = path / "index.html" if path.is_dir() else path
            assert path.is_file(), (name, url)
            if parts.fragment and path.suffix == ".html":
                target = pages[path.relative_to(folder).as_posix()]
                assert unquote(parts.fragment) in target.anchors | {"__skip"}, (name, url)
                checked += 1
    assert checked > 1000


def test_every_public_name_stands_once_in_the_reference(pages):
    stated = [name for group in GROUPS for name in reference(pages[f"api/{group}.html"])]
    public = [name.removeprefix("nirdeploy.") for name in stated if name.count(".") == 1]
    assert Counter(public) == Counter(nd.__all__)


def test_a_public_name_without_a_place_stops_the_build(monkeypatch):
    monkeypatch.setattr(nd, "__all__", [*nd.__all__, "novelty"])
    with pytest.raises(ValueError, match=r"without one place in GROUPS: \['novelty'\]"):
        site_api.api_pages()


def test_a_section_of_the_readme_without_a_place_stops_the_build(monkeypatch):
    monkeypatch.setattr(site_pages, "SECTIONS", {"index.md": (None, ("", "What it does"))})
    with pytest.raises(ValueError, match="'Command line'.*on pages of the site"):
        site_pages.readme_pages()


def test_every_error_is_in_the_reference_and_linked_from_what_raises_it(pages):
    page = pages["api/errors.html"]
    names = {name.rpartition(".")[2] for name in reference(page)}
    assert names == set(errors.__all__)
    assert html.escape("└── MissingTimeStepError") in page.text
    for group in ("run", "deployment", "files"):
        raised = re.findall(r"<code>(\w*Error)</code>", pages[f"api/{group}.html"].text)
        assert [name for name in raised if name in errors.__all__] == [], "errors that are no links"
        assert 'href="errors.html#nirdeploy.errors.GraphError' in pages["api/run.html"].text


def test_every_argument_and_field_of_a_public_name_is_explained(pages):
    for group, (_, _, names) in GROUPS.items():
        for name in names:
            entry = pages[f"api/{group}.html"].text.split(f'id="nirdeploy.{name}" class="doc')[1].split('<h2 id="')[0]
            thing = getattr(nd, name)
            if dataclasses.is_dataclass(thing):
                explained = [field.name for field in dataclasses.fields(thing) if not field.name.startswith("_")]
            else:
                explained = getattr(thing, "__annotations__", {}).keys() - {"return"}
            for one in explained:
                assert re.search(rf"<code>\*{{0,2}}{one}</code>", entry) or f"nirdeploy.{name}.{one}" in entry, (
                    name,
                    one,
                )


def test_what_a_function_returns_is_one_entry(pages):
    found = 0
    for name, page in pages.items():
        for part in page.text.split(">Returns:</span>")[1:]:
            assert part.split("</table>")[0].count('<tr class="doc-section-item">') == 1, name
            found += 1
    assert found > 25


def test_types_of_arguments_and_results_are_links(pages):
    page = pages["api/deployment.html"].text
    for target in (
        "nirdeploy.Convention",
        "nirdeploy.Trajectory",
        "nirdeploy.rules.Finding",
        "nirdeploy.target.Energy",
    ):
        assert re.search(rf'href="[\w.]*#{target}"', page) or f"#nirdeploy.{target.rpartition('.')[2]}" in page, target


def test_every_verb_is_on_the_page_of_the_command_line_with_its_options(pages):
    page = pages["cli.html"].text
    assert {"demo", "check", "deploy", "compare", "env create"} <= set(verbs())
    for words, command in verbs().items():
        part = page.split(f'id="nirdeploy-{words.replace(" ", "-")}"')[1].split("<h2")[0]
        assert "Example" in part, words
        for parameter in command.params:
            for option in parameter.opts:
                shown = option if option.startswith("-") else parameter.name.upper()
                assert re.search(rf"<code>\[?{shown}(?:\.\.\.)?\]?</code>", part), (words, option)
    assert "| `--target`, `-t` | text | A name from `nirdeploy targets`. Required. |" in command_page()
    assert "| `--on` | text | emulator, simulator or chip; for deployments. Default: `emulator`. |" in command_page()


def test_every_option_of_a_backend_is_on_its_page():
    page = backend_pages()["api/speck.md"]
    for name in ("cores", "dvs", "readout", *options.LANES, *samna_runner.ChipOptions.__dataclass_fields__):
        assert f"| `{name}` |" in page, name
    assert "| `slower_lane` | required | 0 or 1. |" in page
    assert "| `lanes` |" not in page
    assert "| `solver` | 'greedy' or 'cp-sat' |" in backend_pages()["api/loihi.md"]


def test_every_section_of_the_readme_is_on_one_page(pages):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    titles = [re.sub("<[^>]+>", "", title) for page in SECTIONS for title in headings(pages, page)]
    assert [title for title in sections if titles.count(title) != 1] == []
    assert "nirdeploy" in headings(pages, "index.md")[0]


def headings(pages, page):
    found = re.findall(r"<h[12][^>]*>(.*?)</h[12]>", pages[page.replace(".md", ".html")].text)
    return [re.sub(r'<a class="headerlink".*?</a>', "", text) for text in found]


def test_every_guide_and_example_can_be_reached(pages):
    linked = {url.partition("#")[0] for url in pages["index.html"].links}
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name.replace(".md", ".html") in linked, path.name
    for path in (ROOT / "examples").glob("*.py"):
        assert f"source/examples/{path.name}.html" in pages["gallery.html"].links, path.name
        assert "jupytext" not in pages[f"source/examples/{path.name}.html"].text


def test_links_of_the_repository_become_links_of_the_site():
    text = (
        "[a](reference.md#x) [b](../examples/own_chip_dump.py) `nd.run(x)` `nd.nothing`\n\n"
        "```python norse\n[c](d)\n```\n"
    )
    assert linked_files(text, "docs/compare.md") == {"docs/reference.md", "examples/own_chip_dump.py"}
    assert for_site(text, "docs/compare.md", "compare.md", frozenset({"run"})) == (
        "[a](reference.md#x) [b](source/examples/own_chip_dump.py.md) [`nd.run(x)`][nirdeploy.run] `nd.nothing`\n\n"
        "```python\n[c](d)\n```\n"
    )
    assert for_site("[s](SECURITY.md)", "README.md", "api/x.md") == "[s](../security.md)"
    assert for_site("see [docs/speck.md](docs/speck.md)", "README.md", "x.md") == (
        "see [A Speck, from the graph to the chip](speck.md)"
    )
    with pytest.raises(ValueError, match=r"docs/x\.md links to gone\.md, which is no file of the repository"):
        linked_files("[a](gone.md)", "docs/x.md")
    with pytest.raises(ValueError, match="no file of the repository"):
        linked_files("[a](../../elsewhere.md)", "docs/x.md")


def test_a_list_behind_its_sentence_is_a_list(pages):
    text = "Two:\n- a\n  b\n- c\n\n| x |\n1. d\n"
    assert for_site(text, "README.md", "x.md") == "Two:\n\n- a\n  b\n- c\n\n| x |\n1. d\n"
    for name, page in pages.items():
        assert re.findall(r"<p>[^<]*\n(?:- |1\. )", page.text) == [], name


def test_cells_of_a_script_become_text_and_code():
    text = notebook("# %% [markdown]\n# # Title\n#\n# Words.\n\n# %%\nx = 1\n\n\ny = 2\n")
    assert text == "## Title\n\nWords.\n\n```python\nx = 1\n\n\ny = 2\n```\n"


def test_search_answers_from_the_disk(built, tmp_path):
    with browser(chromium(), tmp_path / "profile") as tab:
        tab.open(built[0] / "index.html")
        tab.value("document.querySelector('.md-search__input').focus()")
        tab.value(WAIT % "document.querySelector('.md-search-result__meta').innerText.startsWith('Type')")
        tab.send("Input.insertText", text="slower_lane")
        tab.key("Shift", 16)  # the page listens to keys
        tab.value(WAIT % "document.querySelector('.md-search-result__link')")
        found = tab.value("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)")
        assert any("/api/speck.html" in link for link in found)
        assert [text for text in tab.complaints if "data:" not in text] == []
