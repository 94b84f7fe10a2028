"""Maps of fixed images after each epoch, in the loggers of the Trainer of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from xai_abn.explainers import Explainer
from xai_abn.integrations.training_maps import Send, TrainingMaps, base_class, senders, to_mlflow, to_tensorboard
from xai_abn.models.adapter import ModelAdapter

_TrainerCallback: Any = base_class(["transformers"], "TrainerCallback", "transformers")


def _to_wandb(_logger: Any) -> Send:
    """Return a function that sends images to the run that the trainer started, with its steps."""
    import wandb

    return lambda tag, image, step: wandb.run.log({tag: wandb.Image(image), "train/global_step": step})


def _to_active_run(_logger: Any) -> Send:
    """Return a function that keeps images in the run of MLflow that the trainer started."""
    import mlflow

    return to_mlflow(mlflow.MlflowClient(), mlflow.active_run().info.run_id)


#: How images are sent to a logger, by the name of its class.
_LOGGERS = {
    "TensorBoardCallback": lambda logger: to_tensorboard(logger.tb_writer),
    "WandbCallback": _to_wandb,
    "MLflowCallback": _to_active_run,
}


class MapsCallback(_TrainerCallback):  # type: ignore[misc]
    """Draws maps of fixed images before the first step and after each epoch, a sheet for each method.

    They go to the trainer's own loggers, those in ``report_to``: TensorBoard, Weights & Biases and MLflow, with the tag
    ``maps/<method>``. Other loggers give a warning. Only the first process draws. The training does not change by it:
    the network runs in evaluation mode, and modes and random states are put back.

    Args:
        trainer: the ``Trainer``, whose loggers a callback cannot find by itself.
        images: always the same ones: see :func:`xai_abn.explain`.
        methods: see :func:`xai_abn.explain`.
        targets: classes, see :func:`xai_abn.explain`; default: the top-1 class of each image at that time.
        network: from the trainer's model to the network or :class:`~xai_abn.ModelAdapter` to explain; default: the
            model with the trainer's image processor, if it has one.

    Raises:
        InvalidInputError: transformers is not installed; no image; or another number of targets.

    Add it with ``trainer.add_callback(MapsCallback(trainer, images))``.
    """

    def __init__(
        self,
        trainer: Any,
        images: Any,
        methods: str | Explainer | Sequence[str | Explainer] | None = None,
        targets: Any = None,
        *,
        network: Callable[[Any], ModelAdapter | nn.Module] | None = None,
    ) -> None:
        self._trainer, self._maps, self._network = trainer, TrainingMaps(images, methods, targets), network

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Draw the maps before the first step.

        Raises:
            XaiAbnError: a method does not apply to the network, or an image cannot be read or explained.
        """
        if not state.is_world_process_zero:
            return
        from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        loggers = [c for c in self._trainer.callback_handler.callbacks if isinstance(c, kinds)]
        network = model if self._network is None else self._network(model)
        self._maps.start(network, senders(loggers, _LOGGERS), state.global_step, others.get("processing_class"))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Draw the maps after an epoch."""
        if state.is_world_process_zero:
            self._maps.draw_or_warn(state.global_step)
