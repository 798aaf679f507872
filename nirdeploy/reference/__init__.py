"""The float executor on PyTorch: conventions, neuron modules, and the run over a raster."""
