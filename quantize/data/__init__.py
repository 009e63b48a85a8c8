"""Image data sets: where they are found, how they are decoded, and how they become batches.

* ``DATASETS``: the registry, from the name on the command line to the module that reads it.
* ``load_data``: a data set by name, from a given place, from where it was last found, or from the internet.
* ``ImageData``, ``Augmentation``: what every reader returns.
* ``batches``, ``training_batches``, ``steps_per_epoch``: normalized batches in a reproducible order.
* ``prefetched``: makes the next one while the last is used.

Nothing here imports torch, and scikit-learn and Pillow are imported by the readers that need them, so that the
names are known at once.
"""

import importlib
from pathlib import Path

from sparrow.kernels.errors import SparrowError, near_names
from sparrow.quantize.data.batching import batches, prefetched, steps_per_epoch, training_batches
from sparrow.quantize.data.images import Augmentation, ImageData, Images
from sparrow.quantize.data.locations import download, remember, remembered

__all__ = [
    "DATASETS",
    "Augmentation",
    "ImageData",
    "Images",
    "batches",
    "load_data",
    "prefetched",
    "steps_per_epoch",
    "training_batches",
]

# Name on the command line -> the module here with `load(location)` and, where the set is public, `DOWNLOADS`.
DATASETS = {
    "digits": "digits",
    "cifar10": "cifar10",
    "fashion-mnist": "fashion_mnist",
    "imagefolder": "imagefolder",
}


def load_data(name: str, data_dir: Path | None = None) -> ImageData:
    """Load a data set.

    The place is ``data_dir``, else the one that last loaded without an error, else a download into the cache folder.

    Args:
        name: A key of ``DATASETS``.
        data_dir: Folder or archive that holds the files.

    Returns:
        The images as bytes, with what is needed to normalize and augment them.

    Raises:
        SparrowError: The name is unknown; the place is missing, incomplete or corrupt; or nothing could be
            downloaded.
    """
    if name not in DATASETS:
        raise SparrowError(f"unknown data set {name!r}", expected=near_names(name, DATASETS))
    reader = importlib.import_module(f"sparrow.quantize.data.{DATASETS[name]}")
    if name == "digits":
        if data_dir is not None:
            raise SparrowError(
                f"got the data folder {data_dir} for digits, which come with scikit-learn",
                next_step="leave out --data-dir, or choose another --data",
            )
        digits: ImageData = reader.load()
        return digits
    if data_dir is not None and not data_dir.exists():
        raise SparrowError(
            f"the data folder {data_dir} does not exist",
            expected=f"a folder or an archive with {name}",
            next_step="correct --data-dir",
        )
    location = data_dir or remembered(name) or download(name, reader.DOWNLOADS)
    data: ImageData = reader.load(location)
    remember(name, location)
    return data
