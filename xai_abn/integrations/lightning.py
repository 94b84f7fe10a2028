"""Maps of fixed images after each epoch, in the loggers of a Lightning trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from xai_abn.explainers import Explainer
from xai_abn.integrations.training_maps import TrainingMaps, base_class, senders, to_mlflow, to_tensorboard
from xai_abn.models.adapter import ModelAdapter

_Callback: Any = base_class(["lightning.pytorch", "pytorch_lightning"], "Callback", "lightning")
#: How images are sent to a logger, by the name of its class.
_LOGGERS = {
    "TensorBoardLogger": lambda logger: to_tensorboard(logger.experiment),
    "WandbLogger": lambda logger: lambda tag, image, step: logger.log_image(tag, [image], step=step),
    "MLFlowLogger": lambda logger: to_mlflow(logger.experiment, logger.run_id),
}


class MapsCallback(_Callback):  # type: ignore[misc]
    """Draws maps of fixed images before the first step and after each epoch, a sheet for each method.

    They go to the trainer's own loggers: TensorBoard, Weights & Biases and MLflow, with the tag
    ``maps/<method>``. Other loggers give a warning. Only the first process draws. The training does not change by it:
    the network runs in evaluation mode, and modes and random states are put back.

    Args:
        images: always the same ones: see :func:`xai_abn.explain`.
        methods: see :func:`xai_abn.explain`.
        targets: classes, see :func:`xai_abn.explain`; default: the top-1 class of each image at that time.
        network: from the ``LightningModule`` to the network or :class:`~xai_abn.ModelAdapter` to explain; default: the
            module itself, whose ``forward`` gives logits. Use it to give preprocessing, labels or a layer, as in
            ``lambda module: xai_abn.wrap(module.model, labels=["cat", "dog"])``.

    Raises:
        InvalidInputError: Lightning is not installed; no image; or another number of targets.
    """

    def __init__(
        self,
        images: Any,
        methods: str | Explainer | Sequence[str | Explainer] | None = None,
        targets: Any = None,
        *,
        network: Callable[[Any], ModelAdapter | nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self._maps, self._network = TrainingMaps(images, methods, targets), network

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the maps before the first step.

        Raises:
            XaiAbnError: a method does not apply to the network, or an image cannot be read or explained.
        """
        if trainer.is_global_zero:
            network = pl_module if self._network is None else self._network(pl_module)
            self._maps.start(network, senders(trainer.loggers, _LOGGERS), trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw the maps after an epoch."""
        if trainer.is_global_zero:
            self._maps.draw_or_warn(trainer.global_step)
