"""Backward passes that leave out zeros give the same gradients, and compute less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from xai_abn.models.sparse import SkippingZeros


class Sizes(TorchDispatchMode):
    """Notes how large the first argument of each expensive operator is."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.sizes.setdefault(operator.overloadpacket.__name__, []).append(
            arguments[0].numel() if arguments and isinstance(arguments[0], torch.Tensor) else 0
        )
        return operator(*arguments, **(options or {}))


def compare(score, inputs, operator, most):
    """The gradient is that without the context, and no operator got more than ``most`` values."""
    (plain,) = torch.autograd.grad(score, inputs, retain_graph=True)
    with Sizes() as spy, SkippingZeros():
        (found,) = torch.autograd.grad(score, inputs, retain_graph=True)
    assert plain.abs().max() > 0
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=0)
    assert max(spy.sizes.get(operator, [0])) <= most
    return spy


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": (2, 0), "stride": (2, 1)},
        {"dilation": 2, "padding": 2},
        {"groups": 2, "padding": 1},
        {"stride": 3, "padding": 2, "dilation": (1, 2)},
    ],
)
@pytest.mark.parametrize("place", [(0, 0), (2, 1), (-1, -1)])
def test_a_convolution_is_computed_around_the_values(options, place):
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 14, 17, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4 // options.get("groups", 1), 3, 3, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(inputs, weight, torch.randn(6, dtype=torch.float64), **options)
    compare(output[1, :, place[0], place[1]].square().sum(), inputs, "convolution_backward", 2 * 6)


def test_a_value_that_comes_from_the_padding_alone():
    inputs = torch.ones(1, 1, 6, 6, requires_grad=True)
    output = F.conv2d(inputs, torch.ones(1, 1, 2, 2), padding=4)
    with SkippingZeros():
        (found,) = torch.autograd.grad(output[0, 0, 0, 0], inputs)
    assert found.shape == inputs.shape
    assert not found.any()


def test_what_is_dense_or_of_another_kind_is_computed_as_usual():
    """A dense gradient, a transposed and a one-dimensional convolution, and weights that are differentiated, too."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    compare(F.conv2d(inputs, weight).square().sum(), inputs, "convolution_backward", 4 * 36)
    compare(F.conv_transpose2d(inputs, weight)[0, 0, 3, 3], inputs, "convolution_backward", 4 * 100)
    compare(F.conv1d(inputs[0, :, :4], weight[:, :, 0])[0, 3, 1], inputs, "convolution_backward", 4 * 4 * 6)
    score = F.conv2d(inputs, weight)[0, 0, 2, 2]
    plain = torch.autograd.grad(score, [inputs, weight], retain_graph=True)
    with SkippingZeros():
        torch.testing.assert_close(torch.autograd.grad(score, [inputs, weight]), plain)


def test_maps_without_any_gradient_cost_nothing():
    """As the levels of a pyramid that the detection does not come from."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    levels = [F.conv2d(F.avg_pool2d(inputs, side), weight, padding=1).flatten(1) for side in (1, 2)]
    spy = compare(torch.cat(levels, 1)[0, 5], inputs, "convolution_backward", 4 * 2)
    assert len(spy.sizes["convolution_backward"]) == 1


def test_rows_and_regions_without_gradient_are_left_out():
    """As all proposals but the one that a detection comes from."""
    torch.manual_seed(0)
    maps = torch.randn(1, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    corners = torch.rand(20, 2, dtype=torch.float64) * 6
    boxes = torch.cat([torch.zeros(20, 1, dtype=torch.float64), corners, corners + 4], dim=1)
    pooled = roi_align(maps, boxes, output_size=2, sampling_ratio=2).flatten(1)
    scores = F.linear(pooled, torch.randn(5, 12, dtype=torch.float64)).softmax(dim=1)
    compare(scores[7, 2], maps, "_roi_align_backward", 12)
    compare(scores[7, 2], maps, "mm", 5)
    compare(scores[:, 2].sum(), maps, "mm", 20 * 5)


def test_a_second_derivative_is_the_same():
    torch.manual_seed(0)
    inputs = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    score = F.conv2d(F.conv2d(inputs, weight).square(), weight)[0, 0, 1, 1].square()

    def second():
        (first,) = torch.autograd.grad(score, inputs, create_graph=True)
        return torch.autograd.grad(first.square().sum(), inputs, retain_graph=True)[0]

    plain = second()
    with SkippingZeros():
        torch.testing.assert_close(second(), plain)
