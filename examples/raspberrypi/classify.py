"""Classifies an image: classify.py BUNDLE IMAGE [LABELS].

IMAGE is a photo, which needs Pillow, or an .npy file with the network's input; LABELS a text file, one class a line.
A network that `sparrow export` wrote says for itself how bytes become numbers, and the names of its classes.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sparrow_bundle import SparrowBundle, Tensor

# ImageNet's, on the scale of bytes, for a network that says nothing; `sparrow run` takes the same.
DEFAULTS = {"sparrow.pixel_mean": "[123.675, 116.28, 103.53]", "sparrow.pixel_deviation": "[58.395, 57.12, 57.375]",
            "sparrow.class_names": "[]"}  # fmt: skip
TOP = 5


def read_image(path: Path, tensor: Tensor, known: dict[str, Any]) -> NDArray[Any]:
    """Read a network's input, [channels, height, width], from a photo or an array."""
    if path.suffix == ".npy":
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array
    from PIL import Image, ImageOps

    _, channels, height, width = tensor.shape
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
        pixels = np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR), np.float32)
    mean, deviation = (np.float32(known[f"sparrow.pixel_{name}"]) for name in ("mean", "deviation"))
    return ((pixels.reshape(height, width, channels) - mean) / deviation).transpose(2, 0, 1)


def main() -> None:
    """Print the classes that the network rates highest, and how long it took."""
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    with SparrowBundle(sys.argv[1], threads=4) as network:
        known = {name: json.loads(network.metadata.get(name, text)) for name, text in DEFAULTS.items()}
        labels = known["sparrow.class_names"]
        if len(sys.argv) == 4:
            labels = Path(sys.argv[3]).read_text(encoding="utf-8").splitlines()
        image = read_image(Path(sys.argv[2]), network.inputs[0], known)
        network(image)  # the first run wakes the cores
        begin = time.perf_counter()
        scores = network(image)[0].reshape(-1)
        milliseconds = 1000 * (time.perf_counter() - begin)
    for index in np.argsort(-scores, kind="stable")[:TOP]:
        print(f"{scores[index]:9.4f}  {labels[index] if index < len(labels) else f'class {index}'}")
    print(f"{milliseconds:.2f} ms on 4 threads", file=sys.stderr)


if __name__ == "__main__":
    main()
