"""Turn a pretrained classifier into an Attention Branch Network with photos and no labels.

The classifier teaches a copy of itself. The teacher sees whole features; the student's perception
branch sees features weighted by the attention map, and an area penalty makes the map as small as
it can be while the answer stays: the map keeps what the answer needs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xai_abn.errors import CheckpointError, ImageLoadError, NonFiniteError, UnsupportedModelError
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.multi_task import MultiTaskABN
from xai_abn.networks.vit_abn import OnPatches
from xai_abn.training.distillation.draws import batches, mosaic_generator
from xai_abn.training.distillation.losses import losses
from xai_abn.training.distillation.settings import DistillationSettings
from xai_abn.training.state import optimiser_tensors, restore_optimiser


def distill(
    network: AttentionBranchNetwork,
    photos: Dataset[Any],
    config: DistillationSettings = DistillationSettings(),
    log: Callable[[dict[str, float]], None] | None = None,
    teacher: nn.Module | None = None,
) -> AttentionBranchNetwork:
    """Train an ABN, in place, to answer as its own backbone does and to show where it looks.

    The loss is ``KL(teacher || attention branch) + KL(teacher || perception branch) +
    area_weight * mean(M) + sufficiency_weight * KL(teacher || teacher's answer to g*M) +
    necessity_weight * overlap(teacher, teacher's answer to g(1 - M))``.
    The feature extractor stays frozen, as do all BatchNorm statistics but the map's own.

    Args:
        network: fresh from :func:`xai_abn.abn_from`, or a distilled one with its ``teacher``.
        photos: gives (3, H, W) crops, or an ImageLoadError for a photo that cannot be read, such as
            :class:`xai_abn.datasets.batches.RandomCrops`.
        config: see :class:`DistillationSettings`.
        log: called after each step with the step, the losses, the mean of M and photos per second.
        teacher: features (N, C, h, w) to logits (N, K), the backbone's own part behind the split;
            default: the perception branch as it is now, which is right for a fresh network only.

    Returns:
        The same network, in evaluation mode, with every parameter's ``requires_grad`` as it was.

    Raises:
        NonFiniteError: the loss or its gradient is no longer finite; the message says at which step.
        InvalidInputError: fewer photos than a batch holds.
        ImageLoadError: no photo of a batch can be read, or one cannot and ``on_unreadable`` is ``"stop"``.
        UnsupportedModelError: the network is made of a Vision Transformer, or has a map for each attribute.
    """
    Distillation(network, config, teacher).run(photos, log)
    return network


class Distillation:
    """A distillation that can be interrupted and continued; arguments as for :func:`distill`.

    Attributes:
        done: steps taken so far.
        skipped: how many times a photo could not be read so far.
        unreadable: why, of each such photo since this object was made.
    """

    def __init__(
        self,
        network: AttentionBranchNetwork,
        config: DistillationSettings = DistillationSettings(),
        teacher: nn.Module | None = None,
    ) -> None:
        if isinstance(network, MultiTaskABN):
            raise UnsupportedModelError("distill teaches one map for all classes; train a multi-task ABN with labels")
        if isinstance(network.mechanism, OnPatches):
            raise UnsupportedModelError(
                "distill weighs whole feature maps, and in a Vision Transformer the class token would still tell what "
                "g*M hides; train its ABN with labels, as docs/guide.md shows"
            )
        teacher = network.perception_branch if teacher is None else teacher
        self.network = network
        self.config = config
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.done = 0
        self.skipped = 0
        self.unreadable: dict[str, None] = {}
        groups = [(list(p), lr) for p, lr in _groups(network, config) if lr > 0]
        self._rates = [lr for _, lr in groups]
        self._trained = [p for parameters, _ in groups for p in parameters]
        self._optimiser = torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups], weight_decay=0.0)

    def run(
        self, photos: Dataset[Any], log: Callable[[dict[str, float]], None] | None = None, until: int | None = None
    ) -> None:
        """Take the steps that remain, or those until step ``until`` of the schedule; see :func:`distill`."""
        config = self.config
        config.check_number(len(photos))  # type: ignore[arg-type]
        device = next(self.network.parameters()).device
        first, started = self.done, time.monotonic()
        steps = range(first, min(until or config.steps, config.steps))
        data = batches(photos, steps, batch_size=config.batch_size, seed=config.seed, workers=config.workers)
        with self._prepared():
            for step, (images, unreadable) in zip(steps, data, strict=True):
                self._count(unreadable, len(images))
                values = self._step(step, images.to(device, memory_format=torch.channels_last))
                self.done = step + 1
                if log is not None:
                    speed = (self.done - first) * config.batch_size / (time.monotonic() - started)
                    log({"step": self.done, **values, "skipped": self.skipped, "photos_per_second": speed})

    def _count(self, unreadable: list[str], readable: int) -> None:
        self.skipped += len(unreadable)
        self.unreadable |= dict.fromkeys(unreadable)
        if unreadable and self.config.on_unreadable == "stop":
            raise ImageLoadError(unreadable[0])
        if not readable:
            raise ImageLoadError(
                f"none of the {len(unreadable)} photos of a batch can be read; the first: {unreadable[0]}"
            )

    def _step(self, step: int, images: Tensor) -> dict[str, float]:
        config = self.config
        rates = [lr * _rate(step, config) for lr in self._rates]
        for group, lr in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = lr
        with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
            terms = losses(self.network, self.teacher, images, config, mosaic_generator(config.seed, step))
        self._optimiser.zero_grad(set_to_none=True)
        norm = torch.ones(())
        if torch.isfinite(terms["loss"]):
            terms["loss"].backward()
            norm = nn.utils.clip_grad_norm_(self._trained, config.max_grad_norm)
        if not (torch.isfinite(terms["loss"]) and torch.isfinite(norm)):
            what = f"loss became {terms['loss'].item()}" if torch.isfinite(norm) else f"gradient became {norm.item()}"
            raise NonFiniteError(
                f"the {what} at step {step + 1} with a learning rate of {max(rates, default=0.0):.2g}; "
                f"lower lr (now {config.lr}) or map_lr (now {config.map_lr})"
            )
        self._optimiser.step()
        return {name: value.item() for name, value in terms.items()}

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """Freeze all but what is trained, and put the flags back afterwards, also after an error."""
        network = self.network
        flags = [(p, p.requires_grad) for p in network.parameters()]
        network.eval().requires_grad_(False)
        for parameter in self._trained:
            parameter.requires_grad_(True)
        network.attention_branch.bn_att3.train(self.config.map_lr > 0)
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            network.eval()

    def state(self) -> dict[str, Tensor]:
        """Return all that :meth:`restore` needs: the weights that may have changed and the optimiser's averages."""
        weights = self.network.state_dict().items()
        tensors = {f"network.{n}": t for n, t in weights if not n.startswith("feature_extractor.")}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_tensors(self._optimiser).items()}
        tensors |= {"done": torch.tensor(self.done), "skipped": torch.tensor(self.skipped)}
        return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state of a distillation of the same network with the same configuration.

        Raises:
            CheckpointError: the state is of another network or configuration.
        """
        try:
            own = self.network.state_dict()
            new = {n: state.get(f"network.{n}", t) for n, t in own.items()}
            averages = {n.removeprefix("optimiser."): t for n, t in state.items() if n.startswith("optimiser.")}
            self.network.load_state_dict(new)
            restore_optimiser(self._optimiser, averages)
            self.done, self.skipped = int(state["done"]), int(state["skipped"])
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the saved state does not fit this distillation ({error})") from error


def _groups(
    network: AttentionBranchNetwork, config: DistillationSettings
) -> list[tuple[Iterable[nn.Parameter], float]]:
    """Return what is trained and how fast: the attention branch, the perception branch, the map head."""
    branch = network.attention_branch
    trunk = [branch.bn_att, branch.att_conv, branch.bn_att2, branch.att_conv2]
    trunk += [branch.stage] if config.train_stage else []
    parts = [
        (trunk, config.lr),
        ([network.perception_branch, network.mechanism], config.perception_lr),
        ([branch.att_conv3, branch.bn_att3], config.map_lr),
    ]
    groups = [([p for module in modules for p in module.parameters()], lr) for modules, lr in parts]
    return [(parameters, lr) for parameters, lr in groups if parameters]


def _rate(step: int, config: DistillationSettings) -> float:
    """Return the share of the peak learning rate at a step counted from 0."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, config.steps - warm)
    return 0.5 * (1 + math.cos(progress * math.pi))
