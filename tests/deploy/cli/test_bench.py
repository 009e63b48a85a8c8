"""What ``sparrow bench --predict`` prints, on a result made up here."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparrow.benchmarks import harness, results
from sparrow.benchmarks.predict.predict import Prediction, load_core
from sparrow.deploy.cli.bench import command


def fake_bench(bundle: Path, *, cores: list[str], **unused: Any) -> results.BenchResult:
    predictions = tuple(Prediction(load_core(name), 4e6, 2e6, 5e5, 100, 10, 0.996) for name in cores)
    return results.BenchResult("net", 1, (), {}, 0, 0, results.Environment(*"12345"), predictions)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(harness, "bench", fake_bench)
    return lambda *options: CliRunner().invoke(command, ["net", "--cpu", "cortex-a53", *options])


def test_predictions_are_labelled_and_carry_their_error(bench: Any) -> None:
    text = bench("--predict", "cortex-a76, cortex-a55").output
    (heading,) = [line for line in text.splitlines() if "not measurements" in line]
    assert "one thread" in heading
    (first, second) = [line for line in text.splitlines() if "Mcycles" in line]
    assert "cortex-a76" in first and "2.500 Mcycles predicted" in first
    assert load_core("cortex-a76").error_text() in first
    assert "cortex-a55" in second and load_core("cortex-a55").error_text() in second


def test_the_document_holds_cycles_and_source(bench: Any) -> None:
    result = bench("--predict", "cortex-a53", "--json")
    (prediction,) = json.loads(result.stdout)["predictions"]
    assert prediction["cycles"] == 2.5e6 and prediction["llvm_release"] == 19
    assert prediction["core"]["figures"]["pipeline_factor"] > 0 and prediction["core"]["source"]


def test_nothing_is_predicted_unasked(bench: Any) -> None:
    assert "predicted" not in bench().output


def test_an_unknown_core_lists_the_nearest(bench: Any) -> None:
    error = bench("--predict", "cortex-a75").exception
    assert "cortex-a75" in str(error) and "did you mean 'cortex-a7" in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got 0 bundles"),
        (["one", "two"], "got 2 bundles"),
        (["--exec", "prog", "--predict", "cortex-a53"], "--predict needs a bundle"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2 and message in result.output


def test_arguments_after_the_dashes_reach_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(program: Path, arguments: tuple[str, ...], *, cpu: str) -> results.ProgramResult:
        assert (program, arguments, cpu) == (Path("prog"), ("--flag", "x"), "cortex-a53")
        return results.ProgramResult("prog", (3_000_000, 1_000_000), (2_500_000,), results.Environment(*"12345"))

    monkeypatch.setattr(harness, "bench_program", fake)
    result = CliRunner().invoke(command, ["--cpu", "cortex-a53", "--exec", "prog", "--", "--flag", "x"])
    assert result.exit_code == 0, result.output
    assert "4.000 million" in result.output and "2.500 million" in result.output
