"""MnasNet-B1, the variant without squeeze-and-excitation (Tan et al. 2019, arXiv 1807.11626).

Attribute names are torchvision's, so that its ``mnasnet1_0`` weights load.
"""

from torch import Tensor, nn

from sparrow.models.initialization import initialize_weights

# Expansion, kernel size, output channels, number of blocks, stride of the first block.
STAGES = ((3, 3, 24, 3, 2), (3, 5, 40, 3, 2), (6, 5, 80, 3, 2), (6, 3, 96, 2, 1), (6, 5, 192, 4, 2), (6, 3, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Widening 1x1, depthwise and linear 1x1 convolution; the input is added where shapes agree.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expansion: The depthwise convolution's channels over the input's.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.layers = nn.Sequential(
            *_conv_bn(in_channels, inner, 1),
            nn.ReLU(),
            *_conv_bn(inner, inner, kernel_size, stride=stride, groups=inner),
            nn.ReLU(),
            *_conv_bn(inner, out_channels, 1),
        )
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height/stride, width/stride)."""
        out: Tensor = self.layers(x)
        return out + x if self.adds_input else out


class MnasNet(nn.Module):
    """A depthwise separable stem, sixteen inverted residual blocks, a 1x1 convolution and a linear layer.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            *_conv_bn(3, 32, 3, stride=2),
            nn.ReLU(),
            *_conv_bn(32, 32, 3, groups=32),
            nn.ReLU(),
            *_conv_bn(32, 16, 1),
        ]
        in_channels = 16
        for expansion, kernel_size, out_channels, blocks, stride in STAGES:
            first = InvertedResidual(in_channels, out_channels, kernel_size, stride, expansion)
            rest = (InvertedResidual(out_channels, out_channels, kernel_size, 1, expansion) for _ in range(blocks - 1))
            layers.append(nn.Sequential(first, *rest))
            in_channels = out_channels
        layers += [*_conv_bn(in_channels, 1280, 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: float32 images, (batch, 3, 224, 224).

        Returns:
            float32 class scores, (batch, classes).
        """
        x = self.classifier(self.flatten(self.pool(self.layers(x))))
        return x


def _conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return convolution, nn.BatchNorm2d(out_channels)
