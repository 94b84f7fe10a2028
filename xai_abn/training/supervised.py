"""Training with labels: a classifier or an Attention Branch Network."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xai_abn.datasets import ReadOptions, TrainingData, read_training_data
from xai_abn.datasets.batches import Batch
from xai_abn.errors import CheckpointError, InvalidInputError, XaiAbnWarning
from xai_abn.files import replacing
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.zoo import load_checkpoint
from xai_abn.networks.abn import ABNOutput, AttentionBranchNetwork
from xai_abn.networks.architectures import abn_arguments, create_model, find_architecture
from xai_abn.networks.build import abn_from
from xai_abn.networks.checkpoint import CheckpointConfig, read_checkpoint, save_checkpoint
from xai_abn.networks.tracing import classifier_name
from xai_abn.networks.weights import load_weights, read_weights
from xai_abn.seeding import mixed_seed, seeded
from xai_abn.training.corrections import CorrectionObjective
from xai_abn.training.evaluate import evaluate
from xai_abn.training.figures import draw_curves, draw_maps
from xai_abn.training.log import summary_writer
from xai_abn.training.loop import Objective, Progress, TrainingLoop
from xai_abn.training.losses import classification_losses, correct
from xai_abn.training.ranks import share_of_batch, synchronize_batch_norms
from xai_abn.training.run_folder import LOG, RunFolder
from xai_abn.training.settings import PLAIN, TrainingSettings
from xai_abn.training.state import Position

BEST, FINAL, RESULT = "best.safetensors", "final.safetensors", "result.json"
_FIGURES = ("curves.png", "maps/epoch_*.png", "tensorboard/events.*")


class LeftOutWarning(XaiAbnWarning):
    """Given when a part of a weights file, or many of the training images, are not used."""


def train(
    settings: TrainingSettings,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data: TrainingData | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a network, and test it once at the end.

    Args:
        settings: see :class:`TrainingSettings`.
        output: folder for ``config.yaml``, ``log.jsonl``, ``curves.png``, ``maps/``, ``result.json``,
            ``state.safetensors`` (to resume from), ``best.safetensors`` (best on validation) and
            ``final.safetensors`` (last epoch).
        resume: continue the run in ``output``, from its start if nothing was saved yet. On the CPU the weights become
            what they would have become without the interruption, bit for bit.
        overwrite: replace the run in ``output``, once data and settings are checked.
        data: images, if they are not those that ``settings.data`` names.
        progress: called whenever something is logged.

    Returns:
        The content of ``result.json``: accuracies in [0, 1] on validation and test of the last epoch and of the epoch
        best on validation, and what the training took. For attributes, accuracies are means over them, and
        ``attributes`` has the accuracy of each on the test split (else on validation) in the last epoch, beside
        ``majority``, the accuracy of the better of the two constant predictions on the same images.

    Raises:
        InvalidInputError: a setting does not fit the data or the ranks.
        DatasetError: damaged data.
        OutputError: a file cannot be written; the last saved state stays.
        RunError: the folder already holds a run, or the one to resume is missing or has other settings or data.
        CheckpointError: the state to resume from is damaged or does not fit.
        NonFiniteError: the loss is no longer finite; the message gives the step, the learning rate and the last state.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # without cpu=True, ranks on the CPU would not find each other
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[parallel])
    folder = RunFolder(output, results=(BEST, FINAL, RESULT), figures=_FIGURES)
    resuming = folder.check(settings, resume=resume, overwrite=overwrite)
    start = None if settings.continue_from is None else read_start(settings.continue_from)
    data = (data or read_data(settings, start)).held_out(settings.validation)
    with seeded(settings.seed):
        # a state to resume from holds the weights
        network = build_network(settings.replace(weights=None) if resuming else settings, data, start)
        backbone = settings.arch if start is None else start.backbone
        objective = SupervisedObjective(settings, data, network, accelerator, folder.path, backbone)
        loop = TrainingLoop(objective, accelerator, folder, progress)
        if resuming:
            loop.restore()
        else:
            objective.try_first_batch()
        accelerator.wait_for_everyone()  # nothing changes before every rank has checked everything
        if accelerator.is_main_process:
            (folder.resume if resuming else folder.start)(settings)
        accelerator.wait_for_everyone()
        loop.run()
        return objective.finish(loop.position)


class Start(NamedTuple):
    """The network that a run starts from.

    Attributes:
        path: its checkpoint.
        backbone: the architecture of its classifier.
        model: the network.
    """

    path: Path
    backbone: str
    model: ModelAdapter


def read_start(place: str) -> Start:
    """Read the network of a checkpoint, or of the folder of a run: its best, else its last.

    Raises:
        CheckpointError: missing or damaged, or the folder holds no model.
    """
    path = Path(place)
    if path.is_dir():
        path = next((path / name for name in (BEST, FINAL) if (path / name).is_file()), path / BEST)
    if not path.exists():
        raise CheckpointError(f"{place}: there is no model; give a checkpoint, or the folder of a run that has one")
    config, _ = read_checkpoint(path)
    return Start(path, config.backbone, load_checkpoint(path))


def read_data(settings: TrainingSettings, start: Start | None = None) -> TrainingData:
    """Read the data, as the network that the run starts from sees it, or at the size of settings or architecture.

    Raises:
        UnknownNameError: unknown kind of data or architecture.
        DatasetError: missing or damaged data, or labels that do not fit.
        InvalidInputError: the data has a size of its own, and another is asked for.
    """
    size = settings.size or find_architecture(settings.arch).size
    options = {name: getattr(settings, name) for name in ("workers", "on_unreadable", "validation")}
    preprocess = None if start is None else start.model.preprocess
    data = read_training_data(settings.data, ReadOptions(size=size, **options), preprocess)
    own = data.preprocess.side
    if settings.size not in (None, own):
        raise InvalidInputError(f"size must be {own}, the size of {data.name}, or left out; got {settings.size}")
    return data


def build_network(settings: TrainingSettings, data: TrainingData, start: Start | None = None) -> nn.Module:
    """Build the network, with random weights, a backbone read from a file, or all of one that is trained further.

    A seed gives the backbone the same weights for every mechanism.

    Raises:
        UnknownNameError: unknown architecture or mechanism.
        CheckpointError: ``settings.weights`` cannot be read or do not fit.
        InvalidInputError: a map for each attribute is wanted, and the data has classes; a setting is for classes, and
            the data has attributes; or the network that the run starts from has other classes.
    """
    if data.multi_label and settings.label_smoothing:
        raise InvalidInputError(f"label_smoothing is for classes, and {data.name} has attributes; leave it out")
    if start is not None:
        return _continued(start, data).train()
    if settings.maps != "shared" and not data.multi_label:
        raise InvalidInputError(
            f"maps={settings.maps} needs data with several attributes for each image, and {data.name} has one class "
            "for each; train with maps=shared"
        )
    network = create_model(settings.arch, len(data.labels), mechanism=None)
    if settings.weights is not None:
        load_backbone(network, settings.weights)
    if settings.mechanism != PLAIN:
        arguments = {name: getattr(settings, name) for name in ("mechanism", "smoothing", "maps")}
        origin = "random" if settings.weights is None else "classifier"
        arguments = abn_arguments(settings.arch, start=origin, input_size=data.preprocess.side, **arguments)
        network = _without_unused(abn_from(network, **arguments))
    return network.train()


def _continued(start: Start, data: TrainingData) -> nn.Module:
    model = start.model
    kinds = {True: "attributes", False: "classes"}
    if model.multi_label != data.multi_label:
        raise InvalidInputError(
            f"{start.path} has {kinds[model.multi_label]} and {data.name} {kinds[data.multi_label]}; give data of the "
            "same kind"
        )
    if model.preprocess != data.preprocess:
        raise InvalidInputError(
            f"{start.path} expects other preprocessing than that of {data.name}; give data like that it was trained on"
        )
    if model.labels != data.labels:
        labels = model.labels or ()
        other = [label for label in data.labels if label not in labels] + [x for x in labels if x not in data.labels]
        differ = f"such as {other[0]!r}" if other else "in another order"
        raise InvalidInputError(
            f"{start.path} has {len(labels)} classes and {data.name} {len(data.labels)}, {differ}; give data of its "
            "own classes, or start from its backbone with weights"
        )
    return _without_unused(model.module)


def _without_unused(network: nn.Module) -> nn.Module:
    """Return a network whose parameters that get no gradient, which would stop several ranks, are not trained."""
    if isinstance(network, AttentionBranchNetwork) and not network.uses_map:
        for layer in network.attention_branch.map_layers:
            layer.requires_grad_(False)
    return network


def load_backbone(network: nn.Module, path: str) -> None:
    """Load weights into a classifier; a last layer with another number of classes is left out, with a warning.

    Raises:
        CheckpointError: anything else is missing or has another shape.
    """
    own = network.state_dict()
    given = read_weights(path, own)
    other = [name for name in given if name in own and own[name].shape != given[name].shape]
    if other:
        last = classifier_name(network)
        more = sorted({name.rpartition(".")[0] for name in other} - {last})
        if more:
            raise CheckpointError(f"{path}: more than the last layer has another shape: {', '.join(more[:4])}")
        warnings.warn(
            LeftOutWarning(f"{path}: the last layer, {last}, has {len(given[other[0]])} classes and is left out"),
            stacklevel=2,
        )
    load_weights(network, {**given, **{name: own[name] for name in other}}, path)


class SupervisedObjective(Objective):
    """Cross-entropy of both branches, on labeled images.

    Args:
        settings: see :class:`TrainingSettings`.
        data: labeled images.
        network: a classifier or an ABN.
        accelerator: Accelerate's, which gives the device and joins the ranks.
        folder: where checkpoints and figures are saved.
        backbone: the architecture of the classifier; default: that of the settings.

    Raises:
        InvalidInputError: the batch size does not fit the data or the ranks, or TensorBoard is not installed.
    """

    kind, check_kind, advice = "train", "epoch", "lower lr or set warmup"
    settings: TrainingSettings

    def __init__(
        self,
        settings: TrainingSettings,
        data: TrainingData,
        network: nn.Module,
        accelerator: Any,
        folder: Path,
        backbone: str | None = None,
    ) -> None:
        self.backbone = backbone or settings.arch
        self.settings, self.data, self.accelerator, self.folder = settings, data, accelerator, folder
        self.ranks: int = accelerator.num_processes
        self.device: torch.device = accelerator.device
        self.epochs, self.steps_per_epoch = settings.epochs, len(data.train) // settings.batch_size
        self.check_every = self.steps_per_epoch
        self.log_every, self.save_minutes = settings.log_every, settings.save_minutes
        self._check_batches()
        if settings.tensorboard:
            summary_writer()  # fails now rather than after the first epoch
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        if self.ranks > 1:
            self.network = synchronize_batch_norms(self.network)
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            settings.lr,
            settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        average = None if settings.ema is None else get_ema_multi_avg_fn(settings.ema)
        self.average = None if average is None else AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self._parallel: nn.Module = accelerator.prepare_model(self.network)
        self.corrections: CorrectionObjective | None = None
        if settings.corrections is not None:
            self.corrections = CorrectionObjective(settings, data, self.network, self.backbone, self.ranks)
        marks = "none" if self.corrections is None else self.corrections.images.fingerprint()
        self.origin = {"data": data.fingerprint(), "corrections": marks}

    def _check_batches(self) -> None:
        images, batch_size = len(self.data.train), self.settings.batch_size
        if batch_size % self.ranks or not self.steps_per_epoch:
            raise InvalidInputError(
                f"a batch of {batch_size} does not fit {self.ranks} ranks and {images} training images; it must be a "
                "multiple of the ranks and no larger than the data"
            )
        left_out = images % batch_size
        if self.accelerator.is_main_process and left_out > images / 10:
            warnings.warn(
                LeftOutWarning(
                    f"{left_out} of {images} training images do not fill a batch of {batch_size} and are skipped in "
                    "each epoch (different ones every time)"
                ),
                stacklevel=4,
            )

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the average of the weights if there is one."""
        return self.network if self.average is None else self.average.module

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Nothing is frozen that was not frozen when the network was built."""
        yield

    def batches(self, epoch: int, first: int, last: int | None = None) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch; see :class:`Objective`."""
        self._parallel.train()
        seed, batch_size = self.settings.seed, self.settings.batch_size
        generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
        order = torch.randperm(len(self.data.train), generator=generator)[: self.steps_per_epoch * batch_size]
        rank = self.accelerator.process_index
        parts = [batch.chunk(self.ranks)[rank] for batch in order.split(batch_size)][first:last]
        # this string is part of every seed of earlier versions
        batches = self.data.train.load(parts, self.device, mixed_seed(seed, epoch, "pictures"))
        for step, batch in enumerate(batches, epoch * self.steps_per_epoch + first):
            yield batch if self.corrections is None else self.corrections.join(batch, step, rank)

    def rates(self, epoch: int, step: int) -> list[float]:
        """Return the learning rate of a step."""
        return [self.settings.rate(epoch + step / self.steps_per_epoch)]

    def losses(self, batch: Batch, step: int = 0) -> dict[str, Tensor]:
        """Return loss, terms and accuracy of a batch; see :class:`Objective`.

        Raises:
            InvalidInputError: the network does not take images of this size, or so few of them.
        """
        settings = self.settings
        output = self._forward(self._parallel, batch)
        losses = classification_losses(
            output,
            batch.targets,
            attention_weight=settings.attention_weight,
            area_weight=settings.area_weight,
            label_smoothing=settings.label_smoothing,
        )
        logits = output.logits if isinstance(output, ABNOutput) else output
        losses["accuracy"] = correct(logits.detach(), batch.targets).mean()
        share = share_of_batch(len(batch.images), self.ranks, self.device)
        losses = {name: value * share for name, value in losses.items()}
        if self.corrections is None or batch.corrected is None:
            return losses
        correction = self.corrections.loss(batch.corrected)
        if correction is None:
            return losses
        return {**losses, "loss": losses["loss"] + self.corrections.weight * correction, "correction": correction}

    def _forward(
        self,
        network: nn.Module,
        batch: Batch,
        errors: tuple[type[Exception], ...] = (AssertionError, ValueError),  # raised by timm and by BatchNorm
    ) -> Tensor | ABNOutput:
        try:
            output: Tensor | ABNOutput = network(batch.images)
            return output
        except errors as error:
            shape = "x".join(map(str, batch.images.shape))
            skipped = f" ({batch.skipped} more could not be read)" if batch.skipped else ""
            raise InvalidInputError(
                f"{self.backbone} cannot be trained on a batch of {shape}{skipped}: {error}"
            ) from error

    def try_first_batch(self) -> None:
        """Run the network on the first batch as in training, and leave no trace.

        Raises:
            InvalidInputError: the network does not take images of this size, or so few of them.
            DatasetError: the batch cannot be read.
        """
        batch = next(self.batches(0, 0, 1))
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        # a RuntimeError is an empty feature map or too little memory; of several ranks, another may have failed
        alone = (RuntimeError,) if self.ranks == 1 else ()
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            self._forward(self.network, batch, (AssertionError, ValueError, *alone))
            for buffer, value in before:
                buffer.copy_(value)
        if self.corrections is not None and batch.corrected is not None:
            self.corrections.try_loss(batch.corrected)

    def after_step(self) -> None:
        """Update the average of the weights."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return weights and statistics, and their average."""
        groups: dict[str, Mapping[str, Tensor]] = {"network": self.network.state_dict()}
        return groups if self.average is None else {**groups, "average": self.average.state_dict()}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what :meth:`tensors` returned."""
        self.network.load_state_dict(dict(tensors["network"]))
        if self.average is not None:
            self.average.load_state_dict(dict(tensors["average"]))

    def check(self, position: Position, means: Mapping[str, float]) -> dict[str, Any]:
        """Evaluate on the validation split, save the network if it is the best so far, and draw maps."""
        epoch = position.epoch + 1
        line = {"epoch": epoch, "seconds": position.seconds, **means}
        if self.data.validation is not None:
            results, _ = evaluate(self.evaluated, self.data.validation, self.data.preprocess.side, self.accelerator)
            line |= {f"validation_{name}": value for name, value in results.items()}
            if validation_key(line) > validation_key(position.best):
                position.best = {k: v for k, v in line.items() if k == "epoch" or k.startswith("validation")}
                self.save(BEST, position.best)
        every = self.settings.maps_every
        if self.accelerator.is_main_process and every and (epoch % every == 0 or epoch == self.epochs):
            self._draw_maps(epoch)
        return line

    def _draw_maps(self, epoch: int) -> None:
        """Draw the maps of 16 images spread over the validation split, or over the training split."""
        name = "training" if self.data.validation is None else "validation"
        split = self.data.validation or self.data.train
        indices = torch.linspace(0, len(split) - 1, min(16, len(split))).long()
        batch = next(iter(split.load([indices], self.device, None)))
        if not len(batch.images):
            return
        with torch.no_grad():
            output = self.evaluated.eval()(batch.images)
        if isinstance(output, ABNOutput):
            (self.folder / "maps").mkdir(exist_ok=True)
            path = self.folder / "maps" / f"epoch_{epoch:03d}.png"
            draw_maps(
                batch.images,
                output.attention_map,
                self.data.preprocess,
                path,
                f"Epoch {epoch}: {len(batch.images)} {name} images and their attention maps",
                self._answers(output.logits, batch.targets),
                self.data.labels,
            )

    def _answers(self, logits: Tensor, targets: Tensor) -> list[tuple[str, bool]]:
        """Return, for each image, what the network predicts, or how many attributes are right; and if all is right."""
        if targets.dim() == 2:
            count = targets.shape[1]
            shares = correct(logits, targets).tolist()
            return [(f"{round(share * count)} of {count} right", share == 1) for share in shares]
        said, true = ([self.data.labels[i] for i in found.tolist()] for found in (logits.argmax(dim=1), targets))
        return [(a if a == b else f"{a}, not {b}", a == b) for a, b in zip(said, true, strict=True)]

    def save(self, name: str, reached: Mapping[str, float]) -> None:
        """Write a checkpoint that :func:`xai_abn.load_model` reads.

        Args:
            name: file name in the folder.
            reached: results of the network, for the record.
        """
        if not self.accelerator.is_main_process:
            return
        data, settings, network = self.data, self.settings, self.evaluated
        record = {"settings": settings.portable(), "command": settings.command(), "reached": dict(reached)}
        description = CheckpointConfig(
            backbone=self.backbone,
            classes=len(data.labels),
            abn=network.description if isinstance(network, AttentionBranchNetwork) else None,
            preprocess=data.preprocess,
            labels=list(data.labels),
            training={"data": data.name, **record},
            multi_label=data.multi_label,
        )
        save_checkpoint(self.folder / name, network, description)

    def finish(self, position: Position) -> dict[str, Any]:
        """Test the network of the last epoch and the one best on validation, once; return the result."""
        data, settings, network = self.data, self.settings, self.evaluated
        self.save(FINAL, {"epoch": settings.epochs})  # before evaluations, which may fail
        if self.accelerator.is_main_process:
            draw_curves(self.folder / LOG, self.folder / "curves.png")
        size = data.preprocess.side
        final: dict[str, float] = {}
        by_attribute: dict[str, dict[str, float]] = {}
        attributes = data.labels if data.multi_label else ()
        for name, split in (("validation", data.validation), ("test", data.test)):
            if split is not None:
                results, by_attribute = evaluate(network, split, size, self.accelerator, attributes)
                final |= {f"{name}_{key}": value for key, value in results.items()}
        self.save(FINAL, {"epoch": settings.epochs, **final})
        images = self.steps_per_epoch * settings.epochs * settings.batch_size
        result: dict[str, Any] = {
            **self._described(),
            **{name: getattr(settings, name) for name in ("seed", "epochs")},
            "parameters": sum(p.numel() for p in network.parameters()),
            "ranks": self.ranks,
            "device": self.device.type,
            "training_seconds": round(position.seconds, 1),
            "images_per_second": round(images / position.seconds, 1),
            "final": final,
        }
        if by_attribute:
            result["attributes"] = by_attribute
        if data.validation is not None:
            result["best"] = dict(position.best)
            if data.test is not None:
                self._load_best(network)
                results, _ = evaluate(network, data.test, size, self.accelerator)
                result["best"] |= {f"test_{key}": value for key, value in results.items()}
        if self.accelerator.is_main_process:
            with replacing(self.folder / RESULT, "result ") as draft:
                draft.write_text(json.dumps(result, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return result

    def _described(self) -> dict[str, str]:
        """Return what the network is, for the record."""
        network = self.evaluated
        abn = network.description if isinstance(network, AttentionBranchNetwork) else None
        mechanism, maps = (PLAIN, "shared") if abn is None else (abn.mechanism, abn.maps)
        return {"arch": self.backbone, "mechanism": mechanism, "maps": maps}

    def _load_best(self, network: nn.Module) -> None:
        """Load the weights best on validation on every rank; only rank 0 needs to see the folder."""
        from accelerate.utils import broadcast

        if self.accelerator.is_main_process:
            load_weights(network, read_checkpoint(self.folder / BEST)[1], str(self.folder / BEST))
        for value in network.state_dict().values():
            broadcast(value)


def validation_key(line: Mapping[str, float]) -> tuple[float, float]:
    """Return what is larger for the better epoch: accuracy on the validation split, then the negative loss."""
    return line.get("validation_accuracy", -1.0), -line.get("validation_loss", 0.0)
