"""Residual networks for 32x32 images (He et al. 2015, arXiv 1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from sparrow.kernels.errors import SparrowError
from sparrow.models.initialization import initialize_weights


class PaddedShortcut(nn.Module):
    """Option A: every second pixel of the input, with zero channels added; it has no parameters.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; half of the new ones come before and half after the input's.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height/2, width/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution, 1 or 2.
        shortcut: ``"A"`` or ``"B"``, used where the block changes the shape.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module
        if stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PaddedShortcut(in_channels, out_channels)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height/stride, width/stride)."""
        residual = self.relu1(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        x = self.relu2(residual + self.shortcut(x))
        return x


class CifarResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels on 32, 16 and 8 pixels squared.

    Args:
        depth: Number of layers with weights: 6 n + 2 for n blocks a stage; the paper has 20 to 110.
        classes: Number of classes.
        shortcut: ``"A"``, a zero-padded identity without parameters, the paper's choice for CIFAR; or ``"B"``,
            a 1x1 convolution with batch norm.

    Raises:
        SparrowError: ``depth`` is not 6 n + 2, or ``shortcut`` is neither.
    """

    def __init__(self, depth: int = 20, classes: int = 10, shortcut: str = "A") -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise SparrowError(f"a CIFAR ResNet of depth {depth}", expected="6 n + 2, such as 20, 32, 44 or 56")
        if shortcut not in ("A", "B"):
            raise SparrowError(f"shortcut option {shortcut!r}", expected="'A' or 'B'")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, 1, shortcut)
        self.layer2 = _stage(16, 32, blocks, 2, shortcut)
        self.layer3 = _stage(32, 64, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: float32 images, (batch, 3, 32, 32).

        Returns:
            float32 class scores, (batch, classes).
        """
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.linear(self.flatten(self.pool(x)))
        return x


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)))
