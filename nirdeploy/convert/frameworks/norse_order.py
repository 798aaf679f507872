"""The order in which nirtorch runs a graph for Norse (nirtorch 2.6, graph_executor.py and graph_utils.py).

`norse.torch.from_nir` hands the graph to nirtorch's executor, which goes depth first from the Input: a node runs as
soon as one of its sources has run, sources that have not run yet are read from the step before, and what ran last is
the output. So the order of edges in the file decides what is computed.
"""

from __future__ import annotations

from nirdeploy.errors import UnsupportedError
from nirdeploy.schedule import NodePath, Schedule, dotted

__all__ = ["in_nirtorchs_order"]

_WRONG = {True: "new output", False: "last step's output"}  # of a feedback edge, of any other


def in_nirtorchs_order(plan: Schedule) -> list[tuple[str, str]]:
    """The edges in an order that makes nirtorch run the schedule.

    Raises:
        UnsupportedError: no order does, or two names are one to nirtorch; naming the node.
    """
    _check_names(plan)
    back = set(plan.feedback)
    after: dict[NodePath, list[NodePath]] = {path: [] for path in plan.order}
    for target in plan.order:
        for source in plan.sources[target]:
            after[source].append(target)
    place = {path: index for index, path in enumerate(plan.order)}
    leads_out = _leading_out(plan, back)
    for targets in after.values():
        # what leads back first, so that the way to the Output comes last
        targets.sort(key=lambda path: (path in leads_out, place[path]))
    ran = {path: index for index, path in enumerate(_depth_first(plan.inputs[0], after))}
    for target in plan.order:
        for source in plan.sources[target]:
            if (ran[source] < ran[target]) == ((source, target) in back):
                raise UnsupportedError(
                    f"nirtorch, which runs the graph for Norse, would take the {_WRONG[(source, target) in back]} of "
                    f"{dotted(source)!r}",
                    node=dotted(target),
                    remedy="Use a chain, skips over layers of it, and loops from a layer back to an earlier one.",
                )
    last = max(ran, key=lambda path: ran[path])
    if last not in plan.outputs:
        raise UnsupportedError(
            "nirtorch, which runs the graph for Norse, would run it last and take it for the output",
            node=dotted(last),
            remedy="Remove what does not lead to the Output.",
        )
    return [(dotted(source), dotted(target)) for source in plan.order for target in after[source]]


def _depth_first(start: NodePath, after: dict[NodePath, list[NodePath]]) -> list[NodePath]:
    found: dict[NodePath, None] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting.extend(reversed(after[path]))
    return list(found)


def _leading_out(plan: Schedule, back: set[tuple[NodePath, NodePath]]) -> set[NodePath]:
    """Nodes from which a way without feedback edges leads to the Output."""
    found = set(plan.outputs)
    for target in reversed(plan.order):
        if target in found:
            found.update(source for source in plan.sources[target] if (source, target) not in back)
    return found


def _check_names(plan: Schedule) -> None:
    seen: dict[str, str] = {}
    for path in plan.order:
        name = dotted(path)
        other = seen.setdefault(name.replace(".", "_"), name)
        if other != name:
            raise UnsupportedError(
                f"nirtorch takes its name for that of {other!r}: it writes '_' for '.'", node=name, remedy="Rename one."
            )
