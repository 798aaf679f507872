"""evaluate: the same rows whoever computes them, nothing finished ever lost, and what is no data set refused."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from evaluations import SLOW, same
from nets import chain, conv_net, if_node, linear_node, raster, shared
from processes import ENVIRONMENT

import nirdeploy as nd
from nirdeploy.errors import (
    ComparisonError,
    ConfigurationError,
    ConventionError,
    FileError,
    RasterError,
    TargetError,
    UnsupportedError,
)
from nirdeploy.evaluation import crew, engine, handle
from nirdeploy.evaluation import workers as engines
from nirdeploy.evaluation.file import read_table

ROOT = Path(__file__).resolve().parents[2]
CONVENTION = nd.convention("sinabs", dt=1e-3, v_min="-threshold")


@pytest.fixture(scope="module")
def graph():
    return conv_net()


@pytest.fixture(scope="module")
def data():
    """41 samples, so that the last chunk is not full."""
    return raster((1, 6, 6), steps=20, batch=41, rate=0.5), np.arange(41) % 4


@pytest.fixture(scope="module")
def deployment(graph, data):
    return nd.deploy(graph, "speck2f", convention=CONVENTION, calibration=data[0])


@pytest.fixture(autouse=True)
def _one_crew(monkeypatch):
    """Tests share their worker processes, which belong to an environment."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")


@pytest.fixture
def elsewhere(monkeypatch):
    """With more than one worker this process computes nothing itself."""
    real = engines.by_processes
    monkeypatch.setattr(engine, "by_processes", lambda job, tasks, workers, _runner: real(job, tasks, workers))


# ---------------------------------------------------------------- what it says


def test_it_says_what_a_run_of_everything_at_once_says(graph, data):
    found = nd.evaluate(graph, data, convention=CONVENTION)
    whole = nd.run(graph, data[0], convention=CONVENTION)
    # spikes are whole numbers, which both sums hold exactly
    np.testing.assert_array_equal(found.outputs, np.asarray(whole.outputs).sum(axis=0))
    np.testing.assert_array_equal(found.predictions, found.outputs.argmax(axis=1))
    for name, spikes in found.spikes.items():
        data_of = whole[name, "spikes"].data
        np.testing.assert_array_equal(spikes, data_of.reshape(20, 41, -1).sum(axis=(0, 2)))
    assert set(found.spikes) == {"if1", "if2", "if3"}
    assert found.executor == "reference"
    assert found.n == 41
    assert found.file is None
    right = [p == label for p, label in zip(found.predictions, data[1], strict=True)]
    assert found.accuracy == pytest.approx(sum(right) / 41)
    for label in range(4):
        for predicted in range(4):
            expected = sum(a == label and b == predicted for a, b in zip(data[1], found.predictions, strict=True))
            assert found.confusion[label, predicted] == expected
    assert [row.n for row in found.per_class] == [11, 10, 10, 10]
    for row in found.per_class:
        for name, spikes in found.spikes.items():
            own = [int(n) for n, label in zip(spikes, data[1], strict=True) if label == row.label]
            assert row.spikes[name] == pytest.approx(sum(own) / len(own), rel=1e-12)  # of float64
    assert "accuracy" in found.summary()
    assert json.loads(json.dumps(found.to_dict()))["confusion"] == found.confusion.tolist()


def test_the_summary_says_what_was_confused_with_what(graph, data):
    found = nd.evaluate(graph, data, convention=CONVENTION)
    wide = replace(found, labels=np.array([0, 1, 1, *[2] * 38]), predictions=np.array([0, 0, 1, *[2] * 38]))
    matrix = [
        line.split() for line in wide.summary().splitlines() if line.startswith("class ") and "samples" not in line
    ]
    assert [" ".join(line[1:]) for line in matrix] == ["0 1 . . .", "1 1 1 . .", "2 . . 38 .", "3 . . . ."]
    many = replace(wide, outputs=np.zeros((41, 20)))  # more classes than fit a screen
    lines = many.summary().splitlines()
    assert lines[lines.index("class  taken for  samples") + 1].split() == ["1", "0", "1"]
    right = replace(wide, labels=wide.predictions)
    assert "predicted" not in right.summary()


