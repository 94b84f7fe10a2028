"""What a distillation can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from xai_abn.errors import InvalidInputError


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
            knows (:meth:`xai_abn.networks.abn.Residual.match_scale`, a running mean).
        train_stage: train the attention branch's copy of the last stage, too.
        warmup: share of the steps over which the learning rates rise from 0.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the order of photos, the crops and the mosaics, each a function of the seed and the step alone.
        workers: processes that read photos; they change nothing but the speed.
        bf16: run the networks under bfloat16 autocast.
        on_unreadable: ``"skip"`` leaves photos that cannot be read out of their batch and counts them;
            ``"stop"`` stops at the first.

    Raises:
        InvalidInputError: a value is out of its range.
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
    on_unreadable: str = "skip"

    def __post_init__(self) -> None:
        """Check the values before any photo is read."""
        least = {"steps": 1, "batch_size": 1}
        for field in fields(DistillationConfig):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not least.get(field.name, 0) <= value < math.inf:
                raise InvalidInputError(f"{field.name} must be at least {least.get(field.name, 0)}, got {value}")
        if self.warmup > 1 or self.max_grad_norm == 0:
            raise InvalidInputError(
                f"need warmup in [0, 1] and max_grad_norm above 0, got {self.warmup} and {self.max_grad_norm}"
            )
        if not (self.lr or self.perception_lr or self.map_lr):
            raise InvalidInputError("lr, perception_lr and map_lr are all 0, so nothing would be trained")
        if self.on_unreadable not in ("skip", "stop"):
            raise InvalidInputError(f"on_unreadable must be skip or stop, got {self.on_unreadable!r}")

    def check_number(self, photos: int) -> None:
        """Refuse fewer photos than a batch holds.

        Raises:
            InvalidInputError: there are fewer.
        """
        if photos < self.batch_size:
            raise InvalidInputError(
                f"a batch of {self.batch_size} needs as many photos to train on, got {photos}; lower batch_size"
            )
