"""Write the table of presets on the page docs/conventions.md from the presets themselves.

python docs/make_presets_table.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import generated
from generated import between_markers

from nirdeploy.reference.presets import PRESETS, Preset

PAGE = Path(__file__).with_name("conventions.md")
BEGIN, END = "<!-- presets: begin -->\n", "<!-- presets: end -->\n"


def table() -> str:
    """One row a preset: what it changes, what it was held against, and what it does not follow."""
    rows = [("preset", "changes", "held against (`verified_against`)", "limits"), ("---",) * 4]
    rows += [_row(name, preset) for name, preset in PRESETS.items()]
    return generated.table(rows)


def _row(name: str, preset: Preset) -> tuple[str, ...]:
    changes = [
        f"`{field}={value!r}`" if field != "overrides" else _overrides(value) for field, value in preset.fields.items()
    ]
    return (f"`{name}`", ", ".join(changes) or "nothing", preset.verified_against, preset.limits or "none known")


def _overrides(overrides: Mapping[str, Mapping[str, object]]) -> str:
    parts = []
    for kind, fields in overrides.items():
        parts.append(f"for {kind} {', '.join(f'`{field}={value!r}`' for field, value in fields.items())}")
    return ", ".join(parts)


def with_table(page: str) -> str:
    """The page with the table between its markers made anew; ValueError where it lacks them."""
    return between_markers(page, PAGE.name, BEGIN, END, table())


def main(path: Path = PAGE) -> None:
    """Rewrite the page."""
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
