"""torch <-> NIR: one table of primitives, a tracer for one direction, a graph module for the other.

primitives.py the table, both directions
build.py      `nir_to_torch`; restore.py: back from such a module to its graph
trace.py      `torch_to_nir`; samples.py: its inputs' shapes; guards.py: what tracing leaves as it was
tracer.py     the operations of a forward; forward.py: its graph; walk.py: what every value stands for on the way
maps.py       what a module becomes; calls.py: what its call becomes; axes.py: batch and steps where it is called
operations.py functions and tensor methods, one handler each; source.py: where they stand, for refusals
returned.py   outputs and states that forward returns; feedback.py: those that come back as inputs; loops.py: over time
draft.py      nodes, edges and folded constants so far
stated.py     `convention_of`
frameworks/   layers of the libraries that networks are trained with
"""
