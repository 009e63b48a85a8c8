"""Progress on stderr: animated on a terminal, one line a step elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def phases(title: str) -> Iterator[Callable[[str], None]]:
    """Show which phase of a job runs.

    Args:
        title: Name of the job.

    Yields:
        A function to call with the name of each phase as it starts.
    """
    if not console.is_terminal:
        yield lambda phase: click.echo(f"{title}: {phase}", err=True)
        return
    with console.status(f"{title} ...") as status:
        yield lambda phase: status.update(f"{title}: {phase}")


@contextmanager
def counter(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far each stage of a job is.

    Args:
        title: Name of the job.

    Yields:
        A function to call with (stage, done, total).
    """
    if not console.is_terminal:
        told: dict[str, int] = {}

        def tell(stage: str, done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if told.get(stage) != tenth:
                told[stage] = tenth
                click.echo(f"{title}: {stage} {done}/{total}", err=True)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(f"{title}: {stage}", total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield show
