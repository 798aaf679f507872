"""Write the tables on the page docs/targets.md from what the targets answer to small networks.

python docs/make_targets_page.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from generated import between_markers, table

from nirdeploy.backend import targets
from nirdeploy.matrix import Answer, always, matrix, sections

PAGE = Path(__file__).with_name("targets.md")
BEGIN, END = "<!-- targets: begin -->\n", "<!-- targets: end -->\n"


def tables() -> str:
    """What each target was verified against, then a table of answers for each section."""
    names = list(targets())
    answers = matrix(names)
    groups = alike(answers, names)
    parts = [_verified(), _warned(groups)]
    for title, questions in sections(answers).items():
        rows = [("", *(", ".join(f"`{name}`" for name in group) for group in groups)), ("---",) * (len(groups) + 1)]
        rows += [(question, *(cell(found[g[0]]) for g in groups)) for question, found in questions.items()]
        parts.append(f"### {title}\n\n{table(rows)}")
    return "\n" + "\n".join(parts) + "\n"


def alike(answers: Sequence[Answer], names: Sequence[str]) -> list[list[str]]:
    """Targets that give the same answer to every question, together."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        said = tuple((a.section, a.name, a.answer, a.codes) for a in answers if a.target == name)
        groups.setdefault((said, always(name)), []).append(name)
    return list(groups.values())


def cell(answer: Answer) -> str:
    """One answer, its codes as code."""
    codes = ", ".join(f"`{code}`" for code in answer.codes)
    return {"yes": "yes", "warning": f"yes, with {codes}", "no": f"**no**: {codes}"}[answer.answer]


def _verified() -> str:
    rows: list[tuple[str, ...]] = [("target", "chip", "stage", "held against", "on chip"), ("---",) * 5]
    for name, target in targets().items():
        for number, (stage, what) in enumerate(target.verified.items()):
            head = (f"`{name}`", target.title) if number == 0 else ("", "")
            rows.append((*head, stage, what, target.on_chip if number == 0 else ""))
    return f"### Verified against\n\n{table(rows)}"


def _warned(groups: Sequence[Sequence[str]]) -> str:
    lines = []
    for group in groups:
        if codes := always(group[0]):
            listed = ", ".join(f"`{code}`" for code in sorted(codes))
            lines.append(f"{', '.join(f'`{name}`' for name in group)}: every network has the warning {listed}.\n")
    return "".join(lines)


def with_tables(page: str) -> str:
    """The page with what is between its markers made anew; ValueError where it lacks them."""
    return between_markers(page, PAGE.name, BEGIN, END, tables())


def main(path: Path = PAGE) -> None:
    """Rewrite the page."""
    path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
