"""How the executables of a bundle are protected: read from their ELF headers and their code."""

import shutil
import struct
import subprocess
from pathlib import Path

import onnx
import pytest

pytestmark = pytest.mark.tvm

STACK, RELRO, DYNAMIC = 0x6474E551, 0x6474E552, 2
EXECUTABLE, WRITABLE = 1, 2
FLAGS, BIND_NOW = 30, 8
TEXT_RELOCATIONS = 22
PACIASP = 0xD503233F


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnx import TensorProto, helper

    from sparrow.deploy.compiler import compile_model

    folder = tmp_path_factory.mktemp("hardened")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "tiny.onnx")
    return compile_model(folder / "tiny.onnx", folder / "bundle", target="cortex-a53").path


def segments(path: Path) -> list[tuple[int, int, bytes]]:
    """Type, flags and content of each segment."""
    content = path.read_bytes()
    (table,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", content, table + size * index) for index in range(count)]
    return [(kind, flags, content[offset : offset + length]) for kind, flags, offset, _, _, length, *_ in headers]


@pytest.mark.parametrize("name", ["sparrow_run", "libtiny.so"])
def test_nothing_is_writable_and_executable(bundle: Path, name: str) -> None:
    found = segments(bundle / name)
    assert not [flags for _, flags, _ in found if flags & EXECUTABLE and flags & WRITABLE]
    assert [flags & EXECUTABLE for kind, flags, _ in found if kind == STACK] == [0]
    assert [kind for kind, _, _ in found].count(RELRO) == 1


def test_the_library_is_bound_at_once_and_has_no_relocations_in_its_code(bundle: Path) -> None:
    (dynamic,) = [content for kind, _, content in segments(bundle / "libtiny.so") if kind == DYNAMIC]
    entries = dict(struct.iter_unpack("<QQ", dynamic))
    assert entries[FLAGS] & BIND_NOW
    assert TEXT_RELOCATIONS not in entries


def test_return_addresses_are_signed_in_the_runtime(bundle: Path) -> None:
    for name in ("sparrow_run", "libtiny.so"):
        code = b"".join(content for _, flags, content in segments(bundle / name) if flags & EXECUTABLE)
        assert code.count(struct.pack("<I", PACIASP)) >= 5, name


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_stacks_are_guarded_in_the_runtime_and_not_in_the_kernels(bundle: Path) -> None:
    command = ["readelf", "-sW", bundle / "libtiny.a"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    guarded = {
        part.split(".o)")[0].rpartition("(")[2] for part in printed.split("\nFile: ")[1:] if "__stack_chk_guard" in part
    }
    assert "runtime" in guarded
    assert not [name for name in guarded if name.startswith("spw_")]
