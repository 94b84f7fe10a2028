"""Train a classifier or an Attention Branch Network: one plain loop, on one device or many.

What a step does depends on the configuration, its epoch and its number alone: the order of the pictures, their crops
and flips, and dropout are drawn anew from these each time. So a run that is killed and resumed does what it would have
done, and two ranks do what one would.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import xai_abn
from xai_abn.data.training_data import Batch, Split, TrainingData
from xai_abn.errors import CheckpointError, DatasetError, InvalidInputError, NonFiniteError, OutputError
from xai_abn.files import replacing
from xai_abn.models.abn import ABNOutput
from xai_abn.models.checkpoint import load_weights, read_checkpoint, save_checkpoint
from xai_abn.training.attributes import attribute_accuracies, attribute_sums
from xai_abn.training.config import TrainConfig
from xai_abn.training.journal import Journal, draw_curves, draw_maps
from xai_abn.training.losses import classification_losses, correct, measured_sums
from xai_abn.training.networks import build_network, describe, read_pictures
from xai_abn.training.ranks import synchronised
from xai_abn.training.settings_file import SETTINGS_FILE, write_settings
from xai_abn.training.state import optimiser_tensors, read_state, restore_optimiser, save_state

STATE, BEST, FINAL, RESULT = "state.safetensors", "best.safetensors", "final.safetensors", "result.json"
#: Settings that may differ when a run is resumed: they change what is written, not the weights.
FREE = ("log_every", "maps_every", "save_minutes", "tensorboard", "workers")

#: Pixels at once when measuring: 64 pictures of 224x224, 500 of 32x32.
MEASURED_PIXELS = 3_300_000

#: Called with the steps done, all steps, and a few words.
Progress = Callable[[int, int, str], None]


@dataclass
class _Position:
    """Where a run is, and what it knows of the way there."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    log_length: int = 0


