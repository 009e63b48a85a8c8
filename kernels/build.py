"""The C sources of the kernels, and what each has to be compiled for."""

from dataclasses import dataclass
from pathlib import Path

INCLUDE_DIR = Path(__file__).resolve().parent / "csrc"


@dataclass(frozen=True)
class Source:
    """One C file.

    Attributes:
        path: Where it lies.
        isa: Instruction set that it is compiled for: the end of a micro-kernel's file name (``scalar``, ``neon``,
            ``neon_dotprod``), and ``neon`` for a driver, which runs on every processor.
        native: Whether it compiles on any host: drivers and scalar twins.
    """

    path: Path
    isa: str
    native: bool


def kernel_sources() -> list[Source]:
    """List the drivers and micro-kernels, sorted by path; the runtime is not among them."""
    sources = []
    for path in sorted(INCLUDE_DIR.rglob("*.c")):
        folder = path.relative_to(INCLUDE_DIR).parts[0]
        if folder != "runtime":
            _, _, isa = path.stem.partition("__")
            sources.append(Source(path, isa or "neon", native=isa in ("", "scalar", "scalar_fp16")))
    return sources


def native_sources() -> list[Source]:
    """List the sources that make a working library on any host, where they run the scalar twins."""
    return [source for source in kernel_sources() if source.native]
