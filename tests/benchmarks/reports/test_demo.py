"""The demo's report: complete, self-contained, and safe whatever the names hold."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sparrow.benchmarks.reports import demo as report
from sparrow.kernels.errors import SparrowError

VOID = {"meta", "img"}


class Balance(HTMLParser):
    """Checks that tags nest, and collects attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def make_summary(name: str = "stem") -> report.DemoSummary:
    layer = report.Layer(name, 1000, 4, 0.25, (-1.0, 0.0, 1.0), (400, 600), (-0.4, 0.0, 0.4), (-0.5, 0.0, 0.5),
                         (0.25, 0.25, 0.5))  # fmt: skip
    plain = report.Layer("head", 10, 8, 0.0, (0.0, 0.0, 0.0), (0, 0), (), (), ())
    return report.DemoSummary(
        title=f"title {name}",
        subtitle="a small network",
        stages=(
            report.Stage("float", "torch", 359, 360, 40_000, "weights", 0.0),
            report.Stage("bundle", "QEMU", 351, 360, 8_000, "packed weights", 0.375),
        ),
        counts=(
            report.Count("float32", "cortex-a53", 1, 2e6),
            report.Count("4 bits", "cortex-a53", 1, 1.25e6),
        ),
        layers=(layer, plain),
        examples=(
            report.Example(np.arange(12, dtype=np.uint8).reshape(3, 4), name, name),
            report.Example(np.zeros((3, 4), np.uint8), "three", "eight"),
        ),
        classes=(name, "three"),
        confusion=np.array([[5, 0], [2, 0]]),
        facts=(("seed", "0"), ("command", name)),
    )


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_figures_are_shown() -> None:
    text = " ".join(parse(report.render_report(make_summary())).text)
    for figure in ("97.50 %", "99.72 %", "9 of 360 wrong", "-2.22 points", "5.0× smaller", "8.0 kB", "37.5 %",
                   "2.00 M", "1.25 M", "2 of 7 images", "eight, not three"):  # fmt: skip
        assert figure in text
    assert "counted under QEMU" in text and "not a latency" in text


def test_page_loads_nothing() -> None:
    page = report.render_report(make_summary())
    assert "http" not in page and "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"<(script|link|iframe)|@import|url\(", page)
    assert all(address.startswith("data:image/png;base64,") for address in re.findall(r'src="([^"]*)"', page))


def test_page_fits_phones_and_dark_screens() -> None:
    page = report.render_report(make_summary())
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page and "max-width: 560px" in page


def test_names_are_escaped() -> None:
    hostile = "<script>alert('x')</script>\"&"
    parser = parse(report.render_report(make_summary(hostile)))
    assert "script" not in parser.tags
    assert parser.tags.count("img") == 2
    assert sum(hostile in text for text in parser.text) >= 4


def test_bars_are_in_proportion() -> None:
    page = report.render_report(make_summary())
    bar = r'<rect class="(?:before|after)" x="0" y="\d+" width="([\d.]+)%"'
    widths = [float(width) for width in re.findall(bar, page)]
    accuracy, size, counts = widths[:2], widths[2:4], widths[4:]
    assert accuracy[0] / accuracy[1] == pytest.approx(359 / 351, rel=1e-4)
    assert size[0] / size[1] == pytest.approx(5, rel=1e-4)
    assert counts[0] / counts[1] == pytest.approx(1.6, rel=1e-4)


def test_codebook_is_drawn_where_and_as_long_as_it_is() -> None:
    figure = report._histogram(make_summary().layers[0])
    stems = re.findall(r'<rect class="(zero|after)" x="([\d.]+)" y="84.0" width="4" height="([\d.]+)"', figure)
    (_, left, short), (kind, zero, _), (_, right, tall) = stems
    assert kind == "zero"
    assert float(zero) - float(left) == pytest.approx(float(right) - float(zero), abs=0.02)
    assert float(tall) == pytest.approx(2 * float(short), abs=0.02)
    assert figure.count('class="start"') == 3


def test_png_is_read_back_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    for picture in (pixels, pixels.T):
        decoded = np.asarray(Image.open(io.BytesIO(report.grayscale_png(picture))))
        np.testing.assert_array_equal(decoded, picture)
    page = report.render_report(make_summary())
    first = re.search(r"base64,([^\"]+)", page)
    assert first is not None
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(first[1]))))
    np.testing.assert_array_equal(decoded, make_summary().examples[0].pixels)


def test_report_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write_report(make_summary("first"), path)
    earlier = path.read_text()
    with pytest.raises(SparrowError, match="without a stage"):
        report.write_report(replace(make_summary(), stages=()), path)
    assert path.read_text() == earlier
    report.write_report(make_summary("second"), path)
    assert "title second" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SparrowError, match="folder does not exist"):
        report.write_report(make_summary(), tmp_path / "none" / "report.html")


def test_terminal_table_shows_the_same_figures_and_names_literally() -> None:
    output = io.StringIO()
    summary = make_summary()
    stage = replace(summary.stages[0], name="float [bold]")
    report.print_table(replace(summary, stages=(stage, *summary.stages[1:])), Console(file=output, width=120))
    for text in ("float [bold]", "97.50 %", "37.5 %", "8.0 kB", "1.250", "counted under QEMU"):
        assert text in output.getvalue()
