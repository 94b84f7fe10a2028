"""Turn a pretrained classifier into an Attention Branch Network with photos and no labels.

The classifier teaches a copy of itself. The teacher sees whole features; the student's perception
branch sees features weighted by the attention map, and an area penalty makes the map as small as
it can be while the answer stays: the map keeps what the answer needs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xai_abn.data.photos import stack_readable
from xai_abn.errors import NonFiniteError, UnsupportedModelError
from xai_abn.models.abn import AttentionBranchNetwork, Residual
from xai_abn.models.multi_task import MultiTaskABN
from xai_abn.models.vit_abn import OnPatches


@dataclass(frozen=True)
class DistillationConfig:
    """How to distil.

    Attributes:
        steps: optimiser steps.
        batch_size: photos a step.
        mosaics: extra inputs a step, each a 2x2 mosaic of four of the step's photos. The teacher's
            answer to one is the mean of its answers to the four, so the map must find all four.
        lr: peak learning rate of the attention branch; falls to 0 along a cosine.
        perception_lr: the same for the perception branch. Small: the photos show few of the classes
            it knows, and it forgets the others.
        map_lr: the same for the map head (``att_conv3``, ``bn_att3``).
        area_weight: weight of the area penalty, the mean of M.
        sufficiency_weight: weight of the sufficiency term: how far the teacher's answer moves when it
            sees only what the map keeps, g*M.
        necessity_weight: weight of the necessity term: how much of its answer the teacher still
            gives when it sees what the map hides, g(1 - M). In [0, 1].
        match_scale: with the residual mechanism, keep the features at the size the perception branch
            knows (:meth:`xai_abn.models.abn.Residual.match_scale`, a running mean).
        train_stage: train the attention branch's copy of the last stage, too.
        warmup: share of the steps over which the learning rates rise from 0.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the order of photos, the crops and the mosaics.
        workers: processes that read photos.
        bf16: run the networks under bfloat16 autocast.
    """

    steps: int = 1000
    batch_size: int = 32
    mosaics: int = 8
    lr: float = 1e-4
    perception_lr: float = 2e-5
    map_lr: float = 5e-3
    area_weight: float = 4.0
    sufficiency_weight: float = 1.0
    necessity_weight: float = 1.0
    match_scale: bool = True
    train_stage: bool = False
    warmup: float = 0.05
    max_grad_norm: float = 5.0
    seed: int = 0
    workers: int = 1
    bf16: bool = True


def distill(
    network: AttentionBranchNetwork,
    photos: Dataset,
    config: DistillationConfig = DistillationConfig(),
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
        photos: gives (3, H, W) crops or None, such as :class:`xai_abn.data.photos.PhotoFolder`.
        config: see :class:`DistillationConfig`.
        log: called after each step with the step, the losses, the mean of M and photos per second.
        teacher: features (N, C, h, w) to logits (N, K), the backbone's own part behind the split;
            default: the perception branch as it is now, which is right for a fresh network only.

    Returns:
        The same network, in evaluation mode, with every parameter's ``requires_grad`` as it was.

    Raises:
        NonFiniteError: the loss is no longer finite; the message says at which step.
        UnsupportedModelError: the network is made of a Vision Transformer, or has a map for each attribute.
    """
    if isinstance(network, MultiTaskABN):
        raise UnsupportedModelError("distill teaches one map for all classes; train a multi-task ABN with labels")
    if isinstance(network.mechanism, OnPatches):
        raise UnsupportedModelError(
            "distill weighs whole feature maps, and in a Vision Transformer the class token would still tell what g*M "
            "hides; train its ABN with labels, as docs/guide.md shows"
        )
    teacher = copy.deepcopy(network.perception_branch if teacher is None else teacher).eval().requires_grad_(False)
    with _prepared(network), torch.random.fork_rng(devices=[]):
        _train(network, teacher, photos, config, log)
    return network


@contextmanager
def _prepared(network: AttentionBranchNetwork) -> Iterator[None]:
    """Freeze everything in evaluation mode, and put the flags back afterwards, also after an error."""
    flags = [(p, p.requires_grad) for p in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        network.eval()


def _train(
    network: AttentionBranchNetwork,
    teacher: nn.Module,
    photos: Dataset,
    config: DistillationConfig,
    log: Callable[[dict[str, float]], None] | None,
) -> None:
    device = next(network.parameters()).device
    optimiser = _optimiser(network, config)
    network.attention_branch.bn_att3.train(config.map_lr > 0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, config))
    generator = torch.Generator().manual_seed(config.seed)
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    skipped, started = 0, time.monotonic()
    for step, (images, unreadable) in enumerate(_batches(photos, config), 1):
        skipped += unreadable
        images = images.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            losses = _losses(network, teacher, images, config, generator)
        loss = losses["loss"]
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss became {loss.item()} at step {step}; lower lr (now {config.lr}) or map_lr")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimiser.step()
        schedule.step()
        if log is not None:
            rate = step * config.batch_size / (time.monotonic() - started)
            values = {name: value.item() for name, value in losses.items()}
            log({"step": step, **values, "skipped": skipped, "photos_per_second": rate})


