"""Write the tables of what survives the trip on the page docs/frameworks.md from what the tests recorded.

python docs/make_trips_table.py
"""

from __future__ import annotations

import json
from pathlib import Path

import generated
from generated import between_markers

PAGE = Path(__file__).with_name("frameworks.md")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
LIBRARIES = {"snntorch": "snnTorch", "norse": "Norse", "sinabs": "sinabs", "spikingjelly": "SpikingJelly"}


def table(library: str) -> str:
    """One row a layer and option: what the library makes of our file, and we of its file."""
    rows = json.loads((GOLDEN / f"trips_{library}.json").read_text(encoding="utf-8"))
    name = LIBRARIES[library]
    head = ("layer", "option", f"our file in {name}", f"{name}'s file here")
    lines = [head, ("---",) * 4]
    lines += [(f"`{row['layer']}`", row["option"], row["to"], row["back"]) for row in rows]
    return generated.table(lines)


def with_tables(page: str) -> str:
    """The page with the tables between their markers made anew; ValueError where it lacks them."""
    for library in LIBRARIES:
        begin, end = f"<!-- {library}: begin -->\n", f"<!-- {library}: end -->\n"
        page = between_markers(page, PAGE.name, begin, end, table(library))
    return page


def main(path: Path = PAGE) -> None:
    """Rewrite the page."""
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
