"""How long does `nd.check` take on a network that fills a Speck?

Run `python benchmarks/speck_check.py`. One network has nine layers that fit, one seven of which some have to be split,
one nine large ones with findings in each. It prints milliseconds of the first call, imports included, and of
the best of ten later ones; the aim is 50 ms.
"""

from __future__ import annotations

import itertools

import nir
import numpy as np
from timing import seconds

import nirdeploy as nd
from nirdeploy.graph import make_graph, make_node, output_shape

CONVENTION = nd.Convention(if_gain="r", reset="subtract", crossing="inclusive", v_min=-4.0)


def chain(shape: tuple[int, ...], layers: list[tuple[int, int, int]]) -> nir.NIRGraph:
    """Convolutions (channels, kernel, stride), padded, each with a population."""
    rng = np.random.default_rng(0)
    nodes = {"input": make_node(nir.Input, input_type={"input": np.array(shape)})}
    now = shape
    for index, (channels, kernel, stride) in enumerate(layers):
        conv = make_node(
            nir.Conv2d,
            input_shape=None,
            weight=rng.normal(size=(channels, now[0], kernel, kernel)).astype(np.float32),
            stride=(stride, stride),
            padding=(kernel // 2, kernel // 2),
            dilation=(1, 1),
            groups=1,
            bias=np.zeros(channels, np.float32),
        )
        now = output_shape(f"conv{index}", conv, now)
        ones = np.ones(now, np.float32)
        nodes[f"conv{index}"] = conv
        nodes[f"if{index}"] = make_node(nir.IF, r=ones, v_threshold=ones, v_reset=ones * 0)
    nodes["output"] = make_node(nir.Output, output_type={"output": np.array(now)})
    return make_graph(nodes, list(itertools.pairwise(nodes)))


NETWORKS = {
    "fits": (
        (2, 32, 32),
        [(8, 3, 1), (16, 3, 2), (16, 3, 1), (32, 3, 2), (32, 3, 1), (32, 3, 2), (16, 3, 1), (16, 3, 1), (10, 3, 1)],
    ),
    "split": ((2, 32, 32), [(16, 3, 1), (32, 3, 2), (64, 3, 2), (96, 3, 1), (32, 3, 2), (16, 1, 1), (10, 1, 1)]),
    "fits nowhere": ((2, 64, 64), [(64, 17, 1)] * 9),
}


def main() -> None:
    """Measure each network."""
    print(f"{'network':14s} {'errors':>7s} {'warnings':>9s} {'first ms':>9s} {'best ms':>8s}")
    for name, (shape, layers) in NETWORKS.items():
        graph = chain(shape, layers)
        first = seconds(lambda graph=graph: nd.check(graph, "speck2f", convention=CONVENTION), 1)
        best = seconds(lambda graph=graph: nd.check(graph, "speck2f", convention=CONVENTION), 10)
        report = nd.check(graph, "speck2f", convention=CONVENTION)
        row = f"{name:14s} {len(report.errors):7d} {len(report.warnings):9d}"
        print(f"{row} {1e3 * first:9.1f} {1e3 * best:8.1f}")


if __name__ == "__main__":
    main()
