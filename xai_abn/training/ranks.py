"""Several processes that train one network together."""

from __future__ import annotations

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from xai_abn.errors import UnsupportedModelError

#: Layers whose statistics can be those of all ranks.
_KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class GlobalBatchNorm(_BatchNorm):
    """A BatchNorm whose statistics in training are of all ranks' batches together, on any device.

    :class:`torch.nn.SyncBatchNorm` needs a GPU. Ranks may hold different numbers of pictures, as where one is skipped.

    Args:
        norm: the layer whose place it takes, of ``_KNOWN``; its parameters, its statistics and what timm does behind
            it are the very same.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...) as one rank would the batches of all ranks put together."""
        result: Tensor = self.act(self.drop(self._over_all(input) if self.training else super().forward(input)))
        return result

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""

    def _over_all(self, input: Tensor) -> Tensor:
        each = [0, *range(2, input.dim())]
        shape = (-1, *[1] * (input.dim() - 2))
        wide = input.float()
        own = wide.new_full((1,), wide.numel() / wide.shape[1])
        sums = all_reduce(torch.cat([wide.sum(dim=each), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        variance = all_reduce(centred.square().sum(dim=each)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        result: Tensor = out.to(input.dtype)
        return result

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with BatchNorms over all ranks' batches; names and values of its weights stay.

    Raises:
        UnsupportedModelError: it has a BatchNorm that does more than these.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in _KNOWN:
            raise UnsupportedModelError(
                f"{name} is a {type(module).__name__}, whose statistics cannot be joined over ranks; train on one"
            )
    if device.type == "cuda":
        result: nn.Module = convert_sync_batchnorm(network)
        return result
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, GlobalBatchNorm(child))
    return network


def share_of_batch(pictures: int, ranks: int, device: torch.device) -> Tensor:
    """Return by how much a rank's mean counts, a scalar, such that the mean over ranks is that over all pictures.

    Args:
        pictures: those of this rank's batch that could be read.
        ranks: how many there are; each must ask.
        device: where they train.
    """
    read = torch.tensor(float(pictures), device=device)
    if ranks > 1:
        torch.distributed.all_reduce(read)
    return pictures * ranks / read
