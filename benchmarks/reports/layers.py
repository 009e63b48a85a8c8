"""What each layer of a network costs: stacked bars, those of a dense and a sparse network side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparrow.benchmarks.measure import Measurement
from sparrow.benchmarks.predicting import PredictionResult
from sparrow.benchmarks.reports.charts import StackedBar, merged, stacked_bars
from sparrow.benchmarks.reports.documents import Document, device_name, error_notes, threads_text
from sparrow.benchmarks.reports.page import Html, element, numbers, section
from sparrow.benchmarks.result_files import BenchResult

# Two networks are variants of one another, and drawn in one chart, if they share this much of their layers' names.
_SAME_NETWORK = 0.5


@dataclass(frozen=True)
class LayerCosts:
    """What the layers of a network cost, in one document.

    Attributes:
        network: Name of the network.
        place: What it ran on, or is predicted for.
        error: What is known of the error, in words; empty for what is exact or measured.
        costs: Name and cost of each layer, in order.
    """

    network: str
    place: str
    error: str
    costs: tuple[tuple[str, float], ...]

    def is_variant(self, other: "LayerCosts") -> bool:
        """The other is for the same place and has mostly the same layers, such as a dense and a sparse network."""
        here, there = ({name for name, _ in one.costs} for one in (self, other))
        return self.place == other.place and len(here & there) >= _SAME_NETWORK * min(len(here), len(there))


def predicted_times(documents: Sequence[Document]) -> list[LayerCosts]:
    """Milliseconds of each layer on the fewest threads."""
    found = []
    for document in documents:
        if isinstance(result := document.result, PredictionResult) and result.predictions:
            fewest = min(result.predictions, key=lambda one: one.threads)
            place = f"{result.soc.name}, {result.affinity} cores, {threads_text(fewest.threads)}"
            costs = tuple((one.name, one.milliseconds) for one in fewest.operators)
            found.append(LayerCosts(document.network, place, fewest.error, costs))
    return found


def measured_times(documents: Sequence[Document]) -> list[LayerCosts]:
    """Milliseconds of each step in valid measurements that timed them."""
    found = []
    for document in documents:
        if isinstance(result := document.result, Measurement) and not result.invalid:
            place = f"{device_name(result.device)}, {result.affinity} cores, {threads_text(result.threads)}"
            costs = tuple((step.name, step.mean) for step in result.steps)
            found.append(LayerCosts(document.network, place, "", costs))
    return found


def counted_instructions(documents: Sequence[Document]) -> list[LayerCosts]:
    """Instructions of each layer on the fewest threads."""
    found = []
    for document in documents:
        if isinstance(result := document.result, BenchResult) and result.inferences:
            fewest = min(result.inferences, key=lambda row: row.threads)
            place = f"{result.environment.cpu}, {threads_text(fewest.threads)}"
            costs = tuple((one.name, one.instructions) for one in fewest.operators)
            found.append(LayerCosts(document.network, place, "", costs))
    return found


def layers_section(title: str, note: str, costs: Sequence[LayerCosts], text: Callable[[float], str]) -> Html | None:
    """Stacked bars, one chart for the variants of one network in one place."""
    groups: list[list[LayerCosts]] = []
    for one in costs:
        group = next((group for group in groups if group[0].is_variant(one)), None)
        if not any(cost for _, cost in one.costs):
            continue
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    charts = []
    for group in groups:
        totals = [merged(one.costs) for one in group]
        bars = [
            StackedBar(one.network, text(sum(total.values())), one.costs)
            for one, total in zip(group, totals, strict=True)
        ]
        layers = dict.fromkeys(name for total in totals for name in total)
        rows = [(name, *(text(total[name]) if name in total else "" for total in totals)) for name in layers]
        charts.append(
            element(
                "div",
                stacked_bars(group[0].place, bars, text=text),
                error_notes(one.error for one in group),
                numbers(("Layer", *(one.network for one in group)), rows),
            )
        )
    return section(title, note, element("div", *charts, class_="stack")) if charts else None
