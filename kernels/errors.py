"""The one exception that a user of Sparrow is meant to see.

It lives in the lowest layer, which imports nothing, so that every other package can raise it.
"""

import difflib
from collections.abc import Iterable


class SparrowError(Exception):
    """Something the user can mend: what was got, what was expected, and the next step.

    Attributes:
        got: What was found, in one clause.
        expected: What should have been there instead, or an empty string.
        next_step: What to do about it, ideally a command to type, or an empty string.
        exit_code: Process exit code: 1 for an error, 3 for "ran, but the result is wrong".
    """

    def __init__(self, got: str, *, expected: str = "", next_step: str = "", exit_code: int = 1) -> None:
        super().__init__(got)
        self.got = got
        self.expected = expected
        self.next_step = next_step
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [self.got]
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


def near_names(name: str, known: Iterable[str]) -> str:
    """List the known names, those closest to a mistyped one first.

    Args:
        name: What the user wrote.
        known: Every valid name.

    Returns:
        Text such as ``"did you mean 'resnet20'? known: resnet20, resnet32"``.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"
