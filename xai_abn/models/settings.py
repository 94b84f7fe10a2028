"""Which classifier a command works on. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field

from xai_abn.settings import MAX_SIZE, Settings

if TYPE_CHECKING:
    from xai_abn.models.adapter import ModelAdapter

#: Names of the ways to compute logits; see :mod:`xai_abn.models.backends`.
BackendName: TypeAlias = Literal["network", "folded", "cuda-graph", "onnxruntime", "openvino", "torch-compile"]


class PredictionSettings(Settings):
    """How the network is asked where a method or metric needs many predictions."""

    backend: BackendName | None = Field(
        None,
        description="Backend that predicts changed images and computes maps that need no gradients. Without it, the "
        "fastest one that agrees with the network.",
    )


class ModelSettings(Settings):
    """The classifier: arguments of :func:`xai_abn.load_model` that commands take and distillation records."""

    model: str = Field(
        "abn-lite0-masks",
        description="abn-lite0-masks, abn-lite0, lite0, timm:NAME, torchvision:NAME, hf:NAME, onnx:FILE, the path of a "
        "checkpoint or the folder of a run.",
    )
    weights: str | None = Field(
        None,
        description="File with weights of a timm or torchvision model, or 'random' for an untrained one. Without it "
        "the library downloads its pretrained weights.",
    )
    classes: int | None = Field(
        None, ge=1, description="Number of classes of the model. Without it as many as the weights have."
    )
    labels: str | None = Field(
        None, description="Text file with the name of one class in each line, in the model's order."
    )
    outputs: Literal["classes", "attributes", "values"] | None = Field(
        None,
        description="What the outputs are: logits of classes, of which one holds; logits of attributes, of which "
        "several can hold; or values without probabilities, as in regression. Default: what the model declares.",
    )
    size: int | None = Field(
        None,
        ge=1,
        le=MAX_SIZE,
        description="Height and width of the model's input in pixels. Without it the model's own.",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="Mean by which the model's inputs are normalized, such as 0.5,0.5,0.5. Without it the model's own.",
    )
    std: tuple[float, ...] | None = Field(
        None,
        description="Standard deviation by which the model's inputs are normalized, such as 0.5,0.5,0.5. Without it "
        "the model's own.",
    )

    def load(self, device: str = "cpu") -> ModelAdapter:
        """Return the classifier on a device; see :func:`xai_abn.load_model` for the errors."""
        from xai_abn.models.zoo import load_model

        arguments = {name: getattr(self, name) for name in ModelSettings.model_fields if name != "model"}
        return load_model(self.model, device=device, **arguments)
