"""ProxylessNAS mobile, found by search on a phone's latency (Cai et al. 2019, arXiv 1812.00332, figure 4).

Attribute names and batch norm's epsilon are those of the network that the authors released.
"""

from collections import OrderedDict

from torch import Tensor, nn

from sparrow.models.initialization import initialize_weights

# Output channels, stride of the first block, then one (expansion, depthwise kernel size) for each block.
# None is a block that the search removed; it keeps its place so that the blocks' numbers stay the authors'.
STAGES: tuple[tuple[int, int, tuple[tuple[int, int] | None, ...]], ...] = (
    (16, 1, ((1, 3),)),
    (32, 2, ((3, 5), (3, 3), None, None)),
    (40, 2, ((3, 7), (3, 3), (3, 5), (3, 5))),
    (80, 2, ((6, 7), (3, 5), (3, 5), (3, 5))),
    (96, 1, ((6, 5), (3, 5), (3, 5), (3, 5))),
    (192, 2, ((6, 7), (6, 7), (3, 7), (3, 7))),
    (320, 1, ((6, 7),)),
)


class InvertedBottleneck(nn.Module):
    """Widening 1x1, depthwise and linear 1x1 convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the depthwise kernel.
        stride: Stride of the depthwise convolution.
        expansion: The depthwise convolution's channels over the input's; at 1 nothing is widened.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.inverted_bottleneck = _conv_bn_relu6(in_channels, inner, 1) if expansion != 1 else nn.Identity()
        self.depth_conv = _conv_bn_relu6(inner, inner, kernel_size, stride=stride, groups=inner)
        self.point_linear = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(inner, out_channels, 1, bias=False), bn=_batch_norm(out_channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height/stride, width/stride)."""
        x = self.point_linear(self.depth_conv(self.inverted_bottleneck(x)))
        return x


class Block(nn.Module):
    """An inverted bottleneck, with its input added where shapes agree. Arguments are the bottleneck's."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.mobile_inverted_conv = InvertedBottleneck(in_channels, out_channels, kernel_size, stride, expansion)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height/stride, width/stride)."""
        out: Tensor = self.mobile_inverted_conv(x)
        return out + x if self.adds_input else out


class ProxylessNas(nn.Module):
    """A stem, twenty blocks with depthwise kernels of 3, 5 and 7, a 1x1 convolution and a linear layer.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.first_conv = _conv_bn_relu6(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        in_channels = 32
        for out_channels, stride, stage in STAGES:
            for index, choice in enumerate(stage):
                if choice is None:
                    blocks.append(nn.Identity())
                    continue
                expansion, kernel_size = choice
                blocks.append(Block(in_channels, out_channels, kernel_size, stride if index == 0 else 1, expansion))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.feature_mix_layer = _conv_bn_relu6(in_channels, 1280, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(OrderedDict(linear=nn.Linear(1280, classes)))
        initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: float32 images, (batch, 3, 224, 224).

        Returns:
            float32 class scores, (batch, classes).
        """
        x = self.feature_mix_layer(self.blocks(self.first_conv(x)))
        x = self.classifier(self.flatten(self.pool(x)))
        return x


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _conv_bn_relu6(
    in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(OrderedDict(conv=convolution, bn=_batch_norm(out_channels), act=nn.ReLU6()))
