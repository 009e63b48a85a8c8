"""Batches in an order, and with an augmentation, that depend on seed, epoch and step alone.

A training that is resumed in the middle of an epoch therefore sees what it would have seen without the break.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sparrow.quantize.data.images import Augmentation, ImageData, Split

T = TypeVar("T")

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


def batches(data: ImageData, split: Split = "test", batch_size: int = 512) -> Iterator[Batch]:
    """Yield a whole split in order, normalized; the last batch may be smaller.

    Args:
        data: Data set.
        split: ``train`` or ``test``.
        batch_size: Images a batch.

    Yields:
        float32 images [n, channels, height, width] and int64 labels [n].

    Raises:
        SparrowError: The split is unknown or empty.
    """
    images, labels = data.split(split)
    for start in range(0, len(labels), batch_size):
        chosen = slice(start, start + batch_size)
        yield data.normalize(images[chosen]), labels[chosen]


def steps_per_epoch(data: ImageData, batch_size: int) -> int:
    """Number of training batches an epoch: full ones only, unless the split is smaller than one batch."""
    return max(1, len(data.split("train")[1]) // batch_size)


def training_batches(
    data: ImageData, batch_size: int, *, seed: int, epoch: int, first_step: int = 0
) -> Iterator[Batch]:
    """Yield one epoch of shuffled, augmented and normalized training images.

    An incomplete last batch is left out, since batch normalization suffers from a very small one; the images left out
    differ from epoch to epoch.

    Args:
        data: Data set.
        batch_size: Images a batch.
        seed: Seed of the whole training.
        epoch: Number of the epoch, from 0.
        first_step: Step of the epoch to begin with.

    Yields:
        float32 images [batch_size, channels, height, width] and int64 labels [batch_size].

    Raises:
        SparrowError: There are no training images.
    """
    images, labels = data.split("train")
    order = np.random.default_rng([seed, epoch]).permutation(len(labels))
    for step in range(first_step, steps_per_epoch(data, batch_size)):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        generator = np.random.default_rng([seed, epoch, step])
        yield data.normalize(augment(images[chosen], data.augmentation, generator)), labels[chosen]


def augment(images: NDArray[np.uint8], augmentation: Augmentation, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Crop and mirror each image of a batch at random.

    Args:
        images: uint8 [n, channels, height, width].
        augmentation: What to do.
        generator: Source of the random numbers.

    Returns:
        A new array of the same shape.
    """
    count, channels, height, width = images.shape
    if padding := augmentation.crop_padding:
        padded = np.zeros((count, channels, height + 2 * padding, width + 2 * padding), np.uint8)
        padded[:, :, padding:-padding, padding:-padding] = images
        windows = sliding_window_view(padded, (height, width), axis=(2, 3))
        top, left = generator.integers(0, 2 * padding + 1, (2, count))
        images = windows[np.arange(count), :, top, left]
    if augmentation.horizontal_flip:
        mirrored = generator.integers(0, 2, count).astype(bool)
        images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
    return images


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yield items in order, the next one being made by a thread meanwhile: decoding and augmentation cost no step."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item
