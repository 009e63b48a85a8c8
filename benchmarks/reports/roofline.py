"""Roofline: what the layers of a network do a second, under the limits of their core and of the memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparrow.benchmarks.predict.octa_core import OperatorTime, SocPrediction
from sparrow.benchmarks.predicting import PredictionResult
from sparrow.benchmarks.reports.charts import Guide, Point, Series, log_axis, xy_chart
from sparrow.benchmarks.reports.documents import PREDICTED, Document, error_notes
from sparrow.benchmarks.reports.page import Html, byte_size, element, figure, numbers, section

# Layers that take nothing from memory are drawn this much to the right of the others.
_BEYOND = 3.0

NOTE = (f"{PREDICTED} A layer under the slope waits for memory, one under a level line for the core. Layers that take "
        "nothing from memory stand at the right edge. Zeros that are skipped count as done, so that a sparse layer can "
        "be above its line.")  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer on one thread.

    Attributes:
        network: Name of the network.
        time: What is predicted of it.
        work: Its multiply-accumulates.
    """

    network: str
    time: OperatorTime
    work: int

    @property
    def rate(self) -> float:
        """Billions of multiply-accumulates a second."""
        return self.work / self.time.milliseconds * 1e-6

    @property
    def density(self) -> float | None:
        """Multiply-accumulates for a byte from memory; ``None`` if it takes none."""
        return self.work / self.time.memory_bytes if self.time.memory_bytes else None


def roofline_section(documents: Sequence[Document]) -> Html | None:
    """One chart for each core that networks are predicted for on one thread."""
    places: dict[str, list[tuple[Document, SocPrediction]]] = {}
    for document in documents:
        if isinstance(document.result, PredictionResult):
            for one in document.result.predictions:
                if one.threads == 1 and _layers(document, one):
                    place = f"{document.result.soc.name}, {one.cores[0].core} at {one.cores[0].ghz:g} GHz, 1 thread"
                    places.setdefault(place, []).append((document, one))
    if not places:
        return None
    charts, rows = [], []
    for place, here in places.items():
        layers = [layer for document, one in here for layer in _layers(document, one)]
        chart = _chart(place, here[0][0].result, layers)
        charts.append(element("div", chart, error_notes(one.error for _, one in here)))
        rows += [
            (layer.network, layer.time.name, place, f"{layer.work:,}", byte_size(layer.time.memory_bytes),
             figure(layer.time.milliseconds), figure(layer.rate), layer.time.bound)
            for layer in layers
        ]  # fmt: skip
    columns = ("Network", "Layer", "On", "Multiply-accumulates", "From memory", "ms", "GMAC/s", "Bound by")
    return section("Roofline", NOTE, element("div", *charts, class_="charts"), numbers(columns, rows, text_columns=3))


def _layers(document: Document, prediction: SocPrediction) -> list[Layer]:
    work = document.result.multiply_accumulates
    return [Layer(document.network, time, work[time.name]) for time in prediction.operators
            if work.get(time.name) and time.milliseconds and document.result.peaks]  # fmt: skip


def _chart(place: str, result: PredictionResult, layers: Sequence[Layer]) -> Html:
    bandwidth = result.soc.memory_gigabytes_per_second * result.memory_efficiency
    densities = [layer.density for layer in layers if layer.density is not None]
    peak = max(result.peaks.values())
    beyond = _BEYOND * max(*densities, peak / bandwidth, 0)
    points: dict[str, list[Point]] = {}
    for layer in layers:
        density, shown = beyond, "nothing from memory"
        if layer.density is not None:
            density, shown = layer.density, f"{figure(layer.density)} a byte"
        text = f"{layer.network}, {layer.time.name}: {figure(layer.rate)} GMAC/s, {shown}"
        points.setdefault(layer.network, []).append(Point(density, layer.rate, text))
    series = [Series(name, tuple(found), True, False, look) for look, (name, found) in enumerate(points.items())]
    rates = [*result.peaks.values(), *(layer.rate for layer in layers)]
    knee = min(result.peaks.values()) / bandwidth
    x = log_axis("multiply-accumulates for a byte from memory", [*densities, beyond, knee])
    y = log_axis("billion multiply-accumulates a second", rates)
    start = max(x.low, y.low / bandwidth)
    slope = ((start, start * bandwidth), (peak / bandwidth, peak))
    guides = [Guide(f"memory: {figure(bandwidth)} GB/s", slope, "line")]
    guides += [
        Guide(f"{name}: {figure(rate)} at most", ((rate / bandwidth, rate), (x.high, rate)), kind)
        for (name, rate), kind in zip(result.peaks.items(), ("dots", "dashes"), strict=False)
    ]
    return xy_chart(place, x, y, series, guides)
