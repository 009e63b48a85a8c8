"""``sparrow predict`` labels what it prints, shows the error beside it, and refuses before anything runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sparrow.benchmarks import predicting
from sparrow.benchmarks.peers import placed
from sparrow.benchmarks.peers.placed import PlacedRuntime
from sparrow.benchmarks.predict.octa_core import OperatorTime, SocPrediction
from sparrow.benchmarks.predict.soc import load_soc
from sparrow.benchmarks.predicting import PredictionResult
from sparrow.benchmarks.result_files import Environment, read_result
from sparrow.deploy.cli.predict import command


def fake_prediction(bundle: Path, soc: str, *, affinity: str, threads: list[int], **unused: Any) -> PredictionResult:
    chip = load_soc(soc)
    operators = (
        OperatorTime("conv", 3.0, 2.0, 0.5, 0.5, "instructions", 4096.0),
        OperatorTime("mean", 1.0, 0.25, 0.75, 0.0, "memory", 0.0),
    )
    guesses = tuple(
        SocPrediction(number, chip.place(affinity, number), 4.0 / number, 2.25, 1.25, 0.5, "instructions", operators,
                      1e6, 1e3, 0.99, "held-out error of the test")
        for number in threads
    )  # fmt: skip
    return PredictionResult("net", chip, affinity, guesses, (), 0.5, Environment(*"12345"), {}, {})


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(predicting, "predict_bundle", fake_prediction)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["bundle", *arguments])

    return invoke


def test_every_line_of_time_is_a_prediction_with_its_error_below(predict: Any) -> None:
    lines = predict("--soc", "snapdragon-888", "--threads", "1,4").output.splitlines()
    times = [index for index, line in enumerate(lines) if " threads " in line]
    assert len(times) == 2
    assert all(" ms predicted " in lines[index] and "held-out error of the test" in lines[index + 1] for index in times)
    assert "predicted, not measured" in "\n".join(lines)
    assert "1 x cortex-x1, 3 x cortex-a78" in lines[times[1]]


def test_slowest_operators_come_first_with_their_bound(predict: Any) -> None:
    output = predict("--soc", "kirin-970", "--threads", "2", "--layers", "1").output
    assert "3.000 ms" in output and "conv  (bound by instructions)" in output and "mean" not in output


def test_document_and_files_hold_every_result(predict: Any, tmp_path: Path) -> None:
    result = predict("--soc", "kirin-970, raspberry-pi-4", "--threads", "1", "--json", "-o", str(tmp_path))
    documents = json.loads(result.stdout)
    assert [document["soc"]["name"] for document in documents] == ["kirin-970", "raspberry-pi-4"]
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["bundle-kirin-970-big.json", "bundle-raspberry-pi-4-big.json"]
    assert read_result(files[0]).soc.name == "kirin-970"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soc", "snapdragon-889"], "snapdragon-888"),
        (["--soc", "kirin-970", "--threads", "5"], "5 threads on 4 cores"),
        (["--soc", "kirin-970", "--affinity", "0,9"], "affinity '0,9'"),
    ],
)
def test_impossible_wishes_are_refused_before_anything_runs(
    arguments: list[str], message: str, predict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "predict_bundle", lambda *_, **__: pytest.fail("something ran"))
    error = predict(*arguments).exception
    assert message in f"{error} {getattr(error, 'expected', '')}"


def test_other_runtimes_are_printed_beside_with_their_ratio(predict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(runtime: str, model: Path, soc: str, *, threads: list[int], affinity: str, **_: Any) -> PlacedRuntime:
        own = fake_prediction(model, soc, affinity=affinity, threads=threads if runtime == "ncnn" else [1]).predictions
        slower = tuple(replace(guess, milliseconds=8 * guess.milliseconds) for guess in own)
        return PlacedRuntime(runtime, "1.0", model.name, slower)

    monkeypatch.setattr(placed, "predict_runtime", other)
    wish = ["--soc", "kirin-970", "--threads", "1,4", "--beside", "ncnn:net.onnx", "--beside", "tvm:net.onnx"]
    output = predict(*wish).output
    assert "beside it ncnn 1.0, net.onnx in float32: predicted, not measured" in output
    assert "8.000 ms predicted  (8.0 x the bundle's on 4)" in output
    assert "32.000 ms predicted  (8.0 x the bundle's on 1, 32.0 x the bundle's on 4)" in output
    (document,) = json.loads(predict(*wish, "--json").stdout)
    assert [entry["runtime"] for entry in document["beside"]] == ["ncnn", "tvm"]
    for wrong in ("ncnn", "ncnn:", "mnn:net.onnx"):
        assert predict("--soc", "kirin-970", "--beside", wrong).exit_code == 2


def test_no_soc_is_a_usage_error(predict: Any) -> None:
    assert predict("--soc", ",").exit_code == 2
    assert predict().exit_code == 2
