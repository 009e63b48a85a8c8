"""Quantization for ncnn: the bytes and the text that its loader reads."""

from pathlib import Path

import numpy as np
import pytest

from sparrow.benchmarks.peers import ncnn

NETWORK = """7767517
6 7
Input in0 0 1 in0
Convolution first 1 1 in0 a 0=2 1=1 5=1 6=6 9=1
ConvolutionDepthWise second 1 1 a b 0=2 1=1 5=0 6=2 7=2
Split split 1 2 b c d
Convolution third 1 1 c e 0=1 1=1 5=0 6=2
InnerProduct last 1 1 e out0 0=3 1=1 2=3
"""
FIRST = np.array([[1, -2, 0.5], [0, 127, 63.6]], "<f4")
SECOND, THIRD, LAST = np.array([[4], [-8]], "<f4"), np.array([[1, 3]], "<f4"), np.array([[1], [2], [0]], "<f4")
SCALES = {"in0": 2.0, "a": 3.0, "c": 4.0, "e": 5.0}


def number(value: float) -> bytes:
    return np.array(value, "<f4").tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.param").write_text(NETWORK)
    tag, biases = bytes(4), {0: number(7) + number(8), 3: number(1) * 3}
    content = b"".join(tag + weights.tobytes() + biases.get(index, b"")
                       for index, weights in enumerate((FIRST, SECOND, THIRD, LAST)))  # fmt: skip
    (tmp_path / "model.bin").write_bytes(content)
    monkeypatch.setattr(ncnn, "_activation_scales", lambda folder, blobs, calibration: {
        blob: np.array(SCALES[blob], "<f4") for blob in blobs})  # fmt: skip
    return tmp_path


def test_int8_is_written_as_its_loader_reads_it(folder: Path) -> None:
    ncnn._quantize(folder, np.zeros((1, 1, 3, 1, 1), np.float32))
    terms = {line.split()[1]: line.split("8=")[1] for line in (folder / "model.param").read_text().splitlines()
             if "8=" in line}  # fmt: skip
    # The first hands int8 to the second; the second is read by a Split, and the linear layer reads float32.
    assert terms == {"first": "102", "second": "1", "third": "2", "last": "2"}
    tag = b"\x38\x4b\x0d\x00"
    assert (folder / "model.bin").read_bytes() == b"".join([
        tag, np.array([64, -127, 32, 0, 127, 64], np.int8).tobytes(), bytes(2), number(7), number(8),
        number(63.5), number(1), number(SCALES["in0"]), number(SCALES["a"]),
        tag, np.array([127, -127], np.int8).tobytes(), bytes(2), number(31.75), number(15.875), number(SCALES["a"]),
        tag, np.array([42, 127], np.int8).tobytes(), bytes(2), number(127 / 3), number(SCALES["c"]),
        tag, np.array([127, 127, 0], np.int8).tobytes(), bytes(1), number(1) * 3,
        number(127), number(63.5), np.array(127 / 1e-30, "<f4").tobytes(), number(SCALES["e"]),
    ])  # fmt: skip


def test_weights_of_other_layers_are_refused(folder: Path) -> None:
    with (folder / "model.bin").open("ab") as file:
        file.write(number(1))
    with pytest.raises(RuntimeError, match="layers other than"):
        ncnn._quantize(folder, np.zeros((1, 1, 3, 1, 1), np.float32))
