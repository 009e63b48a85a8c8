"""Makes Sparrow operators of convolutions and linear layers, with all that can run inside them.

    [dequantize ->] conv2d or matmul [-> multiply, add by channel] [-> add residual] [-> relu or clip] [-> quantize]

becomes one call of ``sparrow.conv2d.<index>`` on plain NCHW tensors, and a ``ConvLayer`` that says what it computes.
A layer in half precision has a cast before each operand and one after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from sparrow.deploy.operators import ConvLayer, Geometry, Grid
from sparrow.deploy.passes.relax_rewriter import (
    MainRewriter,
    constant_array,
    dtype_of,
    operator_name,
    static_shape,
    use_counts,
)
from sparrow.deploy.passes.sink_dequantize import scalar_grid
from sparrow.deploy.rows_cost import relative_rows_cost
from sparrow.deploy.sparsity_cost import relative_cost
from sparrow.deploy.winograd_cost import relative_winograd_cost
from sparrow.kernels.formats import BlockPattern, ConvWeights, WeightFormat, regroup

Array = NDArray[Any]

ANCHORS = ("relax.nn.conv2d", "relax.matmul")
UNBOUNDED = (-np.inf, np.inf)
LARGEST_CODEBOOK = 16
HALF = np.finfo(np.float16)


@dataclass
class FusedGroup:
    """The bindings that one operator replaces, and what they add up to.

    Attributes:
        anchor: The conv2d or matmul call.
        members: Variables whose bindings the operator replaces; the last is its result.
        factor: Multiplier by output channel, float64.
        offset: Addend by output channel, float64.
        residual: Second operand, if any.
        activation: (lowest, highest) output value.
        output_grid: Grid of the result if it is quantized.
    """

    anchor: tvm.ir.Call
    members: list[relax.Var]
    factor: Array
    offset: Array
    residual: relax.Var | None = None
    activation: tuple[float, float] = UNBOUNDED
    output_grid: Grid | None = None


@dataclass
class Partition:
    """A module whose convolutions are Sparrow operators, and the operators' layers in order of execution."""

    module: tvm.IRModule
    layers: list[ConvLayer] = field(default_factory=list)


def partition_convolutions(module: tvm.IRModule, names: Sequence[str] = (), *, half: bool = False) -> Partition:
    """Apply the pass to ``main``.

    Args:
        module: Imported network, dequantize already sunk below data movement.
        names: Names for people of its convolutions and matrix products, in order; ignored unless there is one for each.
        half: Whether layers with float inputs compute in half precision where their weights allow it.

    Returns:
        The rewritten module and its layers. What the pass cannot take stays as it is, for TVM to lower.
    """
    rewriter = _Partition(module, names, half)
    return Partition(rewriter.run(), rewriter.layers)


