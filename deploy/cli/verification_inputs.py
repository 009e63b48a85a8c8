"""Inputs that a bundle is verified on."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparrow.deploy.bundle import Bundle
from sparrow.kernels.errors import SparrowError

log = logging.getLogger("sparrow")

RANDOM_IMAGES = 16


@dataclass(frozen=True)
class VerificationInputs:
    """Inputs and where they come from.

    Attributes:
        images: float32 [n, ...], each of the network's input shape.
        labels: int64 [n], or None.
        source: What they are, for people.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    source: str


def verification_inputs(
    bundle: Bundle, data: str | None, data_dir: Path | None, count: int | None
) -> VerificationInputs:
    """Choose inputs for a bundle: images of a data set, or random numbers for a network that names none.

    Args:
        bundle: The bundle.
        data: Name of a data set, by default the one that the network was exported with.
        data_dir: Where the data set is.
        count: Number of images, None for all of the test split.

    Raises:
        SparrowError: The data set cannot be loaded, or its images do not fit the network.
    """
    batch, *image = bundle.manifest["inputs"][0]["shape"]
    shape = tuple(image) if batch == 1 else (batch, *image)
    data = data or bundle.manifest["metadata"].get("sparrow.data")
    if data is None:
        log.info("the network names no data set: verifying on random numbers (choose images with --data)")
        numbers = np.random.default_rng(0).standard_normal((min(count or RANDOM_IMAGES, RANDOM_IMAGES), *shape))
        return VerificationInputs(numbers.astype(np.float32), None, "random inputs")
    from sparrow.quantize.data import load_data

    loaded = load_data(data, data_dir)
    if loaded.image_shape != shape:
        raise SparrowError(
            f"images of {data} are {'x'.join(map(str, loaded.image_shape))}",
            expected=f"{'x'.join(map(str, shape))}, the network's input",
            next_step="choose the data set that the network was trained on with --data",
        )
    images, labels = loaded.split("test")
    count = len(labels) if count is None else min(count, len(labels))
    return VerificationInputs(loaded.normalize(images[:count]), labels[:count], f"test images of {data}")
