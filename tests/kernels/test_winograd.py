"""Winograd convolutions: where they are used, how far floats are from the truth, and that integers are exact."""

import ctypes
import dataclasses
import itertools

import numpy as np
import pytest

from sparrow.benchmarks.harness import HALF_LAYER_ERROR
from sparrow.deploy.operators import Geometry
from sparrow.deploy.winograd_cost import MOST_CHANNELS
from sparrow.kernels.build import INCLUDE_DIR, native_sources
from sparrow.kernels.formats import ConvWeights, WeightFormat, pack_activation, pack_weights, unpack_activation
from sparrow.kernels.reference import F16, F32, QA8, Conv2dOperator, conv2d

from .host_library import Context, build_library, run_backwards

ISA_FP16 = 1 << 2  # SPW_ISA_FP16
FORMATS = {F32: WeightFormat.F32, F16: WeightFormat.F16}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = [source.path for source in native_sources()]
    output = tmp_path_factory.mktemp("host") / "kernels.so"
    library = build_library(sources, output, "-std=gnu11", "-O1", f"-I{INCLUDE_DIR}")
    library.spw_conv2d_workspace.restype = ctypes.c_size_t
    return library


def operator(type: int = F32, channels: tuple[int, int] = (64, 32), size: int = 14, **changes: int) -> Conv2dOperator:
    fields = {"kernel_height": 3, "kernel_width": 3, "pad_top": 1, "pad_left": 1, **changes}
    return Conv2dOperator(type, 0, 1, channels[0], size, size, channels[1], size, size, **fields)  # type: ignore[arg-type]


def run(
    library: ctypes.CDLL, operator: Conv2dOperator, weights: ConvWeights, activation: np.ndarray, instruction_sets: int
) -> np.ndarray:
    bytes_needed = library.spw_conv2d_workspace(operator.to_bytes())
    workspace, packed = np.zeros(bytes_needed + 64, np.uint8), np.frombuffer(pack_weights(weights), np.uint8)
    aligned = np.zeros(len(packed) + 64, np.uint8)
    start = -aligned.ctypes.data % 64
    aligned[start : start + len(packed)] = packed
    source = pack_activation(activation, 0)
    shape = (1, operator.out_channels // 4, operator.out_height, operator.out_width, 4)
    target = np.zeros(shape, activation.dtype)
    base = workspace.ctypes.data + -workspace.ctypes.data % 64
    context = Context(instruction_sets, 1, base, bytes_needed, run_backwards)
    library.spw_conv2d_run(operator.to_bytes(), ctypes.c_void_p(aligned.ctypes.data + start),
                           ctypes.c_void_p(source.ctypes.data), None, ctypes.c_void_p(target.ctypes.data),
                           ctypes.byref(context))  # fmt: skip
    return unpack_activation(target, operator.out_channels)


@pytest.mark.parametrize(
    ("type", "instruction_sets", "bound"),
    [(F32, 0, 1e-6), (F16, ISA_FP16, HALF_LAYER_ERROR), (F16, 0, HALF_LAYER_ERROR)],
    ids=["float32", "float16", "float16 without fp16"],
)
def test_its_error_is_a_small_share_of_the_output(
    library: ctypes.CDLL, type: int, instruction_sets: int, bound: float
) -> None:
    rng = np.random.default_rng(0)
    shape, dtype = operator(type), FORMATS[type].dtype
    assert library.spw_winograd_suits(shape.to_bytes())
    values = rng.normal(size=(32, 64, 3, 3)).astype(dtype)
    weights = ConvWeights(FORMATS[type], values, None, np.zeros(32, np.int32), np.zeros(32, np.float32),
                          np.zeros(32, np.float32))  # fmt: skip
    activation = np.maximum(rng.normal(size=(1, 64, 14, 14)), 0).astype(dtype)
    exact = conv2d(operator(F32), weights, activation.astype(np.float32)).astype(np.float64)
    difference = run(library, shape, weights, activation, instruction_sets).astype(np.float64) - exact
    assert np.sqrt(np.mean(difference**2)) < bound * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize(
    ("shape", "suits"),
    [
        (operator(), 1),
        (operator(channels=(16, 16), size=8), 1),
        (operator(QA8), 0),
        (operator(channels=(12, 64)), 0),
        (operator(size=4), 0),
        (operator(stride_height=2), 0),
        (operator(dilation_width=2), 0),
        (operator(groups=2), 0),
        (operator(kernel_height=5), 0),
    ],
)
def test_it_is_used_where_it_takes_less_work(library: ctypes.CDLL, shape: Conv2dOperator, suits: int) -> None:
    assert library.spw_winograd_suits(shape.to_bytes()) == suits


@pytest.mark.parametrize("type", [F32, F16], ids=["float32", "float16"])
def test_the_compiler_names_it_where_the_driver_uses_it(library: ctypes.CDLL, type: int) -> None:
    used = []
    for inputs, outputs, height, width in itertools.product((12, 16, 64, 512), (16, 96), (4, 6, 7, 8, 14, 57), (5, 28)):
        shape = Conv2dOperator(type, 0, 1, inputs, height, width, outputs, height, width, 3, 3, pad_top=1, pad_left=1)
        used.append(bool(library.spw_winograd_suits(shape.to_bytes())))
        geometry = Geometry((1, inputs, height, width), (1, outputs, height, width), (3, 3), pad=(1, 1))
        assert geometry.suits_winograd(FORMATS[type].bits // 8) == used[-1], geometry
    assert 0.3 < np.mean(used) < 0.9


# Values of polynomials at the points of the integer form, and of its products: winograd_qa8.h.
G = np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [4, -2, 1], [0, 0, 1]])
BT = np.array([[2, 3, -4, -3, 2, 0], [0, -2, -5, -1, 2, 0], [0, 2, 1, -5, 2, 0],
               [0, -1, -2, 1, 2, 0], [0, 2, -1, -2, 1, 0], [0, 2, 3, -4, -3, 2]])  # fmt: skip