@pytest.mark.parametrize("mode", ["step", "event"])
def test_the_emulator_gives_what_its_own_run_gives(deployment, data, mode):
    found = nd.evaluate(deployment, data, mode=mode, batch=7)
    whole = deployment.run(data[0], mode=mode)
    np.testing.assert_array_equal(found.outputs, np.asarray(whole.outputs).reshape(20, 41, -1).sum(axis=0))
    assert (found.executor, found.target) == ("emulator", "speck2f")


def test_agreement_counts_what_another_run_predicts_alike(graph, deployment, data, tmp_path):
    reference = nd.evaluate(graph, data, convention=CONVENTION, output=tmp_path / "ref.h5")
    chip = nd.evaluate(deployment, data, against=tmp_path / "ref.h5")
    assert chip.agreement == np.mean(chip.predictions == reference.predictions)
    for row in chip.per_class:
        own = data[1] == row.label
        assert row.agreement == np.mean(chip.predictions[own] == reference.predictions[own])
    other = nd.evaluate(graph, (data[0][:, ::-1], data[1]), convention=CONVENTION)
    with pytest.raises(ComparisonError, match="another data set"):
        nd.evaluate(deployment, data, against=other)
    other = nd.evaluate(conv_net(seed=1), data, convention=CONVENTION)
    with pytest.raises(ComparisonError, match="another network"):
        nd.evaluate(deployment, data, against=other)


# ---------------------------------------------------------------- who computes


@pytest.mark.parametrize("what", ["reference", "emulator"])
def test_results_do_not_depend_on_the_number_of_workers(graph, deployment, data, tmp_path, elsewhere, what):
    network, rest = (graph, {"convention": CONVENTION}) if what == "reference" else (deployment, {"mode": "event"})
    one = nd.evaluate(network, data, batch=4, output=tmp_path / "1.h5", **rest)
    two = nd.evaluate(network, data, batch=4, output=tmp_path / "2.h5", workers=2, **rest)
    same(one, two)
    files = [read_table(tmp_path / f"{n}.h5") for n in (1, 2)]
    assert files[0].identity == files[1].identity
    for name, column in files[0].columns.items():
        np.testing.assert_array_equal(column, files[1].columns[name])


ALONE = """
import numpy as np
import nir
import nirdeploy as nd
from nirdeploy.evaluation.job import Runner
from nirdeploy.graph import make_graph, make_node

nodes = {
    "input": make_node(nir.Input, input_type={"input": np.array([784])}),
    "linear": make_node(nir.Linear, weight=np.random.default_rng(0).normal(size=(128, 784)).astype(np.float32)),
    "output": make_node(nir.Output, output_type={"output": np.array([128])}),
}
graph = make_graph(nodes, [("input", "linear"), ("linear", "output")])
data = np.random.default_rng(1).integers(0, 3, (100, 32, 784)), np.zeros(32, int)
rows, threads = Runner._rows, []

def counted(self, samples):
    import sys
    found = rows(self, samples)
    threads.append(sys.modules["torch"].get_num_threads())
    return found

Runner._rows = counted
first, second = (nd.evaluate(graph, data, convention=nd.convention("sinabs", dt=1e-3)).outputs for _ in range(2))
print(*threads, int((first != second).sum()))
"""


def printed_with_two_threads(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "2"},
    )
    return done.stdout.split()


def test_the_first_chunk_of_a_process_is_run_on_one_thread_too():
    assert printed_with_two_threads(ALONE) == ["1", "1", "1", "1", "0"]


TORCH_LATER = """
from nirdeploy.reference.threads import one_thread
with one_thread():
    import torch
    before = torch.get_num_threads()
    with one_thread():
        pass
print(torch.get_num_threads() == before)
"""


def test_torch_that_is_imported_on_one_thread_has_all_of_them_afterwards():
    assert printed_with_two_threads(TORCH_LATER) == ["True"]