def train(
    config: TrainConfig,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data: TrainingData | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train a network, and test it once at the end.

    Args:
        config: see :class:`TrainConfig`.
        output: folder for ``config.yaml``, ``log.jsonl``, ``curves.png``, ``maps/``, ``result.json``,
            ``state.safetensors`` (to resume from), ``best.safetensors`` (best on validation) and
            ``final.safetensors`` (last epoch).
        resume: go on with the run in ``output``; on the CPU the weights become what they would have become without
            the interruption, bit for bit.
        overwrite: replace the run in ``output``.
        data: pictures, if they are not those that ``config.data`` names.
        progress: called now and then.
        command: for the record.

    Returns:
        What ``result.json`` holds: accuracies in [0, 1] on validation and test of the last epoch and of the epoch
        best on validation, and what the training took. Of attributes, accuracies are means over them, and
        ``attributes`` has each one's on the test split (else on validation) in the last epoch, beside ``majority``,
        that of the better of the two constant answers on the same pictures.

    Raises:
        InvalidInputError: a setting that does not fit the data or the ranks.
        DatasetError: damaged data.
        OutputError: a run is there already, or a file cannot be written; the last checkpoint stays.
        CheckpointError: the state to resume from is missing, damaged, or of another run.
        NonFiniteError: the loss is no longer finite; the message gives the step, the rate and the last checkpoint.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # without cpu=True several ranks on the CPU would not know of each other
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[parallel])
    folder = Path(output)
    data = (data or read_pictures(config)).held_out(config.validation)
    if accelerator.is_main_process:
        prepare_folder(folder, config, resume, overwrite, command)
    accelerator.wait_for_everyone()
    with torch.random.fork_rng():
        run = _Run(config, folder, data, accelerator, progress, command)
        if resume:
            run.restore()
        return run.to_the_end()


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        data: TrainingData,
        accelerator: Any,
        progress: Progress | None,
        command: str,
    ) -> None:
        self.config, self.folder, self.data, self.accelerator = config, folder, data, accelerator
        self.ranks, self.rank = accelerator.num_processes, accelerator.process_index
        self.device: torch.device = accelerator.device
        self.leads: bool = accelerator.is_main_process
        self.progress, self.command = progress or (lambda done, total, text: None), command
        self.steps = len(data.train) // config.batch_size
        if config.batch_size % self.ranks or not self.steps:
            raise InvalidInputError(
                f"a batch of {config.batch_size} does not fit {self.ranks} ranks and {len(data.train)} training "
                "pictures; it must be a multiple of the ranks and no larger than the data"
            )
        torch.manual_seed(config.seed)
        self.network = build_network(config, data).to(self.device).to(memory_format=torch.channels_last)
        if self.ranks > 1:
            self.network = synchronised(self.network, self.device)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.SGD(
            trained, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov
        )
        average = None if config.ema is None else get_ema_multi_avg_fn(config.ema)
        self.average = None if average is None else AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.wrapped = accelerator.prepare_model(self.network)
        self.at = _Position()

    @property
    def measured(self) -> nn.Module:
        """The network that is measured and saved: the average where there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def measured_at_once(self) -> int:
        """Pictures a batch when measuring."""
        return min(500, max(8, MEASURED_PIXELS // self.data.size**2))

    def restore(self) -> None:
        groups, record = read_state(self.folder / STATE)
        # a setting that the run's program did not have yet counts as its default
        before, now = {**_plain(TrainConfig("")), **record["config"]}, _plain(self.config)
        changed = [n for n in now if n not in FREE and before.get(n) != now[n]]
        if changed:
            told = ", ".join(f"{n} was {before.get(n)!r} and is {now[n]!r}" for n in changed)
            raise CheckpointError(f"{self.folder}: the run has other settings ({told}); resume it with its own")
        try:
            self.network.load_state_dict(groups["network"])
            restore_optimiser(self.optimiser, groups.get("optimiser", {}))
            if self.average is not None:
                self.average.load_state_dict(groups["average"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.folder / STATE}: does not fit {self.config.arch}: {error}") from error
        self.at = _Position(**record["position"])

    def to_the_end(self) -> dict[str, Any]:
        config = self.config
        self.journal = Journal(self.folder, self.at.log_length, self.leads, config.tensorboard)
        self.saved = time.monotonic()
        while self.at.epoch < config.epochs:
            started = time.monotonic()
            self.train_epoch()
            self.at.seconds += time.monotonic() - started
            self.end_epoch()
        self.journal.close()
        return self.finish()

    def train_epoch(self) -> None:
        config, at = self.config, self.at
        generator = torch.Generator().manual_seed(_seed(config.seed, at.epoch))
        order = torch.randperm(len(self.data.train), generator=generator)[: self.steps * config.batch_size]
        batches = [batch.chunk(self.ranks)[self.rank] for batch in order.split(config.batch_size)][at.step :]
        self.wrapped.train()
        pending: list[Tensor] = []
        names: list[str] = []
        for batch in self.data.train.load(batches, self.device, _seed(config.seed, at.epoch, "pictures")):
            rate = config.rate(at.epoch + at.step / self.steps)
            torch.manual_seed(_seed(config.seed, at.epoch, at.step, self.rank))
            values = self.step(batch, rate)
            names = list(values)
            pending.append(torch.stack([value.detach().float() for value in values.values()]))
            at.step += 1
            if at.step % config.log_every == 0 or at.step == self.steps:
                self.take(names, torch.stack(pending), rate)
                pending.clear()

    def step(self, batch: Batch, rate: float) -> dict[str, Tensor]:
        """Learn from one batch; return the losses and what was right."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            answer = self.wrapped(batch.images)
        losses = classification_losses(
            answer,
            batch.targets,
            attention_weight=self.config.attention_weight,
            area_weight=self.config.area_weight,
            label_smoothing=self.config.label_smoothing,
        )
        self.optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        logits = answer.logits if isinstance(answer, ABNOutput) else answer
        right = correct(logits.detach(), batch.targets).mean()
        return {**losses, "accuracy": right, "skipped": torch.tensor(float(batch.skipped), device=self.device)}

    def take(self, names: list[str], values: Tensor, rate: float) -> None:
        """Check and log what the last steps gave (steps, names); write a checkpoint if it is time."""
        at = self.at
        values = self.accelerator.reduce(values, reduction="mean").double().cpu()
        bad = (~values.isfinite()).any(dim=1).nonzero().flatten()
        number = at.epoch * self.steps + at.step
        if len(bad):
            step = number - len(values) + int(bad[0]) + 1
            self.stop(f"the loss became {values[bad[0]][0].item()} at step {step}", rate)
        if not all(bool(parameter.isfinite().all()) for parameter in self.network.parameters()):
            self.stop(f"the weights are no longer finite after step {number}", rate)
        for name, total in zip(names, values.sum(dim=0).tolist(), strict=True):
            at.sums[name] = at.sums.get(name, 0.0) + total
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        self.journal.write("step", number, {"epoch": at.epoch + 1, "lr": rate, **means})
        self.progress(number, self.config.epochs * self.steps, f"epoch {at.epoch + 1}, loss {means['loss']:.3f}")
        if at.step < self.steps and time.monotonic() - self.saved >= 60 * self.config.save_minutes:
            self.save()

    def stop(self, reason: str, rate: float) -> NoReturn:
        state = self.folder / STATE
        kept = f"the last good checkpoint is {state}" if state.exists() else "no checkpoint was written before"
        when = f"(epoch {self.at.epoch + 1}) with learning rate {rate:.4g}"
        raise NonFiniteError(f"{reason} {when}; {kept}; lower lr or give warmup epochs")

    def end_epoch(self) -> None:
        at, config = self.at, self.config
        skipped = at.sums.pop("skipped", 0.0) * self.ranks
        means = {name: total / self.steps for name, total in at.sums.items()}
        line = {"epoch": at.epoch + 1, "seconds": at.seconds, **means, "skipped": skipped}
        if self.data.validation is not None:
            line.update({f"validation_{k}": v for k, v in self.measure(self.data.validation).items()})
        self.journal.write("epoch", (at.epoch + 1) * self.steps, line)
        if line.get("validation_accuracy", 0.0) > at.best.get("validation_accuracy", -1.0):
            at.best = {k: v for k, v in line.items() if k == "epoch" or k.startswith("validation")}
            if self.data.validation is not None and self.leads:
                self.save_model(BEST, at.best)
        if self.leads and config.maps_every and (at.epoch + 1) % config.maps_every == 0:
            self.draw()
        at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
        self.save()

    def measure(self, split: Split) -> dict[str, float]:
        """Return accuracies and loss over what can be read of a split, of which each rank measures its share."""
        mine = torch.arange(len(split))[self.rank :: self.ranks]
        sums = measured_sums(self.measured, split, mine, self.device, self.measured_at_once)
        names = list(sums)
        totals = torch.tensor([sums[n] for n in names], dtype=torch.float64, device=self.device)
        totals = self.accelerator.reduce(totals, reduction="sum")
        found = dict(zip(names, totals.tolist(), strict=True))
        count, skipped = found.pop("count"), found.pop("skipped")
        if not count:
            raise DatasetError(f"none of {skipped:.0f} pictures to measure on can be read")
        means = {name: total / count for name, total in found.items()}
        return {**means, "skipped": skipped} if skipped else means

    def measure_attributes(self, split: Split) -> dict[str, dict[str, float]]:
        """Return what :func:`attribute_accuracies` does, of a split of which each rank measures its share."""
        mine = torch.arange(len(split))[self.rank :: self.ranks]
        batches, names = mine.split(self.measured_at_once), self.data.labels
        sums = attribute_sums(self.measured, split, batches, self.device, len(names))
        return attribute_accuracies(self.accelerator.reduce(sums, reduction="sum"), names)

    def draw(self) -> None:
        """Draw the maps of the first pictures of the validation split, or of the training split."""
        split = self.data.validation or self.data.train
        indices = torch.arange(min(16, len(split)))
        batch = next(iter(split.load([indices], self.device, None)))
        if not len(batch.images):
            return
        with torch.no_grad():
            answer = self.measured.eval()(batch.images)
        if isinstance(answer, ABNOutput):
            (self.folder / "maps").mkdir(exist_ok=True)
            path = self.folder / "maps" / f"epoch_{self.at.epoch + 1:03d}.png"
            draw_maps(batch.images, answer.attention_map, self.data.mean, self.data.std, path)

    def save(self) -> None:
        """Write everything that going on needs, at once."""
        self.saved = time.monotonic()
        if not self.leads:
            return
        self.at.log_length = self.journal.length
        groups = {"network": self.network.state_dict(), "optimiser": optimiser_tensors(self.optimiser)}
        if self.average is not None:
            groups["average"] = self.average.state_dict()
        save_state(self.folder / STATE, groups, {"config": _plain(self.config), "position": asdict(self.at)})

    def save_model(self, name: str, reached: dict[str, float]) -> None:
        """Write a checkpoint that :func:`xai_abn.load_model` reads."""
        description = describe(self.config, self.data, self.command, reached)
        save_checkpoint(self.folder / name, self.measured, description)

    def finish(self) -> dict[str, Any]:
        """Test the last epoch's network and the one best on validation, once."""
        config, data = self.config, self.data
        steps = self.steps * config.epochs
        parameters = sum(p.numel() for p in self.measured.parameters())
        rate = steps * config.batch_size / self.at.seconds
        result: dict[str, Any] = {
            "arch": config.arch,
            "mechanism": config.mechanism,
            "maps": config.maps,
            "seed": config.seed,
            "epochs": config.epochs,
            "parameters": parameters,
            "ranks": self.ranks,
            "device": str(self.device.type),
            "training_seconds": round(self.at.seconds, 1),
            "images_per_second": round(rate, 1),
            "final": {},
        }
        if data.validation is not None:
            result["final"] |= {f"validation_{k}": v for k, v in self.measure(data.validation).items()}
            result["best"] = dict(self.at.best)
        if data.test is not None:
            result["final"] |= {f"test_{k}": v for k, v in self.measure(data.test).items()}
        shown = data.test or data.validation
        if data.multi_label and shown is not None:
            result["attributes"] = self.measure_attributes(shown)
        if self.leads:
            self.save_model(FINAL, {"epoch": config.epochs, **result["final"]})
        if data.test is not None and data.validation is not None:
            self.accelerator.wait_for_everyone()
            _, weights = read_checkpoint(self.folder / BEST)
            load_weights(self.measured, weights, str(self.folder / BEST))
            result["best"] |= {f"test_{k}": v for k, v in self.measure(data.test).items()}
        if self.leads:
            draw_curves(self.journal.path, self.folder / "curves.png")
            with replacing(self.folder / RESULT, "result ") as draft:
                draft.write_text(json.dumps(result, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return result


def prepare_folder(folder: Path, config: TrainConfig, resume: bool, overwrite: bool, command: str) -> None:
    """Make the run's folder and write its configuration, or see that there is something to resume.

    Raises:
        OutputError: another run is there, or the folder cannot be made.
        CheckpointError: there is nothing to resume.
    """
    state = folder / STATE
    if resume:
        if not state.exists():
            raise CheckpointError(f"{folder}: no {STATE} to resume from; train without resume")
        return
    if (folder / SETTINGS_FILE).exists() and not overwrite:
        raise OutputError(f"{folder} holds a run already; resume it, overwrite it, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (STATE, BEST, FINAL, RESULT, "log.jsonl"):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    write_settings(
        folder / SETTINGS_FILE, asdict(config), {"commands": [command], "xai_abn_version": xai_abn.__version__}
    )


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration as JSON would give it back."""
    return json.loads(json.dumps(asdict(config)))


def _seed(*numbers: object) -> int:
    """Return a seed that depends on all of these."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1
