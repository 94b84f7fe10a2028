"""ONNX files as models: black boxes with the labels and the preprocessing that xai-abn notes in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xai_abn.errors import CheckpointError, InvalidInputError
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.metadata import as_labels
from xai_abn.networks.onnx import OnnxNetwork

#: The mean and deviation that are assumed of one channel: those of ImageNet, averaged over its three.
_GRAY: dict[str, Any] = {"mean": (0.449,), "std": (0.226,)}


def load_onnx(path: str | Path) -> ModelAdapter:
    """Load an ONNX file as a black box.

    A file that :func:`xai_abn.integrations.onnx.export_onnx` wrote says its preprocessing and labels. Of others, the
    size of the input is read if it is fixed, and ImageNet's mean and standard deviation are assumed.

    Raises:
        CheckpointError: the file is missing or damaged.
        InvalidInputError: onnx or onnxruntime is not installed.
        UnsupportedModelError: it does not take images or gives no class scores.
    """
    network = OnnxNetwork(path)
    channels, height, width = network.shape
    plain = Preprocess() if channels == 3 else replace(Preprocess(), **_GRAY)
    height, width = height or plain.size, width or height or plain.size
    preprocess = replace(plain, size=height, width=None if width == height else width)
    adapter = ModelAdapter(
        network.eval(), name=network.name, preprocess=preprocess, weights=str(path), assumed_preprocessing=True
    )
    if "xai-abn" in network.metadata:
        adapter = _as_noted(adapter, network)
    elif network.takes_pixels:
        network.pixels = (preprocess.mean, preprocess.std)
        adapter = replace(adapter, assumed_preprocessing=False)  # it normalizes them itself
    if channels not in (1, 3):
        adapter = replace(adapter, example_input=torch.zeros(1, channels, height, width))
    return adapter


def _as_noted(adapter: ModelAdapter, network: OnnxNetwork) -> ModelAdapter:
    """Return the model with what an export of ours notes of it."""
    notes = network.metadata
    try:
        labels = json.loads(notes["labels"])
        network.maps = {
            method: (output, layer) for method, (output, layer) in json.loads(notes.get("maps", "{}")).items()
        }
        return replace(
            adapter,
            preprocess=Preprocess.from_dict(json.loads(notes["preprocess"])),
            labels=None if labels is None else as_labels(labels),
            multi_label=bool(json.loads(notes["multi_label"])),
            assumed_preprocessing=False,
        )
    except (KeyError, TypeError, ValueError, InvalidInputError) as error:
        raise CheckpointError(
            f"{network.name} says that xai-abn wrote it, and its metadata cannot be read ({error}); give it as it was "
            "exported"
        ) from error
