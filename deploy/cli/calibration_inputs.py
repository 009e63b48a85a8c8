"""Inputs that activations are calibrated on: a folder of images, or an array."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.deploy.frontend.network import TensorInfo
from sparrow.kernels.errors import SparrowError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}


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
        """Turn uint8 [height, width, 3], red first, into float32 [3, height, width]."""
        channels = image.transpose(2, 0, 1)
        channels = channels[::-1] if self.order == "bgr" else channels
        mean, deviation = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.deviation))
        return ((channels - mean) / deviation).astype(np.float32)


def calibration_inputs(
    source: Path, inputs: Sequence[TensorInfo], preprocessing: Preprocessing, count: int
) -> list[dict[str, NDArray[Any]]]:
    """Read samples for a network.

    Args:
        source: Folder of images (its sub-folders included), ``.npy`` file with one sample a row for a network of one
            input, or ``.npz`` file with such an array for each input.
        inputs: The network's inputs.
        preprocessing: How images become numbers.
        count: Number of samples at most; of more, as many are taken at equal distances.

    Returns:
        Samples: arrays by input name, of the inputs' shapes and types.

    Raises:
        SparrowError: There are no samples, a file is damaged, or the samples do not fit the network.
    """
    if source.is_dir():
        return _from_images(source, inputs, preprocessing, count)
    if not source.is_file():
        raise SparrowError(
            f"{source} does not exist",
            expected="a folder of images, or an .npy or .npz file",
            next_step="check the path given to --calibrate",
        )
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
    chosen = _spread(len(columns[0]), count)
    return [{info.name: column[row] for info, column in zip(inputs, columns, strict=True)} for row in chosen]


def _rows(source: Path, values: NDArray[Any], info: TensorInfo) -> NDArray[Any]:
    """Reshape an array to [samples, *shape of the input]."""
    size = int(np.prod(info.shape))
    if values.size == 0 or values.size % size or values.shape[-1:] != info.shape[-1:]:
        raise SparrowError(
            f"{source} has the shape {list(values.shape)}",
            expected=f"[samples, {', '.join(map(str, info.shape[1:]))}] for the input {info.name}",
        )
    if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values.astype(np.float64)).all():
        raise SparrowError(f"{source} holds values that are no finite numbers", expected="finite numbers")
    return values.reshape(-1, *info.shape).astype(info.dtype)


def _spread(available: int, count: int) -> list[int]:
    return [int(row) for row in np.linspace(0, available - 1, min(available, count)).round()]


def _from_images(
    folder: Path, inputs: Sequence[TensorInfo], preprocessing: Preprocessing, count: int
) -> list[dict[str, NDArray[Any]]]:
    info = inputs[0]
    if len(inputs) != 1 or len(info.shape) != 4 or info.shape[0] != 1 or info.shape[1] != 3 or info.dtype != "float32":
        found = ", ".join(f"{entry.name} {entry.dtype}{list(entry.shape)}" for entry in inputs)
        raise SparrowError(
            f"the network takes {found}",
            expected="one float32 input of shape [1, 3, height, width] for a folder of images",
            next_step="give an .npy or .npz file to --calibrate",
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SparrowError(f"{folder} holds no image", expected=f"files of {', '.join(sorted(SUFFIXES))}")
    _, _, height, width = info.shape
    return [
        {info.name: preprocessing.apply(read_image(files[index], height, width))[None]}
        for index in _spread(len(files), count)
    ]


def read_image(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """Decode an image, scale it to cover a size, and cut its middle out.

    Args:
        path: Image file.
        height: Height of the result.
        width: Width of the result.

    Returns:
        uint8 [height, width, 3], red first.

    Raises:
        SparrowError: The file is no readable image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SparrowError(
            f"{path} cannot be decoded: {error}",
            expected="a JPEG, PNG, BMP or WebP image",
            next_step="remove it, or replace it",
        ) from error
    return np.asarray(fitted)
