"""Compares what two bundles cost, or one bundle now and before: a gate for the continuous integration of a network."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sparrow.benchmarks.result_files import BenchResult, ThreadsResult
from sparrow.deploy.bundle import MODEL
from sparrow.kernels.errors import SparrowError

# Operators that are named for each number of threads.
_MOST_CHANGED = 10


@dataclass(frozen=True)
class Change:
    """A figure before and now; less is better.

    Attributes:
        name: What it is a figure of.
        unit: What it is counted in.
        before: In the baseline.
        now: In the result.
        ratio: Now over before; ``None`` where there was nothing before.
    """

    name: str
    unit: str
    before: float
    now: float
    ratio: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", self.now / self.before if self.before else None)

    def text(self) -> str:
        """Such as ``instructions on 1 thread: 4,393,680 -> 4,500,000 instructions (+2.42%)``."""
        change = "new" if self.ratio is None else f"{self.ratio - 1:+.2%}"
        return f"{self.name}: {self.before:,.0f} -> {self.now:,.0f} {self.unit} ({change})"


@dataclass(frozen=True)
class ThreadsComparison:
    """One inference on one number of threads.

    Attributes:
        threads: Number of threads.
        instructions: Of the cheapest inference, as the rest of the others is waiting.
        peak_memory: Most memory resident at once; ``None`` unless both results have it.
        operators: Instructions of the operators that changed most, in instructions, the largest change first; one that
            only one of the networks has costs nothing in the other. They explain and are not held to the bound.
    """

    threads: int
    instructions: Change
    peak_memory: Change | None
    operators: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    """A result beside a baseline.

    Attributes:
        bundle: Name of the network.
        baseline: Name of the network that it is compared with.
        fail_above: Growth that is still accepted, such as 0.02.
        inferences: One entry for each number of threads.
        bytes_shipped: Each file of the bundle, its weights and its scratch memory.
        predictions: Predicted cycles of the cores that both results have.
    """

    bundle: str
    baseline: str
    fail_above: float
    inferences: tuple[ThreadsComparison, ...]
    bytes_shipped: tuple[Change, ...]
    predictions: tuple[Change, ...]

    @property
    def bounded(self) -> tuple[Change, ...]:
        """Every figure that is held to the bound."""
        memory = [row.peak_memory for row in self.inferences if row.peak_memory is not None]
        return (*(row.instructions for row in self.inferences), *memory, *self.bytes_shipped, *self.predictions)

    def grown(self) -> tuple[Change, ...]:
        """Those that grew by more than the bound."""
        return tuple(change for change in self.bounded if change.now > change.before * (1 + self.fail_above))

    def require_ok(self) -> None:
        """Do nothing if nothing grew by more than the bound.

        Raises:
            SparrowError: Something did; the exit code is 3.
        """
        if grown := self.grown():
            causes = [f"  {operator.text()}" for row in self.inferences[:1] for operator in row.operators[:3]
                      if operator.now > operator.before]  # fmt: skip
            listed = [f"  {change.text()}" for change in grown]
            raise SparrowError(
                "\n".join([f"{self.bundle} costs more than {self.baseline} did:", *listed,
                           *(["operators that changed most:", *causes] if causes else [])]),
                expected=f"no figure to grow by more than {self.fail_above:.4g} of what it was",
                next_step="find the cause, or take the new result as the baseline",
                exit_code=3,
            )  # fmt: skip


def compare_results(
    result: BenchResult, baseline: BenchResult, fail_above: float, *, other_network: bool = False
) -> Comparison:
    """Compare a result with a baseline.

    Args:
        result: What a bundle costs.
        baseline: What it cost before, or what another bundle costs.
        fail_above: Growth that is still accepted, such as 0.02 for 2 %.
        other_network: Accept networks of two names, such as the dense and the sparse form of one.

    Returns:
        The comparison, whether or not it is within the bound; see ``Comparison.require_ok``.

    Raises:
        SparrowError: They cannot be compared: other networks, CPUs or numbers of threads; or a bound below zero.
    """
    if not fail_above >= 0:
        raise SparrowError(f"a growth of {fail_above:g} to fail above", expected="0 or more, such as 0.02 for 2%")
    conditions = {
        "network": (result.bundle, baseline.bundle),
        "CPU": (result.environment.cpu_model, baseline.environment.cpu_model),
        "numbers of threads": tuple(sorted(row.threads for row in each.inferences) for each in (result, baseline)),
    }
    for what, (found, expected) in conditions.items():
        if found != expected and not (what == "network" and other_network):
            raise SparrowError(f"results that cannot be compared: the {what} of the result: {found}",
                               expected=f"that of the baseline: {expected}",
                               next_step="make both with the same bundle name, --cpu and --threads")  # fmt: skip
    before = {row.threads: row for row in baseline.inferences}
    predicted = {guess.core.name: guess.cycles for guess in baseline.predictions}
    return Comparison(
        bundle=result.bundle,
        baseline=baseline.bundle,
        fail_above=fail_above,
        inferences=tuple(_compare_threads(row, before[row.threads]) for row in result.inferences),
        bytes_shipped=_changes(_sizes(baseline), _sizes(result), "bytes"),
        predictions=tuple(
            Change(f"predicted for {guess.core.name}", "cycles", predicted[guess.core.name], guess.cycles)
            for guess in result.predictions
            if guess.core.name in predicted
        ),
    )


def _compare_threads(now: ThreadsResult, before: ThreadsResult) -> ThreadsComparison:
    where = f"on {now.threads} thread{'s' if now.threads > 1 else ''}"
    peak = None
    if now.peak_memory_bytes is not None and before.peak_memory_bytes is not None:
        peak = Change(f"peak memory {where}", "bytes", before.peak_memory_bytes, now.peak_memory_bytes)
    operators = _changes(_by_operator(before), _by_operator(now), "instructions")
    changed = sorted(operators, key=lambda change: -abs(change.now - change.before))
    return ThreadsComparison(
        threads=now.threads,
        instructions=Change(f"instructions {where}", "instructions", before.minimum, now.minimum),
        peak_memory=peak,
        operators=tuple(change for change in changed[:_MOST_CHANGED] if change.now != change.before),
    )


def _by_operator(row: ThreadsResult) -> dict[str, float]:
    """Instructions by name; operators of one name are told apart by their order."""
    found: dict[str, float] = {}
    for operator in row.operators:
        alike = sum(name.partition(" #")[0] == operator.name for name in found)
        found[f"{operator.name} #{alike + 1}" if alike else operator.name] = operator.instructions
    return found


def _sizes(result: BenchResult) -> dict[str, float]:
    """Bytes by what they are; files are named after the network, which may differ. The ONNX file stays behind."""
    files = {name.replace(result.bundle, "NETWORK"): size for name, size in result.file_bytes.items() if name != MODEL}
    return {**files, "weights": result.weights_bytes, "scratch memory": result.arena_bytes}


def _changes(before: dict[str, float], now: dict[str, float], unit: str) -> tuple[Change, ...]:
    names: Iterable[str] = dict.fromkeys([*now, *before])
    return tuple(Change(name, unit, before.get(name, 0), now.get(name, 0)) for name in names)
