"""Latency on several cores, of made-up work whose time can be worked out by hand."""

from dataclasses import replace

import pytest

from sparrow.benchmarks.predict.calibration import Calibration, CoreCalibration, Figures, KnownError
from sparrow.benchmarks.predict.octa_core import SocPrediction, predict_soc
from sparrow.benchmarks.predict.soc import Soc, load_soc
from sparrow.benchmarks.predict.work import ProgramWork, SectionWork, Work
from sparrow.kernels.errors import SparrowError

# Cores 0 to 3 at 1 GHz and 4 to 7 at 2 GHz, where a cycle of the pipeline model is a cycle, and memory with 10 GB/s.
FIGURES = Figures(1, l1_miss_cycles=10, memory_nanoseconds=100, fork_join_microseconds=0, typical_ghz=1)
CALIBRATION = Calibration(
    {name: CoreCalibration(FIGURES, (), "made up") for name in ("cortex-a55", "cortex-a76")}, 0.5, "made up"
)
SOC = load_soc("rk3588")
SOC = replace(SOC, l3=None, memory_gigabytes_per_second=20, clusters=(
    replace(SOC.clusters[0], ghz=1.0), replace(SOC.clusters[1], ghz=2.0)))  # fmt: skip
MILLION = Work(instructions=1e6, pipeline_cycles=1e6)


def predict(
    *sections: SectionWork, affinity: str, threads: int, soc: Soc = SOC, calibration: Calibration = CALIBRATION
) -> SocPrediction:
    """Both kinds of core have the same work."""
    work = ProgramWork(sections, 1.0)
    return predict_soc({0: work, 1: work}, soc, soc.place(affinity, threads), calibration=calibration)


def divided(*work: Work) -> SectionWork:
    return SectionWork(0, work)


def test_one_thread_takes_its_cycles() -> None:
    section = divided(replace(MILLION, l1_misses=3000, l2_misses=1000, memory_lines=1000))
    slow = predict(section, affinity="little", threads=1)
    assert slow.pipeline_milliseconds == pytest.approx(1.0)
    assert slow.memory_milliseconds == pytest.approx(2000 * 10e-6 + 1000 * 100e-6)
    assert slow.milliseconds == slow.pipeline_milliseconds + slow.memory_milliseconds
    # Twice the frequency halves what is counted in cycles; the memory is as far away as before.
    fast = predict(section, affinity="big", threads=1)
    assert fast.pipeline_milliseconds == pytest.approx(0.5)
    assert fast.memory_milliseconds == pytest.approx(1000 * 10e-6 + 1000 * 100e-6)


def test_divided_work_waits_for_the_slowest_core() -> None:
    section = divided(MILLION, MILLION)
    assert predict(section, affinity="little", threads=2).milliseconds == pytest.approx(1.0)
    assert predict(section, affinity="big", threads=2).milliseconds == pytest.approx(0.5)
    mixed = predict(section, affinity="0,4", threads=2)
    assert [core.number for core in mixed.cores] == [4, 0]
    assert mixed.milliseconds == pytest.approx(1.0)


def test_shared_tasks_flow_to_the_fast_core() -> None:
    # 6 tasks of a million cycles: whichever core is free first, the fast one in half the time, takes 4 and 2 of them.
    section = SectionWork(6, (MILLION.scaled(3), MILLION.scaled(3)))
    assert predict(section, affinity="0,4", threads=2).milliseconds == pytest.approx(2.0)
    assert predict(section, affinity="big", threads=2).milliseconds == pytest.approx(1.5)


def test_one_task_too_many_makes_all_wait() -> None:
    section = SectionWork(5, (MILLION.scaled(5),))
    assert predict(section, affinity="little", threads=4).milliseconds == pytest.approx(2.0)
    assert predict(replace(section, tasks=500), affinity="little", threads=4).milliseconds == pytest.approx(1.25)
    # A slow core that takes the last task is waited for, though a fast one would have been done sooner.
    last = SectionWork(2, (MILLION.scaled(2),))
    assert predict(last, affinity="0,4", threads=2).milliseconds == pytest.approx(1.0)


