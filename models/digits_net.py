"""A residual network small enough to train in seconds: 8x8 handwritten digits, 23,738 parameters."""

from torch import Tensor, nn

from sparrow.models.initialization import initialize_weights


class DigitsNet(nn.Module):
    """A stem, a stride-2 convolution and one residual block.

    Inner channel counts are multiples of four, one block of the channel-packed layout.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(32)
        self.relu4 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(32, classes)
        initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: float32 images, (batch, 1, 8, 8).

        Returns:
            float32 class scores, (batch, classes).
        """
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        residual = self.relu3(self.bn3(self.conv3(x)))
        residual = self.bn4(self.conv4(residual))
        x = self.relu4(residual + x)
        x = self.linear(self.flatten(self.pool(x)))
        return x
