"""Rules of a network as a whole: destinations, the DVS layer, enough cores, and what event by event means."""

from __future__ import annotations

from collections.abc import Iterator

from nirdeploy.rules import Finding
from nirdeploy.target import Target
from nirdeploy_speck.capacity import assign, demands, memories
from nirdeploy_speck.layers import Network

__all__ = ["core_findings", "destination_findings", "dvs_findings", "event_findings"]


def destination_findings(source: str, network: Network, limit: int) -> Iterator[Finding]:
    """A population, or the DVS layer, sends to so many cores at most (DS 2.4, 3.2.3.6)."""
    fed = [(other.name, feed) for other in network.layers for feed in other.feeds if feed.source == source]
    if len(fed) > limit:
        yield Finding(
            "destinations",
            source,
            f"feeds {len(fed)} layers ({', '.join(name for name, _ in fed)}), at most {limit}",
            "Split the population, or feed fewer layers.",
            value=len(fed),
            limit=limit,
        )


def dvs_findings(network: Network, target: Target) -> Iterator[Finding]:
    """Limits of the DVS layer, where something is left to it (DS 3.2.3; sinabs dvs_layer.py)."""
    layer = network.dvs
    if layer is None:
        return
    table, node = target.table["dvs"], network.input_name
    channels, height, width = layer.input_shape
    remedy = "Pool the raster before the run, or use a convolution with stride."
    if channels > table["channels"]:
        yield Finding(
            "dvs_channels",
            node,
            f"pooled before the first convolution, it has {channels} channels; the DVS layer has {table['channels']}",
            remedy,
            value=channels,
            limit=table["channels"],
        )
    if max(height, width) > table["size"]:
        yield Finding(
            "dvs_size",
            node,
            f"pooled before the first convolution, its map {height}x{width} exceeds the DVS layer's "
            f"{table['size']}x{table['size']}",
            remedy,
            value=max(height, width),
            limit=table["size"],
        )
    allowed = list(table["pooling"])
    if any(window not in allowed for window in layer.pooling):
        yield Finding(
            "pooling",
            node,
            f"pooled before the first convolution by {layer.pooling}; the DVS layer pools by one of {allowed} an axis",
            remedy,
            value=list(layer.pooling),
            limit=allowed,
        )
    if height % layer.pooling[0] or width % layer.pooling[1]:
        yield Finding(
            "pooling_remainder",
            node,
            f"a {height}x{width} map is not divisible by {layer.pooling}; what the chip does with the last row is not "
            "documented",
            "Choose a map that is divisible.",
            value=[height, width],
            limit=list(layer.pooling),
        )
    yield from destination_findings(node, network, int(table["destinations"]))
    for other in network.layers:
        if any(feed.source == node and feed.shift for feed in other.feeds):
            yield Finding(
                "dvs_shift",
                other.name,
                f"reads {node!r} by two weight nodes, side by side; the DVS layer has no feature shift",
                "Read it by one, or without pooling.",
            )


def event_findings(network: Network) -> Iterator[Finding]:
    """Event by event, not step by step: true of every network, and found by no other rule (DS 3.2.4.4 to 3.2.4.6)."""
    if network.layers:
        yield Finding(
            "event_driven",
            "",
            "the chip compares with the threshold after every event, one spike each, where this convention does so "
            "once a step: within a step the order of events, and inhibition that comes late, change the spikes",
            "Compare with mode='event' of the emulator before relying on spike times.",
            severity="warning",
        )


def core_findings(network: Network, target: Target, whole: bool) -> Iterator[Finding]:
    """Layers find cores together, and without the stochastic ones (sinabs issue 186)."""
    available = memories(target)
    if len(network.layers) > len(available):
        yield Finding(
            "cores",
            network.layers[len(available)].name,
            f"{len(network.layers)} layers, the chip has {len(available)} cores",
            "Use fewer layers.",
            value=len(network.layers),
            limit=len(available),
        )
        return
    if not whole or not network.layers:
        return
    wanted, every = demands(network, target), range(len(available))
    stochastic = list(target.table["cores"]["stochastic"])
    if assign(wanted, [core for core in every if core not in stochastic], available) is not None:
        return
    if assign(wanted, every, available) is None:
        lines = []
        for name, demand in wanted.items():
            cores = [core for core in every if not demand.lacking(available[core])]
            lines.append(f"{name!r} fits {', '.join(map(str, cores)) if cores else 'only split over several'}")
        yield Finding(
            "placement",
            "",
            f"its {len(network.layers)} layers fit cores one by one, but not together: {'; '.join(lines)}",
            "Make those smaller that fit the fewest cores.",
            value=len(network.layers),
            limit=len(available),
        )
        return
    named = " and ".join(map(str, stochastic))
    yield Finding(
        "stochastic",
        "",
        f"it needs cores {named}, which work in parallel and give other spikes in every run (sinabs issue 186)",
        "Make layers smaller, or place it with avoid_cores=[].",
        severity="warning",
        value=stochastic,
    )
