"""Calibration from end to end, on counts and measurements that are made up."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cattrs
import pytest
from click.testing import CliRunner

from sparrow.benchmarks import calibrating
from sparrow.benchmarks.calibrating import CalibrationResult, calibrate, summary_table
from sparrow.benchmarks.calibration.networks import Network
from sparrow.benchmarks.calibration.records import load_records
from sparrow.benchmarks.predict import blocks
from sparrow.benchmarks.predict.calibration import load_calibration, save_calibration
from sparrow.benchmarks.runners.qemu import Cache, CacheMisses, ExecutedBlock, InstructionCounts, Section
from sparrow.deploy.cli.calibrate import command
from sparrow.kernels.errors import SparrowError

pytestmark = pytest.mark.skipif(shutil.which(blocks.MCA) is None or shutil.which(blocks.DISASSEMBLER) is None,
                                reason=f"{blocks.MCA} predicts cycles: apt-get install llvm-19")  # fmt: skip

FMUL = bytes.fromhex("0008201e")  # fmul s0, s0, s0, four cycles on the Cortex-A55
NETWORKS = {"small": 10_000_000, "middle": 20_000_000, "large": 50_000_000}  # instructions
DEVICES = {"Snapdragon 410": 1.2, "Raspberry Pi 3": 1.4, "A board of tomorrow": 1.0}  # GHz


class FakeRunner:
    """In the place of ncnn under QEMU: so many instructions, divided evenly; one network cannot be loaded."""

    runs: list[tuple[str, str, int]] = []  # noqa: RUF012

    def __init__(self, on_progress: Any) -> None:
        pass

    def count(
        self, network: Network, *, cpu: str, threads: int, caches: Sequence[tuple[Cache, Cache]], timeout: float
    ) -> InstructionCounts:
        self.runs.append((network.name, cpu, threads))
        if network.name not in NETWORKS:
            raise SparrowError(f"ncnn cannot load {network.name}")
        executed = NETWORKS[network.name]
        sections = [(executed, *[0] * (threads - 1))]
        if threads > 1:
            sections = [(0,) * threads, (executed // threads,) * threads, (0,) * threads]
        region = tuple(map(sum, zip(*sections, strict=True)))
        return InstructionCounts(region, (region,), tuple(
            Section(0, row, caches=tuple(tuple(CacheMisses(number // 200, number // 1000) for number in row)
                                         for _ in caches)) for row in sections), (ExecutedBlock(FMUL, tuple(sections)),)
        )  # fmt: skip


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Published times, networks and an empty folder for counts."""
    monkeypatch.setattr(calibrating, "NcnnRunner", FakeRunner)
    FakeRunner.runs = []
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "inputs.txt").write_text("".join(f"{name} 8 8 3\n" for name in [*NETWORKS, "broken"]))
    for name in [*NETWORKS, "broken"]:
        (folder / f"{name}.param").touch()

    def times(ghz: float, threads: int) -> dict[str, dict[str, float]]:
        cost = 5 / ghz * 1e-6 / threads**0.9
        names = {**NETWORKS, "broken": 1_000_000, "unlisted": 1_000_000}
        return {name: {"min": cost * executed, "avg": cost * executed} for name, executed in names.items()}

    devices = {name: [{"num_threads": threads, "powersave": 0, "ms": times(ghz, threads)} for threads in (1, 4)]
               for name, ghz in DEVICES.items()}  # fmt: skip
    devices["Raspberry Pi 3"][1]["ms"]["large"]["avg"] *= 3
    published = tmp_path / "published.json"
    published.write_text(json.dumps({"source": "made up", "devices": devices}))
    return {"published": published, "networks": folder, "records": tmp_path / "counts"}


def run(job: dict[str, Path]) -> CalibrationResult:
    return calibrate(job["published"], networks=job["networks"], records=job["records"])


