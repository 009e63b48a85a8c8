"""What the values of configurations are checked by, which may come from JSON, YAML or Python."""

import math
from typing import Any


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def is_whole(value: object) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_share(value: Any) -> bool:
    """Whether a value is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def as_tuples(value: Any) -> Any:
    """Turn lists, as JSON and YAML have them, into tuples, those inside included."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
