"""A network over a data set: accuracy, confusion, spikes, agreement; on one process or many, nothing lost.

- datasets.py: what counts as a data set
- job.py: a network as bytes, and the rows of a chunk
- workers.py: this process, and processes beside it
- crew.py, handle.py, process.py: those processes, which stay between calls
- daskwise.py, cluster.py: the workers of a dask scheduler
- messages.py: arrays and JSON as bytes
- file.py: the table of results and its HDF5 file
- engine.py: `evaluate`
- result.py: `Evaluation`
- points.py, timesteps.py: the axes of a sweep, a data set at another dt
- sweeping.py, sweep_runs.py: `sweep`, its points one after the other
- sweep_table.py, sweep_plot.py: `Sweep`, its picture
"""
