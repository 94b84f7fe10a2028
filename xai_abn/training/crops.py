"""Objectives on random crops of images without labels: their batches, learning rates and models."""

from __future__ import annotations

import contextlib
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xai_abn.datasets.batches import Batch, ignore_signals, stack_readable
from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.models.zoo import load_checkpoint
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.checkpoint import CheckpointConfig, fingerprint, save_checkpoint
from xai_abn.seeding import mixed_seed
from xai_abn.training.loop import Objective
from xai_abn.training.settings import DistillationSettings
from xai_abn.training.state import Position

#: File of the model in the folder of a run.
MODEL = "model.safetensors"


@dataclass(frozen=True)
class Student:
    """A network to train on images without labels.

    Attributes:
        network: the ABN.
        teacher: features (N, C, h, w) to logits (N, K), the classifier's own part behind the split.
        description: its checkpoint's description, except the training record.
        earlier: records of its earlier training, the oldest first.
    """

    network: AttentionBranchNetwork
    teacher: nn.Module
    description: Mapping[str, Any]
    earlier: list[dict[str, Any]]


class InfiniteCrops(Dataset[Any]):
    """An endless sequence of crops: all images in a random order, then all in another, and so on.

    Each crop depends on the seed and its number alone, so a resumed run sees the crops it would have seen, with any
    number of workers.

    Args:
        images: gives crops, drawn with torch's random numbers.
        seed: seed of the orders and the crops.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images, self.seed = images, seed
        self.size = len(images)  # type: ignore[arg-type]
        self._pass, self._order = -1, torch.empty(0)

    def __getitem__(self, number: int) -> Any:
        """Return crop ``number``, counted from 0; torch's random state stays."""
        through, position = divmod(number, self.size)
        if through != self._pass:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, "order", through))
            self._pass, self._order = through, torch.randperm(self.size, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, "crop", number))
            return self.images[int(self._order[position])]


class CropsObjective(Objective):
    """Trains parts of a network on random crops; a subclass says with which losses.

    Args:
        network: the network; all its other parts stay as they are.
        images: gives (3, H, W) crops, or an ImageLoadError for an unreadable image.
        settings: see :class:`DistillationSettings`.
        parts: what is trained: pairs of a highest learning rate and modules.
        weight_decay: of all trained parameters.

    Attributes:
        what: what is trained, for the record in the checkpoint.
        unreadable: reasons for unreadable images so far, in order.

    Raises:
        InvalidInputError: there are fewer images than a batch holds.
    """

    kind, check_kind = "distill", "check"
    what: ClassVar[str]
    settings: DistillationSettings

    def __init__(
        self,
        network: AttentionBranchNetwork,
        images: Dataset[Any],
        settings: DistillationSettings,
        parts: Sequence[tuple[float, Sequence[nn.Module]]],
        weight_decay: float = 0.0,
    ) -> None:
        self.network, self.settings = network, settings
        self.crops = InfiniteCrops(images, settings.seed)
        if self.crops.size < settings.batch_size:
            raise InvalidInputError(
                f"a batch of {settings.batch_size} needs as many images to train on, got {self.crops.size}; lower "
                "batch_size"
            )
        self.device = next(network.parameters()).device
        self.epochs, self.steps_per_epoch, self.max_grad_norm = 1, settings.steps, settings.max_grad_norm
        self.unreadable: dict[str, None] = {}
        self.origin: Mapping[str, str] = {}
        self._kept: tuple[Student, Tensor, Path] | None = None
        groups = [(rate, [p for m in modules for p in m.parameters()]) for rate, modules in parts if rate > 0]
        groups = [(rate, parameters) for rate, parameters in groups if parameters]
        self._peak_rates = [rate for rate, _ in groups]
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for rate, parameters in groups], weight_decay=weight_decay
        )

    def keep(self, student: Student, names: Sequence[str], held_out: Tensor, folder: Path) -> None:
        """Measure and save the network at the start, every ``check_every`` steps and at the end.

        Args:
            student: what is known of the network.
            names: of the images, in order.
            held_out: (N, 3, H, W) inputs that are never trained on.
            folder: where the model is saved.
        """
        self._kept = student, held_out, folder / MODEL
        self.check_start, self.check_every = True, self.settings.check_every
        digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:32]
        self.origin = {"images": digest, "classifier": fingerprint(self.frozen())}

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Freeze everything that is not trained; afterwards flags are as before, and the network in evaluation mode."""
        network = self.network
        flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        network.eval().requires_grad_(False)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            network.eval()

    def batches(self, epoch: int, first: int, last: int | None = None) -> Iterator[Batch]:
        """Yield the batches of the steps; see :class:`Objective`.

        Raises:
            ImageLoadError: an image cannot be read and this stops the run, or no image of a batch can be read.
        """
        settings = self.settings
        steps = range(first, self.steps_per_epoch if last is None else last)
        loader = DataLoader(
            self.crops,
            batch_size=settings.batch_size,
            sampler=range(steps.start * settings.batch_size, steps.stop * settings.batch_size),
            num_workers=settings.workers,
            collate_fn=stack_readable,
            generator=torch.Generator().manual_seed(settings.seed),
            worker_init_fn=ignore_signals,
        )
        for images, unreadable in loader:
            self.unreadable |= dict.fromkeys(unreadable)
            if unreadable and settings.on_unreadable == "stop":
                raise ImageLoadError(unreadable[0])
            if not len(images):
                raise ImageLoadError(
                    f"none of the {len(unreadable)} images of a batch can be read; the first: {unreadable[0]}"
                )
            images = images.to(self.device, memory_format=torch.channels_last)
            yield Batch(images, torch.empty(0), len(unreadable))

    def rates(self, epoch: int, step: int) -> list[float]:
        """Return the learning rate of each parameter group."""
        return [rate * self.settings.rate(step) for rate in self._peak_rates]

    def check(self, position: Position, means: Mapping[str, float]) -> dict[str, Any]:
        """Measure and save the network, if it is kept."""
        if self._kept is None:
            return {}
        settings, (student, held_out, path) = self.settings, self._kept
        found = self.measure(held_out)
        record = {
            "method": f"{self.what} (xai_abn.training.run_distillation)",
            "teacher": settings.portable()["model"],
            "images": self.crops.size,
            "held_out": len(held_out),
            "settings": settings.portable(),
            "command": settings.command(),
            "earlier": student.earlier,
            "steps_done": position.step,
            "map_check": found,
        }
        description = CheckpointConfig(**student.description, training=record)
        save_checkpoint(path, self.network, description, half=settings.half)
        if position.step == 0:
            load_checkpoint(path)  # fails now rather than after hours
        return {**found, "skipped": int(means["skipped"]), "seconds": position.seconds}

    @abstractmethod
    def measure(self, held_out: Tensor) -> dict[str, Any]:
        """Return what a check finds on inputs (N, 3, H, W), with a ``"verdict"`` and a ``"warning"`` or None."""

    @abstractmethod
    def frozen(self) -> nn.Module:
        """Return what is not trained, which a resumed run must be resumed with."""

    @abstractmethod
    def trained(self) -> Mapping[str, Tensor]:
        """Return the tensors of the network that training can change."""

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return what :meth:`trained` does, as a group."""
        return {"network": self.trained()}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what :meth:`tensors` returned."""
        if tensors["network"].keys() != self.trained().keys():
            raise ValueError("its layers have other names")
        self.network.load_state_dict({**self.network.state_dict(), **tensors["network"]})
