"""Recurrent layers, step by step, against ONNX Runtime's."""

import numpy as np
import pytest

from .models import check, random
from .test_operators import one

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIME, BATCH, INPUT, HIDDEN = 5, 2, 3, 4


def recurrent(kind: str, *extra: object, directions: int = 1, **attributes: object):
    rows = GATES[kind] * HIDDEN
    weights = [(random(directions, rows, INPUT),), (random(directions, rows, HIDDEN),), (random(directions, 2 * rows),)]
    x = random(TIME, BATCH, INPUT)
    outputs = 3 if kind == "LSTM" else 2
    return one(kind, x, *weights, *extra, outputs=outputs, hidden_size=HIDDEN, **attributes)


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_every_direction(kind, direction):
    model = recurrent(kind, directions=2 if direction == "bidirectional" else 1, direction=direction)
    check(model, *model.nodes[0].output, without=[kind])


def test_a_gru_with_the_reset_behind_the_product():
    model = recurrent("GRU", linear_before_reset=1)
    check(model, *model.nodes[0].output, without=["GRU"])


def test_initial_states():
    model = recurrent("LSTM", None, random(1, BATCH, HIDDEN), random(1, BATCH, HIDDEN, seed=1))
    check(model, *model.nodes[0].output, without=["LSTM"])


def test_other_activations_and_no_bias():
    weights = (random(1, 16, INPUT),), (random(1, 16, HIDDEN),)
    model = one("LSTM", random(TIME, BATCH, INPUT), *weights, hidden_size=HIDDEN,
                activations=["Sigmoid", "Relu", "Tanh"])  # fmt: skip
    check(model, without=["LSTM"])


def test_equal_lengths_are_no_obstacle_and_unequal_ones_stay():
    assert "GRU" not in check(recurrent("GRU", (np.array([TIME] * BATCH, np.int32),)))
    assert "GRU" in check(recurrent("GRU", (np.array([TIME, 2], np.int32),)))
