"""What ``sparrow_run`` reads and writes, as arrays; and the input of a bundle where nobody brings one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparrow.deploy.bundle import RUNNER, Bundle
from sparrow.kernels.errors import SparrowError


def input_shape(bundle: Bundle) -> tuple[int, ...]:
    """Shape of the one float32 input of a bundle's network.

    Raises:
        SparrowError: The network has other inputs.
    """
    inputs = bundle.manifest["inputs"]
    if len(inputs) != 1 or inputs[0]["dtype"] != "float32":
        found = ", ".join(f"{info['name']} {info['dtype']}{info['shape']}" for info in inputs)
        raise SparrowError(f"bundle {bundle.manifest['name']} has the inputs {found}", expected="one float32 input",
                           next_step="run it by sparrow run --input FILE.npz")  # fmt: skip
    return tuple(inputs[0]["shape"])


def one_input(bundle: Bundle, image: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Give an input its shape and type, or make one.

    Args:
        bundle: Bundle.
        image: Of any shape with as many numbers as the input; by default uniform noise of one seed.

    Returns:
        float32, of the input's shape.

    Raises:
        SparrowError: The network has other inputs, or ``image`` another size.
    """
    shape = input_shape(bundle)
    if image is None:
        return np.random.default_rng(0).random(shape, dtype=np.float32)
    if image.size != np.prod(shape):
        raise SparrowError(f"an input of shape {list(image.shape)}", expected=f"the shape {list(shape)}")
    return image.astype(np.float32).reshape(shape)


def split_outputs(bundle: Bundle, content: bytes, count: int) -> list[NDArray[Any]]:
    """Take apart what ``sparrow_run`` wrote: all outputs of an input one after another.

    Args:
        bundle: Bundle.
        content: What was written.
        count: Number of inputs.

    Returns:
        An array [count, *shape] for each output, of its type.

    Raises:
        SparrowError: It is longer or shorter than so many outputs.
    """
    outputs = bundle.manifest["outputs"]
    sizes = [int(np.prod(info["shape"])) * np.dtype(info["dtype"]).itemsize for info in outputs]
    if len(content) != count * sum(sizes):
        raise SparrowError(
            f"{RUNNER} wrote {len(content)} bytes for {count} inputs",
            expected=f"{count * sum(sizes)} bytes",
            next_step="compile the network again with this version of Sparrow",
        )
    columns = np.split(np.frombuffer(content, np.uint8).reshape(count, -1), np.cumsum(sizes)[:-1], axis=1)
    return [
        np.ascontiguousarray(column).view(info["dtype"]).reshape(count, *info["shape"])
        for info, column in zip(outputs, columns, strict=True)
    ]


def first_output(bundle: Bundle, content: bytes, count: int) -> NDArray[np.float32]:
    """The first output alone, which is what bundles are verified by.

    Args:
        bundle: Bundle.
        content: What ``sparrow_run`` wrote.
        count: Number of inputs.

    Returns:
        float32 [count, numbers of the output].

    Raises:
        SparrowError: The length is wrong, or the output is of another type.
    """
    info = bundle.manifest["outputs"][0]
    if info["dtype"] != "float32":
        raise SparrowError(f"output {info['name']} is {info['dtype']}", expected="float32 as the first output",
                           next_step="run it by sparrow run -o FILE.npz")  # fmt: skip
    return split_outputs(bundle, content, count)[0].reshape(count, -1)
