"""Initial weights shared by the network families."""

from torch import nn


def initialize_weights(model: nn.Module) -> None:
    """Draw convolutions from He's normal distribution and linear layers from a narrow one, in place.

    A convolution's standard deviation is sqrt(2 / fan_out), which keeps the gradient's variance through ReLU
    (He et al. 2015, arXiv 1502.01852, equation 14); a linear layer's is 0.01, so that training starts with
    nearly equal class scores. Biases become zero. Batch norms keep PyTorch's ones and zeros.

    Args:
        model: Network to change; weights come from PyTorch's global generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