def test_a_target_of_the_user_s_own_is_not_taken_for_the_installed_one_of_its_name(graph, deployment, data, tmp_path):
    installed = deployment.target
    cores = {**installed.table["cores"], "stochastic": [0, 1, 2]}
    own = replace(installed, table={**installed.table, "cores": cores})
    other = nd.deploy(graph, own, convention=CONVENTION, calibration=data[0], cores={"if1": 3, "if2": 4, "if3": 5})
    same(nd.evaluate(other, data), nd.evaluate(deployment, data))
    words = "target 'speck2f' is not as a backend provides it; a file holds its name alone. Deploy to a target of an"
    with pytest.raises(TargetError, match=words):
        nd.evaluate(other, data, workers=2)
    with pytest.raises(TargetError, match=words):
        other.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_this_process_computes_while_others_start(deployment, data, monkeypatch):
    popen = subprocess.Popen

    def asleep(arguments, **keywords):
        return popen([sys.executable, "-c", "import time; time.sleep(60)"], **keywords)

    crew.dismiss()
    monkeypatch.setattr(handle.subprocess, "Popen", asleep)
    started = time.monotonic()
    same(nd.evaluate(deployment, data, batch=2, workers=2), nd.evaluate(deployment, data, batch=2))
    assert time.monotonic() - started < 30


