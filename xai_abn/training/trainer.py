"""Train a classifier or an Attention Branch Network: one plain loop, on one device or many.

What a step does depends on the configuration, its epoch and its number alone: the order of the pictures, their crops
and flips, and dropout are drawn anew from these each time. So a run that is killed and resumed does what it would have
done, and two ranks do what one would.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from xai_abn.datasets import TrainingData
from xai_abn.datasets.batches import Batch
from xai_abn.errors import CheckpointError, InvalidInputError, NonFiniteError, RunError
from xai_abn.files import replacing
from xai_abn.networks.abn import ABNOutput
from xai_abn.networks.checkpoint import load_weights, read_checkpoint, save_checkpoint
from xai_abn.seeding import mixed_seed
from xai_abn.training.folder import (
    BEST,
    CURVES,
    FINAL,
    MAPS,
    RESULT,
    STATE,
    begin,
    check_folder,
    go_on,
    refuse_other_settings,
)
from xai_abn.training.journal import Journal, draw_curves, draw_maps, event_writer
from xai_abn.training.learner import Learner
from xai_abn.training.measuring import Measurer
from xai_abn.training.networks import LeftOutWarning, build_network, describe, read_pictures
from xai_abn.training.settings import TrainingSettings
from xai_abn.training.state import read_state, save_state

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
    config: TrainingSettings,
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
        config: see :class:`TrainingSettings`.
        output: folder for ``config.yaml``, ``log.jsonl``, ``curves.png``, ``maps/``, ``result.json``,
            ``state.safetensors`` (to resume from), ``best.safetensors`` (best on validation) and
            ``final.safetensors`` (last epoch).
        resume: go on with the run in ``output``, from its start if nothing was saved yet; on the CPU the weights
            become what they would have become without the interruption, bit for bit.
        overwrite: replace the run in ``output``, once data and settings are found good.
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
        OutputError: a file cannot be written; the last checkpoint stays.
        RunError: a run is there already, or the one to resume is missing or has other settings or data.
        CheckpointError: the state to resume from is damaged or does not fit.
        NonFiniteError: the loss is no longer finite; the message gives the step, the rate and the last checkpoint.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # without cpu=True several ranks on the CPU would not know of each other
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[parallel])
    folder = Path(output)
    going_on = check_folder(folder, config, resume, overwrite)
    data = (data or read_pictures(config)).held_out(config.validation)
    own_gpu = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=own_gpu):
        torch.manual_seed(config.seed)
        # the state of a run holds what its file of weights once gave
        network = build_network(config.replace(weights=None) if going_on else config, data)
        run = _Run(config, folder, data, network, accelerator, progress, command)
        if going_on:
            run.restore()
        else:
            run.try_out()
        accelerator.wait_for_everyone()  # nothing is changed before each rank has found all of this good
        if accelerator.is_main_process:
            (go_on if going_on else begin)(folder, config, command)
        accelerator.wait_for_everyone()
        return run.to_the_end()


class _Run:
    def __init__(
        self,
        config: TrainingSettings,
        folder: Path,
        data: TrainingData,
        network: nn.Module,
        accelerator: Any,
        progress: Progress | None,
        command: str,
    ) -> None:
        self.config, self.folder, self.data, self.accelerator = config, folder, data, accelerator
        self.ranks, self.rank = accelerator.num_processes, accelerator.process_index
        self.leads: bool = accelerator.is_main_process
        self.progress, self.command = progress or (lambda done, total, text: None), command
        self.steps = len(data.train) // config.batch_size
        if config.batch_size % self.ranks or not self.steps:
            raise InvalidInputError(
                f"a batch of {config.batch_size} does not fit {self.ranks} ranks and {len(data.train)} training "
                "pictures; it must be a multiple of the ranks and no larger than the data"
            )
        left_out = len(data.train) % config.batch_size
        if self.leads and left_out > len(data.train) / 10:
            told = f"{left_out} of {len(data.train)} training pictures, others each time, are left out of an epoch"
            warnings.warn(LeftOutWarning(f"{told}: they fill no batch of {config.batch_size}"), stacklevel=3)
        if config.tensorboard:
            event_writer()  # found out now: is it installed?
        self.learner = Learner(network, config, accelerator)
        self.measurer = Measurer(data, accelerator)
        self.pictures = data.fingerprint()
        self.at = _Position()

    def restore(self) -> None:
        groups, record = read_state(self.folder / STATE)
        refuse_other_settings(record.get("config", {}), self.config, self.folder)
        if record.get("data", self.pictures) != self.pictures:  # states of earlier versions do not say
            raise RunError(
                f"{self.folder}: the data is not what the run began with: its pictures, their number or their "
                "classes differ; put them back, or start another folder"
            )
        try:
            self.learner.restore(groups)
            self.at = _Position(**record["position"])
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder / STATE}: does not fit {self.config.arch}: {error}") from error

    def try_out(self) -> None:
        """See whether the first batch can be read and learnt from, without learning."""
        self.learner.try_out(next(self.batches(last=1)))

    def to_the_end(self) -> dict[str, Any]:
        step = self.at.epoch * self.steps + self.at.step
        self.journal = Journal(self.folder, self.at.log_length, self.leads, self.config.tensorboard, step)
        self.clock = time.monotonic()
        self.save()
        while self.at.epoch < self.config.epochs:
            self.train_epoch()
            self.end_epoch()
        self.journal.close()
        return self.finish()

    def train_epoch(self) -> None:
        config, at = self.config, self.at
        self.learner.train()
        pending: list[dict[str, Tensor]] = []
        for batch in self.batches():
            torch.manual_seed(mixed_seed(config.seed, at.epoch, at.step, self.rank))
            values = self.learner.step(batch, self.rate(at.step))
            pending.append({name: value.detach().float() for name, value in values.items()})
            at.step += 1
            if at.step % config.log_every == 0 or at.step == self.steps:
                self.take(pending)
                pending.clear()

    def batches(self, last: int | None = None) -> Iterator[Batch]:
        """Yield this rank's part of the epoch's batches from here on, at most up to batch ``last``."""
        config, at = self.config, self.at
        generator = torch.Generator().manual_seed(mixed_seed(config.seed, at.epoch))
        order = torch.randperm(len(self.data.train), generator=generator)[: self.steps * config.batch_size]
        mine = [batch.chunk(self.ranks)[self.rank] for batch in order.split(config.batch_size)][at.step : last]
        yield from self.data.train.load(mine, self.learner.device, mixed_seed(config.seed, at.epoch, "pictures"))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step of this epoch, counted from 0."""
        return self.config.rate(self.at.epoch + step / self.steps)

    def take(self, pending: list[dict[str, Tensor]]) -> None:
        """Check and log what the last steps gave; write a checkpoint if it is time."""
        at = self.at
        stacked = torch.stack([torch.stack(list(values.values())) for values in pending])
        stacked = self.accelerator.reduce(stacked, reduction="mean").cpu().double()
        bad = (~stacked.isfinite()).any(dim=1).nonzero().flatten()
        number = at.epoch * self.steps + at.step
        if len(bad):
            first = int(bad[0])
            ago = len(stacked) - first
            self.stop(f"the loss became {stacked[first][0].item()} at step {number - ago + 1}", at.step - ago)
        if not self.learner.is_finite():
            self.stop(f"the weights are no longer finite after step {number}", at.step - 1)
        for name, total in zip(pending[0], stacked.sum(dim=0).tolist(), strict=True):
            at.sums[name] = at.sums.get(name, 0.0) + total
        means = dict(zip(pending[0], stacked.mean(dim=0).tolist(), strict=True))
        means["skipped"] *= len(stacked) * self.ranks
        self.journal.write("step", number, {"epoch": at.epoch + 1, "lr": self.rate(at.step - 1), **means})
        self.progress(number, self.config.epochs * self.steps, f"epoch {at.epoch + 1}, loss {means['loss']:.3f}")
        if at.step < self.steps and time.monotonic() - self.saved >= 60 * self.config.save_minutes:
            self.save()

    def stop(self, reason: str, step: int) -> NoReturn:
        when = f"(epoch {self.at.epoch + 1}) with learning rate {self.rate(step):.4g}"
        kept = f"the last good checkpoint is {self.folder / STATE}"
        raise NonFiniteError(f"{reason} {when}; {kept}; lower lr or give warmup epochs")

    def end_epoch(self) -> None:
        at, validation = self.at, self.data.validation
        self.take_time()
        skipped = at.sums.pop("skipped", 0.0) * self.ranks
        means = {name: total / self.steps for name, total in at.sums.items()}
        line = {"epoch": at.epoch + 1, "seconds": at.seconds, **means, "skipped": skipped}
        if validation is not None:
            found = self.measurer.accuracies(self.learner.measured, validation)
            line |= {f"validation_{name}": value for name, value in found.items()}
        self.journal.write("epoch", (at.epoch + 1) * self.steps, line)
        if validation is not None and _rank(line) > _rank(at.best):
            at.best = {k: v for k, v in line.items() if k == "epoch" or k.startswith("validation")}
            self.save_model(BEST, at.best)
        every = self.config.maps_every
        if self.leads and every and ((at.epoch + 1) % every == 0 or at.epoch + 1 == self.config.epochs):
            self.draw()
        at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
        self.clock = time.monotonic()  # measuring is no training
        self.save()

    def take_time(self) -> None:
        """Count the time since this was last asked as training."""
        now = time.monotonic()
        self.at.seconds, self.clock = self.at.seconds + now - self.clock, now

    def draw(self) -> None:
        """Draw the maps of 16 pictures spread over the validation split, or over the training split."""
        split = self.data.validation or self.data.train
        indices = torch.linspace(0, len(split) - 1, min(16, len(split))).long()
        batch = next(iter(split.load([indices], self.learner.device, None)))
        if not len(batch.images):
            return
        with torch.no_grad():
            answer = self.learner.measured.eval()(batch.images)
        if isinstance(answer, ABNOutput):
            (self.folder / MAPS).mkdir(exist_ok=True)
            path = self.folder / MAPS / f"epoch_{self.at.epoch + 1:03d}.png"
            draw_maps(batch.images, answer.attention_map, self.data.preprocess, path, self.data.labels)

    def save(self) -> None:
        """Write everything that going on needs, at once."""
        self.take_time()
        self.saved = self.clock
        if self.leads:
            self.at.log_length = self.journal.length
            record = {"config": self.config.to_dict(), "data": self.pictures, "position": asdict(self.at)}
            save_state(self.folder / STATE, self.learner.tensors(), record)

    def save_model(self, name: str, reached: dict[str, float]) -> None:
        """Write a checkpoint that :func:`xai_abn.load_model` reads."""
        if self.leads:
            description = describe(self.config, self.data, self.learner.measured, self.command, reached)
            save_checkpoint(self.folder / name, self.learner.measured, description)

    def finish(self) -> dict[str, Any]:
        """Test the last epoch's network and the one best on validation, once."""
        network, measurer, data = self.learner.measured, self.measurer, self.data
        result = self.facts()
        self.save_model(FINAL, {"epoch": self.config.epochs})  # whatever comes of the tests
        if self.leads:
            draw_curves(self.journal.path, self.folder / CURVES)
        splits = {"validation": data.validation, "test": data.test}
        for name, split in splits.items():
            if split is not None:
                result["final"] |= {f"{name}_{k}": v for k, v in measurer.accuracies(network, split).items()}
        shown = data.test or data.validation
        if data.multi_label and shown is not None:
            result["attributes"] = measurer.attributes(network, shown)
        self.save_model(FINAL, {"epoch": self.config.epochs, **result["final"]})
        if data.validation is not None:
            result["best"] = dict(self.at.best)
        if data.validation is not None and data.test is not None:
            self.load_best(network)
            result["best"] |= {f"test_{k}": v for k, v in measurer.accuracies(network, data.test).items()}
        if self.leads:
            with replacing(self.folder / RESULT, "result ") as draft:
                draft.write_text(json.dumps(result, indent=1) + "\n")
        self.accelerator.wait_for_everyone()
        return result

    def load_best(self, network: nn.Module) -> None:
        """Give every rank's network the weights best on validation; rank 0 alone need see the folder."""
        from accelerate.utils import broadcast

        if self.leads:
            _, weights = read_checkpoint(self.folder / BEST)
            load_weights(network, weights, str(self.folder / BEST))
        for value in network.state_dict().values():
            broadcast(value)

    def facts(self) -> dict[str, Any]:
        """Return what was trained and what it took."""
        config = self.config
        names = ("arch", "mechanism", "maps", "seed", "epochs")
        return {
            **{name: getattr(config, name) for name in names},
            "parameters": sum(p.numel() for p in self.learner.measured.parameters()),
            "ranks": self.ranks,
            "device": self.learner.device.type,
            "training_seconds": round(self.at.seconds, 1),
            "images_per_second": round(self.steps * config.epochs * config.batch_size / self.at.seconds, 1),
            "final": {},
        }


def _rank(line: Mapping[str, float]) -> tuple[float, float]:
    """Return what is larger the better an epoch is on validation: by its accuracy, then by its loss."""
    return line.get("validation_accuracy", -1.0), -line.get("validation_loss", 0.0)
