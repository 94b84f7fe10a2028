"""Sheets of the maps of fixed images, drawn while a network is trained and sent to the loggers of its trainer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnsupportedModelError, XaiAbnError, XaiAbnWarning
from xai_abn.explainers import Explainer, make_explainers
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.pipeline import explain_images, listed_images, targets_per_image
from xai_abn.rendering import sheet
from xai_abn.seeding import seeded

#: Sends an image to a logger: with its tag, such as ``"maps/grad-cam"``, and the number of the training step.
Send: TypeAlias = Callable[[str, Image.Image, int], object]


def base_class(modules: Sequence[str], name: str, extra: str) -> Any:
    """Return a class below those of this name in all modules that are installed: a trainer accepts only its own.

    Raises:
        InvalidInputError: none is installed; the message says how to install one.
    """
    found = []
    for module in modules:
        try:
            found.append(getattr(import_module(module), name))
        except ModuleNotFoundError:
            continue
    if not found:
        raise InvalidInputError(f"MapsCallback needs {modules[0]}: pip install 'xai-abn[{extra}]'")
    return type(name, tuple(found), {})


def to_tensorboard(writer: Any) -> Send:
    """Return a function that sends images to a ``SummaryWriter``."""
    return lambda tag, image, step: writer.add_image(tag, np.asarray(image), step, dataformats="HWC")


def to_mlflow(client: Any, run: str) -> Send:
    """Return a function that keeps images as artifacts of a run, by an ``MlflowClient``."""

    def send(tag: str, image: Image.Image, step: int) -> None:
        client.log_image(run, image, f"{re.sub('[^/a-zA-Z0-9_.+-]', '-', tag)}/{step:08}.png")

    return send


def senders(loggers: Iterable[Any], known: Mapping[str, Callable[[Any], Send]]) -> list[Send]:
    """Return how to send images to each logger, and warn of those to which none can be sent.

    Args:
        loggers: the trainer's.
        known: by the name of a logger's class or a class above it, how to make the function.
    """
    found = []
    given = list(loggers)
    for logger in given:
        make = next((known[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in known), None)
        if make is not None:
            found.append(make(logger))
        else:
            _warn(f"no maps are sent to {type(logger).__name__}; use TensorBoard, Weights & Biases or MLflow")
    if not given:
        _warn("no maps are drawn, since the trainer has no logger; use TensorBoard, Weights & Biases or MLflow")
    return found


class TrainingMaps:
    """Draws maps of the same images whenever asked, without a trace in the training.

    The network runs in evaluation mode, as in :func:`xai_abn.explain`, and the random state is put back.

    Args:
        images: see :func:`xai_abn.explain`.
        methods: see :func:`xai_abn.explain`.
        targets: classes, see :func:`xai_abn.explain`; None for the top-1 class of each image at that time.
    """

    def __init__(self, images: Any, methods: str | Explainer | Sequence[str | Explainer] | None, targets: Any) -> None:
        self._images = listed_images(images)
        self._methods = methods
        self._targets = targets_per_image(targets, len(self._images))
        if not self._images:
            raise InvalidInputError("give at least one image whose maps are drawn")
        self._senders: list[Send] = []

    def start(self, network: ModelAdapter | nn.Module, senders: list[Send], step: int, preprocess: Any = None) -> None:
        """Draw the maps of a network before its first step, to compare with and so that every mistake shows at once.

        Args:
            network: to be explained; a bare module is wrapped.
            senders: how to send images to each logger; without any, nothing is ever drawn.
            step: number of the training step.
            preprocess: of a bare module, see :func:`xai_abn.wrap`.

        Raises:
            XaiAbnError: a method does not apply to the network, or an image cannot be read or explained.
        """
        self._senders = senders
        if not senders:
            return
        with seeded(0):
            if not isinstance(network, ModelAdapter):
                first = self._images[0]
                example = first[None] if isinstance(first, Tensor) and first.is_floating_point() else None
                network = wrap(network, preprocess=preprocess, example_input=example)
            self._model = network
            if any(map(_is_part, self._model.module.parameters())):
                raise UnsupportedModelError(
                    f"{self._model.name} is split over several devices (FSDP, DeepSpeed ZeRO-3), and maps need all its "
                    "weights on one; train it in another way, or leave MapsCallback out"
                )
            self._explainers = make_explainers(self._model, self._methods)
        if errors := self.draw(step):
            raise errors[0]

    def draw(self, step: int) -> list[XaiAbnError]:
        """Draw a sheet of each method, send it to all loggers, and return what was wrong with images left out."""
        if not self._senders:
            return []
        try:
            with seeded(0):
                results = list(explain_images(self._model, self._images, self._explainers, self._targets))
        except XaiAbnError as error:
            return [error]
        records = [record for result in results if not isinstance(result, XaiAbnError) for record in result.values()]
        for method in self._explainers:
            panels = [replace(r.panel, title=Path(r.source).name, scale="") for r in records if r.method == method.spec]
            for send in self._senders if panels else ():
                send(f"maps/{method.spec}", sheet(panels), step)
        return [result for result in results if isinstance(result, XaiAbnError)]

    def draw_or_warn(self, step: int) -> None:
        """Draw as :meth:`draw` does; if images fail, as when the training diverges, warn and let it go on."""
        if errors := self.draw(step):
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            _warn(f"a map is not drawn at step {step}: {errors[0].line}{more}")


def _is_part(weight: nn.Parameter) -> bool:
    """Return whether a weight is a part of one that is split over several devices."""
    return hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") or type(weight).__name__ == "FlatParameter"


def _warn(text: str) -> None:
    warnings.warn(text, XaiAbnWarning, stacklevel=2)
