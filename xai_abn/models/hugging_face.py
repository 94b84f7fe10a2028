"""Image classifiers of Hugging Face transformers by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xai_abn.errors import InvalidInputError, WeightsError, XaiAbnError
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.metadata import as_preprocess, image_processor
from xai_abn.models.zero_shot import zero_shot


def load_hugging_face(
    name: str, weights: str | Path | None, classes: int | None, labels: Sequence[str] | None
) -> ModelAdapter:
    """Load an image classifier, or a network that segments or detects, with its labels and preprocessing.

    A network that compares images with texts, such as CLIP, becomes a classifier of ``labels``; see
    :func:`xai_abn.zero_shot`.

    Args:
        name: of a model on the hub, which is downloaded, or a folder made by ``save_pretrained``.
        weights: ``"random"`` for an untrained network, else None.
        classes: number of classes of an untrained network; default: the model's own.
        labels: the texts that images are compared with.

    Raises:
        InvalidInputError: transformers is not installed, ``weights`` is a file, there are no texts, or the network is
            for video.
        WeightsError: the model cannot be loaded, or is not an image classifier.
    """
    auto = _transformers()
    if weights not in (None, "random"):
        raise InvalidInputError(
            f"hf:{name} is loaded with the weights in its folder, got weights={str(weights)!r}; save a fine-tuned "
            "model with model.save_pretrained(DIR) and give hf:DIR"
        )
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise WeightsError(f"hf:{name}: no such folder")
    with _quiet(auto), _as_weights_error(name):
        config = auto.AutoConfig.from_pretrained(name)
        if _compares_with_texts(auto, config):
            if labels is None:
                raise InvalidInputError(f"hf:{name} compares images with texts; give them as labels=[...] or --labels")
            network = auto.AutoModel.from_pretrained(name) if weights is None else auto.AutoModel.from_config(config)
            processor = auto.AutoProcessor.from_pretrained(name)
            return zero_shot(network.eval(), processor, labels, name=f"hf:{name}")
        kind = _kind(auto, config)
        if any(architecture.endswith("ForVideoClassification") for architecture in config.architectures or ()):
            raise InvalidInputError(
                f"hf:{name} classifies videos, and how it prepares frames cannot be read from its folder; load it with "
                "AutoModelForVideoClassification and give it to xai_abn.wrap(..., preprocess=ClipPreprocess(...))"
            )
        if weights is None:
            module, report = kind.from_pretrained(name, output_loading_info=True)
            missing = sorted(report["missing_keys"])
        else:
            if classes is not None:
                config = copy.deepcopy(config)
                config.num_labels = classes
            module, missing = kind.from_config(config), []
        processor = image_processor(name)
    if missing:
        raise WeightsError(
            f"hf:{name} has no weights for {', '.join(missing[:3])}, so it is not a trained image classifier; give one "
            "that was fine-tuned to classify"
        )
    detects = kind is auto.AutoModelForObjectDetection
    preprocess = None if processor is None else _for_detection(processor) if detects else as_preprocess(processor)
    adapter = wrap(module.eval().to(memory_format=torch.channels_last), preprocess=preprocess, name=f"hf:{name}")
    return replace(adapter, weights=str(weights or "pretrained"))


def _kind(transformers: Any, config: Any) -> Any:
    """Return the class that loads a network: of its kind if it segments or detects, else of an image classifier."""
    for kind in ("SemanticSegmentation", "ObjectDetection"):
        if any(name.endswith(f"For{kind}") for name in config.architectures or ()):
            return getattr(transformers, f"AutoModelFor{kind}")
    return transformers.AutoModelForImageClassification


def _for_detection(processor: Any) -> Preprocess:
    """Return the preprocessing of a detector: the whole image, squashed to a square of the processor's shorter side."""
    size = dict(processor.size)
    normalized = getattr(processor, "do_normalize", True)
    return Preprocess(
        size=size.get("shortest_edge") or size["height"],
        crop="squash",
        interpolation="bilinear",
        mean=tuple(processor.image_mean) if normalized else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalized else (1.0, 1.0, 1.0),
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidInputError("hf: models need transformers: pip install 'xai-abn[transformers]'") from error
    return transformers


def _compares_with_texts(transformers: Any, config: Any) -> bool:
    kinds = transformers.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
    return type(config) in kinds and config.architectures == [kinds[type(config)].__name__]


@contextmanager
def _as_weights_error(name: str) -> Iterator[None]:
    try:
        yield
    except XaiAbnError:
        raise
    except Exception as error:  # the library raises many kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise WeightsError(
            f"hf:{name} cannot be loaded ({reason}); give the name of an image classifier on the hub, or a folder made "
            "by model.save_pretrained(DIR) and processor.save_pretrained(DIR)"
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep reports and progress bars of the library off the terminal; what matters is an error or a note of ours."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
