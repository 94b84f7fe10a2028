"""A model's logits from the quickest backend that agrees with the network."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import UnsupportedModelError, shown
from xai_abn.models.adapter import KEPT, ModelAdapter
from xai_abn.models.backends import BACKENDS, Backend, Call, backend_called

#: A backend may change a probability by this much, and a score by this share of the largest.
BOUND, BOUND_OF_SCORES = 1e-5, 1e-4
#: Trials of backends take at most this share of the time that a run's predictions take without them.
SHARE = 0.2
#: Share of the time that a backend must save, and rounds in which two are timed.
_SAVES, _ROUNDS = 0.05, 3


@dataclass(frozen=True)
class Trial:
    """What was measured of a backend.

    Attributes:
        backend: its name.
        milliseconds: that it takes for an image, in batches of the run.
        before: milliseconds that the one in use took.
        difference: the largest of probabilities from the network's, or of scores as a share of the largest.
        taken: whether it was taken.
    """

    backend: str
    milliseconds: float
    before: float
    difference: float
    taken: bool


class Predictor:
    """Logits of a model from the quickest backend that agrees with the network.

    It starts on the network itself, so a few predictions cost no more than these. Backends are tried, on inputs of the
    run, as soon as trying one takes at most ``SHARE`` of the time that predictions took and, by what callers
    :meth:`expect`, will take. Each must give the network's probabilities to ``BOUND`` and its scores to
    ``BOUND_OF_SCORES``, and is taken if it is quicker at the batch size of the run.

    Args:
        model: the model; it is not changed.
        bf16: compute in bfloat16, which changes values beyond rounding. A folded copy then stands for the network.
        backend: the name of the only backend to use; default: that of the model, or the quickest.

    Attributes:
        precision: ``"float32"`` or ``"bfloat16"``.
        backend: the name of the backend in use.
        images: how many were predicted.
        trials: what was measured.
        notes: what to tell the user.
        probabilities: converts logits (N, K) to the model's probabilities.

    Raises:
        UnknownNameError: there is no such backend.
        InvalidInputError: the backend named cannot run here.
        UnsupportedModelError: a backend or bfloat16 is asked for, of a black box.
    """

    def __init__(self, model: ModelAdapter, *, bf16: bool = False, backend: str | None = None) -> None:
        backend = backend or model.backend
        if model.black_box and (bf16 or backend):
            raise UnsupportedModelError(
                f"{model.name} is an ONNX file, which computes as it was written; leave "
                f"{'bf16' if bf16 else 'backend'} out"
            )
        self._model, self._bf16, self.device = model, bf16, model.device
        self.precision, self.probabilities = "bfloat16" if bf16 else "float32", model.probabilities
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self.images = 0
        first = BACKENDS["folded" if bf16 else "network"]
        self.backend = first.name
        self._first, self._fixed = first, backend is not None
        self._waiting = self._candidates(backend)
        self._base: Call | None = None  # made when the first inputs are known
        self._taken: Call | None = None
        self._shape: torch.Size | None = None  # of inputs, if the backend taken takes no others
        self._coming, self._calls, self._best = 0, 0, math.inf
        self._predicting, self._trying, self._planned = 0.0, 0.0, 0.0  # seconds
        self._lock = threading.Lock()

    def expect(self, images: int) -> None:
        """Note that so many images will follow."""
        self._coming += images

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits (N, K) float32 of inputs (N, C, H, W) or (N, C, D, H, W), on the device of the inputs."""
        self._coming = max(0, self._coming - len(inputs))
        self.images += len(inputs)
        with torch.no_grad():
            base = self._base or self._started(inputs)
            if self._shape not in (None, inputs.shape[1:]):
                return base(inputs)
            if not self._waiting and not self._compares:
                return (self._taken or base)(inputs)
            with self._lock:
                return self._choosing(self._taken or base, inputs)

    def __str__(self) -> str:
        """Return the choice with its reason on one line."""
        taken = [trial for trial in self.trials if trial.taken]
        if not taken:
            return f"{self.backend}, {self.precision}"
        return (
            f"{self.backend}, {self.precision}: {taken[-1].milliseconds:.1f} ms an image, {taken[0].before:.1f} "
            f"with {self._first.name}; largest difference {max(trial.difference for trial in taken):.1g}"
        )

    def record(self) -> dict[str, Any] | None:
        """Return what a run notes of its predictions, or None if there were none."""
        if not self.images:
            return None
        trials = [asdict(trial) for trial in self.trials]
        return {"choice": str(self), "images": self.images, "trials": trials, "notes": self.notes}

    def _candidates(self, backend: str | None) -> list[Backend]:
        """Return what may be tried, the quickest to build first."""
        kind = self.device.type
        if backend is not None:
            chosen = [backend_called(backend, kind, self._bf16)]
        elif self._model.black_box or self._model.needs_gradients:
            chosen = []
        else:
            chosen = [b for b in BACKENDS.values() if not b.missing(kind) and (b.bf16 or not self._bf16)]
        return [candidate for candidate in chosen if candidate is not self._first]

    def _started(self, inputs: Tensor) -> Call:
        with self._lock:
            self._base = self._base or self._first.build(self._model, self._bf16, inputs)
            return self._base

    @property
    def _compares(self) -> bool:
        """Whether bfloat16 is still to be compared with float32."""
        return self._bf16 and self._calls < _ROUNDS

    def _choosing(self, call: Call, inputs: Tensor) -> Tensor:
        """Return the logits, and try what is worth it."""
        started = perf_counter()
        found = call(inputs)
        self._wait()
        took = perf_counter() - started
        self._predicting, self._calls = self._predicting + took, self._calls + 1
        self._best = min(self._best, took / len(inputs))
        if self._bf16 and self._calls == _ROUNDS:
            self._compare_precisions(call, inputs)
        while self._waiting and (self._fixed or self._is_worth(self._waiting[0], len(inputs))):
            started, backend = perf_counter(), self._waiting.pop(0)
            self._planned += self._cost(backend, len(inputs))
            call = self._tried(backend, call, inputs, found)
            self._trying += perf_counter() - started
        self._taken = call
        return call(inputs) if self._fixed else found

    def _is_worth(self, backend: Backend, images: int) -> bool:
        work = self._predicting + self._coming * self._best
        slower = max(1.0, self._trying / self._planned) if self._planned else 1.0  # than the machine of the table
        return self._calls > 1 and self._trying + slower * self._cost(backend, images) <= SHARE * work

    def _cost(self, backend: Backend, images: int) -> float:
        """Return the seconds that trying a backend should take."""
        return backend.seconds + 2 * _ROUNDS * images * self._best

    def _tried(self, backend: Backend, current: Call, inputs: Tensor, expected: Tensor) -> Call:
        """Build a backend and compare it with the network. Return the call of the quicker of it and the current."""
        try:
            call = backend.build(self._model, self._bf16, inputs)
            difference, agrees = self.agreement(call(inputs), expected)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # converters raise errors of many kinds
            reason = shown((str(error).strip() or type(error).__name__).splitlines()[0], 150)
            return self._refused(f"{backend.name} does not run {self._model.name}: {reason}", current)
        if not agrees:
            return self._refused(
                f"{backend.name} gives other values than {self._model.name}, by {difference:.1g}", current
            )
        before, after = self._timed(inputs, current, call)
        taken = self._fixed or after < (1 - _SAVES) * before
        ms = 1000 / len(inputs)
        self.trials.append(Trial(backend.name, after * ms, before * ms, difference, taken))
        if not taken:
            return current
        self.backend, self._best = backend.name, after / len(inputs)
        self._shape = None if backend.any_size else inputs.shape[1:]
        return call

    def _refused(self, reason: str, current: Call) -> Call:
        if self._fixed:
            raise UnsupportedModelError(f"{reason}; choose another backend, or leave it out")
        self.notes.append(reason)
        return current

    def agreement(self, found: Tensor, expected: Tensor) -> tuple[float, bool]:
        """Return how far logits (N, K) are from others, see :attr:`Trial.difference`, and whether that is allowed."""
        finite = expected.isfinite()
        if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
            return math.inf, False
        largest = max(float(expected[finite].abs().max()), 1e-30) if bool(finite.any()) else 1.0
        of_scores = float((found - expected)[finite].abs().max()) / largest if bool(finite.any()) else 0.0
        if not self._model.has_probabilities:
            return of_scores, of_scores <= BOUND_OF_SCORES
        gap = float((self.probabilities(found) - self.probabilities(expected)).abs().max())
        return gap, gap <= BOUND and of_scores <= BOUND_OF_SCORES

    def _timed(self, inputs: Tensor, *calls: Call) -> Sequence[float]:
        """Return the median seconds of calls, which take turns."""
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(1 if self._fixed else _ROUNDS):
            for call, found in zip(calls, times, strict=True):
                self._wait()
                started = perf_counter()
                call(inputs)
                self._wait()
                found.append(perf_counter() - started)
        return [statistics.median(found) for found in times]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _compare_precisions(self, half: Call, inputs: Tensor) -> None:
        """Note how much slower bfloat16 is, if it is slower."""
        single = BACKENDS["folded"].build(self._model, False, inputs)
        single(inputs)
        with_half, with_single = self._timed(inputs, half, single)
        if with_half > with_single:
            ms = 1000 / len(inputs)
            self.notes.append(
                f"bfloat16 takes {with_half / with_single:.1f} times as long as float32 on this machine "
                f"({with_half * ms:.1f} against {with_single * ms:.1f} ms an image); leave bf16 out"
            )


def predictor_of(model: ModelAdapter, inputs: Tensor, logits: Tensor) -> Predictor:
    """Return the predictor of a model: the one made before, if the network is still the same.

    Args:
        model: the model, which keeps it.
        inputs: (N, C, H, W), on which a kept predictor must give what the network gives.
        logits: (N, K), what the network gives.
    """
    state = _state_of(model.module)
    held = vars(model).get(KEPT)
    if held is not None and held[0] == state:
        kept: Predictor = held[1]
        if kept.backend == "network" or kept.agreement(kept(inputs[:1]), logits[:1].float())[1]:
            return kept
    made = Predictor(model)
    vars(model)[KEPT] = state, made
    return made


def kept_predictor(model: ModelAdapter) -> Predictor | None:
    """Return the predictor that explanations of a model made, if any asked for predictions."""
    held = vars(model).get(KEPT)
    return None if held is None else held[1]


def _state_of(module: nn.Module) -> tuple[object, ...]:
    """Return what changes when the weights of a network are moved, replaced or changed in place."""
    tensors = (*module.parameters(), *module.buffers())
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