def test_a_slow_core_leaves_the_last_tasks_to_faster_ones() -> None:
    clusters = (replace(SOC.clusters[0], ghz=1.0), replace(SOC.clusters[1], ghz=5.0))
    soc = replace(SOC, clusters=clusters)
    # All four would be done by the fast core in the time that the slow one needs for one.
    few = SectionWork(4, (MILLION.scaled(4),))
    assert predict(few, affinity="0,4", threads=2, soc=soc).milliseconds == pytest.approx(0.8)
    many = SectionWork(12, (MILLION.scaled(12),))
    assert predict(many, affinity="0,4", threads=2, soc=soc).milliseconds == pytest.approx(2.0)


def test_tasks_of_unequal_work_and_lists_one_after_the_other() -> None:
    whole = MILLION.scaled(4)
    uneven = SectionWork(3, (whole,), lists=((0.5, 0.25, 0.25),))
    assert predict(uneven, affinity="little", threads=2).milliseconds == pytest.approx(2.0)
    last = SectionWork(3, (whole,), lists=((0.25, 0.25, 0.5),))
    assert predict(last, affinity="little", threads=2).milliseconds == pytest.approx(3.0)
    figures = replace(FIGURES, fork_join_microseconds=50)
    calibration = replace(CALIBRATION, cores={"cortex-a55": CoreCalibration(figures, (), "")})
    two = SectionWork(4, (whole,), lists=((0.25, 0.25), (0.25, 0.25)))
    prediction = predict(two, affinity="little", threads=2, calibration=calibration)
    assert prediction.milliseconds == pytest.approx(2.1)
    assert prediction.fork_join_milliseconds == pytest.approx(0.1)


def test_threads_wait_for_one_another_after_each_section() -> None:
    left, right = divided(MILLION, Work()), divided(Work(), MILLION)
    assert predict(left, right, affinity="little", threads=2).milliseconds == pytest.approx(2.0)


def test_only_sections_of_several_threads_are_handed_out() -> None:
    figures = replace(FIGURES, fork_join_microseconds=50)
    calibration = replace(CALIBRATION, cores={
        "cortex-a55": CoreCalibration(figures, (), ""), "cortex-a76": CALIBRATION.cores["cortex-a76"]})  # fmt: skip
    alone, both = divided(MILLION), divided(MILLION, MILLION)
    prediction = predict(alone, both, affinity="0,1", threads=2, calibration=calibration)
    assert [operator.fork_join_milliseconds for operator in prediction.operators] == pytest.approx([0, 0.05])
    assert prediction.milliseconds == pytest.approx(2.05)
    one, two = SectionWork(1, (MILLION,)), SectionWork(2, (MILLION,))
    prediction = predict(one, two, affinity="0,1", threads=2, calibration=calibration)
    assert [operator.fork_join_milliseconds for operator in prediction.operators] == pytest.approx([0, 0.05])
    mixed = predict(both, affinity="0,4", threads=2, calibration=calibration)
    assert mixed.fork_join_milliseconds == pytest.approx(0.05)


def test_in_a_program_of_tasks_a_section_without_any_is_the_main_threads() -> None:
    figures = replace(FIGURES, fork_join_microseconds=50)
    calibration = replace(CALIBRATION, cores={"cortex-a55": CoreCalibration(figures, (), "")})
    falls_asleep = Work(instructions=30, pipeline_cycles=30)
    shared, serial = SectionWork(2, (MILLION, MILLION)), SectionWork(0, (MILLION, falls_asleep))
    prediction = predict(shared, serial, affinity="little", threads=2, calibration=calibration)
    assert [operator.fork_join_milliseconds for operator in prediction.operators] == pytest.approx([0.05, 0])
    assert prediction.operators[1].milliseconds == pytest.approx(1.0, rel=1e-3)


