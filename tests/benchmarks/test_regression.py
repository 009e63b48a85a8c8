"""Regression gates on results that were made up here."""

from dataclasses import asdict, replace

import pytest

from sparrow.benchmarks.predict.predict import Prediction, load_core
from sparrow.benchmarks.regression import Change, compare_results
from sparrow.benchmarks.result_files import BenchResult, Environment, OperatorResult, ThreadsResult
from sparrow.kernels.errors import SparrowError

ENVIRONMENT = Environment("1.0", "abc", "7.2", "cortex-a53", "cortex-a53")


def result(
    *operators: tuple[str, int], threads: tuple[int, ...] = (1, 4), peak: int | None = 4096, name: str = "net",
    runner: int = 1000, cycles: float | None = None,
) -> BenchResult:  # fmt: skip
    """A result of operators that cost so many instructions each; a second inference waits a little."""
    total = sum(cost for _, cost in operators)
    steps = tuple(OperatorResult(name, "kernel", cost, (cost,)) for name, cost in operators)
    rows = [ThreadsResult(number, 2, total + 5, total, total + 10, (total + 5,), steps, None, peak)
            for number in threads]  # fmt: skip
    predictions = () if cycles is None else (Prediction(load_core("cortex-a53"), total, cycles, 0.0, 0.0, 0.0, 1.0),)
    files = {f"lib{name}.a": 5000, "sparrow_run": runner, "model.onnx": 77}
    return BenchResult(name, 1, tuple(rows), files, 300, 200, ENVIRONMENT, predictions)


BASELINE = result(("conv", 800), ("mean", 200))


def test_equal_results_are_ok_at_a_bound_of_zero() -> None:
    comparison = compare_results(BASELINE, BASELINE, 0)
    comparison.require_ok()
    assert [change.ratio for change in comparison.bounded] == [1] * len(comparison.bounded)
    assert [row.threads for row in comparison.inferences] == [1, 4]
    assert all(row.operators == () for row in comparison.inferences)
    names = [change.name for change in comparison.bytes_shipped]
    assert names == ["libNETWORK.a", "sparrow_run", "weights", "scratch memory"]


@pytest.mark.parametrize(("cost", "ok"), [(820, True), (821, False), (500, True)])
def test_instructions_may_grow_up_to_the_bound(cost: int, ok: bool) -> None:
    comparison = compare_results(result(("conv", cost), ("mean", 200)), BASELINE, 0.02)
    instructions = comparison.inferences[0].instructions
    assert (instructions.before, instructions.now) == (1000, cost + 200)
    if ok:
        comparison.require_ok()
    else:
        with pytest.raises(
            SparrowError, match=r"instructions on 1 thread: 1,000 -> 1,021 instructions \(\+2\.10%\)"
        ) as e:
            comparison.require_ok()
        assert e.value.exit_code == 3 and "conv: 800 -> 821" in e.value.got and "mean" not in e.value.got
        assert "0.02" in e.value.expected


def test_operators_that_changed_most_come_first_and_do_not_fail_by_themselves() -> None:
    now = result(("conv", 500), ("mean", 450), ("new", 50))
    (one, _) = compare_results(now, BASELINE, 0.02).inferences
    assert [(change.name, change.before, change.now) for change in one.operators] == [
        ("conv", 800, 500), ("mean", 200, 450), ("new", 0, 50)
    ]  # fmt: skip
    assert one.operators[2].ratio is None and "(new)" in one.operators[2].text()
    compare_results(now, BASELINE, 0.02).require_ok()


def test_operators_of_one_name_are_told_apart_by_their_order() -> None:
    before = result(("reshape", 100), ("reshape", 200), ("reshape", 300))
    (one,) = compare_results(
        result(("reshape", 100), ("reshape", 250), ("reshape", 300), threads=(1,)),
        replace(before, inferences=before.inferences[:1]),
        1,
    ).inferences
    assert [(change.name, change.before, change.now) for change in one.operators] == [("reshape #2", 200, 250)]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (result(("conv", 1000), peak=8192), "peak memory on 1 thread: 4,096 -> 8,192 bytes"),
        (result(("conv", 1000), runner=1100), r"sparrow_run: 1,000 -> 1,100 bytes \(\+10\.00%\)"),
        (replace(result(("conv", 1000)), weights_bytes=307), "weights: 300 -> 307 bytes"),
        (replace(result(("conv", 1000)), arena_bytes=205), "scratch memory: 200 -> 205 bytes"),
        (result(("conv", 1000), cycles=2100), "predicted for cortex-a53: 2,000 -> 2,100 cycles"),
    ],
)
def test_memory_bytes_and_predictions_are_held_to_the_bound(now: BenchResult, message: str) -> None:
    with pytest.raises(SparrowError, match=message):
        compare_results(
            now, replace(BASELINE, predictions=result(("conv", 1), cycles=2000).predictions), 0.02
        ).require_ok()


def test_what_only_one_result_has_is_left_out() -> None:
    comparison = compare_results(result(("conv", 1000), peak=None, cycles=9e9), BASELINE, 0)
    assert comparison.predictions == () and all(row.peak_memory is None for row in comparison.inferences)
    comparison.require_ok()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result(("conv", 1000), name="other"), "the network of the result: net"),
        (replace(BASELINE, environment=replace(ENVIRONMENT, cpu_model="max")), "the CPU of the result: cortex-a53"),
        (result(("conv", 1000), threads=(1,)), r"the numbers of threads of the result: \[1, 4\]"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(other: BenchResult, message: str) -> None:
    with pytest.raises(SparrowError, match=message) as caught:
        compare_results(BASELINE, other, 0.02)
    assert "baseline" in caught.value.expected


def test_two_networks_are_compared_when_asked_for() -> None:
    comparison = compare_results(result(("conv", 500), name="sparse"), BASELINE, 0, other_network=True)
    assert (comparison.bundle, comparison.baseline) == ("sparse", "net")
    assert {change.name: change.ratio for change in comparison.bytes_shipped}["libNETWORK.a"] == 1
    comparison.require_ok()


@pytest.mark.parametrize("bound", [-0.01, float("nan")])
def test_impossible_bounds_are_refused(bound: float) -> None:
    with pytest.raises(SparrowError, match="fail above"):
        compare_results(BASELINE, BASELINE, bound)


def test_ratios_are_in_the_document() -> None:
    assert asdict(Change("x", "bytes", 4, 5))["ratio"] == 1.25
    assert asdict(Change("x", "bytes", 0, 1))["ratio"] is None
