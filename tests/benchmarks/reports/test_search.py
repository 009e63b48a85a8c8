"""The chart of a search for mixed precision and density. The figures are made up."""

from dataclasses import replace
from pathlib import Path

from sparrow.benchmarks.reports.results import write_results_report
from sparrow.benchmarks.result_files import Environment, read_result, write_result
from sparrow.benchmarks.searching import LayerChoice, SearchPoint, SearchResult

ENVIRONMENT = Environment("0.1.0", "0123456789ab", "7.2.22", "cortex-a76", "cortex-a76")


def search() -> SearchResult:
    dense, sparse = LayerChoice(8, 0.0), LayerChoice(4, 0.5)
    points = (
        SearchPoint({"conv2": dense, "conv3": dense}, 0.0, 9000, 2.5, 0.91),
        SearchPoint({"conv2": dense, "conv3": sparse}, 0.1, 7000, 2.0, None),
        SearchPoint({"conv2": sparse, "conv3": sparse}, 0.3, 5000, 1.4, 0.85),
    )
    return SearchResult("resnet20", "cifar10", "latency=2ms@kirin970", "kirin-970", "big", 1, 1000, 0.917, points, 1,
                        0.9105, 7010, 1.98, 10, ENVIRONMENT)  # fmt: skip


def test_a_search_goes_to_json_and_onto_the_page(tmp_path: Path) -> None:
    write_result(search(), tmp_path / "search.json")
    assert read_result(tmp_path / "search.json") == search()
    write_results_report([tmp_path / "search.json"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Mixed precision and density" in page and "resnet20: kirin-970, big cores, 1 thread" in page
    assert "chosen, 10 epochs of fine-tuning: 91.05 %, 1.98 ms, 7.0 kB" in page
    assert "1 of 8 bits, 1 of 4 bits x 50%" in page and "2 of 4 bits x 50%" in page
    assert "Predicted, not measured" in page


def test_a_search_for_bytes_has_bytes_across(tmp_path: Path) -> None:
    points = tuple(replace(point, milliseconds=None) for point in search().points)
    result = replace(search(), points=points, final_milliseconds=None, soc="", budget="bytes=7kB")
    write_result(result, tmp_path / "search.json")
    write_results_report([tmp_path / "search.json"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "kB of weights" in page and "resnet20: packed weights" in page and "predicted ms" not in page
