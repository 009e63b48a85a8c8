"""LSTM, GRU and RNN, written out step by step.

The products of all inputs by W are one matrix product before the first step; each step is one product by R and the
gates. Names follow ONNX: X [time, batch, input], W [direction, gates * hidden, input], R [direction, gates * hidden,
hidden], B [direction, 2 * gates * hidden].
"""

from typing import Any

import numpy as np
import onnx

from sparrow.deploy.frontend.graph import Array, Chain, GraphView, Rule, attributes_of
from sparrow.deploy.frontend.operators import slice_

# Steps times directions; a longer network would become a program of megabytes.
LONGEST_SEQUENCE = 512

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULT_ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_PLAIN_ACTIVATIONS = {"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"}


def _recurrent(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    x, w, r, b, lengths, h0, c0, peepholes = [*node.input, *[""] * 8][:8]
    shape, attributes = view.shape(x), attributes_of(node)
    weights, recurrence = view.constant(w), view.constant(r)
    bias = view.constant(b) if b else np.zeros((1, 1), np.float32)
    if shape is None or weights is None or recurrence is None or bias is None:
        return None
    time, batch = shape[:2]
    directions, hidden = weights.shape[0], recurrence.shape[2]
    known = view.constant(lengths) if lengths else np.array([time])
    activations = attributes.get("activations") or _DEFAULT_ACTIVATIONS[node.op_type] * directions
    activations = [name.decode() if isinstance(name, bytes) else name for name in activations]
    supported = (
        known is not None
        and bool((known == time).all())
        and time * directions <= LONGEST_SEQUENCE
        and set(activations) <= _PLAIN_ACTIVATIONS
        and not peepholes
        and not attributes.get("clip")
        and not attributes.get("input_forget")
        and not attributes.get("layout")
    )
    if not supported:
        return None
    bias = np.broadcast_to(bias, (directions, 2 * _GATES[node.op_type] * hidden))
    chain = Chain(view, node)
    rows = chain.add("Reshape", [x, chain.constant(np.array([time * batch, shape[2]], np.int64))])
    each = len(activations) // directions
    runs = []
    for direction in range(directions):
        backward = attributes.get("direction", "forward") == "reverse" or direction == 1
        cell = _Cell(chain, node.op_type, weights[direction], recurrence[direction], bias[direction],
                     activations[direction * each :][:each], bool(attributes.get("linear_before_reset")))  # fmt: skip
        projected = cell.project(rows, time)
        states = [
            chain.add("Reshape", [slice_(chain, name, 0, direction, direction + 1),
                                  chain.constant(np.array([batch, hidden], np.int64))])
            if name else chain.constant(np.zeros((batch, hidden), np.float32))
            for name in (h0, c0)
        ]  # fmt: skip
        outputs = [""] * time
        h, c = states
        for step in reversed(range(time)) if backward else range(time):
            # By an index, not by bounds: one piece of code serves all steps.
            h, c = cell.step(chain.add("Gather", [projected, chain.constant(np.int64(step))], axis=0), h, c)
            outputs[step] = h
        runs.append((outputs, h, c))
    _emit_outputs(chain, node, runs, time, batch, hidden)
    return chain.nodes


def _emit_outputs(
    chain: Chain, node: onnx.NodeProto, runs: list[tuple[list[str], str, str]], time: int, batch: int, hidden: int
) -> None:
    """Y [time, direction, batch, hidden], and the last states [direction, batch, hidden]."""
    y, y_h, y_c = [*node.output, "", "", ""][:3]
    if y:
        parts = [outputs[step] for step in range(time) for outputs, _, _ in runs]
        rows = chain.add("Concat", parts, axis=0) if len(parts) > 1 else parts[0]
        shape = np.array([time, len(runs), batch, hidden], np.int64)
        chain.add("Reshape", [rows, chain.constant(shape)], y)
    for output, last in ((y_h, [h for _, h, _ in runs]), (y_c, [c for _, _, c in runs])):
        if output:
            rows = chain.add("Concat", last, axis=0) if len(last) > 1 else last[0]
            chain.add("Reshape", [rows, chain.constant(np.array([len(runs), batch, hidden], np.int64))], output)


class _Cell:
    """One direction of a recurrent layer: its weights, and the nodes of a step."""

    def __init__(
        self,
        chain: Chain,
        kind: str,
        weights: Array,
        recurrence: Array,
        bias: Array,
        activations: list[str],
        linear_before_reset: bool,
    ) -> None:
        self.chain, self.kind, self.activations = chain, kind, activations
        self.hidden = recurrence.shape[1]
        input_bias, hidden_bias = np.split(bias.astype(np.float32), 2)
        self.linear_before_reset = linear_before_reset
        # The bias of a GRU's candidate belongs inside the reset, if that comes after the product.
        inside = kind == "GRU" and linear_before_reset
        apart = np.zeros_like(hidden_bias)
        if inside:
            apart[2 * self.hidden :] = hidden_bias[2 * self.hidden :]
        self.input_weights = chain.constant(np.ascontiguousarray(weights.T))
        self.input_bias = chain.constant(input_bias + hidden_bias - apart)
        whole, split = np.ascontiguousarray(recurrence.T), 2 * self.hidden
        self.candidate_bias = chain.constant(apart[split:]) if inside else ""
        if kind == "GRU":
            self.gates = chain.constant(np.ascontiguousarray(whole[:, :split]))
            self.candidate = chain.constant(np.ascontiguousarray(whole[:, split:]))
        else:
            self.gates = chain.constant(whole)

    def project(self, rows: str, time: int) -> str:
        """Append W x + b of all steps: [time, batch, gates * hidden]."""
        product = self._add("Add", self._add("MatMul", rows, self.input_weights), self.input_bias)
        width = _GATES[self.kind] * self.hidden
        return self._add("Reshape", product, self.chain.constant(np.array([time, -1, width], np.int64)))

    def step(self, projected: str, h: str, c: str) -> tuple[str, str]:
        """Append one step and return the names of the new states."""
        if self.kind == "GRU":
            return self._gru_step(projected, h), c
        total = self._add("Add", projected, self._add("MatMul", h, self.gates))
        if self.kind == "RNN":
            return self._add(self.activations[0], total), c
        i, o, f, candidate = (self._gate(total, index) for index in range(4))
        gate, squash, out = self.activations
        kept = self._add("Mul", self._add(gate, f), c)
        c = self._add("Add", kept, self._add("Mul", self._add(gate, i), self._add(squash, candidate)))
        return self._add("Mul", self._add(gate, o), self._add(out, c)), c

    def _gru_step(self, projected: str, h: str) -> str:
        gate, squash = self.activations
        fixed = slice_(self.chain, projected, 1, 0, 2 * self.hidden)
        gates = self._add(gate, self._add("Add", fixed, self._add("MatMul", h, self.gates)))
        update, reset = self._gate(gates, 0), self._gate(gates, 1)
        if self.linear_before_reset:
            product = self._add("Add", self._add("MatMul", h, self.candidate), self.candidate_bias)
            product = self._add("Mul", reset, product)
        else:
            product = self._add("MatMul", self._add("Mul", reset, h), self.candidate)
        candidate = self._add(squash, self._add("Add", self._gate(projected, 2), product))
        # (1 - z) * candidate + z * h
        return self._add("Add", candidate, self._add("Mul", update, self._add("Sub", h, candidate)))

    def _gate(self, source: str, index: int) -> str:
        return slice_(self.chain, source, 1, index * self.hidden, (index + 1) * self.hidden)

    def _add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return self.chain.add(op_type, list(inputs), **attributes)


RECURRENT_RULES: dict[str, Rule] = {"LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent}
