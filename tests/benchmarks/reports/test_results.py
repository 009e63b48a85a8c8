"""The report of result documents: every chart that the documents have data for, and no other."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sparrow.benchmarks.reports.documents import read_documents
from sparrow.benchmarks.reports.results import render_results, write_results_report
from sparrow.benchmarks.result_files import ProgramResult, write_result
from sparrow.deploy.cli.report import command
from sparrow.kernels.errors import SparrowError

from . import samples

HOSTILE = "<script>alert('x')</script>\"&"
LATENCY, PREDICTED_TIME = "Latency by number of threads", "Predicted time by layer"
INSTRUCTIONS, ACCURACY, ROOFLINE = "Instructions by layer", "Accuracy against latency", "Roofline"
MEASURED_TIME, COMPARISON = "Measured time by layer", "Predictions against measurements"
SIZE, RUNTIMES = "Accuracy against size", "Other runtimes"


def write(folder: Path, **results: Any) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        write_result(result, folder / f"{name}.json")
    return [folder / f"{name}.json" for name in results]


def render(folder: Path, **results: Any) -> str:
    return render_results(read_documents(write(folder, **results)))


def titles(page: str) -> list[str]:
    return re.findall(r"<section><h2>([^<]*)</h2>", page)


def everything() -> dict[str, Any]:
    return {
        "dense-accuracy": samples.verification(),
        "sparse-accuracy": samples.verification("resnet-sparse", 0.9178),
        "dense-counts": samples.benchmark(),
        "sparse-counts": samples.benchmark("resnet-sparse", 0.45),
        "dense-888": samples.prediction(),
        "sparse-888": samples.prediction("resnet-sparse", 0.4),
        "dense-pi": samples.prediction(scale=3.1, soc="raspberry-pi-4"),
        "phone-1": samples.measurement(),
        "phone-4": samples.measurement(threads=4, median=2.2),
        "calibration": samples.calibration(),
        "peers": samples.peers(),
        "program": ProgramResult("a.out", (3_000_000, 10), (5,), samples.ENVIRONMENT),
    }


def test_charts_appear_where_there_are_data(tmp_path: Path) -> None:
    assert titles(render(tmp_path / "a", **everything())) == [
        "Overview", LATENCY, PREDICTED_TIME, MEASURED_TIME, INSTRUCTIONS, ACCURACY, SIZE, ROOFLINE,
        COMPARISON,
        RUNTIMES,
    ]  # fmt: skip
    assert titles(render(tmp_path / "b", counts=samples.benchmark())) == ["Overview", INSTRUCTIONS]
    assert titles(render(tmp_path / "c", times=samples.prediction())) == ["Overview", LATENCY, PREDICTED_TIME, ROOFLINE]
    assert titles(render(tmp_path / "d", accuracy=samples.verification())) == ["Overview"]
    assert titles(render(tmp_path / "e", phone=samples.measurement())) == ["Overview", LATENCY, MEASURED_TIME]
    assert titles(render(tmp_path / "f", calibration=samples.calibration())) == ["Overview", COMPARISON]
    assert titles(render(tmp_path / "g", peers=samples.peers())) == ["Overview", RUNTIMES]


def test_predictions_are_called_so_and_carry_their_error(tmp_path: Path) -> None:
    page = render(tmp_path, dense=samples.prediction())
    assert page.count(samples.ERROR) == 3  # the latency, the layers and the roofline
    assert "resnet-dense, big cores, predicted" in page and "measured on the device" not in page
    assert 'class="join series-0"' not in page


def test_variants_share_a_chart_and_other_networks_have_their_own(tmp_path: Path) -> None:
    dense, sparse = samples.benchmark(), samples.benchmark("resnet-sparse", 0.45)
    other = tuple(replace(row, operators=tuple(replace(one, name=f"other {one.name}") for one in row.operators))
                  for row in dense.inferences)  # fmt: skip
    page = render(tmp_path / "a", dense=dense, sparse=sparse, other=replace(dense, bundle="other", inferences=other))
    assert page.count("<figcaption>") == 2
    assert "<th>Layer</th>" in page and page.count('<th class="number">resnet-sparse</th>') == 1
    elsewhere = replace(sparse, environment=replace(samples.ENVIRONMENT, cpu="cortex-a53"))
    assert render(tmp_path / "b", dense=dense, sparse=elsewhere).count("<figcaption>") == 2


def test_accuracy_is_that_of_the_same_network(tmp_path: Path) -> None:
    page = render(tmp_path, accuracy=samples.verification(top1=0.9), times=samples.prediction())
    assert "1 thread: 90.00 %" in page
    assert titles(render(tmp_path, accuracy=samples.verification("other"), times=samples.prediction()))[-2] != ACCURACY
    without_labels = replace(samples.verification(), bundle_top1=None, reference_top1=None)
    assert titles(render(tmp_path, accuracy=without_labels, times=samples.prediction()))[-2] != ACCURACY


def test_networks_of_one_name_are_told_apart_by_file_and_folder(tmp_path: Path) -> None:
    first = write(tmp_path / "a", accuracy=samples.verification(top1=0.9), first=samples.prediction())
    second = write(tmp_path / "b", accuracy=samples.verification(top1=0.8), second=samples.prediction(scale=2))
    page = render_results(read_documents([*first, *second]))
    assert "resnet-dense (first), big cores, predicted, 1 thread: 90.00 %" in page
    assert "resnet-dense (second), big cores, predicted, 1 thread: 80.00 %" in page


def test_accuracy_against_size_tells_recipes_apart_by_their_folders(tmp_path: Path) -> None:
    names = {"int8": (0.92, 1.0), "4bit": (0.91, 0.5)}
    paths = [path for name, (top1, scale) in names.items()
             for path in write(tmp_path / name, verification=samples.verification(top1=top1),
                               counts=replace(samples.benchmark(), weights_bytes=round(200_000 * scale)))]  # fmt: skip
    page = render_results(read_documents(paths))
    assert SIZE in titles(page)
    assert "resnet-dense (int8): 92.00 %, 200.0 kB" in page and "resnet-dense (4bit): 91.00 %, 100.0 kB" in page
    assert SIZE not in titles(render_results(read_documents(paths[:2])))


def test_roofline_has_the_layers_under_their_limits(tmp_path: Path) -> None:
    prediction = samples.prediction()
    page = render(tmp_path, dense=prediction)
    bandwidth = prediction.soc.memory_gigabytes_per_second * prediction.memory_efficiency
    assert f"memory: {bandwidth:.1f} GB/s" in page and "sdot (int8): 90.5 at most" in page
    first = prediction.predictions[0].operators[0]
    work = prediction.multiply_accumulates[first.name]
    rate, density = work / first.milliseconds / 1e6, work / first.memory_bytes
    assert f"{first.name}: {rate:.2f} GMAC/s, {density:.2f} a byte" in page
    assert "fc: " in page and "GMAC/s, nothing from memory" in page
    assert "mean: " not in page.split("<h2>Roofline")[1]  # it multiplies nothing
    assert titles(render(tmp_path, dense=replace(prediction, predictions=prediction.predictions[1:])))[-1] != ROOFLINE
    for absent in ({"multiply_accumulates": {}}, {"peaks": {}}):
        assert titles(render(tmp_path, dense=replace(prediction, **absent)))[-1] != ROOFLINE


def test_measurements_of_a_phone_meet_the_predictions_for_its_chip(tmp_path: Path) -> None:
    page = render(tmp_path, prediction=samples.prediction(), one=samples.measurement(),
                  four=samples.measurement(threads=4, median=2.2))  # fmt: skip
    # One chart for predicted and measured, with one measured line of two points, and both points in the comparison.
    assert page.count("<figcaption><b>snapdragon-888</b>") == 1
    assert page.count('class="join series-0"') == 2  # in the legend and in the chart
    assert "resnet-dense, big cores, measured, 4 threads: 2.20 ms" in page
    assert page.count("1 of 1 within 20%.") == 2


def test_invalid_measurements_are_told_and_not_drawn(tmp_path: Path) -> None:
    page = render(tmp_path, prediction=samples.prediction(), bad=samples.measurement(invalid=("too noisy: <1.4>",)))
    assert "INVALID: too noisy: &lt;1.4&gt;; left out of the charts" in page
    assert "big cores, measured" not in page and COMPARISON not in titles(page) and MEASURED_TIME not in titles(page)


def test_excluded_points_are_in_the_table_with_their_reason(tmp_path: Path) -> None:
    page = render(tmp_path, calibration=samples.calibration())
    assert "vgg16 on raspberry-pi-4" not in page and "<td>vgg16</td>" in page and "unsteady" in page
    assert "In the table alone, with the reason: 1." in page and page.count("6 of 6 within 20%.") == 2


def test_runtimes_have_their_figures_or_the_reason(tmp_path: Path) -> None:
    page = render(tmp_path, peers=samples.peers())
    assert page.count("its converter cannot be had here") == 2 and page.count("665.00 M") == 2
    assert page.count('<td class="number">–</td>') == 2 * (6 + 2)
    assert "resnet18.onnx on cortex-a53" in page


def test_failed_verification_says_so(tmp_path: Path) -> None:
    assert "outside the bound" in render(tmp_path, bad=replace(samples.verification(), ok=False))
    assert "outside the bound" not in render(tmp_path, good=samples.verification())


def test_numbers_under_the_charts_are_those_of_the_documents(tmp_path: Path) -> None:
    page = render(tmp_path, dense=samples.prediction(), counts=samples.benchmark())
    for prediction in samples.prediction().predictions:
        row = f'<td class="number">{prediction.threads}</td><td class="number">{prediction.milliseconds:.2f}</td>'
        assert row in page
    assert '<td>mean</td><td class="number">2.00 M</td>' in page
    assert page.count("<details>") == 4


def test_page_loads_nothing_and_names_what_it_was_got_with(tmp_path: Path) -> None:
    page = render(tmp_path, **everything())
    assert "//" not in page and not re.search(r"<(script|link|iframe|img)|@import|url\(|\son\w+=", page)
    for fact in (samples.ENVIRONMENT.commit, "QEMU 7.2.22", "LLVM 19", "threads 1, 2, 4"):
        assert fact in page
    assert "sparse-888.json<small>sparrow-prediction, version 1</small>" in page


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    prediction, counts = samples.prediction(HOSTILE), samples.benchmark(HOSTILE)
    prediction = replace(
        prediction,
        affinity=HOSTILE,
        soc=replace(prediction.soc, name=HOSTILE),
        predictions=tuple(
            replace(one, error=HOSTILE, operators=tuple(replace(part, name=HOSTILE) for part in one.operators))
            for one in prediction.predictions
        ),
        environment=replace(samples.ENVIRONMENT, commit=HOSTILE, cpu=HOSTILE, cpu_model=HOSTILE),
    )
    device = replace(samples.device(), model=HOSTILE, soc=HOSTILE, system=HOSTILE, runner=HOSTILE)
    calibration, peers = samples.calibration(), samples.peers()
    point = replace(calibration.points[0], soc=HOSTILE, core=HOSTILE, network=HOSTILE)
    row = replace(peers.rows[0], runtime=HOSTILE, version=HOSTILE, cpu=HOSTILE, predicted_for=HOSTILE)
    page = render(
        tmp_path, a=prediction, b=counts, c=samples.verification(HOSTILE),
        d=ProgramResult(HOSTILE, (1,), (), samples.ENVIRONMENT),
        e=samples.measurement(HOSTILE, device=device, affinity=HOSTILE),
        f=samples.measurement(HOSTILE, threads=2, invalid=(HOSTILE,)),
        g=replace(calibration, ncnn_version=HOSTILE, points=(point, replace(point, excluded=HOSTILE))),
        h=replace(peers, model=HOSTILE, rows=(row, replace(row, reason=HOSTILE))),
    )  # fmt: skip
    assert "<script" not in page and page.count(escape(HOSTILE)) > 20


def test_one_file_named_twice_is_shown_once(tmp_path: Path) -> None:
    (path,) = write(tmp_path, dense=samples.prediction())
    assert len(read_documents([path, path])) == 1


def test_report_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    paths = write(tmp_path, dense=samples.prediction())
    report = tmp_path / "report.html"
    write_results_report(paths, report)
    earlier = report.read_text()
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SparrowError, match=r"broken\.json cannot be read as JSON"):
        write_results_report([*paths, tmp_path / "broken.json"], report)
    assert report.read_text() == earlier
    assert {path.name for path in tmp_path.iterdir()} == {"dense.json", "broken.json", "report.html"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "cannot be read as JSON"),
        ("[1, 2]", "has the schema ''"),
        ('{"schema": "other"}', "has the schema 'other'"),
        (json.dumps({"schema": "sparrow-benchmark", "schema_version": 99}), "has version 99 of sparrow-benchmark"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(SparrowError, match=message):
        read_documents([tmp_path / "x.json"])


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    (path,) = write(tmp_path, broken=replace(samples.prediction(), memory_efficiency=float("nan")))
    with pytest.raises(SparrowError, match="holds infinity or NaN"):
        read_documents([path])


def test_documents_without_figures_have_no_charts(tmp_path: Path) -> None:
    empty = {"a": replace(samples.prediction(), predictions=()), "b": replace(samples.benchmark(), inferences=())}
    assert titles(render(tmp_path, **empty, c=samples.verification())) == ["Overview"]


def test_command_writes_the_report_and_prints_its_path(tmp_path: Path) -> None:
    paths = write(tmp_path, dense=samples.prediction(), accuracy=samples.verification())
    report = tmp_path / "out.html"
    result = CliRunner().invoke(command, [*map(str, paths), "-o", str(report)], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, f"{report}\n")
    assert titles(report.read_text()) == ["Overview", LATENCY, PREDICTED_TIME, ACCURACY, ROOFLINE]


def test_command_without_results_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["-o", str(tmp_path / "out.html")])
    assert result.exit_code == 2 and "Missing argument" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [360, 390, 1200])
def test_page_needs_no_scrolling_sideways(width: int, tmp_path: Path) -> None:
    """A browser lays the page out, in a frame: its own windows are no narrower than 500 pixels."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to lay the page out")
    long = "a_network_of_a_rather_long_name_without_a_single_space_in_it_float32"
    content = render(tmp_path, **everything(), long_counts=samples.benchmark(long), long_times=samples.prediction(long))
    content = content.replace("<details>", "<details open>")
    ask = (
        "<script>onload = () => { const frame = document.querySelector('iframe');"
        "document.title = frame.contentDocument.documentElement.scrollWidth; }</script>"
    )
    (tmp_path / "frame.html").write_text(
        f'{ask}<iframe srcdoc="{escape(content)}" style="border: 0; width: {width}px; height: 900px"></iframe>'
    )
    result = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1400,1000", "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\d+)</title>", result.stdout)
    assert found is not None, result.stdout[:300]
    assert int(found[1]) <= width
