"""A network that learns a batch at a time, with its optimiser and its average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xai_abn.datasets.batches import Batch
from xai_abn.errors import InvalidInputError
from xai_abn.networks.abn import ABNOutput
from xai_abn.training.losses import classification_losses, correct
from xai_abn.training.ranks import share_of_batch, synchronize_batch_norms
from xai_abn.training.settings import TrainingSettings
from xai_abn.training.state import optimiser_tensors, restore_optimiser

_Kinds = tuple[type[Exception], ...]
#: What timm's networks and batch normalisation raise.
_WRONG_SIZES: _Kinds = (AssertionError, ValueError)


class Learner:
    """All that a step changes.

    Args:
        network: a classifier or an ABN.
        config: see :class:`TrainingSettings`.
        accelerator: Accelerate's, which says where the network is to be and joins its ranks.

    Attributes:
        network: the network itself, on its device.
    """

    def __init__(self, network: nn.Module, config: TrainingSettings, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator
        self.device: torch.device = accelerator.device
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        if accelerator.num_processes > 1:
            self.network = synchronize_batch_norms(self.network)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            trained, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )
        average = None if config.ema is None else get_ema_multi_avg_fn(config.ema)
        self.average = None if average is None else AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self._wrapped = accelerator.prepare_model(self.network)

    @property
    def measured(self) -> nn.Module:
        """The network that is measured and saved: the average where there is one."""
        return self.network if self.average is None else self.average.module

    def train(self) -> None:
        """Put the network into training mode, which measuring it leaves."""
        self._wrapped.train()

    def step(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        """Learn from one batch at a learning rate; return the losses and what was right, as scalars.

        With several ranks, means over the ranks are those over all their pictures.

        Raises:
            InvalidInputError: the network does not take pictures of this size, or so few of them.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        answer = self._answer(self._wrapped, batch)
        losses = classification_losses(
            answer,
            batch.targets,
            attention_weight=self.config.attention_weight,
            area_weight=self.config.area_weight,
            label_smoothing=self.config.label_smoothing,
        )
        share = share_of_batch(len(batch.images), self.accelerator.num_processes, self.device)
        losses = {name: loss * share for name, loss in losses.items()}
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        logits = answer.logits if isinstance(answer, ABNOutput) else answer
        right = correct(logits.detach(), batch.targets).mean() * share
        return {**losses, "accuracy": right, "skipped": torch.tensor(float(batch.skipped), device=self.device)}

    def try_out(self, batch: Batch) -> None:
        """Answer a batch as in training, and forget it.

        Raises:
            InvalidInputError: as for :meth:`step`.
        """
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        self.network.train()
        with torch.no_grad():
            # sizes that become nothing, too little memory; of several ranks, it may be that another has stopped
            alone = (RuntimeError,) if self.accelerator.num_processes == 1 else ()
            self._answer(self.network, batch, (*_WRONG_SIZES, *alone))
            for buffer, value in before:
                buffer.copy_(value)

    def _answer(self, network: nn.Module, batch: Batch, errors: _Kinds = _WRONG_SIZES) -> Tensor | ABNOutput:
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
                result: Tensor | ABNOutput = network(batch.images)
                return result
        except errors as error:
            shape = "x".join(map(str, batch.images.shape))
            skipped = f" ({batch.skipped} more of it could not be read)" if batch.skipped else ""
            raise InvalidInputError(
                f"{self.config.arch} cannot learn from a batch of {shape}{skipped}: {error}"
            ) from error

    def is_finite(self) -> bool:
        """Return whether no weight is NaN or infinite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.network.parameters())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return everything that a step changes, by group and name."""
        groups = {"network": self.network.state_dict(), "optimiser": optimiser_tensors(self.optimiser)}
        return groups if self.average is None else {**groups, "average": self.average.state_dict()}

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back what :meth:`tensors` gave.

        Raises:
            IndexError, KeyError, RuntimeError, ValueError: they are of another network.
        """
        self.network.load_state_dict(dict(groups["network"]))
        restore_optimiser(self.optimiser, groups.get("optimiser", {}))
        if self.average is not None:
            self.average.load_state_dict(dict(groups["average"]))
