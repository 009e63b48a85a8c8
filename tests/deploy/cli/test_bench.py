"""What ``sparrow bench --predict`` prints, on a result made up here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparrow.benchmarks import harness, result_files
from sparrow.benchmarks.predict.predict import Prediction, load_core
from sparrow.benchmarks.suites import kernels
from sparrow.deploy.cli.bench import command
from sparrow.kernels.errors import SparrowError

COUNTS = (
    result_files.ThreadsResult(1, 3, 2e6, 2_000_000, 2_000_000, (2e6,),
                          (result_files.OperatorResult("conv", "dotprod", 1.5e6, (1.5e6,)),
                           result_files.OperatorResult("mean", "", 0.5e6, (0.5e6,))),
                          result_files.MemoryResult(10, 5, 4e6, 2e6, 100, 10), 3_000_000),
)  # fmt: skip


def fake_bench(bundle: Path, *, cores: list[str], **unused: Any) -> result_files.BenchResult:
    predictions = tuple(Prediction(load_core(name), 4e6, 2e6, 5e5, 100, 10, 0.996) for name in cores)
    return result_files.BenchResult(
        "net", 1, COUNTS, {"net.so": 1000 + len(bundle.name)}, 0, 0, result_files.Environment(*"12345"), predictions
    )


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


def test_counts_are_listed_by_operator_with_memory(bench: Any) -> None:
    lines = bench().output.splitlines()
    assert any("1.500 million  75.0%  conv  dotprod" in line for line in lines)
    assert any("4.00 MB loaded, 2.00 MB stored; cache lines missed: L1 100, L2 10" in line for line in lines)
    assert any("most memory resident" in line and "3.00 MB" in line for line in lines)


def test_baseline_is_a_gate(bench: Any, tmp_path: Path) -> None:
    assert bench("-o", str(tmp_path / "before.json")).exit_code == 0
    same = bench("--baseline", str(tmp_path / "before.json"), "--fail-above", "2%")
    assert same.exit_code == 0 and "(+0.00%)" in same.output
    document = json.loads((tmp_path / "before.json").read_text())
    document["inferences"][0]["minimum"] = 1_900_000
    (tmp_path / "cheaper.json").write_text(json.dumps(document))
    assert bench("--baseline", str(tmp_path / "cheaper.json")).exit_code == 0
    worse = bench("--baseline", str(tmp_path / "cheaper.json"), "--fail-above", "2%")
    assert isinstance(worse.exception, SparrowError) and worse.exception.exit_code == 3
    assert "+5.26%" in str(worse.exception)


def test_another_bundle_is_compared(bench: Any) -> None:
    document = json.loads(bench("--against", "longer-name", "--json").stdout)
    (change,) = [change for change in document["comparison"]["bytes_shipped"] if change["now"] != change["before"]]
    assert (change["before"], change["now"]) == (1011, 1003)


def test_other_kind_of_result_is_no_baseline(bench: Any, tmp_path: Path) -> None:
    other = result_files.ProgramResult("p", (1,), (), result_files.Environment(*"12345"))
    result_files.write_result(other, tmp_path / "other.json")
    error = bench("--baseline", str(tmp_path / "other.json")).exception
    assert "holds a sparrow-program" in str(error)


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
        (["--exec", "prog", "--predict", "cortex-a53"], "--predict belongs to --runner qemu, got --exec"),
        (["net", "--host", "pi@board"], "--host belongs to --runner ssh, got --runner qemu"),
        (["net", "--runner", "ssh"], "--runner ssh needs --host"),
        (["net", "--runner", "adb", "--device", "all", "--cpu", "cortex-a53"],
         "--cpu belongs to --runner qemu or --peers or --kernels or --exec, got --runner adb"),
        (["net", "--runner", "adb", "--predict", "cortex-a53"], "--predict belongs to --runner qemu"),
        (["net.onnx", "--peers", "ncnn", "--threads", "4"], "--threads belongs to --runner qemu"),
        (["net", "--cpu", "cortex-a53,cortex-a76"], "got 2 CPUs, expected one"),
        (["net", "--kernels"], "got net with --kernels"),
        (["--kernels", "--threads", "4"], "--threads belongs to --runner qemu"),
        (["net", "--fail-above", "2%"], "--fail-above needs --against or --baseline"),
        (["net", "--fail-above", "two"], "got 'two', expected a share"),
        (["net", "--fail-above", "-1"], "got '-1', expected a share"),
        (["net", "--against", "a", "--baseline", "b"], "got --against and --baseline"),
    ],
)
def test_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2 and message in result.output


def test_kernels_are_printed_beside_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    row = kernels.KernelRow("spw_conv__neon", "", "cortex-a53", "a shape", "MAC", 400, 200, 100, 2, 4, 5, "fmla")
    plain = replace(row, kernel="spw_unpack__neon", unit="value", limit=None, limited_by="")
    rows = (row, plain)
    result = kernels.KernelsResult(rows, result_files.Environment(*"12345"), {"cortex-a53": "error unknown"})
    monkeypatch.setattr(kernels, "bench_kernels", lambda cpus, on_progress: result)
    printed = CliRunner().invoke(command, ["--kernels"])
    assert printed.exit_code == 0, printed.output
    convolution, unpacker = (line.split() for line in printed.output.splitlines() if line.startswith("spw_"))
    assert convolution[-5:] == ["2.00", "4.00", "5.00", "80%", "fmla"]
    assert unpacker[-3:] == ["2.00", "4.00", "values"]
    assert "no measurements" in printed.output
    assert json.loads(CliRunner().invoke(command, ["--kernels", "--json"]).stdout)["rows"][0]["limit"] == 5


def test_arguments_after_the_dashes_reach_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(program: Path, arguments: tuple[str, ...], *, cpu: str) -> result_files.ProgramResult:
        assert (program, arguments, cpu) == (Path("prog"), ("--flag", "x"), "cortex-a53")
        environment = result_files.Environment(*"12345")
        return result_files.ProgramResult("prog", (3_000_000, 1_000_000), (2_500_000,), environment)

    monkeypatch.setattr(harness, "bench_program", fake)
    result = CliRunner().invoke(command, ["--cpu", "cortex-a53", "--exec", "prog", "--", "--flag", "x"])
    assert result.exit_code == 0, result.output
    assert "4.000 million" in result.output and "2.500 million" in result.output
