"""Accuracy against what it costs: latency, and bytes of weights."""

from collections.abc import Sequence

from sparrow.benchmarks.reports.charts import Point, Series, linear_axis, xy_chart
from sparrow.benchmarks.reports.documents import Document, same_network, threads_text
from sparrow.benchmarks.reports.latency import LATENCY, Curve, by_place, how_got, looks, with_errors
from sparrow.benchmarks.reports.page import Html, byte_size, element, figure, numbers, section
from sparrow.benchmarks.result_files import BenchResult, VerifyResult

_ACCURACY = "top-1 accuracy, %"


def accuracy_section(documents: Sequence[Document], curves: Sequence[Curve]) -> Html | None:
    """Share of correct answers against latency, for networks that were both verified with labels and timed."""
    verified = {id(curve): found for curve in curves if (found := _verification(curve.document, documents)) is not None}
    curves = [curve for curve in curves if id(curve) in verified]
    if not curves:
        return None
    charts, rows = [], []
    for place, here in by_place(curves).items():
        look = looks(curve.placed for curve in here)
        series = []
        for curve in here:
            threads, ms = min(curve.milliseconds.items())
            top1 = _percent(verified[id(curve)])
            name = f"{curve.placed}, {curve.how}, {threads_text(threads)}"
            point = Point(ms, top1, f"{name}: {top1:.2f} %, {figure(ms)} ms")
            series.append(Series(name, (point,), curve.predicted, False, look[curve.placed]))
            rows.append((curve.document.network, place, curve.cores, curve.how, str(threads), figure(ms),
                         f"{top1:.2f}"))  # fmt: skip
        charts.append(with_errors(_chart(place, LATENCY, series), here))
    columns = ("Network", "On", "Cores", "How", "Threads", "ms", "Top-1, %")
    return section("Accuracy against latency", f"{_how_verified(list(verified.values()))} {how_got(curves)}",
                   element("div", *charts, class_="charts"), numbers(columns, rows, text_columns=4))  # fmt: skip


def size_section(documents: Sequence[Document]) -> Html | None:
    """Share of correct answers against bytes of weights, for networks that were both verified with labels and counted.

    It takes two networks or more, for a point alone compares nothing.
    """
    found = {document.network: (document.result, verified) for document in documents
             if isinstance(document.result, BenchResult)
             and (verified := _verification(document, documents)) is not None}  # fmt: skip
    if len(found) < 2:
        return None
    series, rows = [], []
    for number, (network, (counted, verified)) in enumerate(found.items()):
        top1, size = _percent(verified), counted.weights_bytes
        point = Point(size / 1000, top1, f"{network}: {top1:.2f} %, {byte_size(size)}")
        series.append(Series(network, (point,), False, False, number))
        rows.append((network, f"{size:,}", f"{top1:.2f}"))
    note = f"{_how_verified([verified for _, verified in found.values()])} Bytes are those of the packed weights."
    return section("Accuracy against size", note,
                   element("div", _chart("bundles", "weights, kB", series), class_="charts"),
                   numbers(("Network", "Bytes of weights", "Top-1, %"), rows))  # fmt: skip


def _chart(title: str, x_title: str, series: Sequence[Series]) -> Html:
    points = [one.points[0] for one in series]
    x = linear_axis(x_title, [point.x for point in points])
    y = linear_axis(_ACCURACY, [point.y for point in points], from_zero=False, limit=100)
    return xy_chart(title, x, y, series)


def _percent(verified: VerifyResult) -> float:
    return 100 * (verified.bundle_top1 or 0.0)


def _how_verified(verified: Sequence[VerifyResult]) -> str:
    images = " or ".join(f"{count:,}" for count in sorted({found.images for found in verified}))
    return f"Accuracy of the compiled bundle, run under QEMU on {images} labelled images."


def _verification(document: Document, documents: Sequence[Document]) -> VerifyResult | None:
    """The verification with labels of a document's network."""
    with_labels = [other for other in documents
                   if isinstance(other.result, VerifyResult) and other.result.bundle_top1 is not None]  # fmt: skip
    found = same_network(document, with_labels)
    return found[0].result if len(found) == 1 else None
