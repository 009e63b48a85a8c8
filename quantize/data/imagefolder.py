"""A user's own photos: a folder for each class, or one folder with a list, decoded when they are needed."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.data.images import Augmentation, ImageData
from sparrow.quantize.data.locations import Download

DOWNLOADS: tuple[Download, ...] = ()

IMAGE_SIZE = 224
SHORT_SIDE = 256
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}

Listing = list[tuple[Path, str]]


class ImageFiles:
    """Images that are decoded when they are asked for, by a few threads.

    Args:
        paths: One file an image.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of images, 3, 224 and 224."""
        return len(self._paths), 3, IMAGE_SIZE, IMAGE_SIZE

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: NDArray[np.int64] | slice) -> NDArray[np.uint8]:
        chosen = self._paths[index] if isinstance(index, slice) else [self._paths[i] for i in np.atleast_1d(index)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return np.stack(list(pool.map(decode, chosen)))


def decode(path: Path) -> NDArray[np.uint8]:
    """Decode one image and cut its middle out.

    The short side becomes 256 pixels and the middle 224x224 are kept, the usual way to evaluate on ImageNet. A short
    side from 224 to 255 is left alone: such an image was resized and cropped before.

    Args:
        path: Image file.

    Returns:
        uint8 [3, 224, 224], red first.

    Raises:
        SparrowError: The file is no readable image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SparrowError(
            f"{path} cannot be decoded: {error}",
            expected="a JPEG, PNG, BMP or WebP image",
            next_step="remove it, or replace it",
        ) from error
    short = min(picture.size)
    if not IMAGE_SIZE <= short < SHORT_SIDE:
        scale = SHORT_SIDE / short
        width, height = (max(SHORT_SIDE, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = ((side - IMAGE_SIZE) // 2 for side in picture.size)
    picture = picture.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def load(location: Path) -> ImageData:
    """List the images of a folder.

    A folder of images is either one sub-folder a class, or a file ``labels.txt`` with lines ``file class``. Where
    ``location`` has sub-folders ``train`` and ``val``, they are such folders and the two splits. Otherwise every
    fifth image of the sorted list is a test image.

    Classes named by numbers of up to five digits keep them, so that a subset of ImageNet fits a network for all of it;
    others are numbered in alphabetical order.

    Args:
        location: The folder.

    Returns:
        Images of 224x224 that are decoded on demand, with ImageNet's mean and deviation.

    Raises:
        SparrowError: There are no images, a line of the list is wrong, or a listed file is missing.
    """
    if not location.is_dir():
        raise SparrowError(f"{location} is a file", expected="a folder of images", next_step="correct --data-dir")
    if (location / "train").is_dir() and (location / "val").is_dir():
        train, test = _list_images(location / "train"), _list_images(location / "val")
    else:
        listing = _list_images(location)
        test = listing[::5]
        train = [entry for number, entry in enumerate(listing) if number % 5]
    names = {label for _, label in train + test}
    if all(name.isdecimal() and len(name) <= 5 for name in names):
        classes = [str(number) for number in range(max(map(int, names)) + 1)]
        number_of = {name: int(name) for name in names}
    else:
        classes = sorted(names)
        number_of = {name: number for number, name in enumerate(classes)}

    def labels(listing: Listing) -> NDArray[np.int64]:
        return np.array([number_of[label] for _, label in listing], np.int64)

    return ImageData(
        name="imagefolder",
        train_images=ImageFiles([path for path, _ in train]),
        train_labels=labels(train),
        test_images=ImageFiles([path for path, _ in test]),
        test_labels=labels(test),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=tuple(classes),
        augmentation=Augmentation(horizontal_flip=True),
    )


def _list_images(folder: Path) -> Listing:
    labels_file = folder / "labels.txt"
    if labels_file.is_file():
        return _read_labels(labels_file)
    listing = [
        (path, class_folder.name)
        for class_folder in sorted(folder.iterdir())
        if class_folder.is_dir()
        for path in sorted(class_folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not listing:
        raise SparrowError(
            f"{folder} holds no labelled image",
            expected="a sub-folder of images for each class, or a labels.txt with lines such as: photo.jpg cat",
            next_step="correct --data-dir",
        )
    return listing


def _read_labels(labels_file: Path) -> Listing:
    try:
        lines = labels_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SparrowError(f"{labels_file} cannot be read: {error}", expected="a text file in UTF-8") from error
    listing = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        path = labels_file.parent / name
        if not name or not path.is_file():
            raise SparrowError(
                f"line {number} of {labels_file} is {line!r}" + (f", and {path} is no file" if name else ""),
                expected="the name of an image, a space, and its class",
                next_step="correct the line, or add the image",
            )
        listing.append((path, label))
    if not listing:
        raise SparrowError(f"{labels_file} lists no image", expected="lines such as: photo.jpg cat")
    return listing