def _losses(
    network: AttentionBranchNetwork,
    teacher: nn.Module,
    images: Tensor,
    config: DistillationConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    with torch.no_grad():
        features = network.feature_extractor(images)
        wanted = teacher(features).float().softmax(dim=1)
        if config.mosaics:
            mosaics, members = make_mosaics(images, config.mosaics, generator)
            features = torch.cat([features, network.feature_extractor(mosaics)])
            wanted = torch.cat([wanted, wanted[members].mean(dim=1)])
    attention_logits, attention_map, _ = network.attention_branch(features)
    if config.match_scale and isinstance(network.mechanism, Residual):
        network.mechanism.match_scale(features, attention_map, momentum=0.1)
    logits = network.perception_branch(network.mechanism(features, attention_map))
    terms = {
        "attention": _divergence(wanted, attention_logits),
        "perception": _divergence(wanted, logits),
        "area": attention_map.float().mean(),
    }
    loss = terms["attention"] + terms["perception"] + config.area_weight * terms["area"]
    if config.sufficiency_weight:
        terms["sufficiency"] = _divergence(wanted, teacher(features * attention_map))
        loss = loss + config.sufficiency_weight * terms["sufficiency"]
    if config.necessity_weight:
        left = teacher(features * (1 - attention_map)).float().softmax(dim=1)
        terms["necessity"] = torch.minimum(wanted, left).sum(dim=1).mean()
        loss = loss + config.necessity_weight * terms["necessity"]
    return {"loss": loss, **terms}


def _divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    return F.kl_div(logits.float().log_softmax(dim=1), wanted, reduction="batchmean")


def make_mosaics(images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put photos together four at a time, each at half its size.

    Args:
        images: (N, C, H, W) with even H and W.
        count: how many mosaics.
        generator: draws the photos, without repeating one within a mosaic where N >= 4.

    Returns:
        Mosaics (count, C, H, W) and the positions (count, 4) of their photos: top left, top right,
        bottom left, bottom right.
    """
    number = len(images)
    draws = [torch.randperm(number, generator=generator) for _ in range(count)]
    members = torch.stack([d.repeat(4)[:4] for d in draws]).to(images.device)
    half = F.avg_pool2d(images, 2)
    tiles = half[members]
    rows = [torch.cat([tiles[:, i], tiles[:, i + 1]], dim=3) for i in (0, 2)]
    return torch.cat(rows, dim=2), members


def _optimiser(network: AttentionBranchNetwork, config: DistillationConfig) -> torch.optim.Optimizer:
    branch = network.attention_branch
    head = [*branch.att_conv3.parameters(), *branch.bn_att3.parameters()]
    rest = [*branch.bn_att.parameters(), *branch.att_conv.parameters(), *branch.bn_att2.parameters()]
    rest += list(branch.att_conv2.parameters())
    if config.train_stage:
        rest += list(branch.stage.parameters())
    perception = [*network.perception_branch.parameters(), *network.mechanism.parameters()]
    groups = [(rest, config.lr), (perception, config.perception_lr), (head, config.map_lr)]
    for parameters, lr in groups:
        for parameter in parameters:
            parameter.requires_grad_(lr > 0)
    return torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups if p and lr > 0], weight_decay=0.0)


def _rate(step: int, config: DistillationConfig) -> float:
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, config.steps - warm)
    return 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())


def _batches(photos: Dataset, config: DistillationConfig) -> Iterator[tuple[Tensor, int]]:
    """Yield ``config.steps`` batches, going through the photos as often as needed, reshuffled each time."""
    torch.manual_seed(config.seed)
    loader = DataLoader(
        photos,
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=len(photos) >= config.batch_size,  # type: ignore[arg-type]
        num_workers=config.workers,
        collate_fn=stack_readable,
        persistent_workers=config.workers > 0,
        generator=torch.Generator().manual_seed(config.seed),
    )
    done = 0
    while True:
        for batch in loader:
            yield batch
            done += 1
            if done == config.steps:
                return
