"""Training and quantization: from a PyTorch network to a standard ONNX file.

* ``configs``, ``api``: how a network is quantized, and the function that does it.
* ``dgms``: weight sharing by differentiable Gaussian mixtures; ``uniform``: int8 weights; ``activations``: int8 grids.
* ``data``: image data sets; ``train``: the training loop; ``checkpoint``: reading and writing checkpoints safely.
* ``export_onnx``: the file that passes to the compiler; ``recipes``: these steps put together, with the models.
"""
