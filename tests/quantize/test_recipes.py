"""The steps of a job on the bundled digits, and what each refuses."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sparrow.kernels.errors import SparrowError
from sparrow.models import build_model
from sparrow.quantize.checkpoint import load_checkpoint, save_checkpoint
from sparrow.quantize.configs import DgmsConfig, Int8Config
from sparrow.quantize.data import load_data
from sparrow.quantize.recipes import (
    calibration_batches,
    export_checkpoint,
    load_network,
    quantize_network,
    report_document,
    train_network,
)
from sparrow.quantize.train import TrainConfig, predict_logits, resume_path

torch.set_num_threads(1)

TRAIN = TrainConfig(epochs=5, batch_size=64, learning_rate=0.1, threads=1)
TUNE = TrainConfig(epochs=1, batch_size=64, learning_rate=0.02, threads=1)


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    """The folder with float.pt and dgms.pt, and the reports of both steps."""
    folder = tmp_path_factory.mktemp("job")
    trained = train_network("digits", data, TRAIN, folder / "float.pt")
    quantized = quantize_network("digits", data, folder / "float.pt", DgmsConfig(bits=4), TUNE, folder / "dgms.pt")
    return folder, trained, quantized


def test_a_job_keeps_the_accuracy(job):
    folder, trained, quantized = job
    assert trained.test_accuracy > 93 and trained.start_accuracy is None and trained.calibrated_accuracy is None
    assert len(trained.history) == 5 and trained.layers == () and not trained.resumed
    assert quantized.start_accuracy == trained.test_accuracy
    assert quantized.calibrated_accuracy > trained.test_accuracy - 6
    assert quantized.test_accuracy > trained.test_accuracy - 3
    assert [(layer.name, layer.bits) for layer in quantized.layers] == [
        ("conv1", 8), ("conv2", 4), ("conv3", 4), ("conv4", 4), ("linear", 8),
    ]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["dgms.pt", "float.pt"]  # no unfinished training is left


def test_a_report_goes_to_json(job):
    document = json.loads(json.dumps(report_document(job[2])))
    assert document["model"] == "digits" and document["history"][0]["epoch"] == 1
    assert document["layers"][1]["format"] == "codebook"


def test_the_checkpoint_gives_the_reported_accuracy_in_torch_and_onnx_runtime(job, data, tmp_path):
    folder, _, report = job
    model, content = load_network(folder / "dgms.pt")
    assert content["model"] == "digits" and content["input_shape"] == [1, 8, 8]
    logits = predict_logits(model, data).numpy()
    assert np.mean(logits.argmax(1) == data.test_labels) * 100 == pytest.approx(report.test_accuracy)
    assert export_checkpoint(folder / "dgms.pt", tmp_path / "net.onnx") == list(report.layers)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    found = session.run(None, {"input": data.normalize(data.test_images)})[0]
    assert np.sum(found.argmax(1) != logits.argmax(1)) <= 1
    metadata = {item.key: item.value for item in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert metadata == {
        "sparrow.model": "digits", "sparrow.data": "digits", "sparrow.quantization": DgmsConfig(bits=4).to_json(),
        "sparrow.pixel_mean": "[77.8515]", "sparrow.pixel_deviation": "[95.88]",
    }  # fmt: skip


def test_a_float_checkpoint_is_exported_too(job, tmp_path):
    layers = export_checkpoint(job[0] / "float.pt", tmp_path / "net.onnx")
    assert {layer.format for layer in layers} == {"float"}
    assert "sparrow.quantization" not in {item.key for item in onnx.load(tmp_path / "net.onnx").metadata_props}


def test_quantizing_without_training(job, data, tmp_path):
    report = quantize_network("digits", data, job[0] / "float.pt", Int8Config(), None, tmp_path / "int8.pt")
    assert report.history == () and not report.resumed and report.test_accuracy == report.calibrated_accuracy
    assert report.test_accuracy > report.start_accuracy - 2
    assert "train" not in load_checkpoint(tmp_path / "int8.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["int8.pt"]


def test_the_same_job_gives_the_same_weights(job, data, tmp_path):
    quantize_network("digits", data, job[0] / "float.pt", DgmsConfig(bits=4), TUNE, tmp_path / "again.pt")
    first, again = (load_checkpoint(path)["state_dict"] for path in (job[0] / "dgms.pt", tmp_path / "again.pt"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_training_goes_on_from_a_checkpoint(job, data, tmp_path):
    config = dataclasses.replace(TRAIN, epochs=1, learning_rate=1e-3)
    report = train_network("digits", data, config, tmp_path / "more.pt", checkpoint=job[0] / "float.pt")
    assert report.start_accuracy == job[1].test_accuracy
    assert report.test_accuracy == pytest.approx(job[1].test_accuracy, abs=2)


def test_an_interrupted_quantization_goes_on(job, data, tmp_path, monkeypatch):
    config, two = DgmsConfig(bits=4), dataclasses.replace(TUNE, epochs=2)
    arguments = ("digits", data, job[0] / "float.pt", config, two)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sparrow.quantize.recipes.save_checkpoint", interrupt)  # after the last epoch
        quantize_network(*arguments, tmp_path / "net.pt")
    assert [path.name for path in tmp_path.iterdir()] == [resume_path(tmp_path / "net.pt").name]
    report = quantize_network(*arguments, tmp_path / "net.pt")
    assert report.resumed and len(report.history) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_calibration_images_depend_on_the_seed_alone(data):
    first, second, other = (torch.cat(calibration_batches(data, 200, seed)) for seed in (0, 0, 1))
    assert first.shape == (200, 1, 8, 8) and first.dtype == torch.float32
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert sum(map(len, calibration_batches(data, 10**6, 0))) == len(data.train_labels)


# ---- what is refused


def test_a_quantized_checkpoint_is_not_quantized_again(job, data, tmp_path):
    with pytest.raises(SparrowError, match=r"dgms\.pt is quantized already") as caught:
        quantize_network("digits", data, job[0] / "dgms.pt", DgmsConfig(), None, tmp_path / "net.pt")
    assert "sparrow export" in caught.value.next_step and not list(tmp_path.iterdir())


def test_no_calibration_images(job, data, tmp_path):
    with pytest.raises(SparrowError, match="no calibration images"):
        quantize_network(
            "digits", data, job[0] / "float.pt", DgmsConfig(), None, tmp_path / "net.pt", calibration_images=0
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet20", "vgg-small"])
def test_a_network_for_other_images_or_of_another_checkpoint(name, job, data, tmp_path):
    with pytest.raises(SparrowError, match="another architecture"):
        quantize_network(name, data, job[0] / "float.pt", DgmsConfig(), None, tmp_path / "net.pt")
    with pytest.raises(SparrowError, match="does not take an image of digits"):
        train_network(name, data, TRAIN, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", [{}, {"model": "their-net"}, {"model": 3}])
def test_a_foreign_checkpoint_needs_the_networks_name(said, job, tmp_path):
    weights = load_checkpoint(job[0] / "float.pt")["state_dict"]
    save_checkpoint({"state_dict": weights, **said}, tmp_path / "foreign.pt")
    with pytest.raises(SparrowError, match="does not name a network") as caught:
        export_checkpoint(tmp_path / "foreign.pt", tmp_path / "net.onnx")
    assert "--model" in caught.value.next_step and not (tmp_path / "net.onnx").exists()
    assert load_network(tmp_path / "foreign.pt", "digits")[1]["input_shape"] == (1, 8, 8)
    with pytest.raises(SparrowError, match="another architecture"):
        export_checkpoint(tmp_path / "foreign.pt", tmp_path / "net.onnx", model_name="resnet20")


def test_a_users_own_network_is_executed_only_when_it_is_named(data, tmp_path):
    source, mark = tmp_path / "own.py", tmp_path / "executed"
    source.write_text(
        f"from pathlib import Path\nfrom torch import nn\n"
        f"def build():\n"
        f"    Path({str(mark)!r}).touch()\n"
        f"    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))\n"
    )
    name = f"{source}:build"
    train_network(name, data, dataclasses.replace(TRAIN, epochs=1), tmp_path / "own.pt")
    quantize_network(name, data, tmp_path / "own.pt", DgmsConfig(), None, tmp_path / "own4.pt")
    for checkpoint in ("own.pt", "own4.pt"):
        mark.unlink(missing_ok=True)
        with pytest.raises(SparrowError, match=r"does not name a network of Sparrow's but .*own\.py:build"):
            export_checkpoint(tmp_path / checkpoint, tmp_path / "net.onnx")
        assert not mark.exists() and not (tmp_path / "net.onnx").exists()
        export_checkpoint(tmp_path / checkpoint, tmp_path / "net.onnx", model_name=name)
        assert mark.exists()
        metadata = {item.key: item.value for item in onnx.load(tmp_path / "net.onnx").metadata_props}
        assert metadata["sparrow.model"] == "own network" and str(tmp_path) not in str(metadata)
        (tmp_path / "net.onnx").unlink()


def test_a_foreign_checkpoint_of_a_users_own_network_lacks_the_inputs_shape(tmp_path):
    source = tmp_path / "own.py"
    source.write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(4, 2))\n")
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 2)).state_dict(), tmp_path / "own.pt")
    with pytest.raises(SparrowError, match="does not say the input's shape"):
        export_checkpoint(tmp_path / "own.pt", tmp_path / "net.onnx", model_name=f"{source}:build")


def test_classes_are_the_data_sets(data, tmp_path):
    few = dataclasses.replace(
        data,
        train_images=data.train_images[data.train_labels < 4],
        train_labels=data.train_labels[data.train_labels < 4],
        test_images=data.test_images[data.test_labels < 4],
        test_labels=data.test_labels[data.test_labels < 4],
        classes=("zero", "one", "two", "drei"),
    )
    train_network("digits", few, dataclasses.replace(TRAIN, epochs=1), tmp_path / "four.pt")
    model, _ = load_network(tmp_path / "four.pt")
    assert predict_logits(model, few).shape[1] == 4
    export_checkpoint(tmp_path / "four.pt", tmp_path / "four.onnx")
    metadata = {item.key: item.value for item in onnx.load(tmp_path / "four.onnx").metadata_props}
    assert json.loads(metadata["sparrow.class_names"]) == ["zero", "one", "two", "drei"]
    assert build_model("digits").linear.out_features == 10
