"""Handwritten digits, 1x8x8: the UCI test set of optical recognition, bundled with scikit-learn."""

import numpy as np

from sparrow.quantize.data.images import ImageData

SPLIT_SEED = 0


def load() -> ImageData:
    """Load the 1,797 digits, split 80 to 20 with equal shares of each class, always in the same way.

    Returns:
        1,437 training and 360 test images of bytes from 0 to 16.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bundle = load_digits()
    images = bundle.images.astype(np.uint8)[:, None]
    labels = bundle.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=SPLIT_SEED, stratify=labels
    )
    return ImageData(
        name="digits",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=(0.3053,),
        std=(0.3760,),
        classes=tuple(map(str, range(10))),
        white=16,
    )