class _Partition(MainRewriter):
    def __init__(self, module: tvm.IRModule, names: Sequence[str], half: bool) -> None:
        super().__init__(module)
        self.half = half
        anchors = [binding.var for binding in self.bindings if operator_name(binding.value) in ANCHORS]
        self.names = dict(zip(anchors, names, strict=True)) if len(anchors) == len(names) else {}
        self.layers: list[ConvLayer] = []
        self.uses = use_counts(module)
        self.readers: dict[relax.Var, list[relax.Var]] = {}
        for binding in self.bindings:
            for operand in _operands(binding.value):
                self.readers.setdefault(operand, []).append(binding.var)
        self.claimed: set[relax.Var] = set()
        self.groups: dict[relax.Var, FusedGroup] = {}
        for binding in self.bindings:
            if binding.var not in self.claimed and (group := self._grow(binding.var, binding.value)) is not None:
                self.claimed.update(group.members)
                self.groups[group.members[-1]] = group

    def rewrite(self, var: relax.Var, value: tvm.ir.Expr) -> tvm.ir.Expr | None:
        if (group := self.groups.get(var)) is not None:
            return self._emit_operator(group, var)
        if var in self.claimed:
            return None
        return super().rewrite(var, value)

    # Matching

    def _grow(self, var: relax.Var, call: tvm.ir.Expr) -> FusedGroup | None:
        """Start at a convolution and take in the operators after it for as long as one kernel can run them."""
        if not self._is_anchor(call):
            return None
        channel_axis = 1 if operator_name(call) == "relax.nn.conv2d" else -1
        shape = static_shape(var)
        channels = shape[channel_axis]
        group = FusedGroup(call, [var], np.ones(channels), np.zeros(channels))
        integer = self._input_grid(call) is not None
        for reader in self._only_readers(var):
            step = self.definitions[reader]
            name = operator_name(step)
            others = [argument for argument in step.args if not argument.same_as(group.members[-1])]
            by_channel = self._channel_constant(others[0], shape, channel_axis) if len(others) == 1 else None
            before_residual = group.residual is None and group.activation == UNBOUNDED
            if name == "relax.multiply" and by_channel is not None and before_residual:
                group.factor, group.offset = group.factor * by_channel, group.offset * by_channel
            elif name == "relax.add" and by_channel is not None and before_residual:
                group.offset = group.offset + by_channel
            elif name == "relax.add" and before_residual and self._fits_as_residual(others, shape, integer):
                group.residual = others[0]
            elif (bounds := _activation_bounds(name, step)) is not None:
                low, high = np.clip(group.activation, *bounds)
                group.activation = float(low), float(high)
            elif name == "relax.quantize" and integer and step.attrs.out_dtype == "int8" and scalar_grid(step):
                group.output_grid = scalar_grid(step)
                group.members.append(reader)
                break
            else:
                break
            group.members.append(reader)
        return group

    def _only_readers(self, var: relax.Var) -> Iterator[relax.Var]:
        """Follow a chain of values that are read exactly once, by a call that no other group has taken."""
        while self.uses[var] == 1 and len(self.readers.get(var, [])) == 1:
            reader = self.readers[var][0]
            if reader in self.claimed or not isinstance(self.definitions[reader], tvm.ir.Call):
                return
            yield reader
            var = reader

    def _is_anchor(self, call: tvm.ir.Expr) -> bool:
        name = operator_name(call)
        if name == "relax.nn.conv2d":
            return call.attrs.data_layout == "NCHW" and self._weights(call) is not None
        if name == "relax.matmul":
            shapes = static_shape(call.args[0]), static_shape(call.args[1])
            return [len(shape) for shape in shapes] == [2, 2] and self._weights(call) is not None
        return False

    def _fits_as_residual(self, operands: list[tvm.ir.Expr], shape: tuple[int, ...], integer: bool) -> bool:
        if len(operands) != 1 or not isinstance(operands[0], relax.Var) or static_shape(operands[0]) != shape:
            return False
        return self._dequantized(operands[0]) is not None if integer else dtype_of(operands[0]) == "float32"

    def _dequantized(self, var: tvm.ir.Expr) -> tuple[relax.Var, Grid] | None:
        """The int8 tensor and grid behind a float value, if it is one."""
        call = self.definition(var)
        if operator_name(call) != "relax.dequantize" or not isinstance(call.args[0], relax.Var):
            return None
        grid = scalar_grid(call)
        return (call.args[0], grid) if grid is not None and dtype_of(call.args[0]) == "int8" else None

    def _input_grid(self, call: tvm.ir.Call) -> Grid | None:
        source = self._dequantized(call.args[0])
        return source[1] if source else None

    def _why_float(self, call: tvm.ir.Call, *, integer: bool) -> str:
        """Say why a layer computes in floating point, whose weights may be integers all the same."""
        if operator_name(self.definition(call.args[0])) == "relax.dequantize":
            return "float input: its grid is not one of int8 for the whole tensor"
        return "float input, though the weights are int8: nothing puts it on a grid" if integer else "float input"

    def _weights(self, call: tvm.ir.Call) -> tuple[Array, Array | None] | None:
        """Constant weights of an anchor, OIHW or OI: (values, scale by output channel or None for float values)."""
        found = self._constant(call.args[1])
        if found is None:
            return None
        values, scale = found
        if operator_name(call) == "relax.matmul":
            values, scale = values.T, None if scale is None else scale.T
        if scale is None:
            return values, None
        if scale.size not in (1, scale.shape[0]):
            return None
        return values, np.broadcast_to(scale.reshape(-1), values.shape[:1])

    def _constant(self, expression: tvm.ir.Expr) -> tuple[Array, Array | None] | None:
        """A constant behind an optional dequantize and transposes: (values, scale of the values' rank or None)."""
        if (values := constant_array(expression)) is not None:
            return values, None
        call = self.definition(expression)
        if operator_name(call) == "relax.permute_dims" and (found := self._constant(call.args[0])) is not None:
            axes = None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]
            return found[0].transpose(axes), None if found[1] is None else found[1].transpose(axes)
        if operator_name(call) != "relax.dequantize":
            return None
        values, scale, zero_point = (constant_array(argument) for argument in call.args)
        if values is None or scale is None or zero_point is None or values.dtype != np.int8 or zero_point.any():
            return None
        shape = [1] * values.ndim
        shape[int(call.attrs.axis)] = scale.size
        return values, scale.reshape(shape)

    def _channel_constant(self, expression: tvm.ir.Expr, shape: tuple[int, ...], axis: int) -> Array | None:
        """Value by channel of a constant that broadcasts over everything but the channel axis, as float64."""
        values = constant_array(expression)
        call = self.definition(expression)
        if operator_name(call) == "relax.reshape" and (source := constant_array(call.args[0])) is not None:
            values = source.reshape(static_shape(expression))  # the importer's form of a convolution's bias
        if values is None or values.ndim > len(shape):
            return None
        full = (1,) * (len(shape) - values.ndim) + values.shape
        axis %= len(shape)
        if any(size != 1 for position, size in enumerate(full) if position != axis):
            return None
        return np.broadcast_to(values.reshape(-1), shape[axis]).astype(np.float64)

    # Rewriting

    def _emit_operator(self, group: FusedGroup, var: relax.Var) -> relax.Var:
        call = group.anchor
        source = self._dequantized(call.args[0])
        residual = self._dequantized(group.residual) if source else None
        operands = [source[0] if source else call.args[0]]
        if group.residual is not None:
            operands.append(residual[0] if residual else group.residual)
        geometry = _geometry(call, static_shape(group.members[0]))
        found = self._weights(call)
        assert found is not None  # or it would be no anchor
        values, weight_scale = found
        if values.ndim == 2:
            values = values[:, :, None, None]
        values, groups = regroup(values, geometry.groups)
        geometry = replace(geometry, groups=groups)
        output_scale = group.output_grid.scale if group.output_grid else 1.0
        winograd = False
        if source:
            weights, reason = _integer_weights(values, weight_scale, geometry, source[1], group, output_scale)
            cost = relative_winograd_cost(weights, geometry)
            if winograd := cost < 1:
                reason += f"; without dotprod by Winograd's F(4x4, 3x3), predicted at {cost:.2f} of the direct cost"
        else:
            why = self._why_float(call, integer=weight_scale is not None)
            weights, reason = _float_weights(values, weight_scale, geometry, group, self.half, why)
        index = len(self.layers)
        self.layers.append(
            ConvLayer(
                index=index,
                name=self.names.get(group.members[0], f"layer{index}"),
                geometry=geometry,
                weights=weights,
                input_grid=source[1] if source else None,
                output_grid=group.output_grid,
                residual_grid=residual[1] if residual else None,
                has_residual=group.residual is not None,
                activation=group.activation,
                reason=reason,
                winograd=winograd,
            )
        )
        layer = self.layers[-1]
        renewed = [self.renew(operand) for operand in operands]
        if weights.format is not WeightFormat.F16:
            output_type = relax.TensorType(static_shape(var), dtype_of(var))
            return self.emit(relax.call_dps_packed(layer.extern, relax.Tuple(renewed), output_type), var.name)
        arguments = relax.Tuple([self.emit(relax.op.astype(operand, "float16")) for operand in renewed])
        output_type = relax.TensorType(static_shape(var), "float16")
        output = self.emit(relax.call_dps_packed(layer.extern, arguments, output_type))
        return self.emit(relax.op.astype(output, "float32"), var.name)


