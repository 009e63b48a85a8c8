"""Inputs of a network from a user's files: images, arrays, raw numbers; and how an image becomes numbers."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.deploy.bundle import Bundle
from sparrow.deploy.frontend.network import TensorInfo
from sparrow.kernels.errors import SparrowError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm"}
RAW_SUFFIXES = {".raw", ".bin"}


@dataclass(frozen=True)
class Preprocessing:
    """How bytes of an image become a network's numbers: (byte - mean) / deviation.

    Attributes:
        mean: Of each channel in the network's order, on the scale of bytes; one number stands for all channels.
        deviation: The same; 1 leaves the numbers as they are.
        order: ``rgb`` or ``bgr``.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    deviation: tuple[float, ...] = (58.395, 57.12, 57.375)
    order: str = "rgb"

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn uint8 [height, width, channels], red first, into float32 [channels, height, width].

        Raises:
            SparrowError: The image is gray and mean or deviation are those of three channels.
        """
        channels = image.transpose(2, 0, 1)
        if len(channels) == 1 and max(len(self.mean), len(self.deviation)) > 1:
            raise SparrowError(
                "the network takes gray images, and three colours have a mean or a deviation",
                expected="one number for each, those that the network was trained with",
                next_step="such as --pixel-mean 127.5 --pixel-deviation 127.5",
            )
        channels = channels[::-1] if self.order == "bgr" else channels
        mean, deviation = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.deviation))
        return ((channels - mean) / deviation).astype(np.float32)


@dataclass(frozen=True)
class PreprocessingOptions:
    """What a user says of the preprocessing.

    Attributes:
        mean: As in ``Preprocessing``; ``None`` for what the network's file says, or ImageNet's where it says nothing.
        deviation: The same.
        order: ``rgb`` or ``bgr``.
    """

    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    order: str = "rgb"

    def complete(self, metadata: Mapping[str, str]) -> Preprocessing:
        """Fill in what was not said.

        Args:
            metadata: Properties of the network's ONNX file; ``sparrow.pixel_mean`` and ``sparrow.pixel_deviation``
                hold a number for each channel, as JSON.

        Raises:
            SparrowError: A property is no list of one or three finite numbers, or a deviation is 0.
        """
        known = Preprocessing()
        mean = self.mean or _channel_numbers(metadata, "pixel_mean") or known.mean
        deviation = self.deviation or _channel_numbers(metadata, "pixel_deviation") or known.deviation
        return Preprocessing(mean, deviation, self.order)


def _channel_numbers(metadata: Mapping[str, str], name: str) -> tuple[float, ...] | None:
    text = metadata.get(f"sparrow.{name}")
    if text is None:
        return None
    try:
        numbers = tuple(float(number) for number in json.loads(text))
    except (ValueError, TypeError, OverflowError, RecursionError):
        numbers = ()
    valid = len(numbers) in (1, 3) and all(map(math.isfinite, numbers))
    if not valid or (name == "pixel_deviation" and 0 in numbers):
        raise SparrowError(f"the network's file says sparrow.{name} {text[:80]!r}",
                           expected="one number or three, such as [127.5]",
                           next_step=f"give --{name.replace('_', '-')}")  # fmt: skip
    return numbers


def bundle_inputs(bundle: Bundle) -> list[TensorInfo]:
    """The inputs of a bundle's network."""
    return [TensorInfo(info["name"], tuple(info["shape"]), info["dtype"]) for info in bundle.manifest["inputs"]]


def read_samples(
    source: Path, inputs: Sequence[TensorInfo], preprocessing: Preprocessing, count: int | None = None
) -> list[dict[str, NDArray[Any]]]:
    """Read samples for a network.

    Args:
        source: Image, or folder of images (its sub-folders included); ``.npy`` file with one sample a row for a network
            of one input, or ``.npz`` file with such an array for each input; or ``.raw`` or ``.bin`` file with the
            inputs of one sample after another, little-endian, as ``sparrow_run`` reads them.
        inputs: The network's inputs.
        preprocessing: How images become numbers.
        count: Number of samples at most, by default all; of more, as many are taken at equal distances.

    Returns:
        Samples: arrays by input name, of the inputs' shapes and types.

    Raises:
        SparrowError: There are no samples, a file is damaged, or the samples do not fit the network.
    """
    if source.is_dir() or source.suffix.lower() in IMAGE_SUFFIXES:
        return _from_images(source, inputs, preprocessing, count)
    if not source.is_file():
        raise SparrowError(
            f"{source} does not exist",
            expected="an image, a folder of images, or an .npy, .npz or .raw file",
            next_step="check the path",
        )
    columns = _from_raw(source, inputs) if source.suffix.lower() in RAW_SUFFIXES else _from_arrays(source, inputs)
    chosen = _spread(len(columns[0]), count)
    return [{info.name: column[row] for info, column in zip(inputs, columns, strict=True)} for row in chosen]


