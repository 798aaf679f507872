"""Layers onto cores: an assignment over the three memories of a core, splitting what fits no core by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations, pairwise
from typing import Any

from nirdeploy.errors import PlacementError
from nirdeploy.names import suggest
from nirdeploy.placement import Placement, Usage, core_number, core_numbers, require_options
from nirdeploy.quantization import Quantized
from nirdeploy_speck.capacity import Demand, assign, cut, demands, memories, most_channels
from nirdeploy_speck.dvs import dvs_options
from nirdeploy_speck.layers import Network
from nirdeploy_speck.network import lowered
from nirdeploy_speck.network_rules import dvs_findings
from nirdeploy_speck.readout import readout_options

__all__ = ["OPTIONS", "place"]

OPTIONS = {
    "avoid_cores": "[core, ...]",
    "cores": "{layer: core or [core, ...]}",
    "dvs": "{entry: value}",
    "readout": "{entry: value}",
}


def place(quantized: Quantized, **options: Any) -> Placement:
    """Cores for every layer.

    A layer that fits no core by itself is split by output channels: every source then sends to each part, with its two
    destinations, and targets get the parts' channels side by side (`feature_shift`). Its own spikes stay the same;
    event by event, targets get those of one input from one part after the other, an order in which a whole layer need
    not send.

    Args:
        quantized: a quantised graph.
        **options: `avoid_cores`, cores to leave free (None: the chip's stochastic ones, 0 and 1); `cores`, layers
            fixed to a core, or to several that it is split over, by weight node or population; `dvs`, the layer before
            the cores (`dvs.DVS_OPTIONS`): a raster then has the shape that reaches it; `readout`, the one behind
            (`readout.READOUT_OPTIONS`).

    Raises:
        PlacementError: says per layer which memory of which core is too small, or which cores are short; or an
            option that is unknown or of the wrong type.
    """
    require_options(options, OPTIONS)
    target = quantized.target
    stored: dict[str, Any] = {}
    if options.get("dvs") is not None:
        stored["dvs"] = dvs_options(options["dvs"], target.table["dvs"])
    network = lowered(quantized, Placement({}, options=stored))
    for finding in dvs_findings(network, target):
        raise PlacementError(finding.problem, node=finding.node, remedy=finding.remedy)
    if options.get("readout") is not None:
        stored["readout"] = readout_options(options["readout"], network, target.table["readout"])
        _require_destination(network, stored["readout"]["node"], int(target.table["limits"]["destinations"]))
    available = memories(target)
    avoided = set(target.table["cores"]["stochastic"])
    if options.get("avoid_cores") is not None:
        avoided = set(core_numbers(options["avoid_cores"], len(available), option="avoid_cores"))
    wanted = demands(network, target, stored.get("readout"))
    fixed = _fixed(wanted, options.get("cores"), available)
    allowed = [core for core in range(len(available)) if core not in avoided]
    found = assign(wanted, allowed, available, fixed)
    if found is None:
        raise _refusal(wanted, allowed, available, fixed, target.table["cores"]["stochastic"])
    return _placement(wanted, found, available, stored)


def _require_destination(network: Network, node: str, limit: int) -> None:
    fed = [layer.name for layer in network.layers for feed in layer.feeds if feed.source == node]
    if len(fed) >= limit:
        raise PlacementError(
            f"feeds {', '.join(fed)} and the readout, at most {limit} destinations",
            node=node,
            remedy="Read another population.",
        )


def _placement(
    wanted: Mapping[str, Demand],
    found: Mapping[str, tuple[int, ...]],
    available: Sequence[Mapping[str, int]],
    stored: Mapping[str, Any],
) -> Placement:
    usage, slices = [], {}
    for name, demand in wanted.items():
        _, height, width = demand.layer.output_shape
        parts = cut(demand.outputs, [demand.room(available[core]) for core in found[name]])
        edges = [0, *accumulate(parts)]
        slices[name] = tuple((a * height * width, b * height * width) for a, b in pairwise(edges))
        usage += [
            Usage(core, name, resource, used, available[core][resource])
            for core, outputs in zip(found[name], parts, strict=True)
            for resource, used in demand.needs(outputs).items()
        ]
    return Placement(found, tuple(usage), slices, stored)


# ---------------------------------------------------------------- given cores


def _fixed(
    wanted: Mapping[str, Demand], cores: Any, available: Sequence[Mapping[str, int]]
) -> dict[str, tuple[int, ...]]:
    if not isinstance(cores, Mapping | None):
        raise PlacementError(f"cores is {cores!r}, expected {{layer: core}}")
    by_name = {key: d for d in wanted.values() for key in (*(i.node for i in d.layer.inlets), d.layer.name)}
    fixed: dict[str, tuple[int, ...]] = {}
    for key, value in (cores or {}).items():
        if key not in by_name:
            raise PlacementError(f"cores names {key!r}, which is no layer", remedy=suggest(str(key), by_name))
        demand = by_name[key]
        layer = demand.layer
        given = _numbers(value, len(available), f"cores[{key!r}]", layer.name)
        if layer.name in fixed:
            raise PlacementError(f"cores names it twice, as {layer.weight_node!r} and as itself", node=layer.name)
        for core in given:
            if core in [c for others in fixed.values() for c in others]:
                raise PlacementError(f"core {core} is given to two layers", node=layer.name)
        if len(set(given)) < len(given):
            raise PlacementError(f"cores[{key!r}] has a core twice: {list(given)}", node=layer.name)
        _require_fit(demand, given, available)
        fixed[layer.name] = given
    return fixed


def _numbers(value: Any, count: int, option: str, node: str) -> tuple[int, ...]:
    # arrays without axes have __iter__, too
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
        return (core_number(value, count, option=option, node=node),)
    found = core_numbers(value, count, option=option, node=node)
    if not found:
        raise PlacementError(f"{option} is empty", node=node, remedy="Name a core, or leave the layer out.")
    return found


def _require_fit(demand: Demand, cores: tuple[int, ...], available: Sequence[Mapping[str, int]]) -> None:
    name = demand.layer.name
    if len(cores) > demand.most_parts:
        raise PlacementError(
            f"cannot be split over {len(cores)} cores: {_bound(demand)}", node=name, remedy="Give it fewer cores."
        )
    if len(cores) > demand.outputs:
        raise PlacementError(f"{len(cores)} cores for {demand.outputs} output channels", node=name)
    rooms = [demand.room(available[core]) for core in cores]
    if len(cores) == 1 and rooms[0] < demand.outputs:
        lacking = ", ".join(demand.lacking(available[cores[0]]))
        raise PlacementError(
            f"does not fit core {cores[0]}: {lacking}",
            node=name,
            remedy=f"At most {rooms[0]} output channels fit there." if rooms[0] else None,
        )
    if sum(rooms) < demand.outputs or not all(rooms):
        listed = ", ".join(f"core {core}: {room}" for core, room in zip(cores, rooms, strict=True))
        raise PlacementError(
            f"its {demand.outputs} output channels do not fit ({listed})", node=name, remedy="Give it other cores."
        )


def _bound(demand: Demand) -> str:
    if demand.bound_by == demand.layer.name:
        return "the readout reads one core"
    if demand.bound_by:
        return f"{demand.bound_by!r} has {demand.most_parts} destination{'s'[: demand.most_parts - 1]} for it"
    return f"the chip has {demand.most_parts}"


# ---------------------------------------------------------------- why not


def _refusal(
    wanted: Mapping[str, Demand],
    allowed: Sequence[int],
    available: Sequence[Mapping[str, int]],
    fixed: Mapping[str, tuple[int, ...]],
    stochastic: Sequence[int],
) -> PlacementError:
    """What to say of layers that have no place: each that fits nothing, else all of them with their cores."""
    usable = [available[core] for core in allowed]
    hopeless = [d for name, d in wanted.items() if name not in fixed and most_channels(d, usable) < d.outputs]
    remedies = _freeing(wanted, allowed, available, fixed, stochastic)
    if hopeless:
        first = hopeless[0]
        text = "; and ".join(
            (f"{d.layer.name!r} " if d is not first else "") + _why(d, allowed, available) for d in hopeless
        )
        fitting = [
            f"at most {most} output channels of {d.layer.name!r} fit"
            if (most := most_channels(d, usable))
            else f"no output channel of {d.layer.name!r} fits: use fewer inputs, a smaller kernel or a smaller map"
            for d in hopeless
        ]
        said = "; ".join([*fitting, *remedies])
        return PlacementError(text, node=first.layer.name, remedy=said[0].upper() + said[1:] + ".")
    taken = {core for cores in fixed.values() for core in cores}
    lines = []
    for name, demand in wanted.items():
        if name in fixed:
            lines.append(f"{name!r} is given {', '.join(map(str, fixed[name]))}")
            continue
        whole = [c for c in allowed if c not in taken and not demand.lacking(available[c])]
        text = (
            ", ".join(map(str, whole)) if whole else f"only split over several of {_some(demand, allowed, available)}"
        )
        lines.append(f"{name!r} fits {text}")
    said = "; ".join([*remedies, "make a layer smaller"])
    return PlacementError(
        f"no core is left: {len(wanted)} layers, {len(allowed)} cores may be used, and {'; '.join(lines)}",
        node=next(name for name in wanted if name not in fixed),
        remedy=said[0].upper() + said[1:] + ".",
    )


def _some(demand: Demand, allowed: Sequence[int], available: Sequence[Mapping[str, int]]) -> str:
    return ", ".join(f"{c} ({room} channels)" for c in allowed if (room := demand.room(available[c])))


def _why(demand: Demand, allowed: Sequence[int], available: Sequence[Mapping[str, int]]) -> str:
    lines = []
    for core, have in enumerate(available):
        lacking = ", ".join(demand.lacking(have))
        if core not in allowed:
            lacking = f"avoided ({lacking})" if lacking else "avoided, would hold it"
        lines.append(f"core {core}: {lacking}")
    text = f"fits no core ({'; '.join(lines)})"
    if demand.most_parts == 1:
        return f"{text} and cannot be split: {_bound(demand)}"
    count = min(demand.most_parts, len(allowed))
    if count <= 1:
        return text
    return f"{text}, nor {count} of them together ({_some(demand, allowed, available) or 'none holds a channel'})"


def _freeing(
    wanted: Mapping[str, Demand],
    allowed: Sequence[int],
    available: Sequence[Mapping[str, int]],
    fixed: Mapping[str, tuple[int, ...]],
    stochastic: Sequence[int],
) -> list[str]:
    """The fewest avoided cores with which everything would fit, repeatable ones first, as a remedy; empty if none."""
    avoided = [core for core in range(len(available)) if core not in allowed]
    if assign(wanted, range(len(available)), available, fixed) is None:
        return []
    for count in range(1, len(avoided) + 1):
        for more in combinations(sorted(avoided, key=lambda core: (core in stochastic, core)), count):
            if assign(wanted, sorted([*allowed, *more]), available, fixed) is not None:
                left = [core for core in avoided if core not in more]
                named = " and ".join(map(str, more))
                return [f"allow core{'s'[: count - 1]} {named} with avoid_cores={left}"]
    return []
