"""Comparison of two trajectories: where, and by how much, a chip's run departs from the reference.

align.py   same neurons, same steps, same units
metrics.py spike agreement and voltage errors
measure.py `compare`
hints.py   what the records bear out of `hypotheses.py`: a shift, a turned map, another reset, ...
cause.py   why a spike differs, as far as the records tell
result.py  `Comparison` and its parts
report.py  the page, with plots.py and report.html.j2
text.py    numbers, names and tables as text
"""

from __future__ import annotations

from nirdeploy.comparison.align import Unaligned
from nirdeploy.comparison.measure import compare
from nirdeploy.comparison.report import Section, write_report
from nirdeploy.comparison.result import Comparison, Difference, Divergence, NodeComparison

__all__ = [
    "Comparison",
    "Difference",
    "Divergence",
    "NodeComparison",
    "Section",
    "Unaligned",
    "compare",
    "write_report",
]
