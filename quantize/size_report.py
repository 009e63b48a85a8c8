"""What the weights of a PyTorch network cost in bytes; :mod:`sparrow.kernels.size_report` has what is counted."""

from torch import nn

from sparrow.kernels.size_report import SizeReport, float_size, packed_size
from sparrow.quantize.api import original_weight, quantized_layers
from sparrow.quantize.sharing import CodebookSharing, Int8Sharing


def size_report(model: nn.Module) -> SizeReport:
    """Pack the weights of a network and count the bytes.

    Args:
        model: A network that ``quantize_`` returned, or a float one.
    """
    quantized = quantized_layers(model)
    sizes = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if name not in quantized:
            weight = module.weight.detach().cpu().numpy()
            sizes.append(float_size(weight, name=name, bias=module.bias is not None))
            continue
        sharing, original = quantized[name][1], original_weight(module)
        if isinstance(sharing, CodebookSharing):
            table = sharing.int8_codebook()[0].cpu().numpy()
            values = sharing.indices(original).cpu().numpy()
        else:
            assert isinstance(sharing, Int8Sharing)
            table, values = None, sharing.int8_weight(original)[0].cpu().numpy()
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        sizes.append(packed_size(values, table, name=name, nominal_bits=sharing.bits, groups=groups))
    return SizeReport(tuple(sizes))
