"""Comparison of two trajectories: where, and by how much, a chip's run departs from the reference.

align.py   same neurons, same steps, same units
metrics.py spike agreement and voltage errors
measure.py `compare`
hints.py   what the records bear out of `hypotheses.py`: a shift, a turned map, another reset, ...
cause.py   why a spike differs, as far as the records tell; spread.py: whether something before it did
result.py  `Comparison`; its parts: per_node.py, and divergence.py, the first spike that differs; summary.py: as text
report.py  the page: report.html.j2 with page.css and page.js, filled by page_data.py (spikes and traces for the
           script), network.py and layout.py (the drawing), core_map.py, picture.py (for paper), excerpt.py (what of a
           run is shown)
text.py    numbers, names and tables as text
"""

from __future__ import annotations

from nirdeploy.comparison.align import Unaligned
from nirdeploy.comparison.divergence import Divergence
from nirdeploy.comparison.measure import compare
from nirdeploy.comparison.per_node import Difference, NodeComparison
from nirdeploy.comparison.report import Section, write_report
from nirdeploy.comparison.result import Comparison

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
