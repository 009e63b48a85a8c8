"""What a data set is once it is read."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.errors import SparrowError, near_names

Split = Literal["train", "test"]


class Images(Protocol):
    """Images by index: an array in memory, or something that decodes them when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of images, channels, height and width."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        """Images [n, channels, height, width], uint8."""


@dataclass(frozen=True)
class Augmentation:
    """How training images vary from epoch to epoch.

    Attributes:
        crop_padding: Black pixels added on each side before a crop of the old size at a random place.
        horizontal_flip: Whether half of the images are mirrored.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False


@dataclass(frozen=True)
class ImageData:
    """A data set of labelled images.

    Attributes:
        name: Key in ``DATASETS``.
        train_images: uint8 [n, channels, height, width].
        train_labels: int64 [n], each an index into ``classes``.
        test_images: uint8 [n, channels, height, width], the same size as the training images.
        test_labels: int64 [n].
        mean: Mean of each channel, on the scale where white is 1.
        std: Standard deviation of each channel, on the same scale.
        classes: Names of the classes.
        white: The byte that means 1.
        augmentation: How training images vary.
    """

    name: str
    train_images: Images
    train_labels: NDArray[np.int64]
    test_images: Images
    test_labels: NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    white: int = 255
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        _, channels, height, width = self.test_images.shape
        return channels, height, width

    def split(self, split: Split) -> tuple[Images, NDArray[np.int64]]:
        """Images and labels of the ``train`` or the ``test`` split.

        Raises:
            SparrowError: There is no such split, or it holds no image.
        """
        splits: dict[str, tuple[Images, NDArray[np.int64]]] = {
            "train": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        if split not in splits:
            raise SparrowError(f"unknown split {split!r}", expected=near_names(split, splits))
        if len(splits[split][1]) == 0:
            raise SparrowError(f"{self.name} has no {split} images", expected="at least one image")
        return splits[split]

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scale bytes to zero mean and unit deviation.

        Args:
            images: uint8 [..., channels, height, width].

        Returns:
            float32 of the same shape: (byte / white - mean) / std.
        """
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        normalized = images.astype(np.float32)
        normalized /= np.float32(self.white)
        normalized -= mean
        normalized /= std
        return normalized