def test_killed_workers_lose_nothing_and_change_nothing(deployment, data, elsewhere, monkeypatch):
    expected = nd.evaluate(deployment, data, batch=2, mode="event")
    started, killed = [], []
    popen = subprocess.Popen
    crew.dismiss()

    def remembered(*arguments, **keywords):
        started.append(popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(handle.subprocess, "Popen", remembered)

    def progress(done, total):
        if len(killed) < 3:  # one after each of the first chunks
            killed.append(started[-1].pid)
            started[-1].kill()

    found = nd.evaluate(deployment, data, batch=2, mode="event", workers=2, progress=progress)
    same(found, expected)
    assert len(killed) == 3
    assert len(started) > 2, "no worker was replaced"
    crew.dismiss()
    assert all(process.poll() is not None for process in started), "a worker was left behind"


# ---------------------------------------------------------------- going on

KILLED = f"""{SLOW}
if __name__ == "__main__":
    build, data, output, workers = sys.argv[1:]
    dep = nd.load_deployment(build)
    nd.evaluate(dep, Slow(data, 0.02), output=output, resume=True, workers=int(workers), batch=2, mode="event",
                progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_client_loses_no_finished_sample_and_changes_no_result(deployment, data, tmp_path, workers):
    nd.evaluate(deployment, data, batch=2, mode="event", output=tmp_path / "whole.h5")
    deployment.save(tmp_path / "build")
    np.savez(tmp_path / "data.npz", raster=data[0], labels=data[1])
    (tmp_path / "client.py").write_text(KILLED)
    output = tmp_path / "out.h5"
    command = [sys.executable, tmp_path / "client.py", tmp_path / "build", tmp_path / "data.npz", output, workers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}
    finished, kills = 0, 0
    for told in (1, 2, 3):  # killed after so many chunks of its own
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as client:
            for _ in range(told):
                said = int(client.stdout.readline())
                assert said > finished, "it began anew"
                finished = said
            time.sleep(0.013 * told)  # somewhere in the next chunk
            client.send_signal(signal.SIGKILL)
            client.stdout.close()
        kills += client.wait() == -signal.SIGKILL
        now = int(read_table(output).done.sum())
        assert now >= finished, "a finished sample is lost"
        finished = now
    assert kills == 3
    assert 0 < finished < 41, "there was nothing left to go on with"
    last = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert int(last.stdout.split()[0]) > finished
    found, whole = read_table(output), read_table(tmp_path / "whole.h5")
    for name, column in found.columns.items():
        np.testing.assert_array_equal(column, whole.columns[name])


def test_resume_computes_the_missing_rows_alone(deployment, data, tmp_path):
    path = tmp_path / "out.h5"
    whole = nd.evaluate(deployment, data, output=path, batch=4)
    with h5py.File(path, "r+") as file:  # any samples, in any order: parts of chunks too
        for sample in (0, 5, 6, 40):
            file["done"][sample] = 0
            file["outputs"][sample] = 0
        file["outputs"][1] = 123.0  # of a row that is done: it must stay
    seen = []
    found = nd.evaluate(deployment, data, output=path, resume=True, progress=lambda done, total: seen.append(done))
    assert seen == [38, 40, 41]
    assert (found.outputs[1] == 123).all()
    for sample in (0, 5, 6, 40):
        np.testing.assert_array_equal(found.outputs[sample], whole.outputs[sample])
    same(nd.load_evaluation(path), found)


def test_resume_of_a_file_that_is_not_there_begins(deployment, data, tmp_path):
    found = nd.evaluate(deployment, data, output=tmp_path / "new.h5", resume=True)
    assert found.n == 41
    assert found.file == tmp_path / "new.h5"
    assert [path.name for path in tmp_path.iterdir()] == ["new.h5"], "something temporary is left"


def test_a_file_that_is_there_is_refused_without_resume(deployment, data, tmp_path):
    path = tmp_path / "out.h5"
    path.write_text("mine")
    with pytest.raises(FileError, match=r"out.h5' is there already\. Pass resume=True"):
        nd.evaluate(deployment, data, output=path)
    with pytest.raises(FileError, match="not an HDF5 file"):
        nd.evaluate(deployment, data, output=path, resume=True)
    assert path.read_text() == "mine"
    with pytest.raises(FileError, match="there is no folder"):
        nd.evaluate(deployment, data, output=tmp_path / "none" / "out.h5")


def test_a_file_of_another_run_is_refused_by_name(graph, deployment, data, tmp_path):
    path = tmp_path / "out.h5"
    nd.evaluate(graph, data, convention=CONVENTION, output=path)
    before = path.read_bytes()

    def refused(words, network=graph, samples=data, convention=CONVENTION, **rest):
        with pytest.raises(FileError, match=words):
            nd.evaluate(network, samples, convention=convention, output=path, resume=True, **rest)

    refused("holds another network", conv_net(seed=3))
    refused("another convention", convention=nd.convention("sinabs", dt=1e-3, v_min=None))
    refused("another data set", samples=(data[0], data[1][::-1].copy()))
    refused("another number of samples", samples=(data[0][:, :40], data[1][:40]))
    refused(r"another batch \(16 in the file, 5 asked\)", batch=5)
    refused("other settings", method="loop")
    refused("another deployment", deployment, convention=None)
    assert path.read_bytes() == before
    nd.evaluate(graph, data, convention=CONVENTION, output=path, resume=True)  # and its own is taken
    other = nd.deploy(graph, "speck2f", convention=CONVENTION, calibration=data[0][:, :1])
    nd.evaluate(deployment, data, output=tmp_path / "dep.h5")
    with pytest.raises(FileError, match="another deployment of the network"):
        nd.evaluate(other, data, output=tmp_path / "dep.h5", resume=True)


def test_two_clients_do_not_write_one_file(deployment, data, tmp_path):
    path = tmp_path / "out.h5"
    problems = []

    def progress(done, total):
        if done == 16:
            code = f"import h5py; h5py.File({str(path)!r}, 'r+')"
            ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            problems.append((ended.returncode, ended.stderr))

    nd.evaluate(deployment, data, output=path, progress=progress)
    assert problems[0][0] != 0
    assert "lock" in problems[0][1]


def test_an_unfinished_file_is_no_result(deployment, data, tmp_path):
    path = tmp_path / "out.h5"
    nd.evaluate(deployment, data, output=path)
    with h5py.File(path, "r+") as file:
        file["done"][3] = 0
    with pytest.raises(FileError, match="40 of 41 samples"):
        nd.load_evaluation(path)


def test_damaged_results_are_refused(deployment, data, tmp_path):
    path = tmp_path / "out.h5"
    nd.evaluate(deployment, data, output=path)
    with h5py.File(path, "r+") as file:
        file["prediction"][0] = 99
    with pytest.raises(FileError, match="prediction holds 99 with 4 classes"):
        nd.load_evaluation(path)
    with h5py.File(path, "r+") as file:
        del file["steps"]
    with pytest.raises(FileError, match="steps is missing"):
        nd.load_evaluation(path)


# ---------------------------------------------------------------- samples that fail


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_sample_that_fails_is_named_and_the_rest_is_kept(deployment, data, tmp_path, workers):
    bad = data[0].astype(np.float64)
    bad[3, 21] = 0.5  # not whole
    bad[3, 37] = 0.5
    path = tmp_path / "out.h5"
    with pytest.raises(RasterError, match=r"sample 21: .*whole counts.*\d+ samples are kept in .*out.h5"):
        nd.evaluate(deployment, (bad, data[1]), output=path, batch=4, workers=workers)
    done = read_table(path).done
    assert done[:20].all()
    assert not done[20:24].any()
    assert workers > 1 or done.sum() == 20
    with pytest.raises(RasterError, match="sample 21"):
        nd.evaluate(deployment, (bad, data[1]), output=path, workers=workers, resume=True)


def test_a_data_set_that_raises_is_named(deployment, data, tmp_path):
    class Broken:
        def __len__(self):
            return 41

        def __getitem__(self, i):
            if i == 22:
                raise KeyError("no such picture")
            return data[0][:, i], int(data[1][i])

    path = tmp_path / "out.h5"
    with pytest.raises(RasterError, match="sample 22: the data set raises KeyError: 'no such picture'") as caught:
        nd.evaluate(deployment, Broken(), output=path, batch=4, workers=2)
    assert caught.value.__notes__ == [f"20 samples are kept in {str(path)!r}; resume=True goes on from there."]
    assert read_table(path).done.sum() == 20


def test_labels_beyond_the_classes_are_refused(deployment, data):
    labels = data[1].copy()
    labels[30] = 4
    with pytest.raises(RasterError, match="sample 30 has the label 4, the Output has 4 classes"):
        nd.evaluate(deployment, (data[0], labels))
    labels[30] = -1
    with pytest.raises(RasterError, match="sample 30 has the label -1"):
        nd.evaluate(deployment, (data[0], labels))


def test_a_sample_of_another_shape_is_named(deployment):
    samples = [(np.ones((5, 1, 6, 6), int), 0), (np.ones((5, 6, 6), int), 0)]
    with pytest.raises(RasterError, match=r"sample 1: the raster has shape \(5, 6, 6\), expected \[step, 1, 6, 6\]"):
        nd.evaluate(deployment, samples)


# ---------------------------------------------------------------- data sets


class _OneBuffer:
    """A data set that fills the same array for every sample, as readers of large files do."""

    def __init__(self, raster, labels):
        self.raster, self.labels, self.buffer = raster, labels, np.empty_like(raster[:, 0])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        self.buffer[...] = self.raster[:, i]
        return self.buffer, int(self.labels[i])


@pytest.mark.parametrize(("workers", "batch"), [(1, 4), (2, 1), (2, 4)])
def test_a_data_set_may_give_every_sample_in_the_same_array(deployment, data, workers, batch):
    expected = nd.evaluate(deployment, [(data[0][:, i], label) for i, label in enumerate(data[1])], batch=batch)
    found = nd.evaluate(deployment, _OneBuffer(*data), batch=batch, workers=workers)
    same(found, expected)
    assert found.data == expected.data


def test_without_labels_there_is_no_accuracy(deployment, data):
    found = nd.evaluate(deployment, (data[0], None), against=None)
    assert (found.accuracy, found.confusion, found.labels, found.per_class) == (None, None, None, ())
    np.testing.assert_array_equal(found.outputs, nd.evaluate(deployment, data).outputs)
    assert found.to_dict()["accuracy"] is None
    assert "accuracy" not in found.summary()


def test_labels_for_some_only_are_refused(deployment, data):
    samples = [(data[0][:, i], 1 if i != 19 else None) for i in range(30)]
    with pytest.raises(RasterError, match="sample 19 has no label, sample 0 has one"):
        nd.evaluate(deployment, samples)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([], "the list given has no samples"),
        ((np.zeros((5, 0, 1, 6, 6), int), np.zeros(0, int)), "has no samples"),
        ((np.zeros((5, 3, 1, 6, 6), int), np.zeros(2, int)), "has 2 labels for 3 samples"),
        ((np.zeros((5, 3, 1, 6, 6), int), np.zeros(3)), "labels are float64"),
        ((np.zeros(5, int), None), r"expected \[step, sample, \.\.\.\]"),
        (3, "a int is no data set"),
        ([np.zeros((5, 1, 6, 6))], r"sample 0 of the data set is a ndarray, expected \(raster, label\)"),
        ([(np.zeros((5, 1, 6, 6)), 0.5)], "sample 0: the label is 0.5"),
        (([[[1]], [[1], [2]]], None), "the raster is no array of counts"),
        ((np.zeros((5, 2, 1, 6, 6), int), [[1], [1, 2]]), "labels are no array of whole numbers, one a sample"),
        ((np.ma.masked_equal(np.zeros((5, 3, 1, 6, 6), int), 0), None), "the raster has masked values"),
        ([(np.ma.masked_equal(np.zeros((5, 1, 6, 6), int), 0), 0)], "sample 0: the raster has masked values"),
    ],
)
def test_what_is_no_data_set_is_refused(deployment, dataset, words):
    with pytest.raises(RasterError, match=words):
        nd.evaluate(deployment, dataset)


def test_an_empty_folder_has_no_samples(deployment, tmp_path):
    with pytest.raises(RasterError, match="has no samples"):
        nd.evaluate(deployment, tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        nd.evaluate(deployment, tmp_path / "none.npz")


def test_files_arrays_and_datasets_give_the_same(deployment, data, tmp_path):
    np.savez(tmp_path / "data.npz", raster=data[0], labels=data[1])
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("raster", data=data[0], chunks=(20, 4, 1, 6, 6))
        file["labels"] = data[1]
    dataset = torch.utils.data.TensorDataset(
        torch.as_tensor(data[0]).transpose(0, 1).contiguous(), torch.as_tensor(data[1])
    )
    expected = nd.evaluate(deployment, data)
    for given in (tmp_path / "data.npz", str(tmp_path / "data.h5"), dataset):
        same(nd.evaluate(deployment, given), expected)


def test_samples_of_different_length_are_run_as_each_alone(graph, data):
    lengths = [5 + k % 3 for k in range(20)]
    samples = [(data[0][:length, k], k % 4) for k, length in enumerate(lengths)]
    found = nd.evaluate(graph, samples, convention=CONVENTION, batch=8)
    assert found.steps.tolist() == lengths
    for k, (counts, _) in enumerate(samples):
        alone = nd.run(graph, counts, convention=CONVENTION)
        np.testing.assert_array_equal(found.outputs[k], np.asarray(alone.outputs).sum(axis=0))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Twelve recordings in N-MNIST's format and layout, each of its own length."""
    folder, rng = tmp_path_factory.mktemp("nmnist"), np.random.default_rng(0)
    for k in range(12):
        n = 50 + 10 * k
        time_us = np.sort(rng.integers(0, 20_000 + 1000 * k, n))
        events = nd.Events(time_us, rng.integers(0, 2, n), *rng.integers(0, 34, (2, n)), shape=(2, 34, 34))
        path = folder / str(k % 3) / f"{k:05}.bin"
        path.parent.mkdir(exist_ok=True)
        nd.save_events(path, events)
    (folder / "README.txt").write_text("no sample")
    return folder


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(1)
    from nets import conv_node, flatten_node

    return chain(
        (2, 34, 34),
        conv=conv_node(rng.normal(0.2, 0.5, (2, 2, 5, 5)), (34, 34), stride=4),
        if1=if_node((2, 8, 8)),
        flatten=flatten_node((2, 8, 8)),
        fc=linear_node(rng.normal(0.05, 0.3, (3, 128))),
        if2=if_node((3,)),
    )


@pytest.mark.parametrize("what", ["reference", "step", "event"])
def test_a_folder_of_recordings_is_evaluated_by_class(small, recordings, what):
    paths = sorted(recordings.rglob("*.bin"))
    events = [nd.load_events(path) for path in paths]
    binned = [nd.events_to_raster(e, (2, 34, 34), step_us=1000) for e in events]
    if what == "reference":
        found = nd.evaluate(small, recordings, convention=CONVENTION, batch=5)
        alone = [nd.run(small, one, convention=CONVENTION) for one in binned]
    else:
        dep = nd.deploy(small, "speck2f", convention=CONVENTION, calibration=binned[0][:, None])
        found = nd.evaluate(dep, recordings, mode=what, workers=2 if what == "event" else 1, batch=5)
        alone = [dep.run(one, mode=what) for one in (events if what == "event" else binned)]
    assert found.labels.tolist() == [int(path.parent.name) for path in paths]
    assert found.steps.tolist() == [run.n_steps for run in alone]
    for k, run in enumerate(alone):
        np.testing.assert_array_equal(found.outputs[k], np.asarray(run.outputs).reshape(run.n_steps, -1).sum(axis=0))


def test_published_recordings_score_as_one_run_of_all(data):
    folder = shared("reference", "cnn")
    stored = np.load(folder / "nmnist_test_events.npz")
    events = []
    for at, label in list(enumerate(stored["label"]))[:6]:
        part = slice(stored["offset"][at], stored["offset"][at + 1])
        time_us = stored["t_us"][part] - stored["t_us"][part][0]
        columns = [stored[name][part] for name in ("p", "y", "x")]
        events.append(nd.Events(time_us, *columns, shape=(2, 34, 34), label=int(label)))
    network = nd.read(folder / "cnn_sinabs.nir")
    found = nd.evaluate(network, events, convention=CONVENTION, batch=2)
    assert found.labels.tolist() == stored["label"][:6].tolist()
    assert found.accuracy == 1.0


@pytest.mark.parametrize("kind", ["graph", "deployment"])
def test_steps_of_another_length_than_the_convention_has_are_refused(small, recordings, data, kind):
    network, given = small, {"convention": CONVENTION}
    if kind == "deployment":
        network, given = nd.deploy(small, "speck2f", convention=CONVENTION, quantizer="max"), {}
    with pytest.raises(RasterError, match=r"sample 0: step_us=5000 with a convention whose dt is 0\.001 s"):
        nd.evaluate(network, recordings, step_us=5000, **given)
    same = nd.evaluate(network, recordings, step_us=1000, **given)
    assert np.array_equal(same.outputs, nd.evaluate(network, recordings, **given).outputs)
    counts = np.zeros((5, 2, 2, 34, 34), int)
    with pytest.raises(RasterError, match="sample 0: step_us=1000 with a raster, which has its steps already"):
        nd.evaluate(network, (counts, None), step_us=1000, **given)


def test_a_tensor_with_a_gradient_is_counts_like_any_other(deployment, data):
    given = torch.tensor(data[0], dtype=torch.float32, requires_grad=True), torch.tensor(data[1])
    assert np.array_equal(nd.evaluate(deployment, given).outputs, nd.evaluate(deployment, data).outputs)


# ---------------------------------------------------------------- arguments


def test_arguments_that_have_no_meaning_are_refused(graph, deployment, data):
    cases = [
        (ConfigurationError, "workers is 0", {"workers": 0}),
        (ConfigurationError, "batch is 2.5", {"batch": 2.5}),
        (ConfigurationError, "step_us is 0", {"step_us": 0}),
        (ConfigurationError, "workers and scheduler", {"workers": 2, "scheduler": "tcp://x:1"}),
        (ConfigurationError, "resume needs output", {"resume": True}),
        (ConfigurationError, "workers is 2 with on='chip'", {"on": "chip", "workers": 2}),
        (ConventionError, "has its convention already", {"convention": CONVENTION}),
        (UnsupportedError, "method= is the reference's", {"method": "event"}),
        (UnsupportedError, "sample 0: on='nowhere' is unknown", {"on": "nowhere"}),
        (UnsupportedError, "no option 'leek'", {"options": {"leek": 1}}),
    ]
    for kind, words, given in cases:
        with pytest.raises(kind, match=words):
            nd.evaluate(deployment, data, **given)
    with pytest.raises(UnsupportedError, match="mode= and options= are those of deployments"):
        nd.evaluate(graph, data, convention=CONVENTION, mode="event")
    with pytest.raises(UnsupportedError, match="on='chip' with a graph, which the reference runs. Give the deployment"):
        nd.evaluate(graph, data, convention=CONVENTION, on="chip")
    with pytest.raises(UnsupportedError, match="an evaluation of a Linear"):
        nd.evaluate(torch.nn.Linear(2, 2), data)
    with pytest.raises(ConventionError, match="convention"):
        nd.evaluate(graph, data)


# ---------------------------------------------------------------- the command


def command(*arguments, expected=0):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends")])}
    ended = subprocess.run(
        [sys.executable, "-m", "nirdeploy", "evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert ended.returncode == expected, ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    return ended


def test_the_command_evaluates_resumes_and_refuses(graph, deployment, data, tmp_path):
    nd.write(tmp_path / "net.nir", graph, convention=CONVENTION)
    deployment.save(tmp_path / "build")
    np.savez(tmp_path / "data.npz", raster=data[0], labels=data[1])
    files = [tmp_path / "build", tmp_path / "data.npz", "--output", tmp_path / "chip.h5"]
    command(tmp_path / "net.nir", tmp_path / "data.npz", "--output", tmp_path / "ref.h5", "--json")
    said = command(*files, "--mode", "event", "--workers", 2, "--against", tmp_path / "ref.h5")
    expected = nd.evaluate(deployment, data, mode="event", against=tmp_path / "ref.h5")
    assert f"accuracy {expected.accuracy:.4f}" in said.stdout
    assert "if1" in said.stdout
    again = json.loads(command(*files, "--mode", "event", "--resume", "--json").stdout)
    assert again["confusion"] == expected.confusion.tolist()
    assert "is there already" in command(*files, expected=2).stderr
    assert "other settings" in command(*files, "--resume", expected=2).stderr
    low = command(*files, "--mode", "event", "--resume", "--min-accuracy", "1", expected=1)
    assert "beyond the limits: accuracy" in low.stdout
    assert "--min-agreement needs --against" in command(*files, "--min-agreement", "1", expected=2).stderr


def test_results_of_a_hundred_thousand_samples_take_little_memory(tmp_path):
    """Tables and file of 100,000 rows, ten classes and five populations, filled chunk by chunk."""
    from nirdeploy.evaluation.file import Identity, Store
    from nirdeploy.evaluation.job import Rows
    from nirdeploy.evaluation.result import result_of

    resource = pytest.importorskip("resource")
    n, names = 100_000, tuple(f"if{k}" for k in range(5))
    rng = np.random.default_rng(0)
    outputs = rng.integers(0, 50, (1000, 10)).astype(np.float64)
    chunk = Rows(outputs, rng.integers(0, 99, (1000, 5)), np.full(1000, 20), names, "emulator", "speck2f")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Store(Identity("g", "d", "{}", "{}", "x", n, 1000), tmp_path / "out.h5", resume=False) as store:
        for first in range(0, n, 1000):
            store.add(first, [k % 10 for k in range(1000)], chunk)
    found = result_of(store.table, None)
    assert found.confusion.sum() == n
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert taken <= 200, f"{taken:.0f} MB"
    with contextlib.suppress(OSError):
        assert (tmp_path / "out.h5").stat().st_size < 32 << 20
    np.testing.assert_array_equal(nd.load_evaluation(tmp_path / "out.h5").outputs[-1000:], outputs)
