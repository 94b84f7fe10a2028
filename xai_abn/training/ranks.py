"""Several processes that train one network together."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose statistics in training are of all ranks' batches together, on any device.

    :class:`torch.nn.SyncBatchNorm` needs a GPU. Ranks may hold different numbers of pictures, as where one is skipped.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) as one rank would the batches of all ranks put together."""
        if not self.training:
            return super().forward(input)
        wide = input.float()
        own = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = all_reduce(torch.cat([wide.sum(dim=(0, 2, 3)), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with BatchNorms over all ranks' batches; names and values of its weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                module.add_module(name, _global(child))
    return network


def _global(norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    made = GlobalBatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    made.load_state_dict(norm.state_dict())
    return made.train(norm.training)
