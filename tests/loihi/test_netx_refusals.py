import h5py
import nirdeploy_loihi
import numpy as np
import pytest
from netx_files import NEURON, conv, dense, given, net_file, recurrent
from nirdeploy_loihi.weights import kept_by_lava

from nirdeploy.errors import FileError, NirdeployError, PlacementError, QuantizationError, UnsupportedError

HUGE = {name: value for name, value in conv().items() if name != "shape"}
ODD_NEGATIVE = [[-201, 0], [-3, -5]]


@pytest.mark.parametrize(
    ("layers", "kind", "message"),
    [
        ([given(2), {"type": b"dens", "shape": [2]}], UnsupportedError, "layer 1 has type 'dens'"),
        ([given(2), {"type": b"average"}], UnsupportedError, "layer 1 has type 'average'"),
        ([given(2), {"type": b"pool"}], UnsupportedError, "layer 1 has type 'pool'"),
        ([given(2), dense(neuron={**NEURON, "type": b"RF"})], UnsupportedError, "layer 1 has neuron type 'RF'"),
        ([given(2), dense(neuron={**NEURON, "type": b"SDNN"})], UnsupportedError, "neuron type 'SDNN'"),
        ([given(2), dense(neuron={**NEURON, "type": b"ALIF"})], UnsupportedError, "neuron type 'ALIF'"),
        ([{**given(2), "neuron": NEURON}, dense()], UnsupportedError, "layer 0 is an input with 'neuron'"),
        ([given(2), {**dense(), "neuron": [1]}], UnsupportedError, "layer 1 has no neuron"),
        ([given(2), dense(neuron={**NEURON, "messageBits": 8})], UnsupportedError, "layer 1 has messageBits"),
        ([given(2), dense(weight_rec=np.eye(3))], UnsupportedError, "layer 1 has recurrent weights"),
        ([conv()], UnsupportedError, "layer 0 is 'conv' and there is no input layer"),
        ([given(2), dense(weight=[[0.5, 1.0]])], QuantizationError, "layer 1 has weight 0.5, expected whole"),
        ([given(2), dense(neuron={**NEURON, "vDecay": 4097})], QuantizationError, "vDecay 4097.*0 to 4096"),
        ([given(2), dense(neuron={**NEURON, "iDecay": -1})], QuantizationError, "iDecay -1"),
        ([given(2), dense(neuron={**NEURON, "vThMant": 131072})], QuantizationError, "vThMant 131072.*0 to 131071"),
        ([given(2), dense(bias=[5000, 0, 0])], QuantizationError, "layer 1 has bias 5000.*-4096 to 4095"),
        ([given(2), dense(weight=[[0, 0]])], QuantizationError, "layer 1 has positive weights from 0 to 0"),
        ([given(2), dense(weight=[[300, 0]])], QuantizationError, "layer 1 has positive weights from 0 to 300"),
        ([given(2), dense(weight=[[256, -2]])], QuantizationError, "layer 1 has mixed weights from -2 to 256"),
        ([given(2), dense(weight=ODD_NEGATIVE)], QuantizationError, "negative weights from -201 to 0"),
        ([given(2), dense(weight=[[-128, -1]])], QuantizationError, "negative weights from -128 to -1"),
        ([given(1, 4, 5), conv(np.full((2, 1, 2, 2), 256))], QuantizationError, "weights from 256 to 256"),
        ([given(3), dense()], FileError, "layer 1 has weight .3, 2., its input has 3 neurons"),
        ([given(1, 4, 5), conv(stride=2)], FileError, "layer 1 states shape .2, 3, 4., its weights give .2, 2, 2."),
        ([given(3, 4, 5), conv()], FileError, "layer 1 has weight .* its input is .3, 4, 5."),
        ([given(1, 4, 5), dense()], FileError, "layer 1 is dense on an image"),
        ([given(2), dense(bias=[1, 2])], FileError, "layer 1 has bias of shape .2,."),
        ([given(2), {**dense(), "shape": [7]}], FileError, "layer 1 states shape .7,."),
        ([given(2)], FileError, "an input layer only"),
        ([{"shape": [2]}, dense()], FileError, "layer 0 has no text 'type'"),
        ([given(2), dense(neuron={"type": b"CUBA"})], FileError, "layer 1 has no numbers 'iDecay'"),
        ([given(2), dense(delay=[63.0, 0, 0])], QuantizationError, "layer 1 has a delay of 63 steps.* 0 to 62"),
        ([given(2), dense(delay=[-1.0, 0, 0])], QuantizationError, "layer 1 has a delay of -1 steps"),
        ([given(2), dense(delay=[0.5, 0, 0])], QuantizationError, "layer 1 has delay 0.5, expected whole"),
        ([given(2), dense(delay=[1.0])], FileError, "layer 1 has delay of shape .1,., its weight has .3, 2."),
        ([given(2), dense(delay=np.ones((2, 3)))], FileError, "layer 1 has delay of shape .2, 3."),
        ([given(2), dense(delay=[[0, 1], [2, 3], [0, 0]])], UnsupportedError, "differ from synapse to synapse"),
        ([given(2), dense(delay="long")], FileError, "layer 1 has no numbers 'delay'"),
        ([given(1, 4, 5), conv(delay=[1, 0])], UnsupportedError, "layer 1 has delays, which netx ignores in a conv"),
        ([given(1, 4, 5), conv(bias=1.0)], FileError, "layer 1 has bias of shape .., its neurons have .2, 3, 4."),
        ([given(1, 4, 5), conv(stride=[1, 1, 1])], FileError, "layer 1 has 3 values of stride"),
        ([given(1, 4, 5), conv(groups=[1, 1])], FileError, "layer 1 has 2 values of groups"),
        ([given(1, 4, 5), conv(stride=0)], FileError, "layer 1 has stride, padding, dilation .*'stride': .0, 0."),
        ([given(2), recurrent(delay=[1, 0])], UnsupportedError, "layer 1 is recurrent with delays"),
        ([given(2), recurrent(back=np.eye(3) * 2)], FileError, "layer 1 has weight_rec .3, 3., expected .2, 2."),
        (
            [given(2), recurrent(back=[[400, 0], [0, 2]])],
            QuantizationError,
            "layer 1 has mixed weights from -20 to 400",
        ),
        ([given(2), recurrent(np.zeros((2, 2)), np.zeros((2, 2)))], QuantizationError, "weights from 0 to 0"),
        ([given(2), {**dense(), "type": b"dense_rec"}], FileError, "layer 1 has no numbers 'weight_rec'"),
        ([given(2), {"type": b"average"}], UnsupportedError, "num_layers=1. leaves it out"),
        ([{**given(2), "neuron": NEURON}, dense()], UnsupportedError, "skip_layers=1. takes the spikes"),
        ([given(2), dense(neuron={**NEURON, "vThMant": 0})], QuantizationError, "layer 1 has vThMant 0, on which"),
        ([given(2), dense(neuron={**NEURON, "vThMant": [5, 6]})], UnsupportedError, "layer 1 has 2 values of vThMant"),
        ([given(2), dense(neuron={**NEURON, "vThMant": "many"})], FileError, "layer 1 has no numbers 'vThMant'"),
        ([given(2), dense(weight="heavy", shape=[3])], FileError, "layer 1 has no numbers 'weight'"),
        ([given(2), dense(weight=[[1e300, 1.0]])], QuantizationError, "layer 1 has weight 1e.300"),
        ([given(2), dense(weight=np.array([[2**63, 1]], "u8"))], QuantizationError, "weight 9223372036854775808, exp"),
        ([given(2), dense(weight=[[np.nan, 1.0]])], QuantizationError, "layer 1 has weight nan"),
        ([given(2), dense(weight=np.ones((3, 2, 1)))], FileError, "layer 1 has a weight of shape .3, 2, 1."),
        ([given(1, 4, 5), conv(np.ones((2, 2)))], FileError, "layer 1 has a weight of shape .2, 2."),
        ([given(2), dense(weight=np.zeros((0, 2)))], FileError, "layer 1 has no numbers 'weight'"),
        ([given(2), dense(bias=h5py.Empty("f8"))], FileError, "layer 1 has no numbers 'bias'"),
        ([given(2), dense(bias={"a": 1})], FileError, "layer 1 has no numbers 'bias'"),
        ([given(1, 2**40, 2**40), dense()], FileError, "layer 0 has shape"),
        ([given(-2), dense()], FileError, "layer 0 has shape .-2,., expected"),
        ([given(1, 2, 3, 4), dense()], FileError, "layer 0 has shape .1, 2, 3, 4., expected"),
        ([given(1, 60000, 60000), HUGE], PlacementError, "layer 1 has 7199760002 neurons, the chip 983040"),
    ],
)
def test_what_lava_cannot_run_faithfully_is_refused_by_name(tmp_path, layers, kind, message):
    with pytest.raises(kind, match=message) as caught:
        nirdeploy_loihi.netx.read(net_file(tmp_path / "net.net", *layers))
    assert isinstance(caught.value, NirdeployError)


def test_a_recurrent_layer_is_held_to_what_netx_keeps_of_both_matrices():
    positive, mixed = np.array([[3, 255]]), np.array([[-2, 4]])
    assert kept_by_lava(positive)
    assert kept_by_lava(mixed)
    assert not kept_by_lava(positive, mixed)


def test_a_layer_that_is_a_dataset_and_text_that_is_none_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.net", "w") as file:
        file["layer/0"] = 1
    with pytest.raises(FileError, match="layer/0 is a dataset, expected a group"):
        nirdeploy_loihi.netx.read(tmp_path / "a.net")
    path = net_file(tmp_path / "b.net", {"type": b"\xff\xfe"}, dense())
    with pytest.raises(FileError, match="is no UTF-8 text"):
        nirdeploy_loihi.netx.read(path)
