"""LSQ: the paper's rounding and gradients, and integers that are stored as what they are."""

import pytest
import torch
from torch import Tensor

from sparrow.quantize.lsq import LearnedStepCodebook, LearnedStepInt8
from sparrow.quantize.sharing import by_channel


def layer_weight() -> Tensor:
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.05, 0.4, 8)[
        :, None, None, None
    ]


def sharings(weight: Tensor, *, channel_scale: bool) -> list[LearnedStepCodebook | LearnedStepInt8]:
    tables = [LearnedStepCodebook(weight, bits=bits, channel_scale=channel_scale) for bits in (2, 3, 4)]
    return [*tables, LearnedStepInt8(weight, channel_scale=channel_scale)]


@pytest.mark.parametrize("channel_scale", [False, True])
def test_stored_integers_give_the_weight_that_training_sees(channel_scale: bool) -> None:
    weight, errors = layer_weight(), []
    for sharing in sharings(weight, channel_scale=channel_scale):
        hard = sharing.hard_weight(weight)
        torch.testing.assert_close(hard, sharing(weight).detach(), rtol=1e-6, atol=1e-8)
        integers = hard / by_channel(sharing._step().detach(), weight)
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)
        assert sharing.low - 0.01 <= integers.min() and integers.max() <= sharing.high + 0.01
        assert sharing.step.shape == ((8,) if channel_scale else ())
        errors.append(float((hard - weight).norm() / weight.norm()))
    assert [sharing.bits for sharing in sharings(weight, channel_scale=channel_scale)] == [2, 3, 4, 8]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.2 and errors[3] < 0.02


@pytest.mark.parametrize("bits", [2, 4])
def test_the_table_is_the_integers_by_their_low_bits(bits: int) -> None:
    weight = layer_weight()
    sharing = LearnedStepCodebook(weight, bits=bits, channel_scale=True)
    values, scale = sharing.int8_codebook()
    assert values[0] == 0 and sorted(values.tolist()) == list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    torch.testing.assert_close(
        values[sharing.indices(weight).long()] * by_channel(scale, weight), sharing.hard_weight(weight)
    )


def test_gradients_are_the_papers() -> None:
    weight = torch.tensor([[0.31, -2.0, 0.9, 0.05]], requires_grad=True)
    sharing = LearnedStepCodebook(weight, bits=2, channel_scale=False)  # -2 to 1
    with torch.no_grad():
        sharing.step.fill_(0.5)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    (sharing(weight) * upstream).sum().backward()
    # w / s: 0.62 inside, -4 below, 1.8 above, 0.1 inside.
    assert weight.grad is not None and weight.grad.tolist() == [[1.0, 0.0, 0.0, 4.0]]
    expected = (1 * (1 - 0.62) + 2 * -2 + 3 * 1 + 4 * (0 - 0.1)) / (4 * 1) ** 0.5
    assert float(sharing.step.grad) == pytest.approx(expected, rel=1e-5)


def test_a_channels_step_gathers_its_own_weights() -> None:
    weight = layer_weight()
    alone = LearnedStepInt8(weight[2:3], channel_scale=True)
    together = LearnedStepInt8(weight, channel_scale=True)
    together(weight).square().sum().backward()
    alone(weight[2:3]).square().sum().backward()
    torch.testing.assert_close(together.step.grad[2:3], alone.step.grad)


def test_a_step_that_training_carries_through_zero_counts_by_magnitude() -> None:
    weight = layer_weight()
    for sharing in sharings(weight, channel_scale=True):
        before = sharing.hard_weight(weight)
        with torch.no_grad():
            sharing.step.neg_()
        torch.testing.assert_close(sharing.hard_weight(weight), before)
        with torch.no_grad():
            sharing.step.zero_()
        assert sharing.hard_weight(weight).isfinite().all()


def test_dead_layers_stay_zero() -> None:
    for sharing in sharings(torch.zeros(4, 4), channel_scale=True):
        assert not sharing.hard_weight(torch.zeros(4, 4)).any()