def test_the_memory_serves_all_cores_at_its_bandwidth() -> None:
    # 4 threads bring in 64 bytes 10,000 times each: 2.56 MB at 10 GB/s. Each alone is done sooner: 0.1 ms of
    # instructions, and 10,000 times 10 ns.
    figures = replace(FIGURES, memory_nanoseconds=10)
    calibration = replace(CALIBRATION, cores={"cortex-a55": CoreCalibration(figures, (), "")})
    thread = Work(instructions=1e5, pipeline_cycles=1e5, l1_misses=10_000, l2_misses=10_000, memory_lines=10_000)
    section = divided(thread, thread, thread, thread)
    prediction = predict(section, affinity="little", threads=4, calibration=calibration)
    assert prediction.memory_bytes == 4 * 10_000 * 64
    assert prediction.milliseconds == pytest.approx(0.256)
    assert (prediction.pipeline_milliseconds, prediction.bound) == (pytest.approx(0.1), "memory")
    # Alone, a core waits for what it loses itself.
    alone = predict(divided(thread), affinity="little", threads=1, calibration=calibration)
    assert alone.milliseconds == pytest.approx(0.1 + 0.1)
    # Lines that another cache has cost cycles, and no bandwidth.
    near = divided(*[replace(thread, l1_misses=20_000)] * 4)
    prediction = predict(near, affinity="little", threads=4, calibration=calibration)
    assert (prediction.milliseconds, prediction.memory_bytes) == (pytest.approx(0.3), 4 * 10_000 * 64)


def test_operators_are_named_and_bound_by_what_costs_most() -> None:
    work = ProgramWork((divided(MILLION), divided(Work(1.0, 1.0, 10, 10)), divided(Work())), 0.9)
    prediction = predict_soc({0: work}, SOC, SOC.place("little", 1), names=["start", "conv"], calibration=CALIBRATION)
    assert [operator.name for operator in prediction.operators] == ["start", "conv", "section 2"]
    assert [operator.bound for operator in prediction.operators] == ["instructions", "memory", "instructions"]
    assert prediction.coverage == 0.9
    assert prediction.milliseconds == pytest.approx(sum(operator.milliseconds for operator in prediction.operators))


def test_each_core_is_charged_what_its_own_kind_costs() -> None:
    small = ProgramWork((divided(MILLION, MILLION),), 1.0)
    large = ProgramWork((divided(MILLION, MILLION.scaled(4)),), 1.0)
    placement = SOC.place("0,4", 2)
    assert predict_soc({0: small, 1: large}, SOC, placement, calibration=CALIBRATION).milliseconds == pytest.approx(1.0)
    assert predict_soc({0: large, 1: small}, SOC, placement, calibration=CALIBRATION).milliseconds == pytest.approx(4.0)


def test_a_prediction_says_its_error() -> None:
    known = KnownError(4, 20, 10, ("board",), 0.1, 0.3, 0.3, 0.9)
    calibrated = replace(CALIBRATION, cores=CALIBRATION.cores | {"cortex-a55": CoreCalibration(FIGURES, (known,), "")})
    section = divided(*[MILLION] * 2)
    assert predict(section, affinity="little", threads=2, calibration=calibrated).error == known.text()
    assert predict(divided(MILLION), affinity="little", threads=1, calibration=calibrated).error == "error unknown"
    mixed = predict(section, affinity="0,4", threads=2, calibration=calibrated).error
    assert mixed.startswith("error unknown for cores of several kinds") and known.text() in mixed


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(SparrowError, match="more than 1 threads"):
        predict(divided(MILLION, MILLION), affinity="little", threads=1)
    assert predict(divided(MILLION, Work()), affinity="little", threads=1).milliseconds == pytest.approx(1.0)
