"""Inputs that a bundle is verified on."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparrow.deploy.bundle import Bundle
from sparrow.deploy.cli.samples import PreprocessingOptions, bundle_inputs, read_samples
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


def own_inputs(
    bundle: Bundle, source: Path, preprocessing: PreprocessingOptions, count: int | None
) -> VerificationInputs:
    """Read a user's own images or arrays for a bundle of one input.

    Args:
        bundle: The bundle.
        source: What ``read_samples`` takes.
        preprocessing: How images become numbers; what it leaves open, the network's file says.
        count: Number of samples at most, None for all.

    Raises:
        SparrowError: There are none, or they do not fit the network.
    """
    tensors = bundle_inputs(bundle)
    if len(tensors) != 1 or tensors[0].dtype != "float32":
        raise SparrowError(f"the network has {len(tensors)} inputs, {tensors[0].name} is {tensors[0].dtype}",
                           expected="one float32 input, to be verified",
                           next_step="run it by sparrow run --input FILE.npz")  # fmt: skip
    shape = tensors[0].shape[1:] if tensors[0].shape[0] == 1 else tensors[0].shape
    samples = read_samples(source, tensors, preprocessing.complete(bundle.manifest["metadata"]), count)
    images = np.stack([sample[tensors[0].name].reshape(shape) for sample in samples])
    return VerificationInputs(images, None, f"samples of {source}")
