"""Peers: their list, conversion in a process of its own, and what a failure leaves."""

from pathlib import Path

import numpy as np
import pytest

from sparrow.benchmarks.peers import PEERS
from sparrow.benchmarks.peers.peer import convert
from sparrow.benchmarks.runners.arm_userland import WHEELS
from sparrow.kernels.errors import SparrowError

from .fake_peer import FakePeer

CALIBRATION = np.zeros((2, 1, 3, 4, 4), np.float32)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "peers"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a network")
    return path


def fake(tmp_path: Path, body: str) -> FakePeer:
    path = tmp_path / "fake.py"
    path.write_text(f"import sys\nRUNTIME = 'json'\ndef convert(model, precision, calibration, folder):\n    {body}\n")
    return FakePeer("fake", runs=(), converts=(), precisions=("fp32", "int8"), path=path)


def test_the_list_has_a_file_and_fixed_versions_for_every_peer() -> None:
    for name, peer in PEERS.items():
        assert peer.name == name
        assert peer.file.exists()
        assert {*peer.runs, *peer.converts} <= set(WHEELS)
        assert peer.precisions[0] == "fp32"
    assert set(PEERS) == {"onnxruntime", "litert", "ncnn", "mnn", "executorch"}
    assert len({peer.key for peer in PEERS.values()}) == len(PEERS)


def test_a_conversion_is_kept(cache: Path, model: Path, tmp_path: Path) -> None:
    facts = "model.read_bytes() + precision.encode() + bytes(calibration.shape)"
    peer = fake(tmp_path, f"(folder / 'out').write_bytes({facts})")
    steps: list[str] = []
    folder = convert(peer, model, "int8", CALIBRATION, on_progress=steps.append)
    assert (folder / "out").read_bytes() == b"a networkint8" + bytes([2, 1, 3, 4, 4])
    assert convert(peer, model, "int8", CALIBRATION, on_progress=steps.append) == folder
    assert steps == ["converting model.onnx for fake in int8"]
    assert convert(peer, model, "int8", CALIBRATION + 1) != folder
    assert convert(peer, model, "fp32", CALIBRATION) == convert(peer, model, "fp32", CALIBRATION + 1)
    before = peer.key
    peer.path.write_text(peer.path.read_text() + "# changed\n")
    assert peer.key != before


@pytest.mark.parametrize(("body", "says"), [
    ("raise RuntimeError('this operator is unknown')", "this operator is unknown"),
    ("print('nothing to do'); sys.exit(0)", "nothing to do"),
    ("import os; (folder / 'half').touch(); os.abort()", "said nothing"),
])  # fmt: skip
def test_a_converter_that_fails_is_quoted_and_leaves_nothing(
    cache: Path, model: Path, tmp_path: Path, body: str, says: str
) -> None:
    with pytest.raises(SparrowError, match=rf"fake 1\.0 cannot convert it: .*{says}"):
        convert(fake(tmp_path, body), model, "fp32", CALIBRATION)
    assert list(cache.iterdir()) == []


def test_a_peer_does_not_see_the_files_of_other_peers_as_packages(cache: Path, model: Path, tmp_path: Path) -> None:
    peer = fake(tmp_path, "import onnxruntime; (folder / 'out').write_text(onnxruntime.__file__)")
    found = (convert(peer, model, "fp32", CALIBRATION) / "out").read_text()
    assert found.endswith("onnxruntime/__init__.py")