def largest(matrix: np.ndarray, low: int, high: int) -> np.ndarray:
    """Windows whose transform is as large as can be at one place each: [36][window][window]."""
    signs = np.einsum("iy,jx->ijyx", matrix, matrix).reshape(36, *[matrix.shape[1]] * 2)
    return np.where(signs < 0, low, high).astype(np.int8)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["places", "sum"])
def test_integers_of_the_largest_value_are_exact(library: ctypes.CDLL, kind: str, sign: int) -> None:
    shape = Conv2dOperator(QA8, 0, 1, MOST_CHANNELS, 6, 6, 4, 4, 4, 3, 3, winograd=1)
    assert library.spw_winograd_qa8_fits(shape.to_bytes())
    activation = np.full((1, MOST_CHANNELS, 6, 6), -128, np.int8)
    values = np.full((4, MOST_CHANNELS, 3, 3), -127, np.int8)
    if kind == "places":
        activation[0] = np.tile(largest(BT, -128, 127), (MOST_CHANNELS // 36, 1, 1))
        values[:] = np.tile(largest(G, -127, 127), (MOST_CHANNELS // 36, 1, 1))
    values[1::2] *= -1
    scale = np.full(4, sign * 100 / (9 * 127 * 128 * MOST_CHANNELS), np.float32)
    weights = ConvWeights(WeightFormat.QS8C, values, None, np.zeros(4, np.int32), scale, np.zeros(4, np.float32))
    assert np.array_equal(run(library, shape, weights, activation, 0), conv2d(shape, weights, activation))


@pytest.mark.parametrize(
    "change",
    [{"winograd": 0}, {"type": F32}, {"kernel_width": 1}, {"stride_height": 2}, {"dilation_width": 2}, {"groups": 2},
     {"in_channels": MOST_CHANNELS + 1}],
    ids=str,
)  # fmt: skip
def test_integers_are_left_to_the_direct_form(library: ctypes.CDLL, change: dict[str, int]) -> None:
    asked = dataclasses.replace(operator(QA8), winograd=1)
    assert library.spw_winograd_qa8_fits(asked.to_bytes())
    assert not library.spw_winograd_qa8_fits(dataclasses.replace(asked, **change).to_bytes())
