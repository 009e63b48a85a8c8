"""What a layer may get, and the configuration that all layers' choices make."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from sparrow.kernels.errors import SparrowError
from sparrow.quantize.activations import layer_nodes, trace
from sparrow.quantize.configs import DgmsConfig
from sparrow.quantize.sparsity import SparsityConfig

BITS = (8, 4, 2)  # 3 would cost what 4 cost and lose more: indices are stored in 2 or 4 bits
SPARSITIES = (0.0, 0.25, 0.5, 0.75)
PATTERN = "4x4"  # the blocks that the kernels skip


@dataclass(frozen=True, order=True)
class Setting:
    """Precision and density of one layer's weight.

    Attributes:
        bits: 8 for int8, else a codebook of 2^bits values.
        sparsity: Share of its 4 x 4 blocks that are zero, 0 to below 1.
    """

    bits: int
    sparsity: float

    def __str__(self) -> str:
        return f"{self.bits} bits" + (f", {self.sparsity:.0%} of the blocks zero" if self.sparsity else "")


def searchable_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose setting is searched, in the order in which they run.

    The first and the last layer keep 8 bits and every weight, as in the literature, and so do grouped convolutions,
    which the kernels do not run from a codebook.

    Raises:
        SparrowError: The network cannot be traced, or no layer is left.
    """
    graph = trace(model)
    names = [str(node.target) for node in layer_nodes(graph)]
    chosen = [name for name in names[1:-1] if getattr(graph.get_submodule(name), "groups", 1) == 1]
    if not chosen:
        raise SparrowError(f"{type(model).__name__} has no layer to search a setting for",
                           expected="a layer between the first and the last that is not grouped")  # fmt: skip
    return chosen


def uniform_choice(layers: Collection[str], setting: Setting) -> dict[str, Setting]:
    """Give all layers the same setting."""
    return dict.fromkeys(layers, setting)


def choice_config(choice: Mapping[str, Setting], blocks: Mapping[str, int]) -> DgmsConfig:
    """Write a choice as the configuration of a quantization.

    Args:
        choice: Setting of each searched layer.
        blocks: Number of 4 x 4 blocks of each of these layers.

    Returns:
        Its configuration; layers that are not in the choice have 8 bits and stay dense.
    """
    zeros = sum(setting.sparsity * blocks[name] for name, setting in choice.items())
    sparsity = None
    if zeros:
        sparsity = SparsityConfig(
            sparsity=zeros / sum(blocks[name] for name in choice),
            pattern=PATTERN,
            criterion="magnitude",  # int8 layers have no zero component
            distribution="per-layer",
            shares=tuple((name, setting.sparsity) for name, setting in choice.items()),
        )
    bits = tuple((name, setting.bits) for name, setting in choice.items())
    return DgmsConfig(layers_8bit=("*",), layer_bits=bits, sparsity=sparsity)
