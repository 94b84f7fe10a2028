"""The loop that trains: steps, log, checks and states, the same for every objective.

A step depends on the settings, its epoch and its number alone: the order of the images, crops, flips and dropout are
drawn for each step from seeds of its own. So a run that was killed and resumed makes the weights that it would have
made, and two ranks do what one does.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xai_abn.datasets.batches import Batch
from xai_abn.errors import CheckpointError, NonFiniteError, RunError
from xai_abn.models.folding import check_bfloat16
from xai_abn.seeding import mixed_seed
from xai_abn.signals import Received
from xai_abn.training.log import RunLog
from xai_abn.training.run_folder import RunFolder
from xai_abn.training.settings import RunSettings
from xai_abn.training.state import Position, State, optimizer_tensors, read_state, restore_optimizer, save_state

#: Called with the steps done, all steps, and a short text.
Progress = Callable[[int, int, str], None]
#: What a changed fingerprint in ``Objective.origin`` means.
_CHANGES = {
    "data": "other data: its images, their number or their classes differ",
    "images": "other images: their names or their number differ",
    "classifier": "another classifier: its weights differ",
    "corrections": "other corrections: their images, marks or classes differ",
}


class Objective(ABC):
    """What a run trains: parameters, batches, loss, and what is checked and saved.

    Attributes:
        settings: settings of the run.
        device: device of the network.
        optimizer: optimizer of the trained parameters.
        epochs: number of epochs.
        steps_per_epoch: steps in each.
        check_every: steps of an epoch between two checks; 0 for none. The end of an epoch is checked, too.
        check_start: whether the untrained network is checked.
        log_every: steps between two lines in the log.
        save_minutes: minutes between two saves of the state besides those at checks.
        max_grad_norm: gradients are clipped to this norm.
        origin: fingerprints of what a resumed run must be resumed with.
    """

    #: Kind of run, kind of log line that a check gives, and what to do if the loss is no longer finite.
    kind: ClassVar[str]
    check_kind: ClassVar[str]
    advice: ClassVar[str]

    settings: RunSettings
    device: torch.device
    optimizer: torch.optim.Optimizer
    epochs: int
    steps_per_epoch: int
    check_every: int = 0
    check_start: bool = False
    log_every: int = 1
    save_minutes: float = math.inf
    max_grad_norm: float = math.inf
    origin: Mapping[str, str]

    @abstractmethod
    def training(self) -> AbstractContextManager[None]:
        """Return a context in which the network is prepared to be trained."""

    @abstractmethod
    def batches(self, epoch: int, first: int, last: int | None = None) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, from step ``first`` up to before step ``last``."""

    @abstractmethod
    def rates(self, epoch: int, step: int) -> list[float]:
        """Return the learning rate of each parameter group of the optimizer in a step."""

    @abstractmethod
    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return scalars to log; ``"loss"`` is minimized. Means over the ranks are means over all images."""

    @abstractmethod
    def check(self, position: Position, means: Mapping[str, float]) -> dict[str, Any]:
        """Evaluate the network, save its model, and return the line for the log.

        Args:
            position: where the run is; its ``best`` may be updated.
            means: means of the logged values over the steps of the epoch so far.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the tensors that training changes, by group, except those of the optimizer."""

    @abstractmethod
    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what :meth:`tensors` returned."""

    def origin_v1(self) -> Mapping[str, set[str]]:
        """Return what states of version 1 may hold in place of :attr:`origin`, where that differs."""
        return {}

    def after_step(self) -> None:  # noqa: B027 (optional)
        """Update what follows the weights, such as their average."""


