"""Tables of what one network costs with several runtimes."""

from collections.abc import Callable, Sequence

from sparrow.benchmarks.peers.compare import PeerRow, PeersResult
from sparrow.benchmarks.reports.documents import Document
from sparrow.benchmarks.reports.page import Html, byte_size, element, join, millions, percent, section, table

NOTE = ("One inference on one thread. Instructions and memory are counted under QEMU; cycles are predicted, not "
        "measured. The yardstick is the pipeline model alone with plain costs of misses, the same for all: it ranks, "
        "no more. Memory is what the network adds to the runtime without one. Outputs are compared with those of ONNX "
        "Runtime in float32.")  # fmt: skip
COLUMNS = ("Runtime", "Instructions", "Predicted cycles", "Yardstick", "Memory", "Relative error", "Same top-1")


def runtimes_section(documents: Sequence[Document]) -> Html | None:
    """One table for each network and CPU."""
    parts: list[Html] = []
    for document in documents:
        if isinstance(result := document.result, PeersResult):
            for cpu in dict.fromkeys(row.cpu for row in result.rows):
                rows = [row for row in result.rows if row.cpu == cpu]
                parts += [element("h3", f"{document.network} on {cpu}"), table(COLUMNS, list(map(_cells, rows)))]
                errors = dict.fromkeys(row.predicted_for for row in rows if row.predicted_for)
                parts += [element("p", f"Predicted cycles: {text}.", class_="note") for text in errors]
    return section("Other runtimes", NOTE, *parts) if parts else None


def _cells(row: PeerRow) -> tuple[str, ...]:
    name = join([f"{row.runtime} {row.precision}", element("small", row.reason or row.version)])
    return (
        name,
        _text(row.instructions, millions),
        _text(row.predicted_cycles, millions),
        _text(row.yardstick_cycles, millions),
        _text(row.peak_memory_bytes, byte_size),
        _text(row.relative_error, "{:.2g}".format),
        _text(row.top1_agreement, lambda share: percent(share, 0)),
    )


def _text(value: float | None, write: Callable[[float], str]) -> str:
    return "–" if value is None else write(value)
