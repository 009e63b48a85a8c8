"""Fashion-MNIST, 1x28x28, ten classes of clothing (Xiao, Rasul and Vollgraf, arXiv 1708.07747), in IDX files."""

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.data.images import Augmentation, ImageData
from sparrow.quantize.data.locations import CORRUPT_ERRORS, Download, find_folder

CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_PUBLISHER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DOWNLOADS = (
    Download(f"{_PUBLISHER}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    Download(f"{_PUBLISHER}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    Download(f"{_PUBLISHER}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
    Download(f"{_PUBLISHER}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
)


def load(location: Path) -> ImageData:
    """Load the four IDX files, plain or as ``.gz``.

    Args:
        location: The folder that holds them, or one whose sub-folder ``fashion-mnist`` does.

    Returns:
        60,000 training and 10,000 test images.

    Raises:
        SparrowError: A file is missing, damaged or no IDX file, or images and labels do not belong together.
    """
    choices = [name + suffix for name in FILES for suffix in ("", ".gz")]
    folder = find_folder(location, "fashion-mnist", choices)
    if folder is None:
        raise SparrowError(
            f"{location} holds no Fashion-MNIST file",
            expected=f"a folder with {', '.join(FILES)}, each plain or with .gz",
            next_step="correct --data-dir, or leave it out to download them",
        )
    train_images, train_labels, test_images, test_labels = (read_idx(_choose(folder, name)) for name in FILES)
    for kind, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise SparrowError(
                f"the {kind} files in {folder} hold images {images.shape} and labels {labels.shape} "
                f"up to {labels.max(initial=0)}",
                expected="n images of 28x28 and n labels from 0 to 9",
                next_step="get the files again",
            )
    return ImageData(
        name="fashion-mnist",
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
        mean=(0.2860,),
        std=(0.3530,),
        classes=CLASSES,
        augmentation=Augmentation(crop_padding=2, horizontal_flip=True),
    )


def _choose(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise SparrowError(
        f"{folder} lacks {name} (and {name}.gz)",
        expected=f"all of {', '.join(FILES)}",
        next_step="add the missing file",
    )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes.

    Its header is big-endian: two zero bytes, the type (8 is uint8), the number of dimensions, then each dimension as
    32 bits.

    Args:
        path: File, compressed with gzip if its name ends in ``.gz``.

    Returns:
        uint8 array of the shape in the header.

    Raises:
        SparrowError: The file is damaged, or its size is not what its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except CORRUPT_ERRORS as error:
        raise SparrowError(
            f"{path} cannot be read: {error}", expected="an IDX file", next_step="get the file again"
        ) from error
    header_size = 4 + 4 * content[3] if len(content) >= 4 else 4
    if content[:3] != b"\0\0\x08" or len(content) < header_size:
        raise SparrowError(
            f"{path} begins with {content[:4].hex(' ') or 'nothing'}",
            expected="an IDX file of bytes, which begins with 00 00 08",
            next_step="get the file again",
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:header_size], ">u4"))
    size = header_size + int(np.prod(shape, dtype=object))
    if len(content) != size:
        raise SparrowError(
            f"{path} holds {len(content):,} bytes",
            expected=f"{size:,} bytes for the shape {shape} in its header",
            next_step="get the file again",
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