def _operands(expression: tvm.ir.Expr) -> Iterator[relax.Var]:
    if isinstance(expression, relax.Var):
        yield expression
    elif isinstance(expression, relax.Tuple):
        for item in expression.fields:
            yield from _operands(item)
    elif isinstance(expression, relax.TupleGetItem):
        yield from _operands(expression.tuple_value)
    elif isinstance(expression, tvm.ir.Call):
        for argument in expression.args:
            yield from _operands(argument)


def _activation_bounds(name: str, call: tvm.ir.Call) -> tuple[float, float] | None:
    """(lowest, highest) value that an activation lets through; None if the call is no such activation."""
    if name == "relax.nn.relu":
        return 0.0, np.inf
    if name == "relax.nn.relu6":
        return 0.0, 6.0
    if name == "relax.clip":
        return float(call.args[1].value), float(call.args[2].value)
    if name in ("relax.maximum", "relax.minimum"):
        bound = constant_array(call.args[1])
        if bound is not None and bound.size == 1:
            value = float(bound.reshape(()))
            return (value, np.inf) if name == "relax.maximum" else (-np.inf, value)
    return None


def _geometry(call: tvm.ir.Call, output_shape: tuple[int, ...]) -> Geometry:
    if operator_name(call) == "relax.matmul":
        rows, depth = static_shape(call.args[0])
        return Geometry((1, depth, 1, rows), (1, output_shape[1], 1, rows))
    attributes = call.attrs
    batch, channels, height, width = static_shape(call.args[0])
    return Geometry(
        input_shape=(batch, channels, height, width),
        output_shape=(output_shape[0], output_shape[1], output_shape[2], output_shape[3]),
        kernel=_pair(static_shape(call.args[1])[2:]),
        stride=_pair(attributes.strides),
        dilation=_pair(attributes.dilation),
        pad=_pair(attributes.padding),
        groups=int(attributes.groups),
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """The first two numbers: (height, width), or (top, left)."""
    return int(values[0]), int(values[1])


def _integer_weights(
    values: Array,
    weight_scale: Array | None,
    geometry: Geometry,
    input_grid: Grid,
    group: FusedGroup,
    output_scale: float,
) -> tuple[ConvWeights, str]:
    """Choose the format of weights that meet int8 activations, and fold everything after them into constants."""
    channels = values.shape[0]
    codebook: Array | None = None
    if weight_scale is not None:
        quantized, scale = values, weight_scale
        distinct, indices = np.unique(values, return_inverse=True)
        if distinct.size <= LARGEST_CODEBOOK:
            codebook, indices = distinct, indices.reshape(values.shape)
            reason = f"{distinct.size} distinct int8 values: a codebook"
        else:
            reason = "int8 in the network"
    elif (found := find_codebook(values)) is not None:
        codebook, indices, codebook_scale = found
        quantized = codebook[indices]
        scale = np.full(channels, codebook_scale)
        reason = f"{len(codebook)} distinct values: a codebook"
    else:
        largest = np.abs(values).reshape(channels, -1).max(axis=1)
        scale = np.where(largest > 0, largest, 1.0) / 127
        quantized = np.rint(values / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        reason = "float weights behind an int8 input: quantized per channel"
    initial = -input_grid.zero_point * quantized.astype(np.int64).reshape(channels, -1).sum(axis=1)
    weights = ConvWeights(
        format=_codebook_format(codebook),
        values=quantized.astype(np.int8) if codebook is None else indices.astype(np.uint8),
        codebook=codebook,
        initial=initial.astype(np.int32),
        scale=(input_grid.scale * np.float64(scale) * group.factor / output_scale).astype(np.float32),
        bias=(group.offset / output_scale).astype(np.float32),
        groups=geometry.groups,
    )
    return _choose_pattern(weights, geometry, reason)


def _choose_pattern(weights: ConvWeights, geometry: Geometry, reason: str) -> tuple[ConvWeights, str]:
    """Choose the pattern of the stored blocks by what it costs to multiply by them."""
    if (cost := relative_rows_cost(weights, geometry)) < 1:
        reason = f"{reason}; few input channels: taps made of rows of the window, at {cost:.2f} of the usual cost"
        return replace(weights, pattern=BlockPattern.ROWS), reason
    if weights.format.is_float or weights.is_depthwise or (zeros := 1 - float(weights.stored_blocks().mean())) == 0:
        return weights, reason
    cost = relative_cost(weights, geometry)
    if cost >= 1:
        return weights, f"{reason}; {zeros:.0%} of its 4x4 blocks are zero, too few to skip"
    reason = f"{reason}; {zeros:.0%} of its 4x4 blocks are zero and skipped, at {cost:.2f} of the cost of all blocks"
    return replace(weights, pattern=BlockPattern.S4X4), reason


def _codebook_format(codebook: Array | None) -> WeightFormat:
    if codebook is None:
        return WeightFormat.QS8C
    return WeightFormat.CB2T if len(codebook) <= 4 else WeightFormat.CB4T


def _float_weights(
    values: Array, weight_scale: Array | None, geometry: Geometry, group: FusedGroup, half: bool, reason: str
) -> tuple[ConvWeights, str]:
    """Fold everything after them into float weights, in half precision if asked for; ``reason`` is why they are."""
    factor = group.factor if weight_scale is None else group.factor * weight_scale
    channels = values.shape[0]
    weights = ConvWeights(
        format=WeightFormat.F32,
        values=(values * factor.reshape(-1, 1, 1, 1)).astype(np.float32),
        codebook=None,
        initial=np.zeros(channels, np.int32),
        scale=np.ones(channels, np.float32),
        bias=group.offset.astype(np.float32),
        groups=geometry.groups,
    )
    if half and (obstacle := outside_half(weights)):
        reason = f"{reason}; float32 for {obstacle}"
    elif half:
        weights = replace(weights, format=WeightFormat.F16, values=weights.values.astype(np.float16))
    if geometry.suits_winograd(weights.format.bits // 8):
        return weights, f"{reason}; by Winograd's F(4x4, 3x3), a quarter of the products"
    return _choose_pattern(weights, geometry, reason)


def outside_half(weights: ConvWeights) -> str:
    """Say what keeps float32 weights from half precision; an empty string if nothing does.

    Normal halves are within 2^-11 of what they round. A channel's weights as a whole are further off only if those that
    matter in it are too small for a normal half.
    """
    with np.errstate(over="ignore"):
        halves = weights.values.astype(np.float16)
    for name, values in (("weight", weights.values), ("bias", weights.bias)):
        if (largest := float(np.abs(values).max())) > float(HALF.max):
            return f"a {name} of {largest:.3g}: half precision ends at {float(HALF.max):g}"
    exact = weights.values.astype(np.float64).reshape(len(halves), -1)
    lost = np.linalg.norm(halves.reshape(exact.shape) - exact, axis=1)
    norm = np.linalg.norm(exact, axis=1)
    if np.any(bad := lost > norm * float(HALF.eps) / 2):
        size = norm[bad].min() / exact.shape[1] ** 0.5
        return f"a channel's weights of about {size:.3g}: half precision loses their digits"
    return ""


def find_codebook(values: Array) -> tuple[Array, Array, float] | None:
    """Recognize weights that share at most 16 values.

    Args:
        values: Float weights of any shape.

    Returns:
        int8 codebook in ascending order, uint8 index of each weight, and the scale: codebook * scale = value, exact to
        half a step. None if there are more values, or they do not survive the int8 grid.
    """
    distinct, indices = np.unique(values, return_inverse=True)
    if distinct.size > LARGEST_CODEBOOK:
        return None
    largest = float(np.abs(distinct).max())
    scale = largest / 127 if largest > 0 else 1.0
    codebook = np.rint(distinct / scale).astype(np.int8)
    nonzero = distinct != 0
    if np.any(codebook[nonzero] == 0) or np.unique(codebook).size != distinct.size:
        return None
    return codebook, indices.reshape(values.shape).astype(np.uint8), scale
