"""CIFAR-10, 3x32x32, ten classes (Krizhevsky, "Learning multiple layers of features from tiny images", 2009)."""

import hashlib
import io
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.kernels.errors import SparrowError
from sparrow.kernels.files import atomic_folder, cache_dir
from sparrow.quantize.data.images import Augmentation, ImageData
from sparrow.quantize.data.locations import Download, find_folder, read_archive

log = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DOWNLOADS = (
    Download("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
)

BINARY_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
PYTHON_BATCHES = tuple(name.removesuffix(".bin") for name in BINARY_BATCHES)
ARCHIVES = tuple(
    f"{stem}{suffix}"
    for stem in ("cifar-10-binary", "cifar-10-batches-bin", "cifar-10-python", "cifar-10-batches-py")
    for suffix in (".tar.gz", ".tar.xz", ".tar")
)

IMAGES_PER_BATCH = 10_000
IMAGE_BYTES = 3 * 32 * 32

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load(location: Path) -> ImageData:
    """Load the binary or the Python batches.

    Args:
        location: A folder with the batches, one whose sub-folder ``cifar-10-batches-bin`` or ``cifar-10-batches-py``
            has them, the archive (``.tar``, ``.tar.gz``, ``.tar.xz``), or a folder with the archive. What is decoded
            from an archive is kept in the cache folder, for a fast next start.

    Returns:
        50,000 training and 10,000 test images.

    Raises:
        SparrowError: A batch is missing, damaged, or not a batch of CIFAR-10.
    """
    if location.is_file():
        images, labels = _load_archive(location)
    elif folder := find_folder(location, "cifar-10-batches-bin", BINARY_BATCHES):
        images, labels = _decode(_read_folder(folder, BINARY_BATCHES), folder)
    elif folder := find_folder(location, "cifar-10-batches-py", PYTHON_BATCHES):
        images, labels = _decode(_read_folder(folder, PYTHON_BATCHES), folder)
    elif archives := [location / name for name in ARCHIVES if (location / name).is_file()]:
        images, labels = _load_archive(archives[0])
    else:
        raise SparrowError(
            f"{location} holds no batch of CIFAR-10",
            expected=f"{BINARY_BATCHES[0]} to 5 and test_batch.bin, the same without .bin (Python version), or the "
            f"archive under one of its usual names, such as {ARCHIVES[0]}",
            next_step="correct --data-dir, or leave it out to download the archive",
        )
    train = 5 * IMAGES_PER_BATCH
    return ImageData(
        name="cifar10",
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=CLASSES,
        augmentation=Augmentation(crop_padding=4, horizontal_flip=True),
    )


def _load_archive(archive: Path) -> Arrays:
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()[:16]
    cached = cache_dir() / "decoded" / f"cifar10-{key}"
    try:
        images, labels = np.load(cached / "images.npy"), np.load(cached / "labels.npy")
        if images.shape == (6 * IMAGES_PER_BATCH, 3, 32, 32) and labels.shape == images.shape[:1]:
            return images, labels
    except (OSError, ValueError, EOFError):
        pass
    contents = read_archive(archive, {*BINARY_BATCHES, *PYTHON_BATCHES}, largest=2 * IMAGES_PER_BATCH * IMAGE_BYTES)
    images, labels = _decode(contents, archive)
    try:
        with atomic_folder(cached, may_replace=lambda _: True) as folder:
            np.save(folder / "images.npy", images)
            np.save(folder / "labels.npy", labels)
    except (OSError, SparrowError) as error:
        log.warning("the decoded images are not kept for the next start: %s", error)
    return images, labels


def _read_folder(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    except OSError as error:
        raise SparrowError(
            f"{error.filename} cannot be read: {error.strerror}",
            expected="a readable batch of CIFAR-10",
            next_step="check its permissions",
        ) from error


def _decode(contents: dict[str, bytes], source: Path) -> Arrays:
    binary = any(name in contents for name in BINARY_BATCHES)
    names, decode = (BINARY_BATCHES, _decode_binary) if binary else (PYTHON_BATCHES, _decode_python)
    if missing := [name for name in names if name not in contents]:
        raise SparrowError(
            f"{source} lacks {', '.join(missing)}",
            expected=f"all of {', '.join(names)}",
            next_step="add what is missing, or get the archive again",
        )
    images, labels = zip(*(decode(contents[name], f"{name} in {source}") for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _damaged(where: str, got: str, expected: str) -> SparrowError:
    return SparrowError(f"{where} {got}", expected=expected, next_step="get the batch again")


def _decode_binary(content: bytes, where: str) -> Arrays:
    """Records of one byte for the label and 3,072 for the image, channel by channel."""
    size = IMAGES_PER_BATCH * (1 + IMAGE_BYTES)
    if len(content) != size:
        raise _damaged(where, f"has {len(content):,} bytes", f"{size:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_BATCH, 1 + IMAGE_BYTES)
    return _checked(records[:, 1:], records[:, 0].astype(np.int64), where)


def _decode_python(content: bytes, where: str) -> Arrays:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except SparrowError as error:
        raise _damaged(where, error.got, error.expected) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise _damaged(where, f"is no readable pickle: {error}", "a Python batch of CIFAR-10") from error
    entries = batch if isinstance(batch, dict) else {}
    pixels, labels = (entries.get(key.encode(), entries.get(key)) for key in ("data", "labels"))
    if (
        not isinstance(pixels, _PickledArray)
        or pixels.shape != (IMAGES_PER_BATCH, IMAGE_BYTES)
        or not isinstance(labels, list)
        or len(labels) != IMAGES_PER_BATCH
        or not all(type(label) is int for label in labels)
    ):
        found = f"shape {pixels.shape}" if isinstance(pixels, _PickledArray) else type(pixels).__name__
        raise _damaged(
            where,
            f"has 'data' of {found} and {len(labels) if isinstance(labels, list) else 'no'} labels",
            f"'data' of shape {(IMAGES_PER_BATCH, IMAGE_BYTES)} and {IMAGES_PER_BATCH} labels",
        )
    return _checked(pixels.array(where), np.array(labels, np.int64), where)


def _checked(pixels: NDArray[np.uint8], labels: NDArray[np.int64], where: str) -> Arrays:
    if labels.min() < 0 or labels.max() > 9:
        raise _damaged(where, f"has labels from {labels.min()} to {labels.max()}", "labels from 0 to 9")
    return pixels.reshape(-1, 3, 32, 32), labels


class _PickledType:
    """Stands for ``numpy.dtype`` while a batch is unpickled; only bytes are accepted, so its name is all it keeps."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order."""


class _PickledArray:
    """Stands for ``numpy.ndarray`` while a batch is unpickled: a shape and some bytes, not yet trusted."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.type: Any = None
        self.column_major: Any = None
        self.content: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.column_major, self.content = state

    def array(self, where: str) -> NDArray[np.uint8]:
        size = self.shape[0] * self.shape[1]
        if (
            not isinstance(self.type, _PickledType)
            or self.type.name != "u1"
            or not isinstance(self.content, bytes | bytearray)
            or len(self.content) != size
        ):
            raise _damaged(where, "has 'data' of another type or length", f"{size:,} values of uint8")
        return np.frombuffer(self.content, np.uint8).reshape(self.shape, order="F" if self.column_major else "C")


def _array_from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _PickledArray:
    array = _PickledArray()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _latin1(text: Any, encoding: Any) -> bytes:
    """What ``codecs.encode`` does for bytes pickled by Python 3 in an old protocol."""
    return str(text).encode("latin1")


class _BatchUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, strings and containers; every other name is refused, so nothing is executed.

    Even NumPy's own functions are replaced, since they were not written for hostile input.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "dtype"): _PickledType,
            ("numpy", "ndarray"): _PickledArray,
            ("_codecs", "encode"): _latin1,
        }
        for core in ("numpy.core", "numpy._core"):
            allowed[f"{core}.multiarray", "_reconstruct"] = _PickledArray
            allowed[f"{core}.numeric", "_frombuffer"] = _array_from_buffer
        if (module, name) not in allowed:
            raise SparrowError(f"asks to call {module}.{name}", expected="a pickle of arrays, lists and strings only")
        return allowed[module, name]
