"""``sparrow recipe``: a whole small job, its continuation, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from sparrow.benchmarks.result_files import read_result
from sparrow.deploy.cli import recipe_job
from sparrow.deploy.cli.recipe import command
from sparrow.deploy.cli.recipe_job import RecipeFiles, run_recipe
from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.recipe_file import read_recipe, recipe_names

torch.set_num_threads(1)

SMALL = """
description: two short trainings
model: digits
data: digits
float_training: {epochs: 2, batch_size: 64, learning_rate: 0.1, threads: 1}
quantization: {method: dgms, bits: 4, sparsity: {sparsity: 0.25, criterion: magnitude}}
training: {epochs: 1, batch_size: 64, learning_rate: 0.01, threads: 1}
verify_images: 32
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(SMALL)
    return tmp_path / "own.yaml"


def test_list_and_show():
    listed = CliRunner().invoke(command, ["list"])
    assert listed.exit_code == 0 and all(name in listed.stdout for name in recipe_names())
    shown = CliRunner().invoke(command, ["show", "resnet20-dgms4-block50"])
    assert yaml.safe_load(shown.stdout)["quantization"]["sparsity"]["sparsity"] == 0.5
    described = json.loads(CliRunner().invoke(command, ["list", "--json"]).stdout)
    assert set(described) == set(recipe_names())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The recipe's file, the folder of its finished job and the stages that it went through."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "own.yaml").write_text(SMALL)
    stages: list[str] = []
    run_recipe(read_recipe(str(folder / "own.yaml")), folder / "out", on_stage=stages.append)
    return folder / "own.yaml", folder / "out", stages


@pytest.mark.tvm
@pytest.mark.qemu
def test_from_nothing_to_a_verified_bundle(job):
    _, folder, stages = job
    files = RecipeFiles(folder)
    assert stages[:4] == ["float training", "quantization", "export", "compilation"] and stages[-1] == "report"
    verified = read_result(files.verification)
    assert verified.ok and verified.images == 32
    training = json.loads(files.training.read_text())
    assert len(training["history"]) == 1 and training["test_accuracy"] > 20
    assert "<html" in files.report.read_text() and not files.log.exists()
    assert sum(layer["zero_blocks"] > 0 for layer in training["layers"]) >= 1


@pytest.mark.tvm
@pytest.mark.qemu
def test_what_is_done_is_not_done_again(job, tmp_path):
    own, folder, _ = job
    shutil.copytree(folder, tmp_path / "out")
    files = RecipeFiles(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (files.float_checkpoint, files.checkpoint, files.onnx)}
    # Killed between the checkpoint and what tells of it, and before the counting.
    files.training.unlink()
    files.counts.unlink()
    stages: list[str] = []
    run_recipe(read_recipe(str(own)), files.folder, on_stage=stages.append)
    assert "quantization: done before" in stages and "compilation: done before" in stages and "counting" in stages
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert json.loads(files.training.read_text()) == json.loads(RecipeFiles(folder).training.read_text())


@pytest.mark.tvm
@pytest.mark.qemu
def test_another_recipe_does_not_go_on_there(job, own):
    own.write_text(SMALL.replace("bits: 4", "bits: 3").replace("learning_rate: 0.01", "learning_rate: 0.02"))
    with pytest.raises(SparrowError, match=r"quantization\.bits: 4, now 3; training\.learning_rate: 0\.01, now 0\.02"):
        run_recipe(read_recipe(str(own)), job[1])


def test_a_network_is_made_smaller_first(own, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_job, "_deploy", lambda *_: None)
    torch.save({"state_dict": build_model("digits").state_dict()}, tmp_path / "float.pt")
    own.write_text("description: smaller\nmodel: digits\ndata: digits\nquantization: {method: int8}\n"
                   "removed_channels: 0.5\nlow_rank: {layers: [conv3], budget: 0.5}\n")  # fmt: skip
    files = run_recipe(read_recipe(str(own)), tmp_path / "out", checkpoint=tmp_path / "float.pt")
    training = json.loads(files.training.read_text())
    assert [layer["name"] for layer in training["factorized"]] == ["conv3"]
    shapes = {layer["name"]: layer["shape"] for layer in training["layers"]}
    assert "conv3.0" in shapes and shapes["conv2"][1] == build_model("digits").conv2.in_channels // 2


def test_what_is_missing_is_named(own, tmp_path):
    with pytest.raises(SparrowError, match="no trained weights of resnet20") as caught:
        run_recipe(read_recipe("resnet20-dgms4-block50"), tmp_path / "out")
    assert "--checkpoint" in caught.value.next_step
    torch.save({}, tmp_path / "some.pt")
    with pytest.raises(SparrowError, match="weights of the teacher, resnet56") as caught:
        run_recipe(read_recipe("resnet20-dgms4-block50"), tmp_path / "out", checkpoint=tmp_path / "some.pt")
    assert "--teacher-checkpoint" in caught.value.next_step
    with pytest.raises(SparrowError, match="the recipe has no teacher"):
        run_recipe(read_recipe(str(own)), tmp_path / "out", teacher_checkpoint=tmp_path / "some.pt")
    with pytest.raises(SparrowError, match=r"cannot read .*none\.pt"):
        run_recipe(read_recipe(str(own)), tmp_path / "out", checkpoint=tmp_path / "none.pt")
    own.write_text(f"{SMALL}target: cortex-a67\n")
    with pytest.raises(SparrowError, match="unknown target 'cortex-a67'"):
        run_recipe(read_recipe(str(own)), tmp_path / "out")
    own.write_text(f"{SMALL}soc: kirin-790\n")
    with pytest.raises(SparrowError, match="no data for the SoC 'kirin-790'"):
        run_recipe(read_recipe(str(own)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(own, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "quantized.pt").write_text("mine")
    with pytest.raises(SparrowError, match=r"has quantized\.pt and no recipe\.yaml"):
        run_recipe(read_recipe(str(own)), tmp_path / "out")
    assert (tmp_path / "out" / "quantized.pt").read_text() == "mine"
