"""EfficientNet-Lite0 without timm, whose import takes longer than the network's first prediction."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

#: Blocks, kernel, stride, expansion and channels of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's padding "SAME", which depends on the size of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        sides = zip(input.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        # at least 0, as no kernel here is smaller than its stride; without max(), so that exports take any size
        rows, columns = (((n + step - 1) // step - 1) * step + (k - 1) * d + 1 - n for n, k, step, d in sides)
        input = F.pad(input, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(input)


class BatchNormAct2d(nn.BatchNorm2d):
    """A batch normalization with the activation behind it."""

    def __init__(self, channels: int, activates: bool = True) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if activates else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        result: Tensor = self.act(super().forward(input))
        return result


class DepthwiseSeparable(nn.Module):
    """A convolution of each channel, then one of all channels at each position."""

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _convolution(channels, channels, kernel, groups=channels)
        self.bn1 = BatchNormAct2d(channels)
        self.conv_pw = _convolution(channels, out)
        self.bn2 = BatchNormAct2d(out, activates=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        result: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return result


class InvertedResidual(nn.Module):
    """A block that is wider inside than at its ends.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = channels * expansion
        self.has_skip = channels == out and stride == 1
        self.conv_pw = _convolution(channels, inside)
        self.bn1 = BatchNormAct2d(inside)
        self.conv_dw = _convolution(inside, inside, kernel, stride, groups=inside)
        self.bn2 = BatchNormAct2d(inside)
        self.conv_pwl = _convolution(inside, out)
        self.bn3 = BatchNormAct2d(out, activates=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H/stride, W/stride)."""
        result: Tensor = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))))
        return result + x if self.has_skip else result


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0, with the names of timm's ``tf_efficientnet_lite0``: (N, 3, H, W) to logits (N, K).

    Source: Tan and Le, "EfficientNet", ICML 2019, and the "lite" models of the TensorFlow repository, without
    squeeze-and-excitation and with ReLU6. It gives what timm's gives.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv_stem = _convolution(3, _STEM, 3, 2)
        self.bn1 = BatchNormAct2d(_STEM)
        stages, channels = [], _STEM
        for blocks, kernel, stride, expansion, out in _STAGES:
            stage: list[nn.Module] = []
            for number in range(blocks):
                if expansion == 1:
                    stage.append(DepthwiseSeparable(channels, out, kernel))
                else:
                    stage.append(InvertedResidual(channels, out, kernel, stride if number == 0 else 1, expansion))
                channels = out
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _convolution(channels, _HEAD)
        self.bn2 = BatchNormAct2d(_HEAD)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classifier = nn.Linear(_HEAD, num_classes)
        for module in self.modules():
            _initialize(module)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to logits (N, K)."""
        x = self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(x)))))
        result: Tensor = self.classifier(self.global_pool(x))
        return result


def _convolution(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(channels, out, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, groups=groups, bias=False)


def _initialize(module: nn.Module) -> None:
    """Draw the weights of a layer as timm does, who follows TensorFlow."""
    if isinstance(module, nn.Conv2d):
        reach = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, math.sqrt(2 / reach))
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
