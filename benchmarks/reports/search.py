"""Charts of searches for mixed precision and density."""

from collections.abc import Sequence

from sparrow.benchmarks.reports.charts import Point, Series, linear_axis, xy_chart
from sparrow.benchmarks.reports.documents import PREDICTED, Document, threads_text
from sparrow.benchmarks.reports.page import Html, byte_size, element, figure, numbers, section
from sparrow.benchmarks.searching import SearchPoint, SearchResult


def search_section(documents: Sequence[Document]) -> Html | None:
    """Accuracy against predicted latency, or against bytes where nothing was predicted, for each search."""
    found = [document for document in documents if isinstance(document.result, SearchResult)]
    if not found:
        return None
    charts = [_chart(document.network, document.result) for document in found]
    rows = [
        (document.network, document.result.budget, "chosen" if index == document.result.chosen else "",
         _settings(point), "" if point.milliseconds is None else figure(point.milliseconds),
         byte_size(point.weights_bytes), "" if point.top1 is None else f"{100 * point.top1:.2f}")
        for document in found
        for index, point in enumerate(document.result.points)
    ]  # fmt: skip
    columns = ("Network", "Budget", "", "Layers", "ms", "Weights", "Top-1, %")
    note = f"Each layer's bits and share of zero blocks, before any training unless said. {PREDICTED}"
    return section("Mixed precision and density", note, element("div", *charts, class_="charts"),
                   numbers(columns, rows, text_columns=4))  # fmt: skip


def _chart(network: str, result: SearchResult) -> Html:
    timed = result.final_milliseconds is not None

    def x_of(milliseconds: float | None, size: int) -> float:
        return milliseconds if timed and milliseconds is not None else size / 1000

    def text(what: str, top1: float, milliseconds: float | None, size: int) -> str:
        cost = f"{figure(milliseconds)} ms, " if milliseconds is not None else ""
        return f"{what}: {100 * top1:.2f} %, {cost}{byte_size(size)}"

    tried = tuple(
        Point(x_of(point.milliseconds, point.weights_bytes), 100 * point.top1,
              text("frontier", point.top1, point.milliseconds, point.weights_bytes))
        for point in result.points
        if point.top1 is not None
    )  # fmt: skip
    name = f"chosen, {result.fine_tuning_epochs} epochs of fine-tuning"
    final = Point(x_of(result.final_milliseconds, result.final_bytes), 100 * result.final_top1,
                  text(name, result.final_top1, result.final_milliseconds, result.final_bytes))  # fmt: skip
    series = (Series("frontier, not trained", tried, True, True, 0), Series(name, (final,), True, False, 1))
    points = [*tried, final]
    where = f"{result.soc}, {result.affinity} cores, {threads_text(result.threads)}" if timed else "packed weights"
    x = linear_axis("predicted ms" if timed else "kB of weights", [point.x for point in points])
    y = linear_axis("top-1 accuracy, %", [point.y for point in points], from_zero=False, limit=100)
    return xy_chart(f"{network}: {where}", x, y, series)


def _settings(point: SearchPoint) -> str:
    """How many layers have which setting, the most frequent first."""
    counts: dict[str, int] = {}
    for layer in point.layers.values():
        name = f"{layer.bits} bits" + (f" x {layer.sparsity:.0%}" if layer.sparsity else "")
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} of {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
