"""The networks that Sparrow trains, as plain PyTorch modules, one family a file.

* :mod:`~sparrow.models.digits_net`: a small residual network for 8x8 handwritten digits, the demo's network.
* :mod:`~sparrow.models.resnet_cifar`: ResNet-20, 32, 44 and 56 for 32x32 images, shortcut options A and B.
* :mod:`~sparrow.models.vgg_small`: the six-convolution VGG of the low-bit literature.
* :mod:`~sparrow.models.resnet_imagenet`: ResNet-18 and ResNet-50.
* :mod:`~sparrow.models.mobilenet_v2`, :mod:`~sparrow.models.mnasnet`, :mod:`~sparrow.models.proxylessnas`:
  networks of inverted residual blocks, designed for phones.
* :mod:`~sparrow.models.registry`: :data:`MODELS`, the one list of names, and :func:`build_model`, which also
  takes a user's own network as ``path/to/file.py:factory``.

Attribute names follow the sources of the public weights (torchvision, or the paper's authors), so that those
load by name. Every forward pass is free of data-dependent control flow and traceable by ``torch.fx``; each
activation is a module of its own, so that a quantizer can observe it by name.

Importing this package does not import PyTorch; :func:`build_model` does.
"""

from sparrow.models.registry import MODELS, ModelSpec, build_model, model_input_shape

__all__ = ["MODELS", "ModelSpec", "build_model", "model_input_shape"]
