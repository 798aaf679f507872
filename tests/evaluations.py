"""What tests of evaluations share: two results held against each other, and a data set that takes its time."""

import numpy as np

ARRAYS = ("labels", "predictions", "outputs", "steps")

# for programs of their own: a file's samples, with a pause before each
SLOW = """
import sys, time
import numpy as np
import nirdeploy as nd

class Slow:
    def __init__(self, path, seconds):
        stored = np.load(path)
        self.raster, self.labels, self.seconds = stored["raster"], stored["labels"], seconds
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, i):
        time.sleep(self.seconds)
        return self.raster[:, i], int(self.labels[i])
"""


def rows(evaluation):
    return [getattr(evaluation, name) for name in ARRAYS] + list(evaluation.spikes.values())


def same(a, b):
    assert list(a.spikes) == list(b.spikes)
    for ours, theirs in zip(rows(a), rows(b), strict=True):
        np.testing.assert_array_equal(ours, theirs)
