"""What a first user gives in the wrong place, or trains with and NIR has not: the message says what to do."""

import re

import pytest
import torch
from nets import conv_net, raster
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ComparisonError, ConversionError, GraphError, PlacementError, RasterError
from nirdeploy.reference.neurons import IF

PLAIN = nd.Convention(if_gain="r", reset="zero", crossing="inclusive", v_min=-4.0, dt=1e-3)


class Applies(nn.Module):
    """A convolution and a function behind it."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(1, 4, 3), function

    def forward(self, x):
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.MaxPool2d(2), "Train with AvgPool2d, or with a stride of the convolution before it; or pass module_map="),
        (nn.AdaptiveAvgPool2d(2), "Use AvgPool2d with the window that it comes to"),
        (nn.LeakyReLU(), "Put a spiking population in its place"),
        (nn.LayerNorm([4, 6, 6]), "Train with BatchNorm, which is folded into the weights"),
        (nn.LogSoftmax(1), "apply it to the spike counts, in the loss"),
        (nn.ZeroPad2d(1), "Use the padding of the layer behind it"),
        (nn.Upsample(scale_factor=2), "Pass module_map={Upsample: a function of the module that returns its NIR node}"),
    ],
)
def test_a_layer_without_a_node_says_what_to_train_with(layer, remedy):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), IF(convention=PLAIN), layer)
    with pytest.raises(ConversionError, match=f"'2': {type(layer).__name__} is not supported .*{re.escape(remedy)}"):
        nd.torch_to_nir(net, input_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (
            torch.relu,
            "'relu' does not exist.*Put it into a module.*, or remove it. Put a spiking population in its place",
        ),
        (lambda x: nn.functional.max_pool2d(x, 2), "or remove it. Train with AvgPool2d"),
        (lambda x: x.permute(0, 1, 3, 2), r"\)\. Put it into a module of its own and map that"),
    ],
)
def test_a_function_without_a_node_does_too(function, remedy):
    with pytest.raises(ConversionError, match=remedy):
        nd.torch_to_nir(Applies(function), input_shape=(1, 8, 8))


def test_places_without_a_line_of_the_users_name_the_module_alone():
    with pytest.raises(ConversionError, match=r"is not supported \(in module '1'\)"):
        nd.torch_to_nir(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), input_shape=(4,))


def test_what_is_no_module_is_not_converted():
    with pytest.raises(ConversionError, match=r"expected a torch.nn.Module, got function. Wrap a function"):
        nd.torch_to_nir(lambda x: x, input_shape=(4,))


def test_what_is_no_graph_says_how_it_becomes_one():
    deployment = nd.deploy(conv_net(), "speck2f", convention=PLAIN, calibration=raster((1, 6, 6)))
    with pytest.raises(GraphError, match="got Linear. Convert the module with nirdeploy.torch_to_nir"):
        nd.check(nn.Linear(4, 4), "loihi2")
    with pytest.raises(GraphError, match=r"got str. Read the file with nirdeploy.read\(path\)"):
        nd.check("net.nir", "loihi2")
    with pytest.raises(GraphError, match="got Deployment. Pass the Deployment's graph"):
        nd.check(deployment, "loihi2")
    with pytest.raises(GraphError, match=r"expected a NIRGraph, got int$"):
        nd.check(3, "loihi2")
    with pytest.raises(RasterError, match=r"got Deployment. Run a deployment with its own run\(raster\)"):
        nd.run(deployment, raster((1, 6, 6)))
    with pytest.raises(RasterError, match=r"got str. Read a file with nirdeploy.read"):
        nd.run("net.nir", raster((1, 6, 6)))


def test_a_ladder_of_a_graph_names_deploy():
    with pytest.raises(ComparisonError, match="ladder takes a deployment, got NIRGraph. Pass what nirdeploy.deploy"):
        nd.ladder(conv_net(), raster((1, 6, 6)))


@pytest.mark.parametrize(("target", "v_min"), [("speck2f", -4.0), ("loihi2", None)])
def test_the_bits_of_quantization_aware_are_weight_bits_of_deploy(target, v_min):
    convention, words = nd.Convention(if_gain="r", reset="zero", v_min=v_min), "Bits of a weight are weight_bits"
    with pytest.raises(PlacementError, match=rf"unknown placement option 'bits' \(4\). {words}"):
        nd.deploy(conv_net(), target, convention=convention, quantizer="max", bits=4)
