"""Batch normalization and means over several ranks, which are processes that train one network together."""

from __future__ import annotations

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from xai_abn.errors import UnsupportedModelError
from xai_abn.networks import efficientnet_lite

#: Layers whose statistics can be those of all ranks.
_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d, efficientnet_lite.BatchNormAct2d)


class GlobalBatchNorm(_BatchNorm):
    """A BatchNorm that in training takes its statistics over the batches of all ranks, on any device.

    :class:`torch.nn.SyncBatchNorm` needs a GPU. The ranks may hold different numbers of images, as some may be skipped.

    Args:
        norm: the layer to replace, of a type in ``_KNOWN``; its parameters, its statistics and timm's dropout and
            activation behind it are shared.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, ...) as one rank would normalize the concatenated batches of all ranks."""
        result: Tensor = self.act(
            self.drop(self._normalize_over_ranks(input) if self.training else super().forward(input))
        )
        return result

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""

    def _normalize_over_ranks(self, input: Tensor) -> Tensor:
        dims = [0, *range(2, input.dim())]
        shape = (-1, *[1] * (input.dim() - 2))
        values = input.float()
        own = values.new_full((1,), values.numel() / values.shape[1])
        sums = all_reduce(torch.cat([values.sum(dim=dims), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean.view(shape)
        variance = all_reduce(centered.square().sum(dim=dims)) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = out.to(input.dtype)
        return result

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronize_batch_norms(network: nn.Module) -> nn.Module:
    """Replace the BatchNorms of a network, in place, by ones over all ranks; names and values of its weights stay.

    Raises:
        UnsupportedModelError: it has a BatchNorm of an unknown type.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in _KNOWN:
            raise UnsupportedModelError(
                f"{name} is a {type(module).__name__}, whose statistics cannot be joined over ranks; train on one rank"
            )
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, GlobalBatchNorm(child))
    return network


def share_of_batch(images: int, ranks: int, device: torch.device) -> Tensor:
    """Return the weight of a rank's mean, a scalar, so that the mean over ranks is the mean over all images.

    Args:
        images: number of readable images in this rank's batch.
        ranks: number of ranks; each of them must call this.
        device: device of the ranks.
    """
    read = torch.tensor(float(images), device=device)
    if ranks > 1:
        torch.distributed.all_reduce(read)
    return images * ranks / read
