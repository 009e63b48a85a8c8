"""What a model, an archive or a file's name could make Sparrow do besides its work: nothing."""

import ast
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparrow.deploy.cli.samples import Preprocessing, read_samples
from sparrow.deploy.frontend_onnx import TensorInfo, load_onnx
from sparrow.kernels.errors import SparrowError
from sparrow.quantize.data.locations import read_archive

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(path for top in ("benchmarks", "deploy", "kernels", "models", "quantize")
                 for path in (ROOT / top).rglob("*.py"))  # fmt: skip
SECRET = np.arange(4, dtype=np.float32)


def external_model(location: str, *, in_branch: bool = False) -> onnx.ModelProto:
    """y = x + a weight that lies in another file."""
    tensor = numpy_helper.from_array(SECRET, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if in_branch:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])], [] if in_branch else [tensor],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("in_branch", [False, True])
@pytest.mark.parametrize("kind", ["beside", "above", "absolute", "link"])
def test_weights_are_read_from_the_models_own_folder_only(tmp_path: Path, kind: str, in_branch: bool) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "secret.bin").write_bytes(SECRET.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    location = {"beside": "secret.bin", "above": "../secret.bin", "absolute": str(tmp_path / "secret.bin"),
                "link": "link.bin"}[kind]  # fmt: skip
    (folder / "model.onnx").write_bytes(external_model(location, in_branch=in_branch).SerializeToString())
    if kind == "beside":
        weights = [numpy_helper.to_array(tensor) for tensor in load_onnx(folder / "model.onnx").model.graph.initializer]
        np.testing.assert_array_equal(weights[0], SECRET)
    else:
        with pytest.raises(SparrowError):
            load_onnx(folder / "model.onnx")


def test_an_archive_writes_nothing_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        for name in ("../outside/batch", "/absolute/batch", "inside/batch"):
            member = tarfile.TarInfo(name)
            member.size = len(b"hostile")
            archive.addfile(member, io.BytesIO(b"hostile"))
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert read_archive(tmp_path / "data.tar", {"batch"}, largest=100) == {"batch": b"hostile"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data.tar", "inside"]


def test_arrays_are_no_pickles(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    np.save(tmp_path / "samples.npy", np.array([Hostile()], object), allow_pickle=True)
    with pytest.raises(SparrowError, match=r"samples\.npy"):
        read_samples(tmp_path / "samples.npy", [TensorInfo("x", (1, 1), "float32")], Preprocessing())
    assert not marker.exists()
    np.load(tmp_path / "samples.npy", allow_pickle=True)
    assert marker.exists()  # the file was hostile indeed


def calls() -> list[tuple[str, str, ast.Call]]:
    """File, dotted name and node of each call in the package."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((str(path.relative_to(ROOT)), ast.unparse(node.func), node))
    return found


def test_no_shell_gets_a_string_and_nothing_is_evaluated() -> None:
    forbidden = {"os.system", "os.popen", "eval", "exec", "subprocess.getoutput", "subprocess.getstatusoutput"}
    for file, name, node in calls():
        assert name not in forbidden, f"{file}: {name}"
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert options.get("shell", "False") == "False", f"{file}: {name}(shell=...)"


def test_what_a_file_holds_is_never_a_program() -> None:
    for file, name, node in calls():
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True", file
        assert options.get("allow_pickle", "False") == "False", f"{file}: {name}"
        assert not re.fullmatch(r"pickle\.loads?|marshal\.loads?|yaml\.(unsafe|full)_load|joblib\.load", name), file
        if name == "yaml.load":
            loader = ast.unparse(node.args[1])
            assert f"class {loader}(yaml.SafeLoader)" in (ROOT / file).read_text(encoding="utf-8"), file
        assert not re.search(r"\.extractall$|unpack_archive$", name), f"{file}: {name}"
