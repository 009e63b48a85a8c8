"""Training and quantization: from a PyTorch network to a standard ONNX file.

* ``configs``, ``api``: how a network is quantized, and the function that does it.
* ``dgms``: weight sharing by differentiable Gaussian mixtures; ``kmeans``, ``lsq``, ``uniform``: other weights;
  ``sharing``: what they have in common; ``activations``: int8 grids.
* ``equalization``, ``correction``: before and after rounding, without training; ``post_training``: the same for an ONNX
  file.
* ``sparsity``: pruning; ``lowrank``: factors in place of layers; ``distill``: a teacher; ``search``: what each layer
  gets.
* ``data``: image data sets; ``train``: the training loop, in several ``processes``; ``checkpoint``: reading and writing
  checkpoints safely.
* ``export_onnx``: the file that passes to the compiler; ``size_report``: its weights in bytes.
* ``recipes``: these steps put together, with the models; ``recipe_file``: a whole job as a YAML file.
"""