def _from_arrays(source: Path, inputs: Sequence[TensorInfo]) -> list[NDArray[Any]]:
    try:
        loaded = np.load(source, allow_pickle=False)
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {inputs[0].name: loaded}
    except (OSError, ValueError, EOFError) as error:
        raise SparrowError(f"{source} is not a NumPy file: {error}", expected="a complete .npy or .npz file") from error
    missing = [info.name for info in inputs if info.name not in arrays]
    if missing:
        raise SparrowError(
            f"{source} has nothing for the input{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            expected="an .npz file with an array for each input",
            next_step="numpy.savez(file, name=array, ...)",
        )
    columns = [_rows(source, arrays[info.name], info) for info in inputs]
    if len({len(column) for column in columns}) > 1:
        raise SparrowError(f"the arrays of {source} differ in length", expected="one row a sample in each")
    return columns


def _from_raw(source: Path, inputs: Sequence[TensorInfo]) -> list[NDArray[Any]]:
    content = np.fromfile(source, np.uint8)
    sizes = [int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize for info in inputs]
    if not content.size or content.size % sum(sizes):
        shapes = ", ".join(f"{info.name} {info.dtype}{list(info.shape)}" for info in inputs)
        raise SparrowError(f"{source} has {content.size} bytes", expected=f"{sum(sizes)} a sample: {shapes}")
    parts = np.split(content.reshape(-1, sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
    return [
        _rows(source, np.ascontiguousarray(part).view(info.dtype).reshape(-1, *info.shape), info)
        for part, info in zip(parts, inputs, strict=True)
    ]


def _rows(source: Path, values: NDArray[Any], info: TensorInfo) -> NDArray[Any]:
    """Reshape an array to [samples, *shape of the input]."""
    size = int(np.prod(info.shape))
    if values.size == 0 or values.size % size or values.shape[-1:] != info.shape[-1:]:
        raise SparrowError(
            f"{source} has the shape {list(values.shape)}",
            expected=f"[samples, {', '.join(map(str, info.shape[1:]))}] for the input {info.name}",
        )
    numeric = np.issubdtype(values.dtype, np.number) or values.dtype == np.bool_
    if not numeric or not np.isfinite(values.astype(np.float64)).all():
        raise SparrowError(f"{source} holds values that are no finite numbers", expected="finite numbers")
    return values.reshape(-1, *info.shape).astype(info.dtype)


def _spread(available: int, count: int | None) -> list[int]:
    wanted = available if count is None else min(available, count)
    return [int(row) for row in np.linspace(0, available - 1, wanted).round()]


def _from_images(
    source: Path, inputs: Sequence[TensorInfo], preprocessing: Preprocessing, count: int | None
) -> list[dict[str, NDArray[Any]]]:
    info = inputs[0]
    *_, channels, height, width = (0, 0, 0, *info.shape)
    if len(inputs) != 1 or info.shape != (1, channels, height, width) or channels not in (1, 3) or (
        info.dtype != "float32"
    ):  # fmt: skip
        found = ", ".join(f"{entry.name} {entry.dtype}{list(entry.shape)}" for entry in inputs)
        raise SparrowError(
            f"the network takes {found}",
            expected="one float32 input of shape [1, 3, height, width] or [1, 1, height, width], to take images",
            next_step="give an .npy or .npz file",
        )
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise SparrowError(f"{source} holds no image", expected=f"files of {', '.join(sorted(IMAGE_SUFFIXES))}")
    return [
        {info.name: preprocessing.apply(read_image(files[index], height, width, channels))[None]}
        for index in _spread(len(files), count)
    ]


def read_image(path: Path, height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Decode an image, turn it as its camera says, scale it to cover a size, and cut its middle out.

    Args:
        path: Image file.
        height: Height of the result.
        width: Width of the result.
        channels: 3 for colours, 1 for gray.

    Returns:
        uint8 [height, width, channels], red first.

    Raises:
        SparrowError: The file is no readable image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SparrowError(
            f"{path} cannot be decoded: {error}",
            expected="a JPEG, PNG, BMP or WebP image",
            next_step="remove it, or replace it",
        ) from error
    return np.asarray(fitted).reshape(height, width, channels)
