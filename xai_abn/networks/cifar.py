"""Published networks with an ABN for 32x32 images: ResNet, SE-ResNet, ResNeXt, WRN, DenseNet-BC.

No library keeps these. Blocks are torchvision's where it has them. Each network is a plain classifier (N, 3, H, W) ->
(N, K) that pools globally, so any input size works; :func:`xai_abn.abn_from` makes an ABN of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import SqueezeExcitation

from xai_abn.errors import InvalidInputError
from xai_abn.networks.abn import initialize


def blocks_per_stage(kind: str, depth: int, layers: int, others: int) -> int:
    """Return the number n of blocks in each of three stages for a depth of ``layers`` n + ``others``.

    Raises:
        InvalidInputError: no network of that kind has this depth.
    """
    blocks, rest = divmod(depth - others, layers)
    if blocks < 1 or rest:
        raise InvalidInputError(f"the depth of a {kind} for CIFAR is {layers}n + {others}, got {depth}")
    return blocks


class SEBasicBlock(BasicBlock):  # type: ignore[misc]  # torchvision has no types
    """A basic block whose output is weighted by channel before the shortcut is added.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; reduction 16.
    """

    def __init__(self, inplanes: int, planes: int, *arguments: Any, **more: Any) -> None:
        super().__init__(inplanes, planes, *arguments, **more)
        self.se = SqueezeExcitation(planes, max(1, planes // 16))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inplanes, H, W) to (N, planes, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """Three stages of residual blocks behind one 3x3 convolution.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with projections where
    the shape changes, as in the code ABN was released with; Xie et al., CVPR 2017, for ``groups``.

    Args:
        block: torchvision's ``BasicBlock`` or ``Bottleneck``, or a class with the same interface.
        blocks: number of blocks per stage.
        num_classes: K.
        planes: width of the first stage's blocks; each later stage has twice as many.
        groups: of the 3x3 convolution in a bottleneck.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(
        self, block: Callable[..., nn.Module], blocks: int, num_classes: int, planes: int = 16, groups: int = 1
    ) -> None:
        super().__init__()
        expansion: int = block.expansion  # type: ignore[attr-defined]
        self.conv1 = nn.Conv2d(3, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        width = planes
        for number in range(3):
            out, stride = planes * 2**number, 1 if number == 0 else 2
            layers: list[nn.Module] = []
            for _ in range(blocks):
                shortcut = None
                if stride != 1 or width != out * expansion:
                    convolution = nn.Conv2d(width, out * expansion, 1, stride, bias=False)
                    shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out * expansion))
                layers.append(block(width, out, stride, shortcut, groups))
                width, stride = out * expansion, 1
            self.add_module(f"layer{number + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class WideBlock(nn.Module):
    """A pre-activation block with dropout between its convolutions; names as in the released code."""

    def __init__(self, inplanes: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False) if inplanes != planes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inplanes, H, W) to (N, planes, H/stride, W/stride)."""
        active = F.relu(self.bn1(x))
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        result: Tensor = out + (x if self.convShortcut is None else self.convShortcut(active))
        return result


class WideResNet(nn.Module):
    """WRN-depth-widen.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016.

    Args:
        depth: 6n + 4.
        widen: k, the factor of width.
        num_classes: K.
        dropout: probability between a block's convolutions, in [0, 1).
    """

    block1: nn.Module
    block2: nn.Module
    block3: nn.Module

    def __init__(self, depth: int, widen: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        blocks = blocks_per_stage("wide ResNet", depth, 6, 4)
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        for number in range(3):
            first = WideBlock(widths[number], widths[number + 1], 1 if number == 0 else 2, dropout)
            rest = [WideBlock(widths[number + 1], widths[number + 1], 1, dropout) for _ in range(blocks - 1)]
            self.add_module(f"block{number + 1}", nn.Sequential(first, *rest))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        initialize(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(F.relu(self.bn1(x))), 1))
        return logits


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3; its output is concatenated behind its input."""

    def __init__(self, inplanes: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inplanes, H, W) to (N, inplanes + growth, H, W)."""
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(out)))], dim=1)


class Transition(nn.Module):
    """BN, ReLU, 1x1 to half the channels, 2x2 average."""

    def __init__(self, inplanes: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, inplanes // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inplanes, H, W) to (N, inplanes / 2, H/2, W/2)."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDenseNet(nn.Module):
    """DenseNet-BC-depth-growth.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017; bottlenecks 4k, compression 1/2.

    Args:
        depth: 6n + 4.
        growth: k, the number of channels that each layer adds.
        num_classes: K.
    """

    dense1: nn.Module
    trans1: nn.Module
    dense2: nn.Module
    trans2: nn.Module
    dense3: nn.Module

    def __init__(self, depth: int, growth: int, num_classes: int) -> None:
        super().__init__()
        blocks = blocks_per_stage("DenseNet-BC", depth, 6, 4)
        width = 2 * growth
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        for number in (1, 2, 3):
            layers = [DenseLayer(width + i * growth, growth) for i in range(blocks)]
            width += len(layers) * growth
            self.add_module(f"dense{number}", nn.Sequential(*layers))
            if number < 3:
                self.add_module(f"trans{number}", Transition(width))
                width //= 2
        self.bn = nn.BatchNorm2d(width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to logits (N, K)."""
        x = self.trans2(self.dense2(self.trans1(self.dense1(self.conv1(x)))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(F.relu(self.bn(self.dense3(x)))), 1))
        return logits


def resnet(depth: int, num_classes: int, **more: Any) -> CifarResNet:
    """Return ResNet of the true depth 6n + 2, of basic blocks."""
    return CifarResNet(BasicBlock, blocks_per_stage("ResNet", depth, 6, 2), num_classes, **more)


def bottleneck_resnet(depth: int, num_classes: int) -> CifarResNet:
    """Return what the released code calls a ResNet of this depth: bottlenecks, and 9n + 2 layers for n of 6n + 2."""
    return CifarResNet(Bottleneck, blocks_per_stage("ResNet", depth, 6, 2), num_classes)


def se_resnet(depth: int, num_classes: int) -> CifarResNet:
    """Return SE-ResNet of the true depth 6n + 2."""
    return CifarResNet(SEBasicBlock, blocks_per_stage("SE-ResNet", depth, 6, 2), num_classes)


def resnext(depth: int, groups: int, num_classes: int) -> CifarResNet:
    """Return ResNeXt-depth with ``groups`` groups of 64 channels."""
    return CifarResNet(Bottleneck, blocks_per_stage("ResNeXt", depth, 9, 2), num_classes, planes=64, groups=groups)
