"""VGG-small, on which low-bit methods compare for CIFAR-10 (LQ-Nets, arXiv 1807.10029)."""

from torch import Tensor, nn

from sparrow.models.initialization import initialize_weights


class VggSmall(nn.Module):
    """Six 3x3 convolutions, two each with 128, 256 and 512 channels, a 2x2 max pooling after every pair.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for out_channels in (128, 256, 512):
            for _ in range(2):
                layers += [
                    nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                ]
                in_channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(512 * 4 * 4, classes)
        initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: float32 images, (batch, 3, 32, 32).

        Returns:
            float32 class scores, (batch, classes).
        """
        x = self.classifier(self.flatten(self.features(x)))
        return x
