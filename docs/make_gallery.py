"""Write the page docs/gallery.md: what each script of examples/ and `make demo` print, and pictures of their pages.

python docs/make_gallery.py [NAME ...]

Runs what is named, or all. An example of a library runs in `.venv-with-<library>`, which `make oracles` builds; the
pictures need Chromium. What is not named stays as it was recorded.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from generated import between_markers

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("gallery.md")
PICTURES = Path(__file__).with_name("gallery")

# in the order of the page -> the page that is pictured from an element on, in the folder it was run in ("": none)
SHOWN: Mapping[str, str] = {
    "demo": "out/demo/report.html",
    "loihi2_trace": "out/examples/loihi2_trace.html",
    "speck_counts": "out/examples/speck_counts.html",
    "own_chip_dump": "out/examples/board.html",
    "one_graph_three_libraries": "out/examples/snntorch_norse.html",
    "snntorch_digits": "out/examples/snntorch_speck2f.html#target-1-network",
    "norse_digits": "",
    "sinabs_digits": "",
    "spikingjelly_digits": "",
}
# their numbers depend on the order in which a processor adds floats up, most of all where a network is trained
FLOATS = frozenset(name for name in SHOWN if name.endswith("_digits")) | {"demo", "one_graph_three_libraries"}


_MASK_SECONDS = r"""document.querySelectorAll("td").forEach(cell => {
    if (/^[\d.]+ s$/.test(cell.innerText.trim())) cell.textContent = "... s"
})"""


def markers(name: str) -> tuple[str, str]:
    """The lines between which an example stands."""
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"


def masked(text: str) -> str:
    """The text without the seconds that something took: a line that begins with them, or the last column of a table."""
    text = re.sub(r"^\d+ s\b", "... s", text, flags=re.MULTILINE)
    head = re.search(r"seconds ┃$", text, re.MULTILINE)
    return re.sub(r"│ \d+\.\d( +)│$", r"│ ...\1│", text, flags=re.MULTILINE) if head else text


def recorded(name: str, page: str | None = None) -> str:
    """What the page says that an example prints."""
    begin, end = markers(name)
    text = PAGE.read_text(encoding="utf-8") if page is None else page
    part = text.split(begin)[1].split(end)[0]
    found: str = part.split("```text\n")[1].split("```\n")[0]
    return found


def differences(name: str, text: str) -> list[str]:
    """Lines in which what an example printed differs from the page, '-' the page's and '+' the new ones.

    Of examples whose numbers are a processor's own, the first two words of each line, any number in them as '#'.
    """
    old, new = recorded(name).splitlines(), masked(text).splitlines()
    if name in FLOATS:
        old, new = [_words(line) for line in old], [_words(line) for line in new]
    old += [""] * (len(new) - len(old))
    new += [""] * (len(old) - len(new))
    return [line for a, b in zip(old, new, strict=True) if a != b for line in (f"- {a}", f"+ {b}")]


def _words(line: str) -> str:
    return " ".join(re.sub(r"\d+(\.\d+)?", "#", line.replace("━", "")).split()[:2])


def section(name: str, text: str) -> str:
    """One example: its title and first words, the script, what it prints, the picture."""
    if name == "demo":
        title, link = "make demo", "`make demo`, or `nirdeploy demo`,"
        words = "A network is trained on handwritten digits and put on two chips, and the states are compared."
    else:
        title, words = _first_cell(name)
        link = f"[examples/{name}.py](../examples/{name}.py)"
    picture = ""
    if (PICTURES / f"{name}.png").exists():
        picture = (
            f"\nIt writes `{SHOWN[name].partition('#')[0]}`:\n\n![The page that {name} writes](gallery/{name}.png)\n"
        )
    return f"\n## {title}\n\n{words}\n\n{link} prints:\n\n```text\n{masked(text)}```\n{picture}\n"


def _first_cell(name: str) -> tuple[str, str]:
    """Title and first words of a script: paragraphs to the first that ends a sentence."""
    script = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    cell = script.split("# %%")[1].split("\n", 1)[1]
    title, *parts = "\n".join(line[2:] for line in cell.splitlines()).strip().split("\n\n")
    last = next(at for at, part in enumerate(parts) if part.endswith((".", "?")))
    return title.removeprefix("# "), "\n\n".join(parts[: last + 1])


def with_section(page: str, name: str, text: str) -> str:
    """The page with one example made anew; ValueError where it lacks its markers."""
    return between_markers(page, PAGE.name, *markers(name), section(name, text))


def run(name: str, folder: Path) -> str:
    """What an example prints, run now in a folder."""
    from example_runs import prepared, printed

    if name == "demo":
        command = [sys.executable, "-m", "nirdeploy", "demo"]
        done = subprocess.run(  # noqa: S603 - a list of our own, and no shell
            command, cwd=folder, capture_output=True, text=True, check=True, timeout=600
        )
        return done.stdout
    library = ROOT / f".venv-with-{name.removesuffix('_digits')}"
    python = library / "bin" / "python" if name.endswith("_digits") else sys.executable
    return printed(name, folder, python=python, **prepared(name, folder))


def photograph(name: str, folder: Path) -> None:
    """A small picture of the page that an example wrote in a folder."""
    from browser import browser, chromium
    from PIL import Image

    path = PICTURES / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    page, _, anchor = SHOWN[name].partition("#")
    with tempfile.TemporaryDirectory() as profile, browser(chromium(), Path(profile)) as tab:
        tab.send("Emulation.setScrollbarsHidden", hidden=True)
        tab.open(folder / page, width=1100, height=780)
        tab.value(_MASK_SECONDS)
        tab.value(f"document.getElementById({anchor!r})?.scrollIntoView({{behavior: 'instant'}})")
        tab.screenshot(path, whole=False)
    # few colours are enough for text and lines, at a third of the size
    Image.open(path).convert("RGB").quantize(96, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def main(names: list[str]) -> None:
    """Run examples and rewrite the page."""
    sys.path.insert(0, str(ROOT / "tests"))
    for name in names or list(SHOWN):
        with tempfile.TemporaryDirectory() as folder:
            text = run(name, Path(folder))
            if SHOWN[name]:
                photograph(name, Path(folder))
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_section(page, name, text), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
