"""Batch norms know their inputs again."""

import torch
from torch import nn

from sparrow.quantize.sparsity.norms import reestimate_norms


def test_statistics_are_those_of_all_batches_and_the_network_keeps_its_settings() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5))
    batches = [torch.randn(16, 2, 4, 4) * 3 + 1 for _ in range(4)]
    reestimate_norms(model, batches)
    with torch.no_grad():
        outputs = [model[0](batch) for batch in batches]
    mean = torch.stack([output.mean(dim=(0, 2, 3)) for output in outputs]).mean(dim=0)
    variance = torch.stack([output.var(dim=(0, 2, 3)) for output in outputs]).mean(dim=0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.3 and not any(module.training for module in model.modules())
