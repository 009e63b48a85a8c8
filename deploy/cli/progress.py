"""Progress on stderr: animated on a terminal, one line a step elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console

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