def test_figures_and_their_error_come_from_counts_and_times(job: dict[str, Path]) -> None:
    result = run(job)
    assert set(result.calibration.cores) == {"cortex-a53"}
    assert result.single_thread.boards == ("raspberry-pi-3", "snapdragon-410")
    assert (result.single_thread.points, result.single_thread.networks) == (6, 3)
    assert result.single_thread.within_bound == 1 and result.single_thread.median < 0.1
    errors = {error.threads: error for error in result.calibration.cores["cortex-a53"].errors}
    assert (errors[1].bound, errors[4].bound) == (0.2, 0.3)
    source = result.calibration.cores["cortex-a53"].source
    assert source == "fitted by sparrow calibrate to 11 measurements on raspberry-pi-3, snapdragon-410: made up"
    assert cattrs.structure(asdict(result), CalibrationResult) == result


def test_what_is_left_out_is_named_with_its_reason(job: dict[str, Path]) -> None:
    result = run(job)
    notes = "\n".join(result.notes)
    assert "unknown board, skipped: A board of tomorrow" in notes
    assert "not counted: broken on cortex-a53, 1 threads: ncnn cannot load broken" in notes
    assert "no counts, skipped: broken" in notes and "no counts, skipped: unlisted" in notes
    assert "1 of 12 points excluded: their mean is more than 1.5 times" in notes
    (left,) = (point for point in result.points if point.excluded)
    assert (left.soc, left.threads, left.network) == ("raspberry-pi-3", 4, "large")
    assert "3.0 times the fastest" in left.excluded
    assert result.several_threads is not None and result.several_threads.points == 5
    assert [error.points for error in result.with_excluded] == [6, 6]
    assert "with the excluded points" in "\n".join(summary_table(result))


def test_what_was_counted_is_not_counted_again(job: dict[str, Path]) -> None:
    first = run(job)
    assert len(FakeRunner.runs) == 8
    (job["records"] / "middle.json").unlink()
    FakeRunner.runs = []
    assert run(job).points == first.points
    # A network that failed is tried again.
    assert FakeRunner.runs == [(name, "cortex-a53", threads) for name in ("middle", "broken") for threads in (1, 4)]
    # Without the networks, what is kept is enough.
    assert calibrate(job["published"], records=job["records"]).calibration == first.calibration


def test_what_was_counted_before_an_interruption_is_kept(
    job: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    count = FakeRunner.count

    def interrupted(self: FakeRunner, network: Network, **options: Any) -> InstructionCounts:
        if len(self.runs) == 3:
            raise KeyboardInterrupt
        return count(self, network, **options)

    monkeypatch.setattr(FakeRunner, "count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    kept = load_records(job["records"])
    assert [(name, [one.threads for one in record.runs]) for name, record in kept.items()] == [
        ("middle", [1]), ("small", [1, 4])]  # fmt: skip


def test_nothing_to_fit_is_an_error(job: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match="has no counts of a network"):
        calibrate(job["published"], records=tmp_path / "nowhere")
    with pytest.raises(SparrowError, match="cannot read"):
        calibrate(tmp_path / "missing.json", records=job["records"])


def test_the_command_prints_a_table_and_keeps_what_was_fitted(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, output = tmp_path / "figures.json", tmp_path / "result.json"
    monkeypatch.setattr("sparrow.benchmarks.predict.calibration.save_calibration",
                        lambda calibration: save_calibration(calibration, figures))  # fmt: skip
    arguments = ["--published", str(job["published"]), "--networks", str(job["networks"]),
                 "--counts", str(job["records"]), "-o", str(output)]  # fmt: skip
    plain = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert plain.exit_code == 0 and not figures.exists()
    lines = plain.stdout.splitlines()
    assert lines[1].split()[:4] == ["core", "threads", "boards", "networks"]
    assert lines[2].split()[:5] == ["cortex-a53", "1", "2", "3", "6"]
    assert "run 1 of 8: small on cortex-a53, 1 thread" in plain.stderr and "fitting without" in plain.stderr
    assert "unknown board, skipped: A board of tomorrow" in plain.stderr
    document = json.loads(output.read_text())
    assert (document["schema"], document["schema_version"]) == ("sparrow-calibration", 1)
    applied = CliRunner().invoke(command, [*arguments, "--apply", "--json"], catch_exceptions=False)
    assert json.loads(applied.stdout)["points"] == document["points"]
    assert set(load_calibration(figures).cores) == {"cortex-a53"}
