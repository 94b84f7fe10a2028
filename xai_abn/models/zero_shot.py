"""Texts as classes: the image encoders of CLIP and SigLIP as classifiers."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xai_abn.errors import InvalidInputError, UnsupportedModelError
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.adapter import ModelAdapter, wrap


class CosineScores(nn.Module):
    """Scores images by their similarity with texts or other images.

    Args:
        encoder: images (N, 3, H, W) to features (N, D).
        others: (K, D) features of the texts or images.
        scale: factor of the cosine similarity.
        bias: added to it.
    """

    def __init__(self, encoder: nn.Module, others: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.others: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.register_buffer("others", others / others.norm(dim=1, keepdim=True))
        self.register_buffer("scale", scale.detach())
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias.detach())

    def forward(self, images: Tensor) -> Tensor:
        """Return one score per text or image, (N, K)."""
        features = self.encoder(images)
        similarity: Tensor = (features / features.norm(dim=1, keepdim=True)) @ self.others.T
        return similarity * self.scale + self.bias


class _ImageFeatures(nn.Module):
    """The image side of a network of Hugging Face; the text side is left out of the copy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.copy(network)
        self.network._modules = {n: m for n, m in network._modules.items() if not n.startswith("text")}

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (N, D)."""
        network: Any = self.network
        return _pooled(network.get_image_features(pixel_values=images))


def zero_shot(
    model: nn.Module,
    processor: Any,
    texts: Sequence[str],
    *,
    layer: str | None = None,
    name: str | None = None,
    preprocess: Preprocess | None = None,
) -> ModelAdapter:
    """Make a classifier whose classes are texts, of a network that compares images with texts.

    The texts are encoded once. Every method then explains the similarity of an image with a text, and
    :class:`xai_abn.Difference` that with one text rather than another.

    Args:
        model: a network of Hugging Face transformers with ``get_image_features`` and ``get_text_features``, such as
            ``CLIPModel`` or ``SiglipModel``, or one of open_clip.
        processor: its processor (Hugging Face) or its tokenizer (open_clip).
        texts: K texts, such as ``"a dog"``; they become the labels.
        layer: the target layer of CAM methods, inside ``encoder``; default: it is found.
        name: its name in results; default: the class name of the network.
        preprocess: how images become inputs; default: that of the image processor, or what open_clip's network carries.

    Returns:
        The classifier. Its probabilities are a softmax over the texts, or for a network with a bias of its logits, as
        SigLIP, a sigmoid for each text.

    Raises:
        InvalidInputError: no text, one that is empty or too long, or a processor that does not belong to the model.
        UnsupportedModelError: the network does not compare images with texts.

    Example::

        place = "openai/clip-vit-base-patch32"
        model = xai_abn.zero_shot(
            CLIPModel.from_pretrained(place), CLIPProcessor.from_pretrained(place), ["a dog", "a bicycle"]
        )
        xai_abn.explain(model, "street.jpg", ["grad-cam"], targets=["a bicycle"])

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section
    3.1; for the sigmoid Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """
    texts = _checked(texts)
    encoder = image_encoder(model)
    if encoder is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not compare images with texts: expected get_image_features and "
            "get_text_features, as in CLIPModel of transformers, or encode_text and visual, as in open_clip"
        )
    of_hugging_face = isinstance(encoder, _ImageFeatures)
    features = _features_of_hugging_face if of_hugging_face else _features_of_open_clip
    with torch.no_grad():
        encoded = features(model, processor, texts)
    bias = getattr(model, "logit_bias", None)
    network: Any = model
    if preprocess is None and of_hugging_face:
        preprocess = processor.image_processor
    return wrap(
        CosineScores(encoder, encoded, network.logit_scale.exp(), bias).eval(),
        labels=texts,
        preprocess=preprocess,
        layer=layer,
        name=name or type(model).__name__,
        multi_label=bias is not None,
    )


def image_encoder(model: nn.Module) -> nn.Module | None:
    """Return the image side of a network that compares images with texts, images to features (N, D); else None."""
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return _ImageFeatures(model)
    visual = getattr(model, "visual", None)
    return visual if hasattr(model, "encode_text") and isinstance(visual, nn.Module) else None


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not hasattr(texts, "__iter__"):
        raise InvalidInputError(f"texts must be a list of texts, got {texts!r}; for a single one give [{texts!r}]")
    listed = list(texts)
    wrong = next((text for text in listed if not isinstance(text, str) or not _has_words(text)), None)
    if wrong is not None or not listed:
        got = listed[:5] if wrong is None else wrong
        raise InvalidInputError(f"texts must be one or several texts with words, got {got!r}")
    return [" ".join(text.split()) for text in listed]


def _has_words(text: str) -> bool:
    """Return whether a text has anything but blanks and punctuation: letters, digits or symbols."""
    return any(unicodedata.category(letter)[0] in "LNS" for letter in text)


def _features_of_hugging_face(model: Any, processor: Any, texts: list[str]) -> Tensor:
    """Return the features (K, D) of texts, padded as the networks were trained."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "image_processor"):
        raise InvalidInputError(
            f"{type(model).__name__} needs its processor, which holds a tokenizer and an image processor, got "
            f"{type(processor).__name__}; load it with AutoProcessor.from_pretrained"
        )
    config = getattr(model.config, "text_config", model.config)
    longest = config.max_position_embeddings
    _check_lengths(texts, [len(tokenizer(text)["input_ids"]) for text in texts], longest)
    tokens = tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    tokens = {key: tokens[key].to(model.device) for key in ("input_ids", "attention_mask") if key in tokens}
    return _pooled(model.get_text_features(**tokens))


def _features_of_open_clip(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    if not callable(tokenizer):
        raise InvalidInputError(
            f"{type(model).__name__} needs its tokenizer, as of open_clip.get_tokenizer(NAME), got "
            f"{type(tokenizer).__name__}"
        )
    if hasattr(tokenizer, "encode"):  # with a token at each end
        _check_lengths(texts, [len(tokenizer.encode(text)) + 2 for text in texts], tokenizer.context_length)
    tokens: Tensor = tokenizer(texts)
    features: Tensor = model.encode_text(tokens.to(next(model.parameters()).device))
    return features


def _check_lengths(texts: list[str], lengths: list[int], longest: int) -> None:
    for text, length in zip(texts, lengths, strict=True):
        if length > longest:
            raise InvalidInputError(f"the text {text[:60]!r} has {length} tokens, and the model reads {longest}")


def _pooled(output: Any) -> Tensor:
    """Return features, which later versions of transformers return among others."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