class TrainingLoop:
    """A run of an objective.

    Args:
        objective: what is trained.
        accelerator: Accelerate's, which joins the ranks.
        folder: folder of the run; None to save nothing.
        progress: called whenever something is logged.
        on_step: called with each line of kind ``"step"``.

    Attributes:
        position: where the run is.
    """

    def __init__(
        self,
        objective: Objective,
        accelerator: Any,
        folder: RunFolder | None = None,
        progress: Progress | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.objective, self.accelerator, self.folder = objective, accelerator, folder
        self.progress, self.on_step = progress, on_step
        self.position = Position()
        self.log: RunLog | None = None
        self._clock = self._saved = self._logged = time.monotonic()
        if objective.settings.bf16:
            check_bfloat16(objective.device)

    @property
    def step(self) -> int:
        """Complete steps of all epochs."""
        return self.position.epoch * self.objective.steps_per_epoch + self.position.step

    def restore(self) -> None:
        """Go to the saved state.

        Raises:
            CheckpointError: the state is damaged or does not fit the network.
            RunError: the state belongs to other settings, data or another classifier.
        """
        objective, folder = self.objective, self.folder
        assert folder is not None
        state = read_state(folder.state)
        if state.kind != objective.kind:
            raise RunError(f"{folder.state} was written by xai-abn {state.kind}; resume it with that command")
        if state.settings is not None:
            folder.refuse_changes(state.settings, objective.settings)
        earlier = objective.origin_v1() if state.version == 1 else {}
        for name, value in objective.origin.items():
            if state.origin.get(name, value) not in earlier.get(name, {value}):
                raise RunError(f"{folder.path}: the run was made with {_CHANGES[name]}; restore it, or start a new run")
        try:
            objective.load(state.tensors)
            restore_optimizer(objective.optimizer, state.tensors.get("optimizer", {}))
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{folder.state} does not fit the network: {error}") from error
        saved = type(objective.settings)(**(state.settings or folder.read_settings()[0]))
        steps = objective.steps_per_epoch
        objective.settings.check_resumed(saved, state.position.epoch * steps + state.position.step, steps)
        self.position = state.position

    def run(self) -> None:
        """Train from the current position to the end.

        Raises:
            NonFiniteError: the loss or the weights are no longer finite; the last saved state stays.
            OutputError: a file cannot be written; the last saved state stays.
        """
        objective, at = self.objective, self.position
        if self.folder is not None:
            board = bool(getattr(objective.settings, "tensorboard", False))
            writes = self.accelerator.is_main_process
            self.log = RunLog(self.folder.log, at.log_length, self.step, writes=writes, tensorboard=board)
        gpus = [objective.device] if objective.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus), objective.training(), _SignalsHeldBack(self._can_stop()) as signals:
            self._clock = self._logged = time.monotonic()
            self._save()
            if self.step == 0 and objective.check_start:
                self._check()
            while at.epoch < objective.epochs:
                self._train_epoch(signals)
                at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
                self._save()
                self._end_if_asked(signals)
        if self.log is not None:
            self.log.close()

    def _can_stop(self) -> bool:
        """Return whether a signal may end the run after any step; several ranks would stop at different steps."""
        return self.folder is not None and self.accelerator.num_processes == 1

    def _train_epoch(self, signals: _SignalsHeldBack) -> None:
        objective, at = self.objective, self.position
        pending: list[dict[str, Tensor]] = []
        for batch in objective.batches(at.epoch, at.step):
            values = self.train_step(batch)
            skipped = torch.tensor(float(batch.skipped), device=objective.device)
            pending.append({**{name: value.detach().float() for name, value in values.items()}, "skipped": skipped})
            at.step += 1
            ends = at.step == objective.steps_per_epoch
            check = objective.check_every > 0 and (ends or at.step % objective.check_every == 0)
            if check or ends or signals.received or at.step % objective.log_every == 0:
                self._log_steps(pending)
                pending.clear()
                if check:
                    self._check()
                if ends:
                    break
                if check or signals.received or time.monotonic() - self._saved >= 60 * objective.save_minutes:
                    self._save()
                self._end_if_asked(signals)

    def _end_if_asked(self, signals: _SignalsHeldBack) -> None:
        """Do what a signal asks for, if there was one; the state is saved."""
        if signals.received and self.folder is not None:
            command = self.folder.resume_command(self.objective.settings.verb)
            signals.act(f"the state after step {self.step} is saved; continue with {command}")

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights once; return the losses and what else is logged."""
        objective, at = self.objective, self.position
        settings, optimizer = objective.settings, objective.optimizer
        torch.manual_seed(mixed_seed(settings.seed, at.epoch, at.step, self.accelerator.process_index))
        rates = objective.rates(at.epoch, at.step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        with torch.autocast(objective.device.type, torch.bfloat16, enabled=settings.bf16):
            values = objective.losses(batch, at.step)
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(values["loss"])
        if objective.max_grad_norm < math.inf:
            nn.utils.clip_grad_norm_(self._parameters(), objective.max_grad_norm)
        optimizer.step()
        objective.after_step()
        return values

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.objective.optimizer.param_groups for parameter in group["params"]]

    def _log_steps(self, pending: list[dict[str, Tensor]]) -> None:
        """Check and log the values of the last steps."""
        objective, at = self.objective, self.position
        stacked = torch.stack([torch.stack(list(values.values())) for values in pending])
        if self.accelerator.num_processes > 1:
            stacked = self.accelerator.reduce(stacked, reduction="mean")
        stacked = stacked.cpu().double()
        bad = (~stacked.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            ago = len(stacked) - bad[0]
            self._stop(f"the loss became {stacked[bad[0]][0].item()} at step {self.step - ago + 1}", at.step - ago)
        if not all(bool(parameter.isfinite().all()) for parameter in self._parameters()):
            self._stop(f"the weights are no longer finite after step {self.step}", at.step - 1)
        names = list(pending[0])
        for name, total in zip(names, stacked.sum(dim=0).tolist(), strict=True):
            at.sums[name] = at.sums.get(name, 0.0) + total
        means = dict(zip(names, stacked.mean(dim=0).tolist(), strict=True))
        means["skipped"] *= len(stacked) * self.accelerator.num_processes
        now = time.monotonic()
        speed = len(stacked) * objective.settings.batch_size / max(now - self._logged, 1e-9)
        self._logged = now
        rate = max(group["lr"] for group in objective.optimizer.param_groups)
        line = {"lr": rate, **means, "images_per_second": speed}
        if self.log is not None:
            self.log.write("step", self.step, line)
        if self.on_step is not None:
            self.on_step({"step": self.step, **line})
        if self.progress is not None:
            total = objective.epochs * objective.steps_per_epoch
            epoch = f"epoch {at.epoch + 1}, " if objective.epochs > 1 else ""
            self.progress(self.step, total, f"{epoch}loss {means['loss']:.3f}")

    def _stop(self, problem: str, step: int) -> None:
        at = self.position
        rate = max(self.objective.rates(at.epoch, step))
        saved = f"the last good state is {self.folder.state}; " if self.folder is not None else ""
        raise NonFiniteError(
            f"{problem} (epoch {at.epoch + 1}) with learning rate {rate:.4g}; {saved}{self.objective.advice}"
        )

    def _check(self) -> None:
        """Check the network, which is no training time, and log what was found."""
        at = self.position
        self._count_time()
        skipped = at.sums.get("skipped", 0.0) * self.accelerator.num_processes
        means = {name: total / at.step for name, total in at.sums.items() if name != "skipped"}
        line = self.objective.check(at, {**means, "skipped": skipped})
        if self.log is not None:
            self.log.write(self.objective.check_kind, self.step, line)
        self._clock = self._logged = time.monotonic()

    def _count_time(self) -> None:
        """Add the time since the last call to the training time."""
        now = time.monotonic()
        self.position.seconds, self._clock = self.position.seconds + now - self._clock, now

    def _save(self) -> None:
        """Save the state."""
        self._count_time()
        self._saved = self._clock
        if self.folder is None or self.log is None or not self.accelerator.is_main_process:
            return
        objective = self.objective
        self.position.log_length = self.log.length
        tensors = {**objective.tensors(), "optimizer": optimizer_tensors(objective.optimizer)}
        settings = objective.settings.to_dict()
        save_state(self.folder.state, State(objective.kind, tensors, self.position, settings, objective.origin))


class _SignalsHeldBack:
    """Holds back the first SIGINT or SIGTERM in a block, so that the state can be saved.

    A later one acts at once, as does torch's error that a process which reads images was ended by the signal, too.

    Args:
        wanted: hold back at all; in a thread other than the main one, signals are left alone.

    Attributes:
        received: number of the signal, or 0.
    """

    def __init__(self, wanted: bool) -> None:
        self._got = Received()
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._handlers: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def received(self) -> int:
        """Number of the signal, or 0."""
        return self._got.number

    def __enter__(self) -> _SignalsHeldBack:
        if self._wanted:
            self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._give_back()
        if self.received and kind is RuntimeError:
            self.act("")

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, _frame: object) -> None:
        if os.getpid() != self._process:  # it was started to read images, and ends with the run
            return
        first = not self.received
        if self._got.counts(number) and not first:
            self.act("")

    def act(self, advice: str) -> None:
        """Do what the signal does outside the block; a ``KeyboardInterrupt`` gets the advice."""
        self._give_back()
        try:
            signal.raise_signal(self.received)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(advice) from stop
