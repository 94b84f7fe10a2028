"""Tiny networks for volumes and clips, shared by the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d

import xai_abn

CLASSES = 4


class Net3d(nn.Module):
    """Convolutions with another stride in each axis, the mean, a linear head: as small ResNets of MONAI."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(channels, 8, 3, 2, 1),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.Conv3d(8, 12, 3, (1, 2, 2), 1),
            nn.BatchNorm3d(12),
            nn.ReLU(),
        )
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3, 4)))


class UNet3d(nn.Module):
    """Gives a map of class scores, as U-Nets of MONAI."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv3d(1, 8, 3, 2, 1), nn.Conv3d(8, 16, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose3d(16, 8, 2, 2), nn.Conv3d(16, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down(x).relu()
        return self.head(torch.cat([self.up(self.bottom(fine).relu()).relu(), fine], 1))


def swin3d() -> nn.Module:
    """A small Video Swin Transformer, whose features have their channels last."""
    return SwinTransformer3d([2, 4, 4], 12, [1, 1], [1, 1], [4, 4, 4], num_classes=CLASSES)


def mvit() -> nn.Module:
    """A small Multiscale Vision Transformer, which pools the patches from block to block."""
    kernels = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3]}
    blocks = [
        MSBlockConfig(1, 16, 32, **kernels, stride_q=[1, 1, 1], stride_kv=[1, 4, 4]),
        MSBlockConfig(2, 32, 32, **kernels, stride_q=[1, 2, 2], stride_kv=[1, 2, 2]),
        MSBlockConfig(2, 32, 32, **kernels, stride_q=[1, 1, 1], stride_kv=[1, 2, 2]),
    ]
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    return MViT((64, 64), 8, blocks, **options, num_classes=CLASSES)


def seeded_volumes(*shape: int) -> Tensor:
    """Seeded noise of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def net3d() -> xai_abn.ModelAdapter:
    """The small network, seeded, for volumes of 12x16x20."""
    torch.manual_seed(0)
    return xai_abn.wrap(Net3d().eval(), example_input=torch.zeros(1, 1, 12, 16, 20), name="net3d")
