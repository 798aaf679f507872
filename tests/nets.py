"""Small graphs that several tests use."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import nir
import numpy as np
import pytest
from torch import nn

from nirdeploy.graph import make_graph, make_node, output_shape

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def shared(*parts: str) -> Path:
    """A path in the folder of recorded cases beside the repository; the test is skipped where it is missing."""
    folder = Path(os.environ.get("NIRDEPLOY_SHARED") or ROOT.parent / "shared")
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there: recorded cases are kept beside the repository")
    return path


def vendor_python(name: str) -> Path:
    """The interpreter of a vendor's environment; skipped where it is missing, failed where it is required."""
    return vendor_folder(name, "bin/python") / "bin" / "python"


def vendor_folder(name: str, holds: str) -> Path:
    """The folder of a vendor's environment, which must hold a path; skipped or failed likewise."""
    path = ROOT / name
    if not (path / holds).exists():
        text = f"{name} is not built; `make oracles` builds it"
        if os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1":
            pytest.fail(text)
        pytest.skip(text)
    return path


def stand_in(folder: Path, body: str) -> Path:
    """A shell program that stands for a vendor's interpreter: its third argument is the job folder."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def replace_values(file, name, change):
    """Change an array of an HDF5 file, its type and shape, too."""
    values = file[name][...]
    del file[name]
    file[name] = change(values)


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


def if_node(shape, threshold=1.0, r=1.0, v_reset=0.0):
    full = [np.full(shape, v, np.float32) for v in (r, threshold, v_reset)]
    return make_node(nir.IF, r=full[0], v_threshold=full[1], v_reset=full[2])


def lif_node(shape, tau=2e-2, threshold=1.0, r=1.0, v_leak=0.0, v_reset=0.0):
    values = {"tau": tau, "r": r, "v_leak": v_leak, "v_threshold": threshold, "v_reset": v_reset}
    return make_node(nir.LIF, **{k: np.full(shape, v, np.float32) for k, v in values.items()})


def conv_node(weight, size, stride=1, padding=0, bias=None, dilation=1, groups=1):
    weight = np.asarray(weight, np.float32)
    zero = np.zeros(weight.shape[0], np.float32)
    return make_node(
        nir.Conv2d,
        input_shape=size,
        weight=weight,
        stride=(stride, stride) if isinstance(stride, int) else stride,
        padding=(padding, padding) if isinstance(padding, int) else padding,
        dilation=(dilation, dilation),
        groups=groups,
        bias=zero if bias is None else np.asarray(bias, np.float32),
    )


def linear_node(weight):
    return make_node(nir.Linear, weight=np.asarray(weight, np.float32))


def pool_node(kind, window, stride=None, padding=0):
    values = {"kernel_size": window, "stride": window if stride is None else stride, "padding": padding}
    return make_node(kind, **{k: np.array([v, v]) for k, v in values.items()})


def flatten_node(shape):
    return make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)


def input_node(*shape):
    return make_node(nir.Input, input_type={"input": np.array(shape)})


def output_node(*shape):
    return make_node(nir.Output, output_type={"output": np.array(shape)})


def chain(shape, **nodes):
    """Input -> the named nodes in order -> Output, its shape computed; `shape` is the Input's."""
    names = ["input", *nodes, "output"]
    now = tuple(shape)
    for name, node in nodes.items():
        now = output_shape(name, node, now)
    every = {"input": input_node(*shape), **nodes, "output": output_node(*now)}
    return make_graph(every, list(itertools.pairwise(names)))


def conv_net(seed=0, threshold=1.0, pool=nir.AvgPool2d):
    """Input(1, 6, 6) -> conv1 -> if1 -> pool -> conv2 -> if2 -> flatten -> fc -> if3 -> Output(4)."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(0.15, 1.2 / np.prod(shape[1:]) ** 0.5, shape)

    return chain(
        (1, 6, 6),
        conv1=conv_node(draw(3, 1, 3, 3), (6, 6), padding=1),
        if1=if_node((3, 6, 6), threshold),
        pool=pool_node(pool, 2),
        conv2=conv_node(draw(4, 3, 2, 2), (3, 3)),
        if2=if_node((4, 2, 2), threshold),
        flatten=flatten_node((4, 2, 2)),
        fc=linear_node(draw(4, 16)),
        if3=if_node((4,), threshold),
    )


def raster(shape, steps=12, batch=3, seed=0, rate=0.3, binary=True):
    """Random counts [step, batch, *shape]."""
    rng = np.random.default_rng(seed)
    drawn = rng.poisson(rate, (steps, batch, *shape))
    return np.minimum(drawn, 1) if binary else drawn


class Body(nn.Module):
    """A forward given as a function of (module, x)."""

    def __init__(self, body, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def biased_net(seed, r=1.0):
    """Two convolutions with biases, an average pool and a matrix; a gain `r` of the last population."""
    rng = np.random.default_rng(seed)
    return chain(
        (2, 8, 8),
        c1=conv_node(rng.normal(0.1, 0.3, (4, 2, 3, 3)), None, 2, 1, rng.normal(0, 0.15, 4)),
        n1=if_node((4, 4, 4), 0.8),
        c2=conv_node(rng.normal(0.05, 0.3, (3, 4, 3, 3)), None, 1, 1, rng.normal(0, 0.3, 3)),
        n2=if_node((3, 4, 4), 1.2),
        pool=pool_node(nir.AvgPool2d, 2),
        f=flatten_node((3, 2, 2)),
        fc=linear_node(rng.normal(0.1, 0.7, (5, 12))),
        n3=if_node((5,), 0.6, r=r),
    )
