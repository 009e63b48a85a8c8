"""What a made-up bundle says of a layer, as complete as the compiler's own words."""

from typing import Any


def layer(name: str, **changes: Any) -> dict[str, Any]:
    """An entry of ``layers`` in a manifest."""
    return {"name": name, "input_shape": [1, 6], "output_shape": [1, 6], "weight_format": "qs8c", "distinct_values": 3,
            "zero_share": 0.0, "parameters": 6, "packed_bytes": 64, "multiply_accumulates": 6, "activations": "int8",
            "output": "int8", "kernel": "spw_double", "reason": "made up", **changes}  # fmt: skip
