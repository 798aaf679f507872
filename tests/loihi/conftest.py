"""Small graphs that the Loihi tests share."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import nir
import numpy as np
import pytest
from nets import shared

from nirdeploy.graph import make_graph, make_node
from nirdeploy.reference.convention import Convention

ROOT = Path(__file__).resolve().parents[2]


def source(*shape):
    return make_node(nir.Input, input_type={"input": np.array(shape)})


def output(*shape):
    return make_node(nir.Output, output_type={"output": np.array(shape)})


def if_(*shape, threshold=1.0, r=1.0, v_reset=0.0):
    ones = np.ones(shape)
    return make_node(nir.IF, r=r * ones, v_threshold=threshold * ones, v_reset=v_reset * ones)


def lif(*shape, tau=0.02, r=1.0, leak=0.0, threshold=1.0):
    ones = np.ones(shape)
    return make_node(
        nir.LIF, tau=tau * ones, r=r * ones, v_leak=leak * ones, v_threshold=threshold * ones, v_reset=0 * ones
    )


def cuba(*shape, tau_syn=0.004, tau_mem=0.02, r=20.0, w_in=4.0, threshold=1.0):
    """With dt = 1 ms the usual r and w_in make both input gains 1."""
    ones = np.ones(shape)
    return make_node(
        nir.CubaLIF,
        tau_syn=tau_syn * ones,
        tau_mem=tau_mem * ones,
        r=r * ones,
        v_leak=0 * ones,
        v_threshold=threshold * ones,
        w_in=w_in * ones,
        v_reset=0 * ones,
    )


def linear(weight):
    return make_node(nir.Linear, weight=np.asarray(weight, dtype=float))


def affine(weight, bias):
    return make_node(nir.Affine, weight=np.asarray(weight, dtype=float), bias=np.asarray(bias, dtype=float))


def conv(weight, bias=None, size=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    weight = np.asarray(weight, dtype=float)
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, dtype=float)
    return make_node(
        nir.Conv2d,
        input_shape=size,
        weight=weight,
        bias=bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def pool(kernel, stride=None, padding=(0, 0), average=False):
    kind = nir.AvgPool2d if average else nir.SumPool2d
    stride = kernel if stride is None else stride
    return make_node(kind, kernel_size=np.array(kernel), stride=np.array(stride), padding=np.array(padding))


def flatten(*shape):
    return make_node(nir.Flatten, input_type={"input": np.array(shape)}, start_dim=0, end_dim=-1)


def chain(**nodes):
    names = list(nodes)
    return make_graph(nodes, list(pairwise(names)))


@pytest.fixture
def nets():
    """Constructors of nodes and graphs."""
    return SimpleNamespace(
        source=source,
        output=output,
        if_=if_,
        lif=lif,
        cuba=cuba,
        linear=linear,
        affine=affine,
        conv=conv,
        pool=pool,
        flatten=flatten,
        chain=chain,
        graph=make_graph,
        # r as the input gain, so that weights are in units of v
        plain=Convention(dt=1e-3, reset="zero", if_gain="r"),
    )


@pytest.fixture
def golden():
    """The folder of goldens."""
    return ROOT / "tests" / "golden"


@pytest.fixture
def cases():
    """Recorded cases handed over beside the repository."""
    return shared("cases", "loihi")
