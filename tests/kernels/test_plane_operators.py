"""Max pooling and quantization of one pack of channels against numpy."""

import ctypes

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from sparrow.kernels.build import INCLUDE_DIR
from sparrow.kernels.formats import pack_activation

from .host_library import Context, build_library, run_backwards

SOURCES = [*INCLUDE_DIR.glob("pool/*.c"), INCLUDE_DIR / "elementwise" / "quantize.c"]
GUARD = 64

CONTEXT = ctypes.byref(Context(0, 1, None, 0, run_backwards))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
    return build_library(SOURCES, tmp_path_factory.mktemp("host") / "planes.so", *flags)


def guarded(size: int) -> tuple[np.ndarray, ctypes.c_void_p]:
    buffer = np.full(size + 2 * GUARD, 0x5A, np.int8)
    return buffer, ctypes.c_void_p(buffer.ctypes.data + GUARD)


def content(buffer: np.ndarray) -> np.ndarray:
    assert (buffer[:GUARD] == 0x5A).all() and (buffer[-GUARD:] == 0x5A).all(), "wrote beside the output"
    return buffer[GUARD:-GUARD]


# height, width, kernel, stride, pad (top, left, bottom, right)
POOLS = [
    *((7, width, (3, 3), (2, 2), (1, 1, 1, 1)) for width in (1, 2, 3, 4, 8, 15, 16, 17, 112)),
    *((6, 9, (size, size), (stride, stride), (0, 0, 0, 0)) for size in (1, 2, 3, 5) for stride in (1, 2, 3)),
    (5, 6, (3, 2), (1, 2), (2, 0, 0, 1)),
    (9, 700, (3, 3), (2, 2), (1, 1, 1, 1)),
    (3, 600, (2, 255), (1, 1), (0, 100, 0, 100)),
    (3, 600, (3, 300), (1, 7), (1, 20, 1, 20)),
    (3, 600, (1, 5), (1, 290), (0, 2, 0, 2)),
    (1, 1, (3, 3), (1, 1), (1, 1, 1, 1)),
]


@pytest.mark.parametrize("token", ["qa8", "f16", "f32"])
@pytest.mark.parametrize(("height", "width", "kernel", "stride", "pad"), POOLS)
def test_max_pool(
    library: ctypes.CDLL,
    token: str,
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, ...],
) -> None:
    dtype = {"qa8": np.int8, "f16": np.float16, "f32": np.float32}[token]
    lowest = -128 if token == "qa8" else -np.inf
    image = np.random.default_rng(height * width).integers(-128, 128, (2, height, width, 4)).astype(dtype)
    if token != "qa8":
        image *= dtype(0.37)
        image[0, 0, 0] = -np.inf
    padded = np.pad(image, ((0, 0), (pad[0], pad[2]), (pad[1], pad[3]), (0, 0)), constant_values=lowest)
    expected = sliding_window_view(padded, kernel, (1, 2)).max(axis=(4, 5))[:, :: stride[0], :: stride[1]]
    out, address = guarded(expected.nbytes)
    numbers = (2, height, width, *expected.shape[1:3], *kernel, *stride, *pad[:2])
    library[f"spw_max_pool_{token}_run"](image.tobytes(), *numbers, address, CONTEXT)
    np.testing.assert_array_equal(content(out).view(dtype).reshape(expected.shape), expected)


def quantize(library: ctypes.CDLL, image: np.ndarray, scale: np.float32, zero_point: int) -> np.ndarray:
    """[batch, channels, pixels] float32 -> [batch, packs, pixels, 4] int8."""
    shape = (image.shape[0], -(-image.shape[1] // 4), image.shape[2], 4)
    out, address = guarded(int(np.prod(shape)))
    library.spw_quantize_qa8_f32_run(image.tobytes(), *image.shape, ctypes.c_float(scale), zero_point, address, CONTEXT)
    return content(out).reshape(shape)


def quantized(image: np.ndarray, scale: np.float32, zero_point: int) -> np.ndarray:
    """What ONNX defines: the quotient is rounded to float32, then to an integer, half to even."""
    with np.errstate(over="ignore"):
        rounded = np.rint(image / scale).astype(np.float64) + zero_point
    return pack_activation(np.clip(rounded, -128, 127).astype(np.int8)[..., None], 0)[:, :, :, 0]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("pixels", [1, 3, 16, 63, 64, 65, 200, 4096, 5000])
def test_quantize(library: ctypes.CDLL, channels: int, pixels: int) -> None:
    rng = np.random.default_rng(channels * pixels)
    image = rng.normal(0, 3, (2, channels, pixels)).astype(np.float32)
    scale, zero_point = np.float32(rng.uniform(0.01, 0.1)), int(rng.integers(-128, 128))
    np.testing.assert_array_equal(quantize(library, image, scale, zero_point), quantized(image, scale, zero_point))


def with_neighbours(numbers: np.ndarray) -> np.ndarray:
    above, below = np.nextafter(numbers, np.float32(np.inf)), np.nextafter(numbers, np.float32(-np.inf))
    return np.stack([numbers, above, below])[None]


def test_ties_fall_as_a_division_says(library: ctypes.CDLL) -> None:
    """Pixels of 8 bits on a grid of a round number of their steps: half of the quotients are ties, or just beside."""
    rng = np.random.default_rng(0)
    for denominator in (255, 127, 100, 3, 1):
        pixels = (np.arange(-1000, 1001) / np.float32(denominator)).astype(np.float32)
        for steps in (1, 2, 4, 6, 10, 100):
            scale = np.float32(steps) / np.float32(denominator)
            image = with_neighbours(pixels)
            np.testing.assert_array_equal(quantize(library, image, scale, 0), quantized(image, scale, 0))
    for _ in range(200):
        scale = np.float32(2.0 ** rng.uniform(-40, 40))
        ties = ((rng.integers(-140, 140, 300) + 0.5) * np.float64(scale)).astype(np.float32)
        image = with_neighbours(ties)
        np.testing.assert_array_equal(quantize(library, image, scale, -1), quantized(image, scale, -1))


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e30, 3e38])
def test_quantize_takes_any_float(library: ctypes.CDLL, scale: float) -> None:
    numbers = [0.0, -0.0, 1e-45, -1e-38, 1e-20, 0.5, -1.5, 2.5, 1e20, -3e38, np.inf, -np.inf]
    image = np.array([[numbers]], np.float32)
    expected = quantized(image, np.float32(scale), 5)
    np.testing.assert_array_equal(quantize(library, image, np.float32(scale), 5), expected)
    not_a_number = np.full((1, 1, 20), np.nan, np.float32)
    assert (quantize(library, not_a_number, np.float32(scale), 5)[..., 0] == -128).all()
